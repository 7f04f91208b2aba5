"""One trial from start to end: images, model, loss, teacher, loop, weights and rows."""

from __future__ import annotations

import os
import re
import socket
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from orchestrator import losses, models
from orchestrator.data import tensors
from orchestrator.data.registry import facts_of_trial, title_of
from orchestrator.data.tensors import Data
from orchestrator.errors import DeviceLost, KdctlError, LeaseLost, Stopped, StorageError
from orchestrator.execution.job import Job
from orchestrator.losses.base import Loss, Shapes
from orchestrator.models.base import Classifier
from orchestrator.monitor.events import TrialStarted
from orchestrator.own_code.registry import register
from orchestrator.pretrained import weight_files
from orchestrator.records import EpochRecord, Failure, State, TrialConfig, TrialRecord
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Lease, acquire, trial_resource
from orchestrator.storage.logs import Log
from orchestrator.teachers import outputs, tables, weights
from orchestrator.text import first_line, printable
from orchestrator.training.batches import Teacher
from orchestrator.training.checkpoints import drop_checkpoints, restore_checkpoint, save_checkpoint
from orchestrator.training.evaluation import Score, evaluate
from orchestrator.training.graphs import is_lost, own_stream, sharing
from orchestrator.training.loop import train
from orchestrator.training.seeds import LOSS, build_seeded
from orchestrator.training.state import TrainingState, supports_bfloat16, use_threads


