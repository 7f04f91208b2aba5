"""The plain research script that kdctl is compared with: written in an afternoon, correct, and no faster than that.

torchvision's transforms on PIL images, a DataLoader with two workers, a live teacher for every batch, SGD.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from itertools import islice
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from shared.common import synchronise
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from orchestrator import models
from orchestrator.data.tensors import Data

WORKERS = 2
WARM_UP = 5  # steps before the clock starts: the workers start in the first one, and libraries choose their kernels
PATIENCE = 300.0  # seconds for all scripts to get ready
AHEAD = 2 * WORKERS  # batches that the workers are ahead, so that they work until the clock stops, as within an epoch


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images in memory, passed to the transforms one at a time as PIL images, as torchvision's own CIFAR-10 does."""

    def __init__(self, pixels: NDArray[np.uint8], labels: list[int], transform: Any) -> None:
        self.pixels = pixels  # [N, S, S, 3]
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def make_dataset(data: Data) -> Pictures:
    """Makes a dataset of the training images, with the usual augmentation."""
    transform = transforms.Compose(
        [
            transforms.RandomCrop(data.facts.side, padding=4, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(data.facts.mean, data.facts.std),
        ]
    )
    pixels = np.ascontiguousarray(data.train.pixels.permute(0, 2, 3, 1).cpu().numpy())
    return Pictures(pixels, data.train.labels.tolist(), transform)


def make_optimizer(student: nn.Module) -> torch.optim.SGD:
    """Makes the usual SGD for CIFAR."""
    return torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)


def step(
    student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> float:
    """One step of distillation; returns the loss, and waits for it, as such scripts do for their progress bar."""
    logits = student(images)
    with torch.no_grad():
        targets = teacher(images)
    loss = F.cross_entropy(logits, labels) + F.mse_loss(logits, targets)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def measure_speed(
    student: nn.Module,
    teacher: nn.Module,
    data: Data,
    images: int,
    batch_size: int,
    device: torch.device,
    *,
    workers: int = WORKERS,
    wait: Callable[[], object] = lambda: None,
) -> float:
    """Measures images per second of a training with `images` images, in at least one whole batch, after a warm-up.

    `wait` is called between the warm-up and the measurement.
    """
    steps = max(1, images // batch_size)
    student, teacher = student.to(device).train(), teacher.to(device).eval()
    optimizer = make_optimizer(student)
    dataset = make_dataset(data)
    sampler = RandomSampler(dataset, num_samples=(WARM_UP + steps + AHEAD) * batch_size)
    batches = iter(DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers))

    def train(count: int) -> None:
        for taken, labels in islice(batches, count):
            step(student, teacher, optimizer, taken.to(device), labels.to(device))

    train(WARM_UP)
    synchronise(device)
    wait()
    start = time.perf_counter()
    train(steps)
    synchronise(device)
    return steps * batch_size / (time.perf_counter() - start)


def measure_one_per_core(student: str, teacher: str, data: Data, images: int, batch_size: int, count: int) -> float:
    """Measures as many scripts at a time on the CPU, each with one thread, in images per second in all.

    Each loads its images itself: with workers of its own it was not faster.
    """
    context = multiprocessing.get_context("spawn")  # a fork of a process that has used OpenMP may hang
    start, speeds = context.Barrier(count), context.SimpleQueue()
    arguments = student, teacher, data, images, batch_size, start, speeds
    scripts = [context.Process(target=_measure_one, args=arguments, daemon=False) for _ in range(count)]
    for script in scripts:
        script.start()
    for script in scripts:
        script.join()
    if any(script.exitcode for script in scripts):
        raise RuntimeError("a plain script ended with an error, see above")
    return sum(speeds.get() for _ in scripts)


def _measure_one(
    student: str,
    teacher: str,
    data: Data,
    images: int,
    batch_size: int,
    start: Barrier,
    speeds: SimpleQueue[float],
) -> None:
    torch.set_num_threads(1)
    built = [models.build(name, data.facts.classes) for name in (student, teacher)]
    speeds.put(
        measure_speed(
            *built, data, images, batch_size, torch.device("cpu"), workers=0, wait=lambda: start.wait(PATIENCE)
        )
    )
