"""One trial from start to end: its rows agree with the saved weights, and a failure becomes a row too."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from orchestrator import codec, losses, models
from orchestrator.data import tensors
from orchestrator.errors import DataError, DivergedError, StorageError, TeacherError
from orchestrator.execution import attempt
from orchestrator.execution.attempt import Job, Report, TakenOver, TrialNotice, run_trial
from orchestrator.monitor.events import TrialStarted
from orchestrator.records import EpochRecord, Failure, State, TableKey, TrialConfig, TrialRecord
from orchestrator.results import store
from orchestrator.storage import leases, logs
from orchestrator.storage.layout import Storage
from orchestrator.study.plan import PlannedTrial

MakeConfig = Callable[..., TrialConfig]
CPU = torch.device("cpu")
PARAMS = 78_042  # of resnet_32_8 with 10 classes, section 4 of the design
MEASURED = {"seconds", "images_per_second", "start_time", "end_time"}  # what differs between two runs of one job


def job_of(config: TrialConfig, storage: Storage, cache: str = "live", weights: Path | None = None) -> Job:
    """A job as a launch makes it."""
    teacher_id = config.teacher.trial_id() if config.teacher else None
    answers = [*losses.METHODS[config.method].needs(dict(config.options)), "logits"][0]
    images = (config.limit_train or 1297) - config.holdout
    views = config.crop_padding, config.flip, images, config.padding
    table = teacher_id and cache == "table" and TableKey(teacher_id, answers, *views)
    planned = PlannedTrial(
        config.trial_id(),
        "student" if config.teacher else "teacher",
        config,
        teacher_id,
        "new",
        cache if config.teacher else None,
        table or None,
    )
    return Job(planned, 1, "test", storage.backend.address, 1, str(weights) if weights else None, None, None)


def file_of(storage: Storage, name: str) -> Path:
    """The path of a file in a storage."""
    return Path(storage.backend.address, name)


def run(job: Job) -> tuple[list[EpochRecord], TrialRecord]:
    """The records of a trial: its epochs, and its own."""
    *epochs, last = run_trial(job)
    assert isinstance(last, TrialRecord)
    assert all(isinstance(epoch, TrialStarted | EpochRecord) for epoch in epochs)
    return [epoch for epoch in epochs if isinstance(epoch, EpochRecord)], last


def steady(record: TrialRecord | EpochRecord) -> dict[str, Any]:
    """What must not differ between two runs."""
    return {name: value for name, value in asdict(record).items() if name not in MEASURED}


@torch.no_grad()
def predictions(path: Path, config: TrialConfig, storage: Storage) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of saved weights over the test images, computed without the code under test; and the labels."""
    model = models.build(config.student, 10)
    model.load_state_dict(load_file(path))
    images = tensors.load(config, storage, CPU)
    return model.eval()(images.normalise(images.test.pixels)), images.test.labels


def percent(hits: torch.Tensor) -> float:
    """The share of true entries."""
    return 100 * int(hits.sum()) / len(hits)


@pytest.fixture(scope="module")
def taught(digits_storage: Storage, tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Storage:
    """A storage with a trained teacher, for students of several tests."""
    storage = Storage.at(tmp_path_factory.mktemp("taught"))
    storage.prepare()
    file_of(storage, "datasets").symlink_to(file_of(digits_storage, "datasets"))
    _, row = run(job_of(make_config(seed=7), storage))
    assert row.state is State.FINISHED
    return storage


MATCH = (("ce_weight", 1.0), ("match", "logits"))
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "logit, live": ("live", {"method": "logit", "options": MATCH}),
    "logit, table": ("table", {"method": "logit", "options": (("ce_weight", 0.5), ("match", "logits"))}),
    "logit, pooled": ("table", {"method": "logit", "options": (("ce_weight", 1.0), ("match", "pooled"))}),
    "st, live": ("live", {"method": "st", "options": (("temperature", 4.0),)}),
    "st, table": ("table", {"method": "st", "options": (("temperature", 2.0),)}),
    "crd, table": ("table", {"method": "crd", "options": (("negatives", 100),)}),
    "reviewkd, live": ("live", {"method": "reviewkd"}),
}


def student_of(name: str, storage: Storage, make_config: MakeConfig, **overrides: Any) -> Job:
    """A student of the shared teacher."""
    cache, settings = STUDENTS[name]
    config = make_config(teacher=make_config(seed=7), teacher_cache=cache, **{**settings, **overrides})
    return job_of(config, storage, cache)


# Trials that finish.


def test_the_running_row_is_first_and_the_finished_one_last(
    storage: Storage, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "_FLUSH", 0.0)
    job = job_of(make_config(epochs=2), storage)
    trial_id = job.trial.trial_id
    found = []
    for record in run_trial(job):
        row = store.read_trial(storage, trial_id)
        assert row, "from the first report on"
        found.append((row.state, file_of(storage, storage.weights(trial_id)).exists(), len(store.read_epochs(storage))))
    running = [(State.RUNNING, False, epochs) for epochs in range(3)]
    assert found == [*running, (State.FINISHED, True, 2)]
    assert record == row
    assert store.read_states(storage) == {trial_id: State.FINISHED}