@dataclass(frozen=True, slots=True)
class TrialNotice:
    """A message of a running trial for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class TakenOver:
    """A trial that another launch is training or has taken over."""

    trial_id: str


Report = TrialStarted | EpochRecord | TrialNotice | TrialRecord | TakenOver
_FLUSH = 2.0  # seconds between two writes of a trial's epochs, as writing after each short epoch would take too long


def run_trial(job: Job, stopping: Callable[[], bool] = lambda: False) -> Generator[Report]:
    """Trains one trial, from its last checkpoint if there is one.

    Yields one record per epoch and finally the trial's own record, whose rows the storage then holds, or `TakenOver`.
    A trial that fails yields a record with the error; one that is stopped (by `stopping`, or because its launch ended)
    writes a checkpoint and yields a record. Only what stops the process itself is raised.
    """
    trial_id = job.trial.trial_id
    register(job.own_code)
    try:
        storage = Storage.at(job.storage)
        lease = acquire(storage, trial_resource(trial_id), job.launch or None)
        if lease is None:
            yield TakenOver(trial_id)
            return
        with lease:
            last = _ended_elsewhere(job, storage)
            if last is None:
                last = yield from _Attempt(job, storage, lease, stopping).run()
        yield last  # the lease is already released: the caller may suspend this generator here
    except LeaseLost:
        yield TakenOver(trial_id)
    except StorageError as error:  # before anything was trained
        yield job.row(State.FAILED, printable(str(error)), Failure.STORAGE)


def _ended_elsewhere(job: Job, storage: Storage) -> TrialRecord | None:
    """The row of the trial if another launch has ended it since ours read the storage."""
    state = store.read_states(storage, [job.trial.trial_id]).get(job.trial.trial_id)
    row = _row_or_none(storage, job.trial.trial_id) if state in (State.FINISHED, State.FAILED) else None
    if row is None or state is State.FINISHED:  # it was not finished then, or it would not be our job
        return row
    return row if job.since and row.end_time and row.end_time > datetime.fromisoformat(job.since) else None


def _row_or_none(storage: Storage, trial_id: str) -> TrialRecord | None:
    with suppress(StorageError):  # a damaged row is replaced
        return store.read_trial(storage, trial_id)
    return None


class _Attempt:
    """One attempt at a trial, by the holder of its lease."""

    def __init__(self, job: Job, storage: Storage, lease: Lease, stopping: Callable[[], bool]) -> None:
        self._job = job
        self._storage = storage
        self._lease = lease
        self._stopping = stopping
        self._id = job.trial.trial_id
        self._device = torch.device("cpu")
        self._row = replace(job.row(State.RUNNING), host=socket.gethostname(), torch_version=torch.__version__)
        self._epochs: list[EpochRecord] = []
        self._state: TrainingState | None = None
        self._tested: Score | None = None  # the test score of weights from a file
        self._log = Log(storage, self._id)
        self._flushed = self._saved = time.monotonic()

    def run(self) -> Generator[Report, None, TrialRecord]:
        """Trains and stores the result; yields the epochs and returns the trial's record."""
        self._log.add(f"trial {self._id} of study {self._job.study}: {self._job.trial.title()}")
        try:
            self._find_device()
            with own_stream(self._device):
                try:
                    model = yield from self._log_reports(self._train())
                    return self._finish(model)
                except Stopped:  # in the stream of the last step: another one would not wait for it
                    return self._stop()
        except LeaseLost:
            raise
        except Exception as error:  # a failed trial becomes a row, and the study continues
            if is_lost(self._device):
                return self._fail(DeviceLost(f"its GPU no longer answers this process ({first_line(error)})"))
            return self._fail(error)

    def _log_reports(self, reports: Generator[Report, None, Classifier]) -> Generator[Report, None, Classifier]:
        """Yields every report, and writes it to the trial's log."""
        while True:
            try:
                report = next(reports)
            except StopIteration as end:
                model: Classifier = end.value
                return model
            self._log.add(_format_report(report, self._job.trial.config.epochs))
            yield report

    def _find_device(self) -> None:
        self._device = torch.device("cuda", self._job.gpu) if self._job.gpus else torch.device("cpu")
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
            # Shapes never change, so cuDNN searches for the fastest kernels once. The search waits for the whole
            # device, which would abort the graph capture of another trial on the same GPU.
            torch.backends.cudnn.benchmark = sharing(self._job.gpus) == 1
        self._use_threads(self._job.threads)

    def _use_threads(self, count: int) -> None:
        """Computes with that many CPU threads from here on, and says so in the row."""
        use_threads(count)
        threads = None if self._device.type == "cuda" else count
        self._row = replace(self._row, device=_device_name(self._device), threads=threads)

    def check(self) -> None:
        """Raises Stopped if the trial is to stop, and LeaseLost if another launch has taken it over."""
        if self._stopping() or self._lease.is_orphaned:
            raise Stopped("stopped")
        if self._lease.is_lost:
            self._lease.check()

    def _train(self) -> Generator[Report, None, Classifier]:
        job, config = self._job, self._job.trial.config
        images = tensors.load(config, self._storage, self._device)
        classes = facts_of_trial(config).classes
        if config.weights is not None:
            assert job.weights is not None
            self._write_row(self._row)
            self._flush()
            yield self._describe_start(0, None)
            path = Path(job.weights)
            content = weight_files.read(path, config.weights)
            model = weights.build_loaded(content, path, config.student, classes, self._device)
            self._tested = evaluate(model, images.test, images, self.check)
            yield from self._compare_accuracy(self._tested.acc, weight_files.find_stated_accuracy(content))
            yield from _warn_if_guessing(self._tested.acc, title_of(config.dataset), images)
            return model
        if config.members:
            self._write_row(self._row)
            self._flush()
            yield self._describe_start(0, None)
            ensemble = weights.load_ensemble(config, self._storage, self._device)
            self._tested = evaluate(ensemble, images.test, images, self.check)
            return ensemble
        model = build_seeded(lambda: models.build(config.student, classes), config.seed, self._device)
        state = TrainingState.start(model, self._build_loss(images, classes), config)
        state.threads = self._row.threads
        yield from self._resume(state)
        state.teacher_mode = self._job.trial.teacher_cache
        self._row = _with_recipe(self._row, arithmetic=state.compute_dtype)
        self._write_row(self._row)
        self._flush()  # replaces the epochs of an earlier attempt with those in the checkpoint
        yield self._describe_start(state.epoch, state.compute_dtype)
        self._state = state
        teacher, warned = self._open_teacher(images), False
        for record in train(state, images, config, teacher, self.check):
            self._epochs.append(record)
            self._save_if_due(state)
            if state.uncaptured and not warned:
                warned = True
                yield TrialNotice(f"trains without CUDA graphs, and so more slowly: {state.uncaptured}")
            yield record
        return state.result

    def _compare_accuracy(self, acc: float, stated: tuple[str, float] | None) -> Iterator[TrialNotice]:
        """Logs the accuracy of weights from a file next to what the file states; a notice if they differ too much."""
        if stated is None:
            return
        key, value = stated
        text = f"these weights reach {acc:.2f} % on test images; their file states {key} {value:.2f} %"
        if self._job.trial.config.limit_test is None and abs(acc - value) > _CLOSE:
            yield TrialNotice(f"warning: {text}")
        else:
            self._log.add(text)

    def _describe_start(self, epoch: int, compute_dtype: str | None) -> TrialStarted:
        table = self._job.trial.table
        is_hit = None if table is None else tables.has_table(table, self._storage)
        mode = self._job.trial.teacher_cache
        acc = max((record.test_acc for record in self._epochs), default=None)
        device = str(self._row.device)
        return TrialStarted(socket.gethostname(), os.getpid(), device, epoch, mode, is_hit, acc, compute_dtype)

    def _resume(self, state: TrainingState) -> Generator[Report]:
        notices: list[str] = []
        epochs = restore_checkpoint(self._storage, self._id, state, notices.append)
        yield from map(TrialNotice, notices)
        if epochs is None:
            return
        before = _row_or_none(self._storage, self._id)
        self._epochs = epochs
        if state.compute_dtype == "bfloat16" and not supports_bfloat16(self._device):
            state.compute_dtype = "float32"
            yield TrialNotice("continues in float32, because this device lacks bfloat16, in which it started")
        if self._device.type == "cpu":  # sums are rounded as in the epochs before
            self._use_threads(state.threads or _find_threads(before) or self._job.threads)
        state.threads = self._row.threads
        started = before.start_time if before else self._row.start_time
        self._row = replace(self._row, start_time=started, resumed=1 + (before.resumed if before else 0))
        self._keep_teacher_mode(state)
        yield TrialNotice(f"resumes in epoch {state.epoch} of {self._job.trial.config.epochs}, from its checkpoint")

    def _keep_teacher_mode(self, state: TrainingState) -> None:
        """Keeps the teacher mode (live or table) of the checkpoint: mixing the two would change the result."""
        mode = state.teacher_mode
        if mode != self._job.trial.teacher_cache:
            trial = self._job.trial.with_teacher_mode(mode)
            self._job = replace(self._job, trial=trial)
            self._row = _with_recipe(self._row, teacher_answers=mode)

    def _save_if_due(self, state: TrainingState) -> None:
        """Writes the epochs and a checkpoint, each if the last write was long enough ago."""
        now = time.monotonic()
        if now - self._flushed >= _FLUSH:
            self._flush()
        is_last = state.epoch > self._job.trial.config.epochs
        if now - self._saved >= self._job.checkpoint_seconds and not is_last:
            self._save_checkpoint(state)

    def _flush(self) -> None:
        self._lease.check()
        store.write_epochs(self._storage, self._id, self._epochs)
        self._log.flush()
        self._flushed = time.monotonic()

    def _save_checkpoint(self, state: TrainingState) -> None:
        self._lease.check()
        save_checkpoint(self._storage, self._id, state, self._epochs)
        self._saved = time.monotonic()

    def _write_row(self, row: TrialRecord) -> None:
        self._lease.check()
        store.write_trial(self._storage, row)

    def _build_loss(self, images: Data, classes: int) -> Loss:
        config, labels = self._job.trial.config, images.train.labels.cpu()
        shapes = describe_pair(config, classes) if config.teacher else None
        options = dict(config.options)
        build = partial(losses.build, config.method, shapes, labels, **options)
        return build_seeded(build, config.seed, self._device, LOSS)

    def _open_teacher(self, images: Data) -> Teacher:
        trial = self._job.trial
        if trial.config.teacher is None:
            return outputs.no_teacher
        if trial.table is not None:
            storage, device = self._storage, self._device
            return tables.open_table(trial.table, trial.config.teacher, images, storage, device, self.check)
        needs = losses.get(trial.config.method).needs(dict(trial.config.options))
        return outputs.LiveTeacher(weights.load_teacher(trial.config.teacher, self._storage, self._device), needs)

    def _finish(self, model: Classifier) -> TrialRecord:
        images = tensors.load(self._job.trial.config, self._storage, self._device)
        tested = self._state.tested if self._state else self._tested  # None if another process trained the last epoch
        score = tested or evaluate(model, images.test, images, self.check)
        final = _score_final_weights(self._job, self._storage, self._device, score)
        self._flush()
        size, digest = weights.save_weights(model, self._storage, self._id)
        finished = _with_results(self._row, self._epochs, final, model)
        finished = replace(finished, weights_bytes=size, weights_sha256=digest, end_time=datetime.now(UTC))
        self._log.add(
            f"finished: best test accuracy {finished.acc} % in epoch {finished.epoch}, last {finished.last_acc} %"
        )
        self._log.flush()
        self._write_row(finished)  # written last: a finished row promises that its weights and epochs are stored
        drop_checkpoints(self._storage, self._id)
        return finished

    def _stop(self) -> TrialRecord:
        """Saves a checkpoint and the row, which says where the trial stopped."""
        where = "before its first epoch"
        try:
            self._log.add("stopping")
            if self._state is not None:
                last = self._job.trial.config.epochs
                where = f"in epoch {min(self._state.epoch, last)} of {last}"
                self._save_checkpoint(self._state)
            row = self._end_row(State.STOPPED, f"stopped {where}; the same command resumes it from there")
            self._log.add(row.error or "")
            self._flush()
            self._write_row(row)
        except StorageError as error:
            return self._end_row(State.STOPPED, f"stopped {where}, without a checkpoint: {error}")
        return row

    def _fail(self, error: Exception) -> TrialRecord:
        after = f" (after epoch {len(self._epochs)})" if self._epochs else ""
        # Without accuracies: the best epoch before a failure is not a result and must not enter an average.
        failed = self._end_row(State.FAILED, _describe_error(error) + after, _classify(error))
        self._log.add(f"failed: {failed.error}")
        if failed.failure is Failure.ERROR:  # an unexpected error: keep the full traceback
            self._log.add("".join(traceback.format_exception(error)))
        with suppress(StorageError):  # the cause may be a full disk; the stored row is not a finished one
            self._flush()
            self._write_row(failed)
        return failed

    def _end_row(self, state: State, error: str, failure: Failure | None = None) -> TrialRecord:
        return replace(self._row, state=state, error=printable(error), failure=failure, end_time=datetime.now(UTC))


