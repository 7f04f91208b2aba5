"""Counts the kernels of a training step as a GPU would run them, on a stand-in for one: python tests/kernels.py

One line for each student, precision and method, with its most frequent families of kernels. Needs gcc.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import fake_gpu
import torch
from device import random_data
from fake_gpu import FakeGpu, find_obstacle
from shared.common import build_model, make_table, plan_student

from orchestrator import losses
from orchestrator.records import EpochRecord
from orchestrator.teachers.outputs import no_teacher
from orchestrator.training.graphs import own_stream
from orchestrator.training.loop import train
from orchestrator.training.state import TrainingState

GPU = torch.device("cuda")
BATCH = 128
STUDENTS = ("resnet_32_20", "resnet_32_110")
PRECISIONS = ("bfloat16", "float32", "float16")
METHODS = ("base", "logit")


def start(
    student: str = "resnet_32_8", steps: int = 6, precision: str = "float32", method: str = "logit", **changes: Any
) -> tuple[TrainingState, Callable[..., Iterator[EpochRecord]]]:
    """A fresh training, with a table unless it has no teacher, and a function that starts its epochs."""
    planned = plan_student("cifar10", student, "resnet_32_8", steps * BATCH, BATCH).config
    config = replace(planned, precision=precision, **changes)
    state = TrainingState.start(build_model(student, "cifar10", GPU), losses.build(method), config)
    data = random_data(steps * BATCH, GPU)
    table = make_table(data, replace(config, crop_padding=0), GPU)  # small: nothing is looked up
    teacher = no_teacher if method == "base" else table
    return state, lambda *check: train(state, data, config, teacher, *check)


def list_kernels(student: str, precision: str, method: str) -> dict[str, int]:
    """The kernels of a captured step, by family."""
    with own_stream(GPU):
        state, train = start(student, precision=precision, method=method)
        fake_gpu.reset_counts()
        next(train())
    assert state.uncaptured is None, state.uncaptured
    return dict(fake_gpu.read_counts().captured)


def main() -> int:
    """Prints the table."""
    if reason := find_obstacle():
        print(f"no stand-in for a GPU: {reason}", file=sys.stderr)
        return 1
    print("| student | precision | method | kernels | of which |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        gpu = FakeGpu.build(Path(folder))
        for each in ((*pair, method) for pair in ((s, p) for s in STUDENTS for p in PRECISIONS) for method in METHODS):
            found = gpu.call(list_kernels, *each)
            most = sorted(found.items(), key=lambda item: -item[1])[:4]
            parts = ", ".join(f"{count} {family}" for family, count in most)
            print(f"| {' | '.join(each)} | {sum(found.values()):,} | {parts} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
