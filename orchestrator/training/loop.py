"""The training loop: an iterator of `EpochRecord`. It knows no files, no Ray and no method's name."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.data.shared import wait
from orchestrator.data.tensors import Data
from orchestrator.errors import DivergedError
from orchestrator.losses.base import LossTerms, Progress, TeacherOutputs
from orchestrator.records import EpochRecord, TrialConfig
from orchestrator.training import schedules
from orchestrator.training.batches import Batch, EpochBatches, EpochPreparer, Teacher, ignores_images
from orchestrator.training.evaluation import Check, evaluate, unchecked
from orchestrator.training.graphs import GraphedStep, Pacer, new_pool
from orchestrator.training.state import TrainingState


def train(
    state: TrainingState, data: Data, config: TrialConfig, teacher: Teacher, check: Check = unchecked
) -> Iterator[EpochRecord]:
    """Trains from the state's position to the end; yields a record after each epoch, when the state is at the next.

    Raises DivergedError at the first epoch whose mean loss is not finite, and what `check` raises.
    """
    steps = StepRunner(state, data, config, teacher)
    try:
        yield from _epochs(state, steps, data, config, check)
    finally:
        steps.close()


def _epochs(
    state: TrainingState, steps: StepRunner, data: Data, config: TrialConfig, check: Check
) -> Iterator[EpochRecord]:
    while state.epoch <= config.epochs:
        start = time.perf_counter()
        try:
            count = steps.run(check)
            # The only place where training waits for the device.
            total, ce, kd, correct = (amount / len(data.train) for amount in state.sums.tolist())
        finally:
            state.seconds += time.perf_counter() - start
        _check_progress(state, config, total, count)
        trained = state.seconds
        evaluation = time.perf_counter()
        test = evaluate(state.result, data.test, data, check)
        val = evaluate(state.result, data.val, data, check).acc if data.val else None
        record = EpochRecord(
            epoch=state.epoch,
            lr=steps.learning_rate(0),
            train_loss=total,
            ce_loss=ce,
            kd_loss=kd if state.with_teacher else None,
            train_acc=100 * correct,
            test_loss=test.loss,
            test_acc=test.acc,
            val_acc=val,
            seconds=trained + time.perf_counter() - evaluation,
            images_per_second=len(data.train) / trained,
        )
        state.epoch, state.images, state.seconds, state.tested = state.epoch + 1, 0, 0.0, test
        state.totals.zero_()
        yield record


def _check_progress(state: TrainingState, config: TrialConfig, loss: float, count: int) -> None:
    """Raises DivergedError where an epoch, whose last `count` steps were run now, makes no sense."""
    if not math.isfinite(loss):
        raise DivergedError(
            f"epoch {state.epoch}: the mean training loss is {loss}; try a smaller lr than {config.lr:g}"
        )
    if state.scaling and round(state.skipped.item()) == count > 0:
        raise DivergedError(
            f"epoch {state.epoch}: float16 cannot hold the gradients of any step; set precision: bfloat16 or float32"
        )


def _find_image_dtype(state: TrainingState, teacher: Teacher) -> torch.dtype | None:
    """The dtype in which a GPU keeps all images, if nobody needs them as float32; None where it rounds each batch."""
    is_rounded = state.rounds_together and state.compute_dtype != "float32" and ignores_images(teacher)
    return getattr(torch, state.compute_dtype) if is_rounded else None


class StepRunner:
    """The steps of one training. The tensors that a step reads and writes never move, so that a GPU can replay it."""

    def __init__(self, state: TrainingState, data: Data, config: TrialConfig, teacher: Teacher) -> None:
        self._state = state
        self._config = config
        self._teacher = teacher
        self._batches = EpochBatches(data, config, _find_image_dtype(state, teacher))
        self._steps_per_epoch = sum(1 for _ in self._batches.sizes())
        self._schedule = schedules.build(config)
        self._lr: float | None = None  # the optimizer's, once it is known
        self._progress = Progress(torch.zeros((), device=state.device), config.epochs)
        self._pool = new_pool(state.device)
        self._pacer = Pacer(state.device)
        self._graphs: dict[int, GraphedStep] = {}  # by batch size: the last batch of an epoch may be smaller

    def run(self, check: Check) -> int:
        """Runs the remaining steps of the state's epoch; returns their number.

        On a GPU they are only queued when this returns.
        """
        state, config = self._state, self._config
        if not self._batches.holds(state.epoch):
            self._prepare(state.epoch)
        self._batches.begin(state.images)
        if isinstance(self._teacher, EpochPreparer):
            self._teacher.begin()
        self._progress.epoch.fill_(state.epoch)
        for module in state.modules.values():
            module.train()
        try:
            count = self._run_steps(check)
        finally:
            self._settle()
        if state.epoch < config.epochs:  # the device has work queued by now, and the host is free
            self._prepare(state.epoch + 1)
        return count

    def _run_steps(self, check: Check) -> int:
        state, sizes = self._state, list(self._batches.sizes(self._state.images))
        for size in sizes:
            check()
            self._set_learning_rate(self.learning_rate(state.images // self._config.batch_size))
            self._step(size)
            state.images += size
            self._pacer.note_step()
        return len(sizes)

    def _settle(self) -> None:
        """Brings what is counted on the host up to date with the steps that a GPU has queued."""
        for graph in self._graphs.values():
            graph.settle()
        if self._state.averaged:
            self._state.averaged.copy_buffers()

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step of the state's epoch, counted from 0."""
        done = (self._state.epoch - 1) * self._steps_per_epoch
        return self._config.lr * self._schedule(done + step, self._steps_per_epoch)

    def close(self) -> None:
        """Frees device memory: a captured step and its training would otherwise keep each other alive."""
        self._graphs.clear()

    def _set_learning_rate(self, lr: float) -> None:
        """Sets it only when it changes: for a tensor on a GPU that is one more kernel in the queue."""
        if lr != self._lr:
            set_learning_rate(self._state.optimizer, lr)
            self._lr = lr

    def _prepare(self, epoch: int) -> None:
        order = self._batches.prepare(epoch)
        if isinstance(self._teacher, EpochPreparer):
            self._teacher.prepare(order)

    def _step(self, size: int) -> None:
        if size not in self._graphs:
            counters = self._state.counters
            self._graphs[size] = GraphedStep(lambda: self._work(size), self._state.device, self._pool, counters)
        self._graphs[size]()
        self._state.uncaptured = self._state.uncaptured or self._graphs[size].failure

    def _work(self, size: int) -> None:
        batch = self._batches.take(size)
        is_taught = step(self._state, batch, self._teacher(batch), self._progress)
        self._state.with_teacher |= is_taught


