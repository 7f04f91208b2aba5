"""The training loop: an iterator of `EpochRecord`. It knows no files, no Ray and no method's name."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.terms import Loss
from models.resnet import ResNet
from orchestrator.data import Data, Images
from orchestrator.errors import DivergedError
from orchestrator.records import EpochRecord, TrialConfig
from orchestrator.views import Padded, ViewSpace

EVAL_BATCH = 500  # fixed, so that the batch size of training cannot change an evaluation


class Batch(NamedTuple):
    """B training images under one view each. `index` and `view` [B] name them for a teacher table."""

    images: Tensor  # [B, 3, S, S], normalised
    labels: Tensor  # [B]
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    view: Tensor


Answers = Callable[[Batch], dict[str, Tensor]]  # what the teacher says of a batch, see `losses.terms.Loss`


@dataclass(frozen=True)
class Score:
    """How a model does on a split. Accuracies are percentages; `said` [N] is its answer for each image."""

    loss: float
    acc: float
    top5: float
    said: Tensor


Check = Callable[[], None]  # called between steps; what it raises ends the training there


def unchecked() -> None:
    """For training that nothing is to stop."""


@dataclass
class Course:
    """A training under way: everything that its next step depends on, so that it can stop anywhere and go on.

    `epoch` counts from 1 and is the one to go on in; `images` of it are done, and `sums` are theirs: total, ce, kd
    and right answers. `with_teacher` says whether kd means anything.
    """

    model: ResNet
    optimizer: torch.optim.SGD
    sums: Tensor  # float64 [4]
    epoch: int = 1
    images: int = 0
    seconds: float = 0.0
    with_teacher: bool = False

    @classmethod
    def start(cls, model: ResNet, config: TrialConfig) -> Course:
        """The training of a fresh model."""
        optimizer = torch.optim.SGD(
            model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        device = next(model.parameters()).device
        return cls(model, optimizer, torch.zeros(4, dtype=torch.float64, device=device))

    def tensors(self) -> dict[str, Tensor]:
        """Its weights, buffers, momenta and sums."""
        momenta = {
            f"momentum.{name}": self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self.model.named_parameters()
            if self.optimizer.state.get(parameter, {}).get("momentum_buffer") is not None
        }
        weights = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        return {**weights, **momenta, "sums": self.sums}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes what `tensors` gave. Raises ValueError where something is missing, unknown or of another shape."""
        mine = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        parameters = {f"momentum.{name}": parameter for name, parameter in self.model.named_parameters()}
        wanted = {**mine, "sums": self.sums}
        if any(name.startswith("momentum.") for name in tensors):
            wanted |= parameters
        wrong = sorted(set(wanted) ^ set(tensors)) or [
            name
            for name, tensor in wanted.items()
            if (tensors[name].shape, tensors[name].dtype) != (tensor.shape, tensor.dtype)
        ]
        if wrong:
            raise ValueError(f"{wrong[0]} is missing, unknown or of another shape")
        momenta = {  # laid out as their parameters; made before anything is changed, as there may be no memory
            parameter: torch.empty_like(parameter).copy_(tensors[name])
            for name, parameter in parameters.items()
            if name in tensors
        }
        for name, tensor in {**mine, "sums": self.sums}.items():
            tensor.copy_(tensors[name])
        for parameter, momentum in momenta.items():
            self.optimizer.state[parameter]["momentum_buffer"] = momentum


def train(
    course: Course, loss: Loss, data: Data, config: TrialConfig, answers: Answers, check: Check = unchecked
) -> Iterator[EpochRecord]:
    """Trains from where the course stands to its end, one record an epoch; the course stands after it by then.

    Raises DivergedError at the first epoch whose mean loss is not finite, and what `check` raises.
    """
    padded = ViewSpace(config.crop_padding, config.flip).pad(data.train.pixels)
    while course.epoch <= config.epochs:
        start = time.perf_counter()
        try:
            _train_epoch(course, loss, data, config, answers, padded, check)
            # Training waits for the device here alone.
            total, ce, kd, correct = (amount / len(data.train) for amount in course.sums.tolist())
        finally:
            course.seconds += time.perf_counter() - start
        if not math.isfinite(total):
            raise DivergedError(
                f"epoch {course.epoch}: the mean training loss is {total}; try a smaller lr than {config.lr:g}"
            )
        trained = course.seconds
        evaluation = time.perf_counter()
        test = evaluate(course.model, data.test, data, check)
        val = evaluate(course.model, data.val, data, check).acc if data.val else None
        record = EpochRecord(
            epoch=course.epoch,
            lr=learning_rate(config, course.epoch),
            train_loss=total,
            ce_loss=ce,
            kd_loss=kd if course.with_teacher else None,
            train_acc=100 * correct,
            test_loss=test.loss,
            test_acc=test.acc,
            val_acc=val,
            seconds=trained + time.perf_counter() - evaluation,
            images_per_second=len(data.train) / trained,
        )
        course.epoch, course.images, course.seconds = course.epoch + 1, 0, 0.0
        course.sums.zero_()
        yield record


