"""Finds the trial that a person names by its id or the beginning of one; suggests the nearest id if there is none."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import PurePosixPath

from orchestrator.errors import KdctlError
from orchestrator.records import is_trial_id
from orchestrator.storage.layout import Storage
from orchestrator.study import labels, stored_studies
from orchestrator.text import printable

_MOST_IDS = 10  # in one message
_LONGEST = 40  # characters of a text that are compared and shown
_MIN_SIMILARITY = 0.7  # two ids have up to half of their digits in common by chance


def list_known(storage: Storage) -> dict[str, str]:
    """Lists every trial that a storage knows with its title, such as `logit digits …`.

    Trials of remembered studies come first, in the order of their plans; those that only have a row follow, with an
    empty title. Raises StorageError if the storage cannot be read.
    """
    titles = {
        member.trial_id: member.title
        for study in reversed(stored_studies.list_studies(storage))
        for member in study.members
    }
    names = (entry.name for entry in storage.backend.list_files(storage.trial_rows) if storage.is_ours(entry.name))
    return {**titles, **{trial_id: "" for name in names if (trial_id := PurePosixPath(name).stem) not in titles}}


def resolve(storage: Storage, text: str) -> str:
    """Finds the one trial whose id is this text or begins with it, and returns its id.

    Raises KdctlError if no trial of the storage matches, with the nearest id, and if several match, with their ids and
    titles.
    """
    text = text.strip().lower()
    if is_trial_id(text) and storage.backend.stat(storage.trial_row(text)):
        return text  # without a listing of all trials
    trials = list_known(storage)
    if not trials:
        raise KdctlError(
            f"no trial {printable(text)!r}: {storage.backend.describe('')} holds no trial yet; launch a study with "
            "`kdctl launch FILE`, or name its storage with --storage"
        )
    titles = partial(read_titles, storage, trials)
    return choose(text, list(trials), titles, "trial", "`kdctl plan FILE` lists those of a study")


def read_titles(storage: Storage, trials: dict[str, str], trial_ids: Sequence[str]) -> list[str]:
    """Reads the title of each trial: from `trials` (see `list_known`), else from its row, else an empty one."""
    from orchestrator.results import store  # loads Arrow; a completion in a shell must not wait for that

    missing = [trial_id for trial_id in trial_ids if not trials.get(trial_id)]
    rows = store.read_trials(storage, missing) if missing else []
    found = {**trials, **{row.trial_id: labels.title(row) for row in rows}}
    return [found.get(trial_id, "") for trial_id in trial_ids]


def choose(text: str, ids: Sequence[str], titles: Callable[[Sequence[str]], list[str]], noun: str, fix: str) -> str:
    """Returns the one id that is `text` or begins with it.

    If several or none match, `titles` gives the titles of ids for the message; `fix` says which command lists them.
    Raises KdctlError as `resolve` does.
    """
    found = [known_id for known_id in ids if known_id.startswith(text)]
    if text in found or len(found) == 1:
        return text if text in found else found[0]
    start = printable(text[:_LONGEST])
    if found:
        lines = [f"  {known_id}  {title}".rstrip() for known_id, title in _add_titles(found[:_MOST_IDS], titles)]
        more = [f"  and {len(found) - _MOST_IDS:,} more"] if len(found) > _MOST_IDS else []
        head = f"{start!r} is the beginning of {len(found):,} {noun}s; write more digits:"
        raise KdctlError("\n".join([head, *lines, *more]))
    if near := _find_nearest(text, ids):
        ((_, title),) = _add_titles([near], titles)
        raise KdctlError(f"no {noun} {start!r}; did you mean {near}{f' ({title})' if title else ''}? {fix}")
    raise KdctlError(f"no {noun} {start!r}; expected an id of 12 hex digits, or its beginning; {fix}")


def _add_titles(ids: Sequence[str], titles: Callable[[Sequence[str]], list[str]]) -> list[tuple[str, str]]:
    return [(known_id, printable(title)) for known_id, title in zip(ids, titles(ids), strict=True)]


def _find_nearest(text: str, ids: Sequence[str]) -> str | None:
    """Finds the id whose beginning is most similar to a text; None if no id is similar enough for a typing error."""
    beginnings = {known_id[: max(len(text), 1)]: known_id for known_id in reversed(ids)}
    close = difflib.get_close_matches(text[:_LONGEST], list(beginnings), n=1, cutoff=_MIN_SIMILARITY)
    return beginnings[close[0]] if close else None
