"""One trial from start to end: its rows, what they say against the saved weights, and failures that are rows too."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import models
from orchestrator import data, results, trial
from orchestrator.errors import StorageError, TeacherError
from orchestrator.plan import PlannedTrial
from orchestrator.records import EpochRecord, State, TableKey, TrialConfig, TrialRecord
from orchestrator.storage import Storage
from orchestrator.trial import Job, run_trial

MakeConfig = Callable[..., TrialConfig]
CPU = torch.device("cpu")
PARAMS = 78_042  # of resnet_32_8 with 10 classes, section 4 of the design
MEASURED = {"seconds", "images_per_second", "start_time"}  # what differs between two runs of one job


def job_of(config: TrialConfig, storage: Storage, cache: str = "live", weights: Path | None = None) -> Job:
    """A job as a launch makes it."""
    teacher_id = config.teacher.trial_id() if config.teacher else None
    answers = str(dict(config.options).get("match", "logits"))
    images = (config.limit_train or 1297) - config.holdout
    table = teacher_id and cache == "table" and TableKey(teacher_id, answers, config.crop_padding, config.flip, images)
    planned = PlannedTrial(
        config.trial_id(),
        "student" if config.teacher else "teacher",
        config,
        teacher_id,
        "new",
        cache if config.teacher else None,
        table or None,
    )
    return Job(planned, 1, "test", str(storage.root), 1, str(weights) if weights else None, None, None)


def run(job: Job) -> tuple[list[EpochRecord], TrialRecord]:
    """The records of a trial: its epochs, and its own."""
    *epochs, last = run_trial(job)
    assert isinstance(last, TrialRecord)
    assert all(isinstance(epoch, EpochRecord) for epoch in epochs)
    return [epoch for epoch in epochs if isinstance(epoch, EpochRecord)], last


def steady(record: TrialRecord | EpochRecord) -> dict[str, Any]:
    """What must not differ between two runs."""
    return {name: value for name, value in asdict(record).items() if name not in MEASURED}


@torch.no_grad()
def predictions(path: Path, config: TrialConfig, storage: Storage) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of saved weights over the test images, asked without the code under test; and the labels."""
    model = models.build(config.student, 10)
    model.load_state_dict(load_file(path))
    images = data.load(config, storage, CPU)
    return model.eval()(images.normalise(images.test.pixels)), images.test.labels


def percent(hits: torch.Tensor) -> float:
    """The share of true entries."""
    return 100 * int(hits.sum()) / len(hits)


@pytest.fixture(scope="module")
def taught(digits_storage: Storage, tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Storage:
    """A storage with a trained teacher, for students of several tests."""
    storage = Storage(tmp_path_factory.mktemp("taught"))
    storage.prepare()
    (storage.root / "datasets").symlink_to(digits_storage.root / "datasets")
    _, row = run(job_of(make_config(seed=7), storage))
    assert row.state is State.FINISHED
    return storage


STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "logit, live": ("live", {"method": "logit", "options": (("ce_weight", 1.0), ("match", "logits"))}),
    "logit, table": ("table", {"method": "logit", "options": (("ce_weight", 0.5), ("match", "logits"))}),
    "logit, pooled": ("table", {"method": "logit", "options": (("ce_weight", 1.0), ("match", "pooled"))}),
    "st, live": ("live", {"method": "st", "options": (("temperature", 4.0),)}),
    "st, table": ("table", {"method": "st", "options": (("temperature", 2.0),)}),
}


def student_of(name: str, storage: Storage, make_config: MakeConfig, **overrides: Any) -> Job:
    """A student of the shared teacher."""
    cache, settings = STUDENTS[name]
    config = make_config(teacher=make_config(seed=7), teacher_cache=cache, **{**settings, **overrides})
    return job_of(config, storage, cache)


# Trials that finish.


def test_the_running_row_is_first_and_the_finished_one_last(storage: Storage, make_config: MakeConfig) -> None:
    job = job_of(make_config(epochs=2), storage)
    trial_id = job.trial.trial_id
    seen = []
    for record in run_trial(job):
        row = results.read_trial(storage, trial_id)
        assert row
        seen.append((row.state, storage.weights(trial_id).exists(), len(results.read_epochs(storage))))
    assert seen == [(State.RUNNING, False, 1), (State.RUNNING, False, 2), (State.FINISHED, True, 2)]
    assert record == row
    assert results.read_states(storage) == {trial_id: State.FINISHED}