def _format_report(report: Report, epochs: int) -> str:
    """Formats a report as a line of the trial's log."""
    if isinstance(report, EpochRecord):
        val = "" if report.val_acc is None else f", held-out accuracy {report.val_acc:.2f} %"
        return (
            f"epoch {report.epoch}/{epochs}: lr {report.lr:g}, loss {report.train_loss:.5g}, test accuracy "
            f"{report.test_acc:.2f} %{val}, {report.images_per_second:,.0f} images/s, {report.seconds:.2f} s"
        )
    if isinstance(report, TrialStarted):
        mode = f", teacher outputs: {report.teacher_mode}" if report.teacher_mode else ""
        return (
            f"starts in epoch {report.epoch} of {epochs} on {report.device}, process {report.pid} on {report.host}, "
            f"kdctl {version('kdctl')}, torch {torch.__version__}{mode}"
        )
    return report.text if isinstance(report, TrialNotice) else ""


# PyTorch reports it in several ways: from its own allocators, from CUDA directly, from cuBLAS, and from cuDNN, which
# then finds no engine whose workspace fits.
_NO_MEMORY = re.compile(
    r"can(?:'|no)t allocate memory|out of memory|ALLOC_FAILED|unable to find an engine", re.IGNORECASE
)


def _classify(error: Exception) -> Failure:
    if isinstance(error, KdctlError):
        return Failure(error.failure)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _NO_MEMORY.search(str(error)):
        return Failure.OUT_OF_MEMORY
    return Failure.ERROR


