"""Finds the study that a person names: by its file, or by the name under which a storage remembers it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import KdctlError
from orchestrator.machine.paths import PathError, local
from orchestrator.storage.layout import Storage
from orchestrator.study import stored_studies
from orchestrator.study.plan import make_plan
from orchestrator.study.reader import load_study
from orchestrator.study.stored_studies import Member
from orchestrator.text import nearest, nearest_file, printable, shorten

_MOST_NAMES = 20  # in one message


@dataclass(frozen=True, slots=True)
class Found:
    """A study and its trials in the order of its plan, with or without a row.

    `text` is the content of its file; None if the study was found in the storage.
    """

    name: str
    members: tuple[Member, ...]
    text: str | None = field(default=None, compare=False)

    @property
    def trial_ids(self) -> list[str]:
        """The ids of its trials."""
        return [member.trial_id for member in self.members]


def find_study(storage: Storage, text: str, settings: Sequence[str] = ()) -> Found:
    """Finds the study in a file, with `settings` applied; if there is no such file, the remembered study of that name.

    A file gives the study as it is now, a name gives it as it was last launched. Raises StudyError for a faulty file,
    and KdctlError if there is neither, or if there are settings for a remembered study.
    """
    known = {} if _is_file(text) else {stored.name: stored for stored in stored_studies.list_studies(storage)}
    if text in known and not settings:
        return Found(text, known[text].members)
    if text in known:
        raise KdctlError(
            f"--set changes a study file, and there is no file {text!r}; {text} is a study that the storage remembers: "
            f"name its file, which was {printable(known[text].launched.file)}"
        )
    if not _exists(text):
        raise KdctlError(_describe_unknown(storage, text, list(known)))
    plan = make_plan(load_study(text, settings))  # also from a pipe like <(…); load_study refuses a folder
    return Found(plan.study, stored_studies.members(plan), plan.text)


def describe_other_settings(storage: Storage, found: Found) -> str | None:
    """Explains that no trial has a row because the study was launched with other settings; None if that is not so."""
    if found.name not in {stored.name for stored in stored_studies.list_studies(storage)}:
        return None
    return (
        f"study {found.name} was launched with {storage.backend.describe('')}, but with other settings: none of these "
        f"{len(found.members):,} trials has begun"
    )


def _is_file(text: str) -> bool:
    with suppress(OSError, PathError):  # too long for a name, or not a path at all
        return local(text, "study").is_file()
    return False


def _exists(text: str) -> bool:
    with suppress(OSError, PathError):
        return local(text, "study").exists()
    return False


def _describe_unknown(storage: Storage, text: str, known: list[str]) -> str:
    address = storage.backend.describe("")
    head = f"{printable(shorten(text))}: there is no such file, and no study of this name in {address}"
    if not known:
        return f"{head}, which has no studies; name another storage with --storage, or {_suggest(text, [])}"
    listed = ", ".join([*known[:_MOST_NAMES], *(["…"] if len(known) > _MOST_NAMES else [])])
    return f"{head}, which remembers {listed}; {_suggest(text, known)}"


def _suggest(text: str, known: list[str]) -> str:
    file = printable(nearest_file(Path(text)))
    return nearest(text, known) if known and not file.startswith("did") else file