def check_finished(job: Job, storage: Storage, epochs: list[EpochRecord], row: TrialRecord) -> None:
    """Checks every value of a finished row against the epochs and the weights."""
    config, trial_id = job.trial.config, job.trial.trial_id
    assert (row.state, row.error) == (State.FINISHED, None)
    assert store.read_trial(storage, trial_id) == row
    assert store.read_epochs(storage, [trial_id]) == [{"trial_id": trial_id, **asdict(epoch)} for epoch in epochs]
    assert [epoch.epoch for epoch in epochs] == list(range(1, config.epochs + 1))
    accuracies = [epoch.test_acc for epoch in epochs]
    assert row.acc == max(accuracies)
    assert row.epoch == 1 + accuracies.index(max(accuracies))
    assert row.last_acc == accuracies[-1]
    assert row.params == PARAMS
    assert row.seconds == sum(epoch.seconds for epoch in epochs)
    rates = [epoch.images_per_second for epoch in epochs]
    assert row.images_per_second and min(rates) * 0.999 <= row.images_per_second <= max(rates) * 1.001
    logits, labels = predictions(file_of(storage, storage.weights(trial_id)), config, storage)
    assert row.last_acc == pytest.approx(percent(logits.argmax(1) == labels))
    assert row.top5 == pytest.approx(percent((logits.topk(5).indices == labels[:, None]).any(1)))
    assert row.last_acc <= row.top5 <= 100
    # The teacher mode and the compute dtype are stored with the recipe.
    chosen = {"teacher_answers": job.trial.teacher_cache, "arithmetic": "float32"}
    assert row.recipe == json.loads(json.dumps({**config.recipe(), **chosen}))


def test_a_base_trial(storage: Storage, make_config: MakeConfig) -> None:
    job = job_of(make_config(epochs=3), storage)
    epochs, row = run(job)
    check_finished(job, storage, epochs, row)
    assert (row.teacher, row.teacher_id, row.teacher_acc, row.agreement, row.selected_acc) == (None,) * 5
    assert all(epoch.kd_loss is None and epoch.val_acc is None for epoch in epochs)
    assert all(epoch.train_loss == epoch.ce_loss for epoch in epochs)


def test_an_average_of_the_weights_is_tested_and_saved_and_changes_no_training(
    storage: Storage, make_config: MakeConfig
) -> None:
    job, plain = (job_of(make_config(epochs=2, ema=ema), storage) for ema in (0.9, 0.0))
    epochs, row = run(job)
    check_finished(job, storage, epochs, row)
    others, other = run(plain)
    assert [epoch.train_loss for epoch in epochs] == [epoch.train_loss for epoch in others]
    assert {epoch.test_loss for epoch in epochs}.isdisjoint(epoch.test_loss for epoch in others)
    assert row.weights_sha256 != other.weights_sha256


def test_a_teacher_with_an_average_of_its_weights_teaches_with_it(storage: Storage, make_config: MakeConfig) -> None:
    teacher = make_config(seed=7, ema=0.9, padding="zero")
    taught = run(job_of(teacher, storage))[1]
    records = []
    for cache in ("table", "live"):
        config = make_config(
            method="logit", options=MATCH, teacher=teacher, teacher_cache=cache, padding="zero", clip_norm=1.0
        )
        (record,), row = run(job_of(config, storage, cache))
        assert row.teacher_acc == taught.last_acc
        records.append(record)
    (table,) = storage.list_tables()
    assert table.name == "logits-p1-zero-noflip-n128"
    # Not exactly: a table holds float16.
    assert records[0].kd_loss == pytest.approx(records[1].kd_loss, rel=0.02)
    assert records[0].train_loss == pytest.approx(records[1].train_loss, rel=0.02)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student(name: str, taught: Storage, make_config: MakeConfig) -> None:
    job = student_of(name, taught, make_config)
    epochs, row = run(job)
    check_finished(job, taught, epochs, row)
    assert all(epoch.kd_loss is not None and epoch.kd_loss > 0 for epoch in epochs)
    teacher_config = make_config(seed=7)
    source = store.read_trial(taught, teacher_config.trial_id())
    assert source
    assert (row.teacher, row.teacher_id) == ("resnet_32_8", source.trial_id)
    assert row.teacher_acc == source.last_acc
    logits, _ = predictions(file_of(taught, taught.weights(job.trial.trial_id)), job.trial.config, taught)
    teacher_logits, _ = predictions(file_of(taught, taught.weights(source.trial_id)), teacher_config, taught)
    assert row.agreement == pytest.approx(percent(logits.argmax(1) == teacher_logits.argmax(1)))
    assert row.agreement is not None and 0 <= row.agreement <= 100
    assert (job.trial.table in set(taught.list_tables())) == (job.trial.table is not None)


def test_a_table_trains_as_a_live_teacher_does(taught: Storage, make_config: MakeConfig) -> None:
    (table,), _ = run(student_of("logit, table", taught, make_config, seed=1, options=MATCH))
    (live,), _ = run(student_of("logit, live", taught, make_config, seed=1, options=MATCH))
    # Not exactly: a table holds float16.
    assert table.kd_loss == pytest.approx(live.kd_loss, rel=0.02)
    assert table.train_loss == pytest.approx(live.train_loss, rel=0.02)