def _describe_error(error: Exception) -> str:
    if isinstance(error, KdctlError):
        return str(error)
    if _classify(error) is Failure.OUT_OF_MEMORY:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        return f"out of memory ({reason}); use a smaller batch_size, or fewer trials at a time with --max-concurrent"
    return f"{type(error).__name__}: {error}; not retried in this launch, because it would fail the same way"


def describe_pair(config: TrialConfig, classes: int) -> tuple[Shapes, Shapes]:
    """The shapes of a trial's student and teacher. Raises KdctlError where its method cannot compare their outputs."""
    assert config.teacher is not None
    student, teacher = (
        Shapes(classes, widths.pooled, widths.maps)
        for widths in map(models.widths, (config.student, config.teacher.student))
    )
    # Checked here too, as the widths of a user's own model are not known in a plan.
    facts = losses.get(config.method)
    options = {**facts.defaults(), **dict(config.options)}
    bare = [name for name, own in ((config.student, student), (config.teacher.student, teacher)) if len(own.maps) < 2]
    if bare and "maps" in facts.needs(options):
        raise KdctlError(
            f"method {config.method} compares feature maps, and {bare[0]} gives none; give it a method `embed` that "
            "returns logits, pooled features and its maps, stem first"
        )
    if mismatch := facts.mismatch(options, student, teacher):
        raise KdctlError(f"{config.teacher.student} cannot teach {config.student}: {mismatch}")
    return student, teacher