def check_finished(job: Job, storage: Storage, epochs: list[EpochRecord], row: TrialRecord) -> None:
    """Everything that a finished row says, worked out again from the epochs and the weights."""
    config, trial_id = job.trial.config, job.trial.trial_id
    assert (row.state, row.error) == (State.FINISHED, None)
    assert results.read_trial(storage, trial_id) == row
    assert results.read_epochs(storage, [trial_id]) == [{"trial_id": trial_id, **asdict(epoch)} for epoch in epochs]
    assert [epoch.epoch for epoch in epochs] == list(range(1, config.epochs + 1))
    accuracies = [epoch.test_acc for epoch in epochs]
    assert row.acc == max(accuracies)
    assert row.epoch == 1 + accuracies.index(max(accuracies))
    assert row.last_acc == accuracies[-1]
    assert row.params == PARAMS
    assert row.seconds == sum(epoch.seconds for epoch in epochs)
    rates = [epoch.images_per_second for epoch in epochs]
    assert row.images_per_second and min(rates) * 0.999 <= row.images_per_second <= max(rates) * 1.001
    logits, labels = predictions(storage.weights(trial_id), config, storage)
    assert row.last_acc == pytest.approx(percent(logits.argmax(1) == labels))
    assert row.top5 == pytest.approx(percent((logits.topk(5).indices == labels[:, None]).any(1)))
    assert row.last_acc <= row.top5 <= 100
    answers = job.trial.teacher_cache  # which way the teacher was asked is told beside the recipe
    assert json.loads(row.recipe) == json.loads(json.dumps({**config.recipe(), "teacher_answers": answers}))


def test_a_base_trial(storage: Storage, make_config: MakeConfig) -> None:
    job = job_of(make_config(epochs=3), storage)
    epochs, row = run(job)
    check_finished(job, storage, epochs, row)
    assert (row.teacher, row.teacher_id, row.teacher_acc, row.agreement, row.selected_acc) == (None,) * 5
    assert all(epoch.kd_loss is None and epoch.val_acc is None for epoch in epochs)
    assert all(epoch.train_loss == epoch.ce_loss for epoch in epochs)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student(name: str, taught: Storage, make_config: MakeConfig) -> None:
    job = student_of(name, taught, make_config)
    epochs, row = run(job)
    check_finished(job, taught, epochs, row)
    assert all(epoch.kd_loss is not None and epoch.kd_loss > 0 for epoch in epochs)
    teacher_config = make_config(seed=7)
    source = results.read_trial(taught, teacher_config.trial_id())
    assert source
    assert (row.teacher, row.teacher_id) == ("resnet_32_8", source.trial_id)
    assert row.teacher_acc == source.last_acc
    said, _ = predictions(taught.weights(job.trial.trial_id), job.trial.config, taught)
    wanted, _ = predictions(taught.weights(source.trial_id), teacher_config, taught)
    assert row.agreement == pytest.approx(percent(said.argmax(1) == wanted.argmax(1)))
    assert row.agreement is not None and 0 <= row.agreement <= 100
    assert (job.trial.table in set(taught.tables())) == (job.trial.table is not None)


def test_a_table_trains_as_a_live_teacher_does(taught: Storage, make_config: MakeConfig) -> None:
    (table,), _ = run(student_of("logit, table", taught, make_config, options=STUDENTS["logit, live"][1]["options"]))
    (live,), _ = run(student_of("logit, live", taught, make_config))
    # Not exactly: a table holds float16.
    assert table.kd_loss == pytest.approx(live.kd_loss, rel=0.02)
    assert table.train_loss == pytest.approx(live.train_loss, rel=0.02)


def test_a_holdout_selects_an_epoch(storage: Storage, make_config: MakeConfig) -> None:
    job = job_of(make_config(epochs=4, holdout=28), storage)
    epochs, row = run(job)
    check_finished(job, storage, epochs, row)
    rows = results.read_epochs(storage)
    best = max(range(4), key=lambda number: (rows[number]["val_acc"], -number))
    assert row.selected_acc == rows[best]["test_acc"]
    assert row.acc is not None and row.selected_acc is not None and row.selected_acc <= row.acc


def record(epoch: int, test_acc: float, val_acc: float | None) -> EpochRecord:
    """An epoch of which only the accuracies matter."""
    return EpochRecord(epoch, 0.1, 1.0, 1.0, None, 0.0, 1.0, test_acc, val_acc, 2.0, epoch * 100.0)


