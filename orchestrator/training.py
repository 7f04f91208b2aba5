"""The training loop: an iterator of `EpochRecord`. It knows no files, no Ray and no method's name."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
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


def train(model: ResNet, loss: Loss, data: Data, config: TrialConfig, answers: Answers) -> Iterator[EpochRecord]:
    """Trains a model in place, one record an epoch.

    Raises DivergedError at the first epoch whose mean loss is not finite.
    """
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    padded = ViewSpace(config.crop_padding, config.flip).pad(data.train.pixels)
    for epoch in range(1, config.epochs + 1):
        start = time.perf_counter()
        lr = learning_rate(config, epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        model.train()
        sums = torch.zeros(4, dtype=torch.float64, device=data.train.labels.device)
        with_teacher = False
        for batch in batches(padded, data, config, epoch):
            with_teacher |= step(model, loss, optimizer, batch, answers(batch), sums)
        images = len(data.train)
        total, ce, kd, correct = (
            amount / images for amount in sums.tolist()
        )  # training waits for the device here alone
        trained = time.perf_counter() - start
        if not math.isfinite(total):
            raise DivergedError(
                f"epoch {epoch}: the mean training loss is {total}; try a smaller lr than {config.lr:g}"
            )
        test = evaluate(model, data.test, data)
        val = evaluate(model, data.val, data).acc if data.val else None
        seconds = time.perf_counter() - start
        kd_loss = kd if with_teacher else None
        train_acc = 100 * correct
        yield EpochRecord(epoch, lr, total, ce, kd_loss, train_acc, test.loss, test.acc, val, seconds, images / trained)


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


def batches(padded: Padded, data: Data, config: TrialConfig, epoch: int) -> Iterator[Batch]:
    """Every training image once, in an order and under views that follow from the seed and the epoch alone."""
    device = data.train.labels.device
    generator = torch.Generator().manual_seed(_mix(config.seed, epoch))  # on the CPU: alike for every device
    order = torch.randperm(len(data.train), generator=generator).to(device)
    views = torch.randint(padded.space.size, (len(data.train),), generator=generator).to(device)
    for start in range(0, len(data.train), config.batch_size):
        index = order[start : start + config.batch_size]
        view = views[start : start + config.batch_size]
        images = data.normalise(padded.take(index, view))
        yield Batch(images, data.train.labels[index], index, view)


def _mix(seed: int, epoch: int) -> int:
    # A digest and not a sum: seed 0 in epoch 2 must not be seed 1 in epoch 1.
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:8]) >> 1


@torch.no_grad()
def evaluate(model: ResNet, images: Images, data: Data) -> Score:
    """Tests a model on a whole split, in eval mode and without augmentation."""
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=images.labels.device)
    said = []
    for start in range(0, len(images), EVAL_BATCH):
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
