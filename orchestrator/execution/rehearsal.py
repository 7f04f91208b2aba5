"""Two training steps of a user's own loss on random images, as `kdctl check` runs them before any real training."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from orchestrator import losses, models
from orchestrator.data.registry import facts_of_trial
from orchestrator.errors import KdctlError
from orchestrator.execution.attempt import describe_pair
from orchestrator.losses.base import Loss, LossTerms, Progress, Shapes, TeacherOutputs
from orchestrator.machine.streams import reserved_stdout
from orchestrator.models.base import Outputs
from orchestrator.records import TrialConfig
from orchestrator.training.batches import Batch
from orchestrator.training.loop import step
from orchestrator.training.seeds import LOSS, build_seeded
from orchestrator.training.state import TrainingState

_IMAGES = 8  # in a batch
_LIMIT = 60  # seconds
_CPU = torch.device("cpu")
_CLOSE = 0.05  # relative difference that a table's float16 outputs may make to the total


def rehearse(config: TrialConfig) -> None:
    """Runs two steps of a trial whose loss or models are the user's own. Raises KdctlError for the first mistake.

    Checked: the loss runs with the outputs that it needs, alone or from a table; its terms are finite numbers; its
    distillation term has a gradient at the student and changes no output of it; and training that resumes from a
    checkpoint continues with the same numbers. The models have random weights. On a system with SIGALRM a loss that
    takes longer than a minute is a mistake too.
    """
    with _time_limit(config.method), reserved_stdout():  # what the user's code prints is no output of a command
        trial = _Rehearsal(replace(config, precision="float32"))
        trial.check_terms()
        trial.check_resuming()
        trial.check_table()


class _Rehearsal:
    def __init__(self, config: TrialConfig) -> None:
        facts, generator = facts_of_trial(config), torch.Generator().manual_seed(0)
        self._config = config
        self._classes = facts.classes
        self._needs = losses.get(config.method).needs(dict(config.options))
        images = torch.randn(_IMAGES, 3, facts.side, facts.side, generator=generator)
        labels = torch.randint(facts.classes, (_IMAGES,), generator=generator)
        numbers = torch.arange(_IMAGES)
        self._batch = Batch(images, labels, numbers, torch.zeros_like(numbers), numbers)
        self._progress = Progress(torch.ones(()), config.epochs)
        self._shapes: tuple[Shapes, Shapes] | None = None
        self._outputs: dict[str, Any] = {}  # of the teacher: those that the loss needs
        if config.teacher is not None:
            self._shapes = describe_pair(config, facts.classes)
            name = config.teacher.student
            teacher = build_seeded(lambda: models.build(name, facts.classes), 1, _CPU)
            with torch.no_grad():
                outputs = teacher.eval().embed(images)
            self._outputs = {name: getattr(outputs, name) for name in self._needs}

    def check_terms(self) -> None:
        """The loss runs; its terms are finite, have a gradient at the student, and leave its outputs as they are."""
        state = self._start()
        student = state.model.train().embed(self._batch.images)
        before = [tensor.detach().clone() for tensor in _tensors(student)]
        terms = self._call(state.loss, student)
        for name, term in zip(("total", "cross-entropy", "distillation term"), terms, strict=True):
            if term is not None and not torch.isfinite(term):
                raise self._error(f"its {name} is {float(term.detach())} for random images; expected a finite number")
        if any(not torch.equal(a, b) for a, b in zip(before, _tensors(student), strict=True)):
            raise self._error("it changes the student's outputs in place; work on a copy: `student.logits.clone()`")
        if terms.kd is not None and not self._reaches_student(state, terms.kd):
            raise self._error(
                "its distillation term has no gradient with respect to the student, which would learn from the labels "
                "alone; compute it from student.logits, student.pooled or student.maps, without `detach`, `item` or "
                "`no_grad`"
            )

    def check_table(self) -> None:
        """With the float16 outputs of a table it gives nearly the same number as with those of a live teacher."""
        if losses.find_table_output(self._needs) is None:
            return
        state = self._start()
        student = state.model.train().embed(self._batch.images)
        rounded = {name: tensor.half().float() for name, tensor in self._outputs.items()}
        table = TeacherOutputs(**rounded, index=self._batch.index)
        live = self._call(state.loss, student).total
        stored = self._start().loss(student, self._batch.labels, table, self._progress).total
        if not torch.isclose(live, stored, rtol=_CLOSE, atol=_CLOSE):
            raise self._error(
                f"its total is {float(live.detach()):g} with a live teacher, and {float(stored.detach()):g} with the "
                "float16 outputs of a table; train with `teacher_cache: live`"
            )

    def check_resuming(self) -> None:
        """A second step after a restored checkpoint gives the same numbers as without an interruption."""
        first, second = self._start(), self._start()
        self._step(first)
        second.restore({name: tensor.clone() for name, tensor in first.tensors().items()})
        self._step(first)
        self._step(second)
        if not torch.equal(first.sums, second.sums):
            raise self._error(
                "after a checkpoint it continues with other numbers: it draws random numbers, as dropout does, or "
                "keeps something between steps that no checkpoint holds; remove the randomness, and keep tensors in "
                "parameters or buffers (`self.register_buffer`) of an nn.Module"
            )

    def _start(self) -> TrainingState:
        config, seed = self._config, self._config.seed
        model = build_seeded(lambda: models.build(config.student, self._classes), seed, _CPU)
        options = dict(config.options)
        loss = build_seeded(
            lambda: losses.build(config.method, self._shapes, self._batch.labels, **options), seed, _CPU, LOSS
        )
        return TrainingState.start(model, loss, config)

    def _call(self, loss: Loss, student: Outputs) -> LossTerms:
        return loss(student, self._batch.labels, self._teacher(), self._progress)

    def _teacher(self) -> TeacherOutputs:
        return TeacherOutputs(**self._outputs, index=self._batch.index)

    def _step(self, state: TrainingState) -> None:
        state.model.train()
        step(state, self._batch, self._teacher(), self._progress)

    def _reaches_student(self, state: TrainingState, kd: Tensor) -> bool:
        if not kd.requires_grad:
            return False
        parameters = list(state.model.parameters())
        gradients = torch.autograd.grad(kd, parameters, allow_unused=True)
        return any(gradient is not None and bool(gradient.any()) for gradient in gradients)

    def _error(self, message: str) -> KdctlError:
        return KdctlError(f"{self._config.method}: {message}")


def _tensors(outputs: Outputs) -> list[Tensor]:
    return [outputs.logits, outputs.pooled, *outputs.maps]


@contextmanager
def _time_limit(method: str) -> Iterator[None]:
    """Raises KdctlError inside what takes longer than a minute; only the main thread of a process can do so."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"two steps of {method} take longer than {_LIMIT} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_LIMIT)
    try:
        yield
    except TimeoutError as error:
        raise KdctlError(str(error)) from None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
