"""What a person means who names a study: its file, or the name that a storage remembers it by."""

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

_SHOWN = 20  # names in one message


@dataclass(frozen=True, slots=True)
class Found:
    """A study and its trials in the order of its plan, whether they have a row or not.

    `text` is that of its file, and None where the storage remembers the study.
    """

    name: str
    members: tuple[Member, ...]
    text: str | None = field(default=None, compare=False)

    @property
    def trial_ids(self) -> list[str]:
        """The ids of its trials."""
        return [member.trial_id for member in self.members]


def find_study(storage: Storage, text: str, settings: Sequence[str] = ()) -> Found:
    """The study in a file, after `settings`; where there is no such file, the one that the storage remembers so.

    A file is asked for what it says now, a name for what its last launch wanted. Raises StudyError for a faulty file,
    and KdctlError where there is neither, or where there are settings for a remembered one.
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
        raise KdctlError(_neither(storage, text, list(known)))
    plan = make_plan(load_study(text, settings))  # also of a pipe like <(…); a folder is refused there
    return Found(plan.study, stored_studies.members(plan), plan.text)


def describe_other_settings(storage: Storage, found: Found) -> str | None:
    """Why no trial of a study has a row, where that is so as it was launched with other settings; None elsewhere."""
    if found.name not in {stored.name for stored in stored_studies.list_studies(storage)}:
        return None
    return (
        f"study {found.name} was launched with {storage.backend.describe('')}, but with other settings: none of these "
        f"{len(found.members):,} trials has begun"
    )


def _is_file(text: str) -> bool:
    with suppress(OSError, PathError):  # longer than a name can be, or no path at all
        return local(text, "study").is_file()
    return False


def _exists(text: str) -> bool:
    with suppress(OSError, PathError):
        return local(text, "study").exists()
    return False


def _neither(storage: Storage, text: str, known: list[str]) -> str:
    shown, place = printable(shorten(text)), storage.backend.describe("")
    head = f"{shown}: there is no such file, and no study of this name in {place}"
    if not known:
        return f"{head}, which has no studies; name another storage with --storage, or {_guess(text, [])}"
    listed = ", ".join([*known[:_SHOWN], *(["…"] if len(known) > _SHOWN else [])])
    return f"{head}, which remembers {listed}; {_guess(text, known)}"


def _guess(text: str, known: list[str]) -> str:
    file = printable(nearest_file(Path(text)))
    return nearest(text, known) if known and not file.startswith("did") else file