def test_a_holdout_selects_an_epoch(storage: Storage, make_config: MakeConfig) -> None:
    job = job_of(make_config(epochs=4, holdout=28), storage)
    epochs, row = run(job)
    check_finished(job, storage, epochs, row)
    rows = store.read_epochs(storage)
    best = max(range(4), key=lambda number: (rows[number]["val_acc"], -number))
    assert row.selected_acc == rows[best]["test_acc"]
    assert row.acc is not None and row.selected_acc is not None and row.selected_acc <= row.acc


def record(epoch: int, test_acc: float, val_acc: float | None) -> EpochRecord:
    """An epoch of which only the accuracies matter."""
    return EpochRecord(epoch, 0.1, 1.0, 1.0, None, 0.0, 1.0, test_acc, val_acc, 2.0, epoch * 100.0)


@pytest.mark.parametrize(
    ("test_accs", "val_accs", "expected"),
    [
        ([1.0, 3.0, 2.0], [None] * 3, (3.0, 2, None)),
        ([2.0, 3.0, 3.0], [5.0, 4.0, 4.0], (3.0, 2, 2.0)),
        ([1.0, 2.0, 3.0], [0.0, 6.0, 6.0], (3.0, 3, 2.0)),
        ([0.0, 0.0], [0.0, 0.0], (0.0, 1, 0.0)),
    ],
)
def test_the_first_of_equal_epochs_counts(
    test_accs: list[float], val_accs: list[float | None], expected: tuple[float, int, float | None],
    storage: Storage, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pairs = zip(test_accs, val_accs, strict=True)
    made = [record(number, *accuracies) for number, accuracies in enumerate(pairs, 1)]
    monkeypatch.setattr(attempt, "train", lambda *_: iter(made))
    _, row = run(job_of(make_config(epochs=len(made)), storage))
    assert (row.acc, row.epoch, row.selected_acc) == expected
    assert row.seconds == 2.0 * len(made)
    # Every epoch has the same number of images, so the mean rate is the harmonic mean.
    assert row.images_per_second == pytest.approx(len(made) / sum(1 / (epoch.epoch * 100) for epoch in made))


def test_a_teacher_from_a_file(taught: Storage, make_config: MakeConfig, storage: Storage, tmp_path: Path) -> None:
    source = make_config(seed=7)
    torch.save(load_file(file_of(taught, taught.weights(source.trial_id()))), tmp_path / "teacher.pt")
    digest = hashlib.sha256((tmp_path / "teacher.pt").read_bytes()).hexdigest()
    config = make_config(weights=digest, epochs=0, limit_train=None)
    row = reports(job_of(config, storage, weights=tmp_path / "teacher.pt")).last  # weak enough to cause a warning
    trained = store.read_trial(taught, source.trial_id())
    assert trained
    assert store.read_epochs(storage) == []
    assert (row.state, row.nepoch, row.epoch, row.seconds) == (State.FINISHED, 0, None, None)
    assert row.acc == row.last_acc == trained.last_acc
    assert (row.top5, row.params) == (trained.top5, PARAMS)
    _, student = run(
        job_of(make_config(method="st", options=(("temperature", 4.0),), teacher=config, teacher_cache="live"), storage)
    )
    assert (student.state, student.teacher_acc) == (State.FINISHED, row.last_acc)


def test_the_same_job_twice_gives_the_same_numbers_and_weights(storage: Storage, make_config: MakeConfig) -> None:
    job = job_of(make_config(epochs=2, flip=True, holdout=8), storage)
    path = file_of(storage, storage.weights(job.trial.trial_id))
    runs = []
    for _ in range(2):
        torch.rand(3)  # neither torch's global state ...
        epochs, row = run(job)
        runs.append(([steady(epoch) for epoch in epochs], steady(row), path.read_bytes()))
        path.unlink()  # ... nor the files of the first run may matter
    assert runs[0] == runs[1]
    (other, _) = run(job_of(make_config(epochs=2, flip=True, holdout=8, seed=1), storage))
    assert [steady(epoch) for epoch in other] != runs[0][0], "the seed matters"


# Trials that fail.


def test_divergence_is_a_failed_row_with_epoch_and_reason(storage: Storage, make_config: MakeConfig) -> None:
    job = job_of(make_config(lr=1e30, epochs=3), storage)
    epochs, row = run(job)
    assert (row.state, row.failure) == (State.FAILED, Failure.DIVERGED)
    assert row.error and row.error.startswith(f"epoch {len(epochs) + 1}: the mean training loss is ")
    assert "try a smaller lr than 1e+30" in row.error
    assert store.read_trial(storage, job.trial.trial_id) == row
    assert not file_of(storage, storage.weights(job.trial.trial_id)).exists()


@pytest.mark.parametrize("name", ["logit, live", "logit, table"])
def test_missing_teacher_weights_are_a_failed_row(name: str, storage: Storage, make_config: MakeConfig) -> None:
    job = student_of(name, storage, make_config)
    epochs, row = run(job)
    assert (epochs, row.state, row.failure) == ([], State.FAILED, Failure.TEACHER)
    assert (row.acc, row.last_acc) == (None, None)
    assert row.error and "weights.safetensors" in row.error and "launch the study again" in row.error
    assert store.read_trials(storage) == [row]


def test_a_missing_dataset_is_a_failed_row(tmp_path: Path, make_config: MakeConfig) -> None:
    empty = Storage.at(tmp_path / "empty")
    empty.prepare()
    _, row = run(job_of(make_config(), empty))
    assert (row.state, row.failure) == (State.FAILED, Failure.DATA)
    assert row.error and "digits" in row.error and "prepares" in row.error


def raising(error: BaseException) -> Callable[..., Any]:
    """A function that raises."""

    def call(*_: object) -> None:
        raise error

    return call


NOT_RETRIED = "; not retried in this launch, because it would fail the same way"
ERRORS = [
    (RuntimeError("shapes [2] and [3]"), "RuntimeError: shapes [2] and [3]" + NOT_RETRIED, Failure.ERROR),
    (
        MemoryError(),
        "out of memory (no reason given); use a smaller batch_size, or fewer trials",
        Failure.OUT_OF_MEMORY,
    ),
    (torch.OutOfMemoryError("CUDA out of memory.\nmore"), "memory (CUDA out of memory.); use", Failure.OUT_OF_MEMORY),
    (RuntimeError("GET was unable to find an engine to execute"), "batch_size", Failure.OUT_OF_MEMORY),
    (RuntimeError("CUDA error: out of memory"), "--max-concurrent", Failure.OUT_OF_MEMORY),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "batch_size", Failure.OUT_OF_MEMORY),
    (OSError(12, "Cannot allocate memory"), "batch_size", Failure.OUT_OF_MEMORY),
    (TeacherError("a message"), "a message", Failure.TEACHER),
    (DivergedError("a message"), "a message", Failure.DIVERGED),
    (DataError("a message"), "a message", Failure.DATA),
    (StorageError("a message"), "a message", Failure.STORAGE),
    (StopIteration("unexpected"), "StopIteration", Failure.ERROR),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), "can't decode", Failure.ERROR),
    (OSError("a name with bytes: \udcff"), r"a name with bytes: \udcff", Failure.ERROR),
]