def _train_epoch(
    course: Course, loss: Loss, data: Data, config: TrialConfig, answers: Answers, padded: Padded, check: Check
) -> None:
    """The steps that are left of the course's epoch."""
    for group in course.optimizer.param_groups:
        group["lr"] = learning_rate(config, course.epoch)
    course.model.train()
    for batch in batches(padded, data, config, course.epoch, course.images):
        check()
        course.with_teacher |= step(course.model, loss, course.optimizer, batch, answers(batch), course.sums)
        course.images += len(batch.labels)


def step(
    model: ResNet,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    answers: dict[str, Tensor],
    sums: Tensor,
) -> bool:
    """One step of SGD; adds total, ce, kd and the count of right answers to `sums`. Waits for no device.

    Returns whether a teacher had a part in it.
    """
    student = model.embed(batch.images)
    terms = loss(student, batch.labels, answers)
    optimizer.zero_grad(set_to_none=True)
    terms.total.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    with torch.no_grad():
        kd = torch.zeros_like(terms.ce) if terms.kd is None else terms.kd
        right = (student.logits.argmax(1) == batch.labels).double().mean()
        sums += torch.stack([terms.total.double(), terms.ce.double(), kd.double(), right]) * len(batch.labels)
    return terms.kd is not None


def learning_rate(config: TrialConfig, epoch: int) -> float:
    """lr in an epoch counted from 1: multiplied by gamma after each milestone that has passed."""
    return config.lr * config.gamma ** sum(milestone < epoch for milestone in config.milestones)


def batches(padded: Padded, data: Data, config: TrialConfig, epoch: int, done: int = 0) -> Iterator[Batch]:
    """Every training image once, in an order and under views that follow from the seed and the epoch alone.

    The first `done` images are left out; they are whole batches, or all.
    """
    device = data.train.labels.device
    generator = torch.Generator().manual_seed(_mix(config.seed, epoch))  # on the CPU: alike for every device
    order = torch.randperm(len(data.train), generator=generator).to(device)
    views = torch.randint(padded.space.size, (len(data.train),), generator=generator).to(device)
    for start in range(done, len(data.train), config.batch_size):
        index = order[start : start + config.batch_size]
        view = views[start : start + config.batch_size]
        images = data.normalise(padded.take(index, view))
        yield Batch(images, data.train.labels[index], index, view)


def _mix(seed: int, epoch: int) -> int:
    # A digest and not a sum: seed 0 in epoch 2 must not be seed 1 in epoch 1.
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:8]) >> 1


@torch.no_grad()
def evaluate(model: ResNet, images: Images, data: Data, check: Check = unchecked) -> Score:
    """Tests a model on a whole split, in eval mode and without augmentation. Raises what `check` raises."""
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=images.labels.device)
    said = []
    for start in range(0, len(images), EVAL_BATCH):
        check()
        pixels = images.pixels[start : start + EVAL_BATCH].contiguous(memory_format=torch.channels_last)
        labels = images.labels[start : start + EVAL_BATCH]
        logits = model(data.normalise(pixels))
        best = logits.topk(5, dim=1).indices
        said.append(best[:, 0])
        hits = best == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([loss.double(), hits[:, 0].sum().double(), hits.sum().double()])
    total, right, among5 = sums.tolist()
    # Whole numbers of images over the number of images: no accuracy has more digits than it was measured with.
    return Score(total / len(images), 100 * right / len(images), 100 * among5 / len(images), torch.cat(said))


def fresh_model(build: Callable[[], ResNet], seed: int, device: torch.device) -> ResNet:
    """A model whose weights follow from the seed alone, laid out for fast convolutions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_mix(seed, 0))
        model = build()
    return placed(model, device)


def placed(model: ResNet, device: torch.device) -> ResNet:
    """A model on its device, channels last."""
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
