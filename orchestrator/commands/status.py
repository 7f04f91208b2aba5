"""`kdctl status`: the status of a study, read from its storage."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands.shared.jobs import status_of_jobs
from orchestrator.commands.shared.options import address_option, json_option, storage_option, study_argument, warn

if TYPE_CHECKING:
    from orchestrator.monitor.study_status import StudyStatus

_PERIOD = 2.0  # seconds between two reads of a storage


@click.command()
@study_argument
@storage_option
@json_option
@address_option
@click.option("--watch", is_flag=True, help="Keep updating until the launch ends.")
def status(study: str | None, storage: str, as_json: bool, address: str | None, watch: bool) -> None:
    """Show the progress of a STUDY, read from its storage; the study may run on any machine.

    STUDY is a study file or a study's name; without it, the study that was launched last. With --address it lists the
    studies that were submitted to that cluster.

    \b
    Examples:
      kdctl status
      kdctl status --address http://127.0.0.1:8265
      kdctl status experiments.yaml --watch
      kdctl status --storage s3://bucket/folder --json
    """
    from orchestrator.catalog import integrity, lookup
    from orchestrator.monitor.follow import Follower, follow
    from orchestrator.storage.layout import Storage
    from orchestrator.study.stored_studies import find, list_studies

    if address and watch:
        raise click.UsageError(
            f"--watch does not work with --address; follow the log: kdctl logs {study or 'STUDY'} --address {address} "
            "--follow"
        )
    if address:
        status_of_jobs(address, study, as_json=as_json)
        return
    opened = Storage.at(storage)
    found = find(opened, lookup.find_study(opened, study).name if study else None)
    others = [] if study else [other.name for other in list_studies(opened) if other.name != found.name]
    follower = Follower(opened, found)
    warn(integrity.find_missing(opened, [member.trial_id for member in found.members]))
    if watch:
        _watch(follow(follower, opened), as_json=as_json)
    else:
        _print(follower.read_status(), as_json=as_json)
    if others:
        click.echo(f"also in this storage: {', '.join(others[:20])}; `kdctl status NAME` shows one of them", err=True)


def _print(found: StudyStatus, *, as_json: bool) -> None:
    from orchestrator.monitor.terminal import format_status

    text = json.dumps(_facts(found), ensure_ascii=False) if as_json else format_status(found, sys.stdout)
    click.echo(text, nl=as_json)


def _facts(found: StudyStatus) -> dict[str, Any]:
    from orchestrator.monitor.eta import estimate

    now = datetime.now(UTC)
    eta = estimate(found, now)
    return {
        "time": now.isoformat(), "study": found.study, "running": found.is_running, "executor": found.executor,
        "host": found.host, "since": found.since.isoformat(), "counts": {str(k): n for k, n in found.counts().items()},
        "done": found.share_done(), "cached": found.count_cached(), "seconds_left": eta.low if eta else None,
        "seconds_left_at_most": eta.high if eta else None,
        "trials": [trial.to_json() for trial in found.trials.values()],
    }  # fmt: skip


def _watch(statuses: Iterable[StudyStatus], *, as_json: bool) -> None:
    from orchestrator.monitor.sinks import is_terminal

    if as_json:
        _print_changes(statuses, as_json=True)
    elif is_terminal(sys.stdout):
        _draw(statuses)
    else:
        _print_changes(statuses, as_json=False)


def _draw(statuses: Iterable[StudyStatus]) -> None:
    """Draws the live view; after its end, and after Ctrl-C, the last status stays on the terminal."""
    from orchestrator.monitor.terminal import Frames, Live

    last = None
    try:
        with Live(Frames(sys.stdout)) as live:
            for last in statuses:
                live.show(_replace_by(last))
                if last.is_running:
                    time.sleep(_PERIOD)
    finally:
        if last:
            _print(last, as_json=False)


def _replace_by(newest: StudyStatus) -> Callable[[StudyStatus | None], StudyStatus]:
    return lambda last: newest


def _print_changes(statuses: Iterable[StudyStatus], *, as_json: bool) -> None:
    """Prints the first status, then what changes; as JSON the full status whenever something changes."""
    before: dict[str, str] = {}
    for found in statuses:
        lines = {trial_id: trial.describe() for trial_id, trial in found.trials.items()}
        changed = [line for trial_id, line in lines.items() if before.get(trial_id) != line]
        if as_json:
            if changed or not found.is_running:
                _print(found, as_json=True)
        elif before:
            for line in changed:
                click.echo(f"{time.strftime('%H:%M:%S')} {line}")
        else:
            _print(found, as_json=False)
        before = lines
        if found.is_running:
            time.sleep(_PERIOD)
        elif not as_json:
            _print(found, as_json=False)
