"""`kdctl logs`: the log of a trial, or of a study on a cluster."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from orchestrator.commands.shared.jobs import print_log
from orchestrator.commands.shared.options import (
    address_option,
    storage_option,
    trial_argument,
)

if TYPE_CHECKING:
    from orchestrator.storage.layout import Storage


_PERIOD = 1.0  # seconds between two reads of a log


_MAX_LISTED = 100  # trials that are listed if none is given


@click.command()
@trial_argument
@storage_option
@address_option
@click.option("--lines", type=click.IntRange(min=1), metavar="N", help="Print only the last N lines.")
@click.option("--follow", is_flag=True, help="Keep printing new lines until the trial ends.")
def logs(trial: str | None, storage: str, address: str | None, lines: int | None, follow: bool) -> None:
    """Print the log of a TRIAL; the beginning of its id is enough.

    With --address, print instead the log of a study that was submitted to that cluster; TRIAL is
    then the study's name or the id of its job.

    \b
    Examples:
      kdctl logs 3f2a
      kdctl logs 3f2a --lines 20 --follow
      kdctl logs resnet-logit --address http://127.0.0.1:8265 --follow
    """
    from orchestrator.storage.layout import Storage

    if address:
        print_log(address, trial, lines, follow=follow)
    elif trial is None:
        raise click.UsageError(_describe_missing_trial(Storage.at(storage)))
    else:
        _print_log(Storage.at(storage), trial, lines, follow=follow)


def _describe_missing_trial(opened: Storage) -> str:
    """An error about the missing argument that lists the trials of the last study."""
    from orchestrator.columns import table, width_of
    from orchestrator.study.stored_studies import list_studies

    found = next(iter(list_studies(opened)), None)
    if found is None:
        where = opened.backend.describe("")
        return f"Missing argument 'TRIAL'; {where} holds no study yet; launch one, or name another --storage"
    rows = [(member.trial_id, member.display_name) for member in found.members[:_MAX_LISTED]]
    left = len(found.members) - len(rows)
    more = f"\nand {left:,} more; `kdctl status {found.name}` lists all" if left else ""
    trials = table(("id", "trial"), rows, width_of(sys.stderr))
    how = "the beginning of an id is enough"
    return f"Missing argument 'TRIAL'; {how}. The trials of study {found.name}:\n\n{trials}{more}"


def _print_log(opened: Storage, trial: str, lines: int | None, *, follow: bool) -> None:
    from orchestrator.catalog.trial_ids import resolve
    from orchestrator.errors import KdctlError
    from orchestrator.storage import logs as stored
    from orchestrator.text import printable

    trial_id = resolve(opened, trial)
    lines_before = stored.read(opened, trial_id)
    if not lines_before and not follow:
        raise KdctlError(f"trial {trial_id} has no log in this storage: it has not started yet, or its log was deleted")
    _echo([printable(line) for line in lines_before[-(lines or len(lines_before)) :]])
    while follow:
        is_over = _is_over(opened, trial_id)
        now = stored.read(opened, trial_id)
        _echo([printable(line) for line in _new_lines(lines_before, now)])
        lines_before = now
        if is_over:
            return
        time.sleep(_PERIOD)


def _echo(lines: Sequence[str]) -> None:
    for line in lines:
        click.echo(line)


def _new_lines(before: Sequence[str], now: Sequence[str]) -> Sequence[str]:
    """The lines that were added to a log since it was last read; its first lines may have been dropped meanwhile."""
    if not before:
        return now
    end_before = list(before[-10:])
    for end in range(len(now), len(end_before) - 1, -1):
        if list(now[end - len(end_before) : end]) == end_before:
            return now[end:]
    return now


def _is_over(storage: Storage, trial_id: str) -> bool:
    """Whether a trial has a row with its end, and no launch is training it."""
    from orchestrator.records import State
    from orchestrator.results import store
    from orchestrator.storage import leases

    row = store.read_trial(storage, trial_id)
    ended = row is not None and row.state is not State.RUNNING
    return ended and leases.trial_resource(trial_id) not in leases.list_holders(storage)