def _with_recipe(row: TrialRecord, **facts: str | None) -> TrialRecord:
    return replace(row, recipe={**row.recipe, **facts})


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def _find_threads(row: TrialRecord | None) -> int | None:
    """The CPU threads that trained a trial, for checkpoints of earlier versions: they were only part of a text."""
    found = re.fullmatch(r"cpu, (\d+) threads", row.device or "") if row else None
    return int(found[1]) if found else None


_CLOSE = 0.5  # percentage points by which the accuracy of weights may differ from what their file states
_NEAR_GUESSING = 10.0  # percentage points above guessing, below which weights are suspect; at most twice guessing


def _warn_if_guessing(acc: float, dataset: str, images: Data) -> Iterator[TrialNotice]:
    """Warns if weights from a file are hardly better than guessing."""
    guessing = 100 / images.facts.classes
    if acc < guessing + min(guessing, _NEAR_GUESSING):
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (images.facts.mean, images.facts.std))
        yield TrialNotice(
            f"warning: these weights reach {acc:.2f} % on test images, and guessing would reach {guessing:g} %: were "
            f"they trained on {dataset}, on images from 0 to 1 less the mean ({mean}), divided by the "
            f"standard deviation ({std})?"
        )


def _score_final_weights(job: Job, storage: Storage, device: torch.device, score: Score) -> dict[str, Any]:
    """Scores the final weights: `last_acc`, `top5`, and how the student compares with its teacher."""
    config = job.trial.config
    row: dict[str, Any] = {"last_acc": score.acc, "top5": score.top5}
    if config.teacher and job.trial.teacher_id:
        taught = _score_teacher(config.teacher, config.limit_test, storage, device)
        agreeing = int((score.predictions == taught.predictions).sum())
        row |= {"teacher_acc": taught.acc, "agreement": 100 * agreeing / len(score.predictions)}
    return row


@lru_cache(maxsize=8)  # the students of one teacher often follow each other in a worker
def _score_teacher(config: TrialConfig, limit_test: int | None, storage: Storage, device: torch.device) -> Score:
    """Scores a teacher on the test images of its students."""
    images = tensors.load(replace(config, limit_test=limit_test), storage, device)
    return evaluate(weights.load_teacher(config, storage, device), images.test, images)


def _with_results(
    row: TrialRecord, epochs: Sequence[EpochRecord], final: dict[str, Any], model: Classifier
) -> TrialRecord:
    row = replace(row, state=State.FINISHED, acc=final["last_acc"], **final)
    row = replace(row, params=sum(parameter.numel() for parameter in model.parameters()))
    return replace(row, **_summarise(epochs))


def _summarise(epochs: Sequence[EpochRecord]) -> dict[str, Any]:
    """The columns that summarise the epochs; empty without epochs."""
    if not epochs:
        return {}
    best = max(epochs, key=lambda record: record.test_acc)  # the first, if several are equal
    summary: dict[str, Any] = {"acc": best.test_acc, "epoch": best.epoch}
    if epochs[0].val_acc is not None:
        summary["selected_acc"] = max(epochs, key=lambda record: record.val_acc or 0.0).test_acc
    training = [1 / record.images_per_second for record in epochs]  # seconds per image
    return {
        **summary,
        "seconds": sum(record.seconds for record in epochs),
        "images_per_second": len(epochs) / sum(training),
    }