@pytest.mark.parametrize(
    ("test_accs", "val_accs", "wanted"),
    [
        ([1.0, 3.0, 2.0], [None] * 3, (3.0, 2, None)),
        ([2.0, 3.0, 3.0], [5.0, 4.0, 4.0], (3.0, 2, 2.0)),
        ([1.0, 2.0, 3.0], [0.0, 6.0, 6.0], (3.0, 3, 2.0)),
        ([0.0, 0.0], [0.0, 0.0], (0.0, 1, 0.0)),
    ],
)
def test_the_first_of_equal_epochs_counts(
    test_accs: list[float], val_accs: list[float | None], wanted: tuple[float, int, float | None],
    storage: Storage, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pairs = zip(test_accs, val_accs, strict=True)
    made = [record(number, *accuracies) for number, accuracies in enumerate(pairs, 1)]
    monkeypatch.setattr(trial, "train", lambda *_: iter(made))
    _, row = run(job_of(make_config(epochs=len(made)), storage))
    assert (row.acc, row.epoch, row.selected_acc) == wanted
    assert row.seconds == 2.0 * len(made)
    # Every epoch has as many images: their rates average by the time that an image takes.
    assert row.images_per_second == pytest.approx(len(made) / sum(1 / (epoch.epoch * 100) for epoch in made))


def test_a_teacher_from_a_file(taught: Storage, make_config: MakeConfig, storage: Storage, tmp_path: Path) -> None:
    source = make_config(seed=7)
    torch.save(load_file(taught.weights(source.trial_id())), tmp_path / "teacher.pt")
    config = make_config(weights="0" * 64, epochs=0, limit_train=None)
    epochs, row = run(job_of(config, storage, weights=tmp_path / "teacher.pt"))
    trained = results.read_trial(taught, source.trial_id())
    assert trained
    assert epochs == results.read_epochs(storage) == []
    assert (row.state, row.nepoch, row.epoch, row.seconds) == (State.FINISHED, 0, None, None)
    assert row.acc == row.last_acc == trained.last_acc
    assert (row.top5, row.params) == (trained.top5, PARAMS)
    _, student = run(
        job_of(make_config(method="st", options=(("temperature", 4.0),), teacher=config, teacher_cache="live"), storage)
    )
    assert (student.state, student.teacher_acc) == (State.FINISHED, row.last_acc)


def test_the_same_job_twice_gives_the_same_numbers_and_weights(storage: Storage, make_config: MakeConfig) -> None:
    job = job_of(make_config(epochs=2, flip=True, holdout=8), storage)
    path = storage.weights(job.trial.trial_id)
    runs = []
    for _ in range(2):
        torch.rand(3)  # neither torch's global state ...
        epochs, row = run(job)
        runs.append(([steady(epoch) for epoch in epochs], steady(row), path.read_bytes()))
        path.unlink()  # ... nor what the first run left may matter
    assert runs[0] == runs[1]
    (other, _) = run(job_of(make_config(epochs=2, flip=True, holdout=8, seed=1), storage))
    assert [steady(epoch) for epoch in other] != runs[0][0], "the seed matters"


# Trials that fail.


def test_divergence_is_a_failed_row_with_epoch_and_reason(storage: Storage, make_config: MakeConfig) -> None:
    job = job_of(make_config(lr=1e30, epochs=3), storage)
    epochs, row = run(job)
    assert row.state is State.FAILED
    assert row.error and row.error.startswith(f"epoch {len(epochs) + 1}: the mean training loss is ")
    assert "try a smaller lr than 1e+30" in row.error
    assert results.read_trial(storage, job.trial.trial_id) == row
    assert not storage.weights(job.trial.trial_id).exists()


@pytest.mark.parametrize("name", ["logit, live", "logit, table"])
def test_missing_teacher_weights_are_a_failed_row(name: str, storage: Storage, make_config: MakeConfig) -> None:
    job = student_of(name, storage, make_config)
    epochs, row = run(job)
    assert (epochs, row.state, row.acc, row.last_acc) == ([], State.FAILED, None, None)
    assert row.error and "weights.safetensors" in row.error and "launch the study again" in row.error
    assert results.read_trials(storage) == [row]


def test_a_missing_dataset_is_a_failed_row(tmp_path: Path, make_config: MakeConfig) -> None:
    _, row = run(job_of(make_config(), Storage(tmp_path / "empty")))
    assert row.state is State.FAILED
    assert row.error and "digits" in row.error and "prepares" in row.error


def raising(error: BaseException) -> Callable[..., Any]:
    """A function that raises."""

    def call(*_: object) -> None:
        raise error

    return call


ERRORS = [
    (RuntimeError("CUDA out of memory"), "RuntimeError: CUDA out of memory"),
    (MemoryError(), "MemoryError: "),
    (TeacherError("plain words"), "plain words"),
    (StopIteration("odd"), "StopIteration"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), "can't decode"),
    (OSError("a name with bytes: \udcff"), r"a name with bytes: \udcff"),
]


