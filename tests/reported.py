"""Invented studies that consist of rows, for tests of the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.records import EpochRecord, State, TrialRecord
from orchestrator.report.content import Facts, Source, gather
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.study.stored_studies import Member

SETTING = "epochs=10 batch_size=32"  # of every row, beside its method
NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
START = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
TEACHER = "f" * 12
HOSTILE = (
    "<script>alert(1)</script>",
    "</style><b>bold</b>",
    '"onmouseover="alert(1)" x="',
    "\u202eright to left\u202c",
    "{{ 7 * 7 }} {% raw %}",
    "]]><!-- --> &amp; | `code` [a](http://example.org)",
)


def row(no: int, method: str = "base", acc: float | None = 90.0, **overrides: Any) -> TrialRecord:
    """A finished trial of a ResNet-8 on digits, taught by the trial `TEACHER` unless it is `base`."""
    taught = {"teacher": "resnet_32_20", "teacher_id": TEACHER, "teacher_acc": 95.0, "agreement": 93.0}
    trained = {"epochs": 10, "batch_size": 32}
    taught_by = None if method == "base" else {"seed": 0, **trained}
    recipe = {**trained, "options": overrides.pop("options", {}), "teacher": taught_by}
    filled: dict[str, Any] = {
        **dict.fromkeys(field.name for field in fields(TrialRecord)),
        **{"no": no, "method": method, "dataset": "digits", "student": "resnet_32_8", "seed": no},
        **{"start_time": START + timedelta(minutes=no), "end_time": START + timedelta(minutes=no + 1)},
        **{"acc": acc, "last_acc": acc, "epoch": 9, "nepoch": 10, "lr": 0.1, "batch_size": 32},
        **{"trial_id": f"{no:012x}", "study": "made up", "state": State.FINISHED, "params": 78_042, "seconds": 10.0},
        **{"images_per_second": 1000.0, "device": "cpu, 1 threads", "host": "here", "kdctl_version": "0.1.0"},
        **{"torch_version": "2.11.0", "recipe": recipe, "resumed": 0},
        **({} if method == "base" else taught),
    }
    return TrialRecord(**{**filled, **overrides})


def teacher() -> TrialRecord:
    """The trial that taught."""
    return row(0, acc=95.0, student="resnet_32_20", trial_id=TEACHER, seconds=40.0, params=272_474)


def study() -> list[TrialRecord]:
    """A teacher, three runs each of base and logit, and one that failed."""
    bases = [row(no, "base", 90.0 + no, seed=no) for no in (1, 2, 3)]
    students = [row(10 + no, "logit", 91.0 + no, seed=no) for no in (1, 2, 3)]
    failed = row(20, "st", None, seed=1, state=State.FAILED, error="the mean training loss is nan", nepoch=10)
    return [teacher(), *bases, *students, failed]


def member(record: TrialRecord, title: str | None = None) -> Member:
    """The trial as the storage remembers it."""
    named = title or f"{record.method} {record.dataset} {record.student} seed {record.seed}"
    return Member(record.trial_id, "student", named, record.teacher_id, record.nepoch, None, False)


def epoch(number: int, acc: float) -> EpochRecord:
    """An epoch with an accuracy."""
    return EpochRecord(number, 0.1, 1.0, 1.0, None, acc, 0.5, acc, None, 1.0, 1000.0)


def fill(storage: Storage, rows: Iterable[TrialRecord], epochs: int = 10) -> None:
    """Writes rows, and epochs that climb to the last accuracy of each."""
    for record in rows:
        store.write_trial(storage, record)
        last = 30.0 if record.last_acc is None else record.last_acc
        made = [epoch(number, last - (epochs - number)) for number in range(1, epochs + 1)]
        store.write_epochs(storage, record.trial_id, made)


def facts(
    storage: Storage,
    rows: Sequence[TrialRecord],
    more: Sequence[Member] = (),
    name: str = "made up",
    text: str = "a: 1",
) -> Facts:
    """The facts of a study that consists of these, once they are written."""
    source = Source(("kdctl", "launch", "study.yaml", "--set", "recipe.epochs=10"), text, START, "here")
    return gather(storage, name, [*map(member, rows), *more], source, NOW)