@pytest.mark.parametrize(("error", "expected", "failure"), ERRORS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("step", ["tensors.load", "models.build", "evaluate", "weights.save_weights"])
def test_any_exception_is_a_failed_row(
    step: str, error: Exception, expected: str, failure: Failure,
    storage: Storage, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(attempt, "train", lambda *_: iter([record(1, 50.0, None)]))
    monkeypatch.setattr(f"orchestrator.execution.attempt.{step}", raising(error))
    job = job_of(make_config(epochs=1), storage)
    epochs, row = run(job)
    assert (row.state, row.failure) == (State.FAILED, failure)
    assert row.error and expected in row.error
    assert row.error.endswith(" (after epoch 1)") == bool(epochs)
    assert (row.acc, row.last_acc) == (None, None)
    assert store.read_trial(storage, job.trial.trial_id) == row


def test_a_failure_after_some_epochs_keeps_them_but_is_no_result(
    storage: Storage, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two(*_: object) -> Iterator[EpochRecord]:
        yield record(1, 60.0, 1.0)
        yield record(2, 50.0, 2.0)
        raise RuntimeError("gone")

    monkeypatch.setattr(attempt, "train", two)
    epochs, row = run(job_of(make_config(epochs=3, holdout=8), storage))
    assert row.error == f"RuntimeError: gone{NOT_RETRIED} (after epoch 2)"
    assert (row.acc, row.epoch, row.last_acc, row.selected_acc) == (None, None, None, None)
    assert [asdict(epoch) for epoch in epochs] == [
        {name: value for name, value in row.items() if name != "trial_id"} for row in store.read_epochs(storage)
    ]


def test_epochs_of_an_earlier_attempt_do_not_stay(storage: Storage, make_config: MakeConfig) -> None:
    job = student_of("logit, live", storage, make_config)
    store.write_epochs(storage, job.trial.trial_id, [record(1, 60.0, None)])
    _, row = run(job)  # fails before its first epoch: the teacher is missing
    assert row.state is State.FAILED
    assert store.read_epochs(storage) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_what_stops_the_process_leaves_a_running_row(
    stop: type[BaseException], storage: Storage, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "train", raising(stop()))
    job = job_of(make_config(), storage)
    with pytest.raises(stop):
        run(job)
    assert store.read_states(storage) == {job.trial.trial_id: State.RUNNING}


def test_a_trial_that_is_closed_leaves_a_running_row(storage: Storage, make_config: MakeConfig) -> None:
    job = job_of(make_config(epochs=2), storage)
    running = run_trial(job)
    next(running)
    running.close()
    assert store.read_states(storage) == {job.trial.trial_id: State.RUNNING}
    assert not file_of(storage, storage.weights(job.trial.trial_id)).exists()


@pytest.mark.parametrize("broken", [1, 2, 3])
def test_a_storage_that_fails_never_leaves_a_finished_row(
    broken: int, storage: Storage, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows are written, as running and as finished; from write number `broken` on, the disk is full."""
    job = job_of(make_config(), storage)
    write, calls = store.write_trial, []

    def full(storage: Storage, row: TrialRecord) -> None:
        calls.append(row.state)
        if len(calls) >= broken:
            raise StorageError("no space left")
        write(storage, row)

    monkeypatch.setattr(store, "write_trial", full)
    _, row = run(job)
    states = store.read_states(storage)
    if broken == 3:
        assert (row.state, states) == (State.FINISHED, {job.trial.trial_id: State.FINISHED})
        return
    assert row.failure is Failure.STORAGE
    assert (row.state, row.error) == (State.FAILED, "no space left" + " (after epoch 1)" * (broken == 2))
    assert states == ({} if broken == 1 else {job.trial.trial_id: State.RUNNING})


def test_weights_that_cannot_be_written_are_a_failed_row(storage: Storage, make_config: MakeConfig) -> None:
    file_of(storage, "trials").write_text("a file where a folder should be")
    job = job_of(make_config(), storage)
    _, row = run(job)
    assert (row.state, row.failure) == (State.FAILED, Failure.STORAGE)
    assert row.error and "weights.safetensors cannot be written" in row.error
    assert store.read_states(storage) == {job.trial.trial_id: State.FAILED}


# Trials that stop and resume.


class After:
    """Returns True after a number of calls; a trial calls it once per step to learn whether to stop."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


class Reports(list[Report]):
    """The reports of a trial."""

    @property
    def last(self) -> TrialRecord:
        assert isinstance(self[-1], TrialRecord)
        return self[-1]

    @property
    def notices(self) -> list[str]:
        return [report.text for report in self if isinstance(report, TrialNotice)]


def reports(job: Job, stopping: Callable[[], bool] = lambda: False) -> Reports:
    """Runs a trial and returns all its reports."""
    return Reports(run_trial(job, stopping))


def files(storage: Storage, *folders: str) -> dict[str, bytes]:
    """The files in some folders of a storage: name → content."""
    return {
        entry.name: storage.backend.read(entry.name)
        for folder in folders
        for entry in storage.backend.list_files(folder)
    }


def checkpoints(job: Job, storage: Storage) -> list[str]:
    """The checkpoints of a trial, oldest first."""
    return [entry.name for entry in storage.backend.list_files(storage.checkpoints(job.trial.trial_id))]


RESULT = tuple[dict[str, Any], list[dict[str, Any]], bytes]


def result(job: Job, storage: Storage) -> RESULT:
    """A finished trial as stored, without what may differ between two runs."""
    trial_id = job.trial.trial_id
    row = store.read_trial(storage, trial_id)
    assert row and row.state is State.FINISHED
    assert checkpoints(job, storage) == [] and storage.backend.list_unfinished() == []
    assert list(storage.backend.list_files(storage.leases)) == []
    epochs = [
        {name: value for name, value in epoch.items() if name not in MEASURED}
        for epoch in store.read_epochs(storage, [trial_id])
    ]
    row_facts = {name: value for name, value in steady(row).items() if name != "resumed"}
    return row_facts, epochs, storage.backend.read(storage.weights(trial_id))


def forget(job: Job, storage: Storage) -> None:
    """Removes all files of a trial."""
    trial_id = job.trial.trial_id
    for name in (storage.trial_row(trial_id), storage.trial_epochs(trial_id), storage.weights(trial_id)):
        storage.backend.delete(name)
    for name in checkpoints(job, storage):
        storage.backend.delete(name)
    if job.trial.table:
        storage.backend.delete(storage.table_facts(job.trial.table))
        storage.backend.delete(storage.table(job.trial.table))


# 100 training images are 4 steps; with the two evaluations an epoch makes 6 calls, and the last evaluation one more.
LASTING: dict[str, Any] = {"epochs": 3, "holdout": 28, "flip": True, "milestones": (2,), "seed": 3}
EVERY = 3 * 6


@pytest.fixture(scope="module")
def undisturbed(taught: Storage, make_config: MakeConfig) -> dict[str, tuple[Job, RESULT, int]]:
    """Three trials with their results, and how often each checks whether to stop."""
    jobs = {name: student_of(name, taught, make_config, **LASTING) for name in ("logit, live", "st, table")}
    jobs["base"] = job_of(make_config(**LASTING), taught)
    found = {}
    for name, job in jobs.items():
        count = After(10_000)
        assert reports(job, count).last.resumed == 0
        found[name] = (job, result(job, taught), 10_000 - count.left)
    return found


@pytest.mark.parametrize("name", ["base", "logit, live", "st, table"])
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(0, EVERY + 9), min_size=1, max_size=4), every=st.sampled_from([0.0, 1e6]))
@example(stops=[0], every=1e6)  # before the first step
@example(stops=[EVERY], every=1e6)  # in the last evaluation
@example(stops=[EVERY - 1], every=1e6)  # in the last epoch's evaluation
@example(stops=[6, 0, 0], every=0.0)  # between two epochs, and twice without a step
def test_a_trial_that_stops_anywhere_gives_the_same_result(
    name: str, stops: list[int], every: float, taught: Storage, undisturbed: dict[str, tuple[Job, RESULT, int]]
) -> None:
    job, expected, _ = undisturbed[name]
    forget(job, taught)
    job = replace(job, checkpoint_seconds=every)
    resumed = 0
    for steps in stops:
        row = reports(job, After(steps)).last
        if row.state is State.FINISHED:
            break
        assert row.state is State.STOPPED and row.failure is None
        assert row.error and row.error.startswith("stopped in epoch ") and "the same command resumes" in row.error
        assert store.read_trial(taught, row.trial_id) == row
        assert row.resumed == resumed
        assert checkpoints(job, taught)
        resumed += 1
    else:
        row = reports(job).last
    assert row.resumed == resumed
    assert result(job, taught) == expected


def test_a_trial_that_stops_while_its_table_is_built(
    taught: Storage, undisturbed: dict[str, tuple[Job, RESULT, int]]
) -> None:
    job, expected, checks = undisturbed["st, table"]
    forget(job, taught)
    assert job.trial.table
    building = checks - EVERY - 1  # one check for each part of the table
    assert building > 1
    for steps in range(building):
        row = reports(job, After(steps)).last
        assert row.error == "stopped in epoch 1 of 3; the same command resumes it from there"
        assert taught.backend.list_unfinished() == [] and job.trial.table not in set(taught.list_tables())
    assert reports(job).last.resumed == building
    assert result(job, taught) == expected


def test_a_resumed_trial_keeps_its_teacher_mode(
    taught: Storage, undisturbed: dict[str, tuple[Job, RESULT, int]]
) -> None:
    job, expected, _ = undisturbed["logit, live"]
    forget(job, taught)
    assert reports(job, After(8)).last.state is State.STOPPED
    # Meanwhile a table has become faster, so the next launch plans with it.
    by_table = job.trial.with_teacher_mode("table")
    assert by_table.table
    row = reports(replace(job, trial=by_table)).last
    assert row.recipe["teacher_answers"] == "live"
    assert result(job, taught) == expected


@pytest.fixture
def own_threads() -> Iterator[None]:
    """Gives the tests after this one the threads that they had."""
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def drop_threads(job: Job, storage: Storage) -> None:
    """Leaves the row and the checkpoint of a trial as versions that recorded no threads wrote them."""
    row = store.read_trial(storage, job.trial.trial_id)
    assert row
    store.write_trial(storage, replace(row, threads=None))
    (name,) = checkpoints(job, storage)
    head, _, payload = storage.backend.read(name).partition(b"\n")
    facts, _, tensors = payload.partition(b"\n")
    payload = json.dumps({key: each for key, each in json.loads(facts).items() if key != "threads"}).encode()
    payload += b"\n" + tensors
    head = head.split()[0] + b" " + hashlib.sha256(payload).hexdigest().encode()
    storage.backend.write(name, head + b"\n" + payload)


@pytest.mark.parametrize("is_old", [False, True])
def test_a_resumed_trial_keeps_its_threads(
    storage: Storage, make_config: MakeConfig, own_threads: None, is_old: bool
) -> None:
    job = replace(job_of(make_config(epochs=3), storage), threads=3)
    stopped = reports(job, After(6)).last
    assert (stopped.threads, stopped.device) == (3, "cpu, 3 threads")
    if is_old:
        drop_threads(job, storage)
    again = reports(replace(job, threads=1))
    assert torch.get_num_threads() == 3
    assert (again.last.threads, again.last.device, again.last.resumed) == (3, "cpu, 3 threads", 1)
    expected = result(job, storage)
    forget(job, storage)
    assert reports(job).last.threads == 3
    assert result(job, storage) == expected


def test_each_thread_of_python_keeps_its_own_number_of_threads(
    storage: Storage, make_config: MakeConfig, own_threads: None
) -> None:
    jobs = [replace(job_of(make_config(seed=seed), storage), threads=1 + seed) for seed in range(2)]
    first = run_trial(jobs[0])
    counted: list[int] = []

    def train() -> None:
        assert isinstance(next(first), TrialStarted)
        other = threading.Thread(target=list, args=(run_trial(jobs[1]),))  # sets two for itself, and as the default
        other.start()
        other.join()
        list(first)
        counted.append(torch.get_num_threads())

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert counted == [1]
    rows = [store.read_trial(storage, job.trial.trial_id) for job in jobs]
    assert [row.threads for row in rows if row] == [1, 2]


def test_the_row_and_a_notice_name_the_epoch_of_a_stop(
    storage: Storage, make_config: MakeConfig, taught: Storage
) -> None:
    job = job_of(make_config(epochs=3), storage)
    assert [type(report) for report in reports(job, After(7))] == [TrialStarted, EpochRecord, TrialRecord]
    assert (store.read_states(storage), len(store.read_epochs(storage))) == ({job.trial.trial_id: State.STOPPED}, 1)
    assert reports(job, After(5)).last.error == "stopped in epoch 3 of 3; the same command resumes it from there"
    again = reports(job)
    assert again.notices == ["resumes in epoch 3 of 3, from its checkpoint"]
    assert again.last.resumed == 2
    source = file_of(taught, taught.weights(make_config(seed=7).trial_id()))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    given = job_of(make_config(weights=digest, epochs=0, limit_train=None), storage, weights=source)
    assert (
        reports(given, After(0)).last.error == "stopped before its first epoch; the same command resumes it from there"
    )
    assert reports(given).last.state is State.FINISHED


def test_a_resumed_trial_keeps_its_start_time(storage: Storage, make_config: MakeConfig) -> None:
    job = job_of(make_config(epochs=2), storage)
    first, second = reports(job, After(5)).last, reports(job).last
    assert second.start_time == first.start_time
    assert first.end_time and second.end_time and second.end_time > first.end_time


@pytest.mark.parametrize(("seconds", "counts"), [(0.0, [1, 2, 2, 2]), (1e6, [0, 0, 0, 0])])
def test_checkpoints_are_as_frequent_as_configured(
    seconds: float, counts: list[int], storage: Storage, make_config: MakeConfig
) -> None:
    job = replace(job_of(make_config(epochs=4), storage), checkpoint_seconds=seconds)
    found = [len(checkpoints(job, storage)) for report in run_trial(job) if isinstance(report, EpochRecord)]
    assert found == counts
    assert checkpoints(job, storage) == [], "a finished trial needs none"


def test_a_killed_trial_resumes_from_its_last_checkpoint(storage: Storage, make_config: MakeConfig) -> None:
    job = replace(job_of(make_config(epochs=4), storage), checkpoint_seconds=0.0)
    reports(job)
    expected = result(job, storage)
    forget(job, storage)
    running = run_trial(job)
    assert [next(running), next(running), next(running)]  # its start and two epochs
    running.close()
    again = reports(job)
    assert again.notices == ["resumes in epoch 3 of 4, from its checkpoint"]
    assert [report.epoch for report in again if isinstance(report, EpochRecord)] == [3, 4]
    assert again.last.resumed == 1 and result(job, storage) == expected


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
@pytest.mark.parametrize("every", [False, True])
def test_a_damaged_checkpoint_is_named_and_skipped(
    damage: str, every: bool, storage: Storage, make_config: MakeConfig
) -> None:
    job = replace(job_of(make_config(epochs=4), storage), checkpoint_seconds=0.0)
    reports(job)
    expected = result(job, storage)
    forget(job, storage)
    reports(job, After(5 * 3))  # stopped at the start of the last epoch, with a checkpoint of the one before
    names = checkpoints(job, storage)
    assert len(names) == 2
    damaged = list(reversed(names)) if every else names[-1:]
    for name in damaged:
        path = file_of(storage, name)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes({"cut": content[:-9], "flipped": content, "empty": b""}[damage])
    again = reports(job)
    *named, last = [*again.notices, *([""] if every else [])]
    assert len(named) == len(damaged)
    assert all(f"{name} is damaged" in text for name, text in zip(damaged, named, strict=True))
    assert last == ("" if every else "resumes in epoch 3 of 4, from its checkpoint")
    assert again.last.resumed == (0 if every else 1)
    assert result(job, storage) == expected


def test_what_a_stop_saves_is_copied_in_the_stream_of_the_training(
    storage: Storage, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[torch.device] = []
    copied_in: list[torch.device] = []

    @contextmanager
    def own_stream(device: torch.device) -> Iterator[None]:
        streams.append(device)
        yield
        streams.pop()

    monkeypatch.setattr(attempt, "own_stream", own_stream)
    monkeypatch.setattr(attempt, "save_checkpoint", lambda *state: copied_in.extend(streams))
    row = reports(job_of(make_config(epochs=2), storage), After(6)).last
    assert (row.state, copied_in, streams) == (State.STOPPED, [CPU], [])


def test_a_stop_on_a_full_disk_is_reported(
    storage: Storage, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "save_checkpoint", raising(StorageError("no space left")))
    row = reports(job_of(make_config(epochs=2), storage), After(6)).last
    assert row.state is State.STOPPED
    assert row.error == "stopped in epoch 2 of 2, without a checkpoint: no space left"


# Trials whose leases others hold.

HOLD = """
import sys
from orchestrator.storage.leases import acquire
from orchestrator.storage.layout import Storage
print(acquire(Storage.at(sys.argv[1]), sys.argv[2]) is not None, flush=True)
sys.stdin.read()
"""


def test_a_trial_that_another_process_holds_is_elsewhere(storage: Storage, make_config: MakeConfig) -> None:
    job = job_of(make_config(), storage)
    command = [sys.executable, "-c", HOLD, storage.backend.address, f"trial-{job.trial.trial_id}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "True\n"
        assert reports(job) == [TakenOver(job.trial.trial_id)]
        assert store.read_trials(storage) == []
        holder.kill()
        holder.wait()
        assert reports(job).last.state is State.FINISHED  # a dead process holds no lease


def test_a_trial_that_is_finished_is_not_trained_again(storage: Storage, make_config: MakeConfig) -> None:
    job = job_of(make_config(), storage)
    row = reports(job).last
    before = files(storage, "results", "trials")
    since = datetime.now(UTC).isoformat()  # after the trial finished: the plan may have been made before
    assert reports(replace(job, since=since)) == [row]
    assert files(storage, "results", "trials") == before
    storage.backend.delete(storage.weights(row.trial_id))
    assert len(reports(job)) == 3, "without its weights it is not finished"


def test_a_failure_in_another_launch_counts_only_if_it_is_newer(storage: Storage, make_config: MakeConfig) -> None:
    before = datetime.now(UTC).isoformat()
    job = job_of(make_config(lr=1e30), storage)
    failed = reports(job).last
    assert failed.state is State.FAILED
    assert reports(replace(job, since=before)).last == failed
    again = reports(replace(job, since=datetime.now(UTC).isoformat())).last
    assert again.end_time and failed.end_time and again.end_time > failed.end_time
    assert reports(job).last != again


@pytest.mark.parametrize("stop", [False, True], ids=["training", "stopping"])
def test_a_trial_that_loses_its_lease_ends_and_writes_nothing_more(
    stop: bool, storage: Storage, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "_FLUSH", 0.0)
    job = replace(job_of(make_config(epochs=5), storage), checkpoint_seconds=0.0)
    is_lost = False
    running = run_trial(job, lambda: stop and is_lost)
    assert isinstance(next(running), TrialStarted) and isinstance(next(running), EpochRecord)
    for entry in storage.backend.list_files(storage.leases):
        storage.backend.delete(entry.name)  # as a launch that takes over the trial does
    is_lost = True
    before = files(storage, "results", "trials", "checkpoints")
    assert list(running) == [TakenOver(job.trial.trial_id)]
    assert files(storage, "results", "trials", "checkpoints") == before


@pytest.mark.parametrize("step", ["_score_final_weights", "weights.save_weights"])
def test_a_failure_after_the_lease_was_lost_writes_no_row(
    step: str, storage: Storage, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        for entry in storage.backend.list_files(storage.leases):
            storage.backend.delete(entry.name)
        raise RuntimeError("too late")

    monkeypatch.setattr(f"orchestrator.execution.attempt.{step}", fail)
    job = job_of(make_config(), storage)
    assert reports(job)[-1] == TakenOver(job.trial.trial_id)
    assert store.read_states(storage) == {job.trial.trial_id: State.RUNNING}


def test_a_trial_of_a_launch_that_ended_stops(
    storage: Storage, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.01)
    job = replace(job_of(make_config(epochs=10_000), storage), launch="launch-that-ended")
    row = reports(job).last
    assert row.state is State.STOPPED and checkpoints(job, storage)


def test_a_storage_that_is_gone_is_a_failed_trial(storage: Storage, make_config: MakeConfig, tmp_path: Path) -> None:
    job = job_of(make_config(), storage)
    Path(storage.backend.address).rename(tmp_path / "away")
    row = reports(job).last
    assert (row.state, row.failure) == (State.FAILED, Failure.STORAGE)
    assert row.error and "is gone" in row.error
    assert not Path(storage.backend.address).exists()


# Jobs.


@pytest.mark.parametrize("name", STUDENTS)
def test_a_job_travels_as_json(name: str, digits_storage: Storage, make_config: MakeConfig) -> None:
    job = replace(
        student_of(name, digits_storage, make_config),
        no=3,
        git_commit="abc",
        ray_version="2.60.0",
        weights="w",
        launch="launch-1",
        since="2026-01-01T00:00:00+00:00",
        checkpoint_seconds=0.5,
        gpus=0.25,
    )
    assert codec.decode(Job, json.loads(json.dumps(codec.encode(job)))) == job


def test_a_row_before_anything_was_measured(digits_storage: Storage, make_config: MakeConfig) -> None:
    job = student_of("logit, table", digits_storage, make_config)
    row = job.row(State.SKIPPED, "its teacher failed")
    config = job.trial.config
    assert (row.state, row.error, row.trial_id) == (State.SKIPPED, "its teacher failed", config.trial_id())
    for name in ("method", "dataset", "student", "seed", "lr", "batch_size"):
        assert getattr(row, name) == getattr(config, name)
    unmeasured = {f.name for f in fields(row) if getattr(row, f.name) is None}
    assert unmeasured >= {"acc", "epoch", "last_acc", "selected_acc", "top5", "teacher_acc", "agreement", "params"}


# Its log.


def test_a_log_has_the_start_the_epochs_and_the_result(storage: Storage, make_config: MakeConfig) -> None:
    job = job_of(make_config(epochs=2), storage)
    row = reports(job).last
    title, start, first, second, finished = logs.read(storage, row.trial_id)
    assert title.endswith(f"trial {row.trial_id} of study {row.study}: {job.trial.title()}")
    assert f"starts in epoch 1 of 2 on cpu, 1 threads, process {os.getpid()} on " in start and "kdctl " in start
    assert " epoch 1/2: lr 0.05, loss " in first and " epoch 2/2: " in second and "images/s" in second
    assert finished.endswith(f", last {row.last_acc} %") and "finished: best test accuracy" in finished


def test_the_log_of_a_resumed_trial_is_continued(storage: Storage, make_config: MakeConfig) -> None:
    job = job_of(make_config(epochs=3), storage)
    reports(job, After(7))
    reports(job)
    text = "\n".join(logs.read(storage, job.trial.trial_id))
    stopping, stopped, resumed = (text.index(part) for part in ("stopping", "stopped in epoch 2", "resumes in"))
    assert stopping < stopped < resumed < text.index("starts in epoch 2 of 3")


def test_an_unexpected_error_leaves_its_traceback_in_the_log(
    storage: Storage, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise LookupError("unexpected")

    monkeypatch.setattr(attempt, "_score_final_weights", fail)
    job = job_of(make_config(), storage)
    assert reports(job).last.state is State.FAILED
    lines = logs.read(storage, job.trial.trial_id)
    assert any("failed: LookupError: unexpected" in line for line in lines)
    assert any("Traceback" in line for line in lines) and 'raise LookupError("unexpected")' in lines[-2]
    assert lines[-1].strip() == "LookupError: unexpected"
