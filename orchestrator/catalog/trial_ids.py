"""Trials by what a person types: a whole id, the beginning of one, or the nearest known one in the answer."""

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

_SHOWN = 10  # ids in one message
_LONGEST = 40  # characters of a text that are looked at
_ALIKE = 0.7  # two ids have up to half of their digits in common by chance


def list_known(storage: Storage) -> dict[str, str]:
    """Every trial that a storage has heard of, with what a person calls it, if that is remembered: `logit digits …`.

    Trials of remembered studies come first, in the order of their plans; those that have but a row come after, with
    an empty title. Raises StorageError where the storage cannot be read.
    """
    titles = {
        member.trial_id: member.title
        for study in reversed(stored_studies.list_studies(storage))
        for member in study.members
    }
    names = (entry.name for entry in storage.backend.list_files(storage.trial_rows) if storage.is_ours(entry.name))
    return {**titles, **{trial_id: "" for name in names if (trial_id := PurePosixPath(name).stem) not in titles}}


def resolve(storage: Storage, text: str) -> str:
    """The id of the trial that a person means by a whole id or its beginning.

    Raises KdctlError where no trial of the storage begins so, naming the nearest one, and where several do, naming
    them with their titles.
    """
    text = text.strip().lower()
    if is_trial_id(text) and storage.backend.stat(storage.trial_row(text)):
        return text  # without a look at all the others
    trials = list_known(storage)
    if not trials:
        raise KdctlError(
            f"no trial {printable(text)!r}: {storage.backend.describe('')} holds no trial yet; launch a study with "
            "`kdctl launch FILE`, or name its storage with --storage"
        )
    titles = partial(read_titles, storage, trials)
    return choose(text, list(trials), titles, "trial", "`kdctl plan FILE` lists those of a study")


def read_titles(storage: Storage, trials: dict[str, str], trial_ids: Sequence[str]) -> list[str]:
    """What each is called: as `trials` has it (see `list_known`), else from its row, else nothing."""
    from orchestrator.results import store  # loads Arrow, which a shell's completion need not wait for

    missing = [trial_id for trial_id in trial_ids if not trials.get(trial_id)]
    rows = store.read_trials(storage, missing) if missing else []
    found = {**trials, **{row.trial_id: labels.title(row) for row in rows}}
    return [found.get(trial_id, "") for trial_id in trial_ids]


def choose(text: str, ids: Sequence[str], titles: Callable[[Sequence[str]], list[str]], noun: str, fix: str) -> str:
    """The one id that is `text` or begins so.

    `titles` is asked for what ids are called where several or none fit; `fix` says what lists them. Raises KdctlError
    as `resolve` does.
    """
    found = [known_id for known_id in ids if known_id.startswith(text)]
    if text in found or len(found) == 1:
        return text if text in found else found[0]
    shown = printable(text[:_LONGEST])
    if found:
        lines = [f"  {known_id}  {title}".rstrip() for known_id, title in _titled(found[:_SHOWN], titles)]
        more = [f"  and {len(found) - _SHOWN:,} more"] if len(found) > _SHOWN else []
        head = f"{shown!r} is the beginning of {len(found):,} {noun}s; write more digits:"
        raise KdctlError("\n".join([head, *lines, *more]))
    if near := _nearest(text, ids):
        ((_, title),) = _titled([near], titles)
        raise KdctlError(f"no {noun} {shown!r}; did you mean {near}{f' ({title})' if title else ''}? {fix}")
    raise KdctlError(f"no {noun} {shown!r}; expected an id of 12 hex digits, or its beginning; {fix}")


def _titled(ids: Sequence[str], titles: Callable[[Sequence[str]], list[str]]) -> list[tuple[str, str]]:
    return [(known_id, printable(title)) for known_id, title in zip(ids, titles(ids), strict=True)]


def _nearest(text: str, ids: Sequence[str]) -> str | None:
    """The id whose beginning is most like a text; none where that is no typing error any more."""
    beginnings = {known_id[: max(len(text), 1)]: known_id for known_id in reversed(ids)}
    close = difflib.get_close_matches(text[:_LONGEST], list(beginnings), n=1, cutoff=_ALIKE)
    return beginnings[close[0]] if close else None