@pytest.mark.parametrize(("error", "wanted"), ERRORS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("step", ["data.load", "models.build", "evaluate", "teacher.save_weights"])
def test_any_exception_is_a_failed_row(
    step: str, error: Exception, wanted: str, storage: Storage, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "train", lambda *_: iter([record(1, 50.0, None)]))
    monkeypatch.setattr(f"orchestrator.trial.{step}", raising(error))
    job = job_of(make_config(epochs=1), storage)
    epochs, row = run(job)
    assert row.state is State.FAILED
    assert row.error and wanted in row.error
    assert row.error.endswith(" (after epoch 1)") == bool(epochs)
    assert (row.acc, row.last_acc) == (None, None)
    assert results.read_trial(storage, job.trial.trial_id) == row


def test_a_failure_after_some_epochs_keeps_them_but_is_no_result(
    storage: Storage, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two(*_: object) -> Iterator[EpochRecord]:
        yield record(1, 60.0, 1.0)
        yield record(2, 50.0, 2.0)
        raise RuntimeError("gone")

    monkeypatch.setattr(trial, "train", two)
    epochs, row = run(job_of(make_config(epochs=3, holdout=8), storage))
    assert row.error == "RuntimeError: gone (after epoch 2)"
    assert (row.acc, row.epoch, row.last_acc, row.selected_acc) == (None, None, None, None)
    assert [asdict(epoch) for epoch in epochs] == [
        {name: value for name, value in row.items() if name != "trial_id"} for row in results.read_epochs(storage)
    ]


def test_epochs_of_an_earlier_attempt_do_not_stay(storage: Storage, make_config: MakeConfig) -> None:
    job = student_of("logit, live", storage, make_config)
    results.write_epochs(storage, job.trial.trial_id, [record(1, 60.0, None)])
    _, row = run(job)  # fails before its first epoch: the teacher is missing
    assert row.state is State.FAILED
    assert results.read_epochs(storage) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_what_stops_the_process_leaves_a_running_row(
    stop: type[BaseException], storage: Storage, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "train", raising(stop()))
    job = job_of(make_config(), storage)
    with pytest.raises(stop):
        run(job)
    assert results.read_states(storage) == {job.trial.trial_id: State.RUNNING}


def test_a_trial_that_is_closed_leaves_a_running_row(storage: Storage, make_config: MakeConfig) -> None:
    job = job_of(make_config(epochs=2), storage)
    running = run_trial(job)
    next(running)
    running.close()
    assert results.read_states(storage) == {job.trial.trial_id: State.RUNNING}
    assert not storage.weights(job.trial.trial_id).exists()


@pytest.mark.parametrize("broken", [1, 2, 3])
def test_a_storage_that_fails_never_leaves_a_finished_row(
    broken: int, storage: Storage, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are written as running and as finished; from the `broken`th write on the disk is full."""
    job = job_of(make_config(), storage)
    write, calls = results.write_trial, []

    def full(storage: Storage, row: TrialRecord) -> None:
        calls.append(row.state)
        if len(calls) >= broken:
            raise StorageError("no space left")
        write(storage, row)

    monkeypatch.setattr(results, "write_trial", full)
    _, row = run(job)
    states = results.read_states(storage)
    if broken == 3:
        assert (row.state, states) == (State.FINISHED, {job.trial.trial_id: State.FINISHED})
        return
    assert (row.state, row.error) == (State.FAILED, "no space left" + " (after epoch 1)" * (broken == 2))
    assert states == ({} if broken == 1 else {job.trial.trial_id: State.RUNNING})


def test_weights_that_cannot_be_written_are_a_failed_row(storage: Storage, make_config: MakeConfig) -> None:
    (storage.root / "trials").write_text("a file where a folder should be")
    job = job_of(make_config(), storage)
    _, row = run(job)
    assert row.state is State.FAILED
    assert row.error and "weights.safetensors cannot be written" in row.error
    assert results.read_states(storage) == {job.trial.trial_id: State.FAILED}


# Jobs.


@pytest.mark.parametrize("name", STUDENTS)
def test_a_job_travels_as_json(name: str, digits_storage: Storage, make_config: MakeConfig) -> None:
    job = replace(
        student_of(name, digits_storage, make_config), no=3, git_commit="abc", ray_version="2.60.0", weights="w"
    )
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job


def test_a_row_before_anything_was_measured(digits_storage: Storage, make_config: MakeConfig) -> None:
    job = student_of("logit, table", digits_storage, make_config)
    row = job.row(State.SKIPPED, "its teacher failed")
    config = job.trial.config
    assert (row.state, row.error, row.trial_id) == (State.SKIPPED, "its teacher failed", config.trial_id())
    for name in ("method", "dataset", "student", "seed", "lr", "batch_size"):
        assert getattr(row, name) == getattr(config, name)
    unmeasured = {f.name for f in fields(row) if getattr(row, f.name) is None}
    assert unmeasured >= {"acc", "epoch", "last_acc", "selected_acc", "top5", "teacher_acc", "agreement", "params"}