def step(state: TrainingState, batch: Batch, teacher: TeacherOutputs, progress: Progress) -> bool:
    """Runs one step of the optimizer; adds total, ce, kd and the number of right predictions to the sums.

    Does not wait for the device. Returns whether the loss has a teacher's term.
    """
    # No cache: nothing is cast twice, and a cache would outlive a captured step.
    dtype = None if state.compute_dtype == "float32" else getattr(torch, state.compute_dtype)
    with torch.autocast(state.device.type, dtype, enabled=dtype is not None, cache_enabled=False):
        student = state.embed(batch.images)
    terms = state.loss(student, batch.labels, teacher, progress)
    if state.label_smoothing:
        ce = F.cross_entropy(student.logits, batch.labels, label_smoothing=state.label_smoothing)
        terms = with_another_cross_entropy(terms, state.loss.ce_weight, ce)
    state.compute_gradients(terms.total)
    state.clip_gradients()
    state.optimizer.step()
    if state.averaged:
        state.averaged.update()
    _add_to_sums(state, terms, student.logits, batch.labels)
    return terms.kd is not None


@torch.no_grad()
def _add_to_sums(state: TrainingState, terms: LossTerms, logits: Tensor, labels: Tensor) -> None:
    """Adds the terms of a batch, times its images; the number of right predictions; and whether it was skipped."""
    weights, zero = _make_weights(len(labels), state.device)
    right = torch.eq(logits.argmax(1), labels, out=torch.empty_like(labels, dtype=torch.float32)).sum()
    kd = zero if terms.kd is None else terms.kd
    found = torch.stack([terms.total, terms.ce, kd, right, *([state.scaling.found] if state.scaling else [])])
    state.totals[: len(found)].addcmul_(found, weights[: len(found)])


@lru_cache(maxsize=256)
def _make_weights(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What the amounts of a batch of `count` images are multiplied by, and a zero."""
    made = (
        torch.tensor([*[float(count)] * 3, 1.0, 1.0], dtype=torch.float64, device=device),
        torch.zeros((), device=device),
    )
    wait(device)  # another thread may use them too
    return made


def with_another_cross_entropy(terms: LossTerms, ce_weight: float, ce: Tensor) -> LossTerms:
    """The terms of a loss that weighs the cross-entropy by `ce_weight`, with this one in the place of its own."""
    total = ce_weight * ce
    return LossTerms(total if terms.kd is None else total + terms.kd, ce, terms.kd)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of an optimizer, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
