"""One trial from start to end: images, model, loss, teacher, loop, weights and rows."""

from __future__ import annotations

import json
import socket
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import losses
import models
from models.resnet import ResNet
from orchestrator import data, results, teacher
from orchestrator.data import Data
from orchestrator.datasets import DATASETS
from orchestrator.errors import KdctlError, StorageError, printable
from orchestrator.plan import PlannedTrial
from orchestrator.records import EpochRecord, State, TrialConfig, TrialRecord
from orchestrator.storage import Storage
from orchestrator.training import Answers, Score, evaluate, fresh_model, train


@dataclass(frozen=True, slots=True)
class Job:
    """A planned trial with what its worker needs to know of the launch; plain JSON travels to the worker."""

    trial: PlannedTrial
    no: int
    study: str
    storage: str
    threads: int
    weights: str | None  # the file of a teacher that the user brought
    git_commit: str | None
    ray_version: str | None
    gpus: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data from which `from_json` makes an equal job."""
        data = {name: getattr(self, name) for name in self.__slots__}
        return {**data, "trial": self.trial.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Job:
        """The job that `to_json` was asked of."""
        return cls(**{**data, "trial": PlannedTrial.from_json(data["trial"])})

    def row(self, state: State, error: str | None = None) -> TrialRecord:
        """The job's row before anything was measured."""
        config = self.trial.config
        return TrialRecord(
            no=self.no,
            method=config.method,
            dataset=config.dataset,
            student=config.student,
            teacher=config.teacher.student if config.teacher else None,
            start_time=datetime.now(UTC),
            acc=None,
            epoch=None,
            nepoch=config.epochs,
            lr=config.lr,
            batch_size=config.batch_size,
            trial_id=self.trial.trial_id,
            study=self.study,
            state=state,
            error=error,
            seed=config.seed,
            last_acc=None,
            selected_acc=None,
            top5=None,
            teacher_id=self.trial.teacher_id,
            teacher_acc=None,
            agreement=None,
            params=None,
            seconds=None,
            images_per_second=None,
            device=None,
            host=None,
            recipe=json.dumps({**config.recipe(), "teacher_answers": self.trial.teacher_cache}, sort_keys=True),
            kdctl_version=version("kdctl"),
            torch_version=None,
            ray_version=self.ray_version,
            git_commit=self.git_commit,
        )


def run_trial(job: Job) -> Generator[EpochRecord | TrialRecord]:
    """Trains one trial; yields a record an epoch and at last the trial's own, whose rows are then in the storage.

    A trial that fails ends with a record that says so; it raises nothing but what stops the process.
    """
    storage = Storage(Path(job.storage))
    torch.set_num_threads(job.threads)
    device = torch.device("cuda" if job.gpus else "cpu")
    row = replace(
        job.row(State.RUNNING), device=_device_name(device), host=socket.gethostname(), torch_version=torch.__version__
    )
    epochs: list[EpochRecord] = []
    try:
        results.write_trial(storage, row)
        results.write_epochs(storage, job.trial.trial_id, epochs)  # none yet: those of an earlier attempt go
        model = yield from _fit(job, storage, device, epochs)
        finished = _measured(row, epochs, _final(job, storage, device, model), model)
        teacher.save_weights(model, storage.weights(job.trial.trial_id))
        results.write_trial(storage, finished)  # last of all: a finished row stands for everything it needs
    except Exception as error:  # a trial's failure is a row, and the study goes on
        failed = _failed(row, epochs, error)
        with suppress(StorageError):  # a full disk may be why; the row that stands there is not a finished one
            results.write_trial(storage, failed)
        yield failed
    else:
        yield finished


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def _fit(
    job: Job, storage: Storage, device: torch.device, epochs: list[EpochRecord]
) -> Generator[EpochRecord, None, ResNet]:
    """Trains the model, filling `epochs` as it goes; returns the model."""
    config = job.trial.config
    images = data.load(config, storage, device)
    classes = DATASETS[config.dataset].classes
    if config.weights is not None:
        assert job.weights is not None
        return teacher.load_weights(Path(job.weights), config.student, classes, device)
    loss = losses.build(config.method, **dict(config.options))
    model = fresh_model(lambda: models.build(config.student, classes), config.seed, device)
    for record in train(model, loss, images, config, _answers(job.trial, images, storage, device)):
        epochs.append(record)
        results.write_epochs(storage, job.trial.trial_id, epochs)
        yield record
    return model


def _answers(trial: PlannedTrial, images: Data, storage: Storage, device: torch.device) -> Answers:
    if trial.config.teacher is None:
        return teacher.no_answers
    if trial.table is not None:
        return teacher.open_table(trial.table, trial.config.teacher, images, storage, device)
    needs = losses.METHODS[trial.config.method].needs(dict(trial.config.options))
    return teacher.LiveTeacher(teacher.load_teacher(trial.config.teacher, storage, device), needs)


def _final(job: Job, storage: Storage, device: torch.device, model: ResNet) -> dict[str, Any]:
    """What is measured with the final weights: `last_acc`, `top5`, and how the student compares with its teacher."""
    config = job.trial.config
    images = data.load(config, storage, device)
    score = evaluate(model, images.test, images)
    row: dict[str, Any] = {"last_acc": score.acc, "top5": score.top5}
    if config.teacher and job.trial.teacher_id:
        taught = _teacher_score(config.teacher, config.limit_test, storage, device)
        alike = int((score.said == taught.said).sum())
        row |= {"teacher_acc": taught.acc, "agreement": 100 * alike / len(images.test)}
    return row


@lru_cache(maxsize=8)  # the students of one teacher often follow each other in a worker
def _teacher_score(config: TrialConfig, limit_test: int | None, storage: Storage, device: torch.device) -> Score:
    """How a teacher does on the test images of its students."""
    images = data.load(replace(config, limit_test=limit_test), storage, device)
    return evaluate(teacher.load_teacher(config, storage, device), images.test, images)


def _measured(row: TrialRecord, epochs: Sequence[EpochRecord], final: dict[str, Any], model: ResNet) -> TrialRecord:
    row = replace(row, state=State.FINISHED, acc=final["last_acc"], **final)
    row = replace(row, params=sum(parameter.numel() for parameter in model.parameters()))
    return replace(row, **_summary(epochs))


def _summary(epochs: Sequence[EpochRecord]) -> dict[str, Any]:
    """What a row says of the epochs that there are: nothing where there are none."""
    if not epochs:
        return {}
    best = max(epochs, key=lambda record: record.test_acc)  # the first of equals
    summary: dict[str, Any] = {"acc": best.test_acc, "epoch": best.epoch}
    if epochs[0].val_acc is not None:
        summary["selected_acc"] = max(epochs, key=lambda record: record.val_acc or 0.0).test_acc
    training = [1 / record.images_per_second for record in epochs]  # seconds an image
    return {
        **summary,
        "seconds": sum(record.seconds for record in epochs),
        "images_per_second": len(epochs) / sum(training),
    }


def _failed(row: TrialRecord, epochs: Sequence[EpochRecord], error: Exception) -> TrialRecord:
    message = str(error) if isinstance(error, KdctlError) else f"{type(error).__name__}: {error}"
    after = f" (after epoch {len(epochs)})" if epochs else ""
    # Without accuracies: the best of the epochs before a failure is no result, and no average shall hold it.
    return replace(row, state=State.FAILED, error=printable(message + after))
