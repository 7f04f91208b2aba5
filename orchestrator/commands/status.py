"""`kdctl status`: where a study stands, read from its storage."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands.shared.jobs import status_of_jobs
from orchestrator.commands.shared.options import (
    address_option,
    json_option,
    storage_option,
    study_argument,
    warn,
)

if TYPE_CHECKING:
    from orchestrator.monitor.follow import Follower
    from orchestrator.monitor.study_status import StudyStatus
    from orchestrator.storage.layout import Storage


_LOOK = 2.0  # seconds between two looks at a storage


_FRAME = 0.25  # seconds between two frames on a terminal, which may have changed its size


@click.command()
@study_argument
@storage_option
@json_option
@address_option
@click.option("--watch", is_flag=True, help="Follow the study until its launch ends.")
def status(study: str | None, storage: str, as_json: bool, address: str | None, watch: bool) -> None:
    """Show where a STUDY stands, wherever it runs: from its storage alone.

    Without a name it is the study that was launched last. With --address it lists the studies that were handed to a
    cluster.

    \b
    Examples:
      kdctl status
      kdctl status --address http://127.0.0.1:8265
      kdctl status experiments.yaml --watch
      kdctl status --storage s3://bucket/folder --json
    """
    from orchestrator.catalog import integrity, lookup
    from orchestrator.monitor.follow import Follower
    from orchestrator.storage.layout import Storage
    from orchestrator.study.stored_studies import find, remembered

    if address and watch:
        raise click.UsageError(f"follow a job by its log: kdctl logs {study or 'STUDY'} --address {address} --follow")
    if address:
        status_of_jobs(address, study, as_json=as_json)
        return
    place = Storage.at(storage)
    found = find(place, lookup.study(place, study).name if study else None)
    others = [] if study else [other.name for other in remembered(place) if other.name != found.name]
    follower = Follower(place, found)
    warn(integrity.lacking(place, [member.trial_id for member in found.members]))
    if watch:
        _follow(follower, place, as_json=as_json)
    else:
        _print(follower.look(), as_json=as_json)
    if others:
        click.echo(f"also in this storage: {', '.join(others[:20])}; name one to see it", err=True)


def _print(board: StudyStatus, *, as_json: bool) -> None:
    from orchestrator.monitor.terminal import printed

    click.echo(json.dumps(_facts(board), ensure_ascii=False) if as_json else printed(board, sys.stdout), nl=as_json)


def _facts(board: StudyStatus) -> dict[str, Any]:
    now = datetime.now(UTC)
    eta = board.eta(now)
    return {
        "time": now.isoformat(), "study": board.study, "running": board.is_running, "executor": board.executor,
        "host": board.host, "since": board.since.isoformat(), "counts": {str(k): n for k, n in board.counts().items()},
        "done": board.share(), "cached": board.cached(), "seconds_left": eta.low if eta else None,
        "seconds_left_at_most": eta.high if eta else None,
        "trials": [standing.to_json() for standing in board.trials.values()],
    }  # fmt: skip


def _boards(follower: Follower, storage: Storage) -> Iterator[StudyStatus]:
    """What each look shows, also of a launch that follows on another; the last one is of a study that does not run."""
    from orchestrator.monitor.follow import Follower
    from orchestrator.study.stored_studies import find

    while True:
        board = follower.look()
        study = follower.study if board.is_running else find(storage, follower.study.name)
        if study.launched.resource == follower.study.launched.resource:
            yield board
            if not board.is_running:
                return
        else:
            follower = Follower(storage, study)


def _follow(follower: Follower, storage: Storage, *, as_json: bool) -> None:
    from orchestrator.monitor.sinks import is_terminal

    if not as_json and is_terminal(sys.stdout):
        _draw(follower, storage)
        return
    before: dict[str, str] = {}
    for board in _boards(follower, storage):
        said = {trial_id: _said(standing) for trial_id, standing in board.trials.items()}
        fresh = [text for trial_id, text in said.items() if before.get(trial_id) != text]
        if as_json and (fresh or not board.is_running):
            _print(board, as_json=True)
        elif before:
            for text in fresh:
                click.echo(f"{time.strftime('%H:%M:%S')} {text}")
        else:
            _print(board, as_json=False)
        before = said
        if board.is_running:
            time.sleep(_LOOK)
    if not as_json:
        _print(board, as_json=False)


def _said(standing: Any) -> str:
    from orchestrator.monitor.study_status import said

    return str(said(standing))


def _draw(follower: Follower, storage: Storage) -> None:
    from orchestrator.monitor.terminal import Frames

    frames = Frames(sys.stdout)
    for board in _boards(follower, storage):
        until = time.monotonic() + _LOOK
        eta = board.eta(datetime.now(UTC))
        while board.is_running and time.monotonic() < until:
            frames.draw(board, eta)
            time.sleep(_FRAME)
    frames.end()
    _print(board, as_json=False)
