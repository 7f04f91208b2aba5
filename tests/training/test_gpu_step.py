"""A training step on a GPU: which kernels a captured step has, and what it never does. The GPU is a stand-in."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_gpu
import pytest
import torch
from device import random_data
from fake_gpu import FakeGpu, find_obstacle
from kernels import BATCH, GPU, list_kernels, start
from shared.common import build_model, plan_student

from orchestrator import losses
from orchestrator.errors import Stopped
from orchestrator.records import TableKey
from orchestrator.storage.layout import Storage
from orchestrator.teachers import tables
from orchestrator.training.batches import EpochBatches
from orchestrator.training.graphs import own_stream
from orchestrator.training.state import TrainingState

# What runs in a process with a GPU.


def watch_steps() -> dict[str, Any]:
    """What happens in twelve replayed steps."""
    found = {}
    with own_stream(GPU):
        state, train = start(steps=20)

        def check() -> None:
            if state.images == 6 * BATCH:
                fake_gpu.reset_counts()
            if state.images == 18 * BATCH:
                counts = fake_gpu.read_counts()
                found.update(counts.totals, run=dict(counts.run))

        next(train(check))
    return found


def count_batches() -> dict[str, Any]:
    """The counters of batch norms in a checkpoint: after an epoch, and after a stop in the next one."""
    found = {}
    with own_stream(GPU):
        state, train = start(steps=20, ema=0.9)

        def check() -> None:
            if state.epoch == 2 and state.images == 7 * BATCH:
                raise Stopped("stopped")

        epochs = train(check)
        next(epochs)
        found["epoch"] = list_counters(state)
        with suppress(Stopped):
            next(epochs)
        found["stop"] = list_counters(state)
    return {**found, "names": sorted(state.tensors())}


def list_counters(state: TrainingState) -> list[int]:
    return [int(tensor) for name, tensor in state.tensors().items() if name.endswith("num_batches_tracked")]


def break_captures() -> dict[str, Any]:
    """What becomes of trainings whose captures fail at an operation, so many times."""
    found = {}
    for at, times in ((1, 1), (60, 1), (80, 2), (2, 3)):
        with own_stream(GPU):
            state, train = start(steps=60)
            fake_gpu.reset_counts()
            fake_gpu.fail_captures(at, times)
            record = next(train())
        totals = fake_gpu.read_counts().totals
        found[f"{at} {times}"] = {**totals, "uncaptured": state.uncaptured, "loss": record.train_loss}
    return found


def train_together(count: int, steps: int = 100) -> dict[str, Any]:
    """Trains in so many threads at the same time."""
    failed: list[str | None] = []

    def work() -> None:
        with own_stream(GPU):
            state, train = start(steps=steps)
            epochs = train()
            ready.wait()
            next(epochs)
            failed.append(state.uncaptured)

    ready = threading.Barrier(count, fake_gpu.reset_counts, timeout=200)
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"uncaptured": failed, **fake_gpu.read_counts().totals}


def share_memory() -> dict[str, Any]:
    """Opens a table and pads images for two trials; then a table for which there is too little room."""
    tables._ensure = lambda *_: torch.zeros(162, 1000, 10).half()  # type: ignore[assignment]
    key, config = (
        TableKey("teacher", "logits", 4, True, 1000),
        plan_student("cifar10", "resnet_32_8", "resnet_32_8", 1000),
    )
    data, storage = random_data(1000, GPU), Storage.at(".")
    used = []
    for count in (1, 2):
        before = torch.cuda.memory_allocated()
        opened = [tables.open_table(key, config.config, data, storage, GPU) for _ in range(count)]
        padded = [EpochBatches(data, config.config)._padded for _ in range(count)]
        used.append(torch.cuda.memory_allocated() - before)
        del opened, padded
    os.environ["FAKECUDA_MEMORY"] = str(torch.cuda.memory_reserved() + (20 << 20))
    crowded = tables.open_table(key, config.config, data, storage, GPU)
    return {"used": used, "left": torch.cuda.memory_allocated() - before, "crowded": type(crowded).__name__}


def run_everything(*asked: tuple[str, str]) -> dict[str, Any]:
    """All of the above in one process, as each one takes seconds to start."""
    return {
        "kernels": [list_kernels(*each, "logit") for each in asked],
        "steps": watch_steps(),
        "batches": count_batches(),
        "broken": break_captures(),
        "together": train_together(8),
        "memory": share_memory(),
    }


# The tests.

# Student and precision → the kernels of its step, as docs/performance.md counts them.
KERNELS = {("resnet_32_20", "bfloat16"): 297, ("resnet_32_20", "float32"): 191, ("resnet_32_20", "float16"): 194}


@pytest.fixture(scope="module")
def everything(fake_gpu: FakeGpu) -> dict[str, Any]:
    found: dict[str, Any] = fake_gpu.call(run_everything, *KERNELS)
    return found


def test_the_number_of_kernels_in_a_step(everything: dict[str, Any]) -> None:
    assert {each: sum(found.values()) for each, found in zip(KERNELS, everything["kernels"], strict=True)} == KERNELS


def test_a_step_has_the_kernels_that_its_model_needs(everything: dict[str, Any]) -> None:
    for kernels in everything["kernels"]:
        assert kernels["convolution"] == kernels["gradient of a convolution's weight"] == 21
        assert kernels["gradient of a convolution's input"] == 20  # that of the images is not needed
        assert kernels["ReLU"] == kernels["gradient of ReLU"] == 19
        assert kernels["matrix product"] == 3 and kernels["optimizer"] == 1
    bfloat16, float32, float16 = everything["kernels"]
    assert float32["batch norm"] == float32["gradient of a batch norm"] == 21  # cuDNN's
    assert bfloat16["batch norm"] == 5 * 21  # PyTorch's own, beside two memsets each
    assert float16["batch norm"] == float16["gradient of a batch norm"] == 21
    # All weights, all their gradients, the gradient of the last map, and the teacher's outputs.
    assert float32["cast"] == 1 and bfloat16["cast"] == float16["cast"] == 4
    assert float32["counter"] == bfloat16["counter"] == 1  # the position in the epoch


def test_a_step_waits_for_nothing_and_copies_nothing(everything: dict[str, Any]) -> None:
    steps = everything["steps"]
    assert steps["replays"] == 12 and steps["run"] == {}
    waits = ("stream_waits", "device_waits", "event_waits", "to_device", "to_host", "mallocs", "frees")
    assert {name: steps[name] for name in waits} == dict.fromkeys(waits, 0)
    assert steps["races"] == steps["violations"] == 0


def test_trials_on_a_device_share_tables_and_padded_images(everything: dict[str, Any]) -> None:
    found = everything["memory"]
    table, padded = 162 * 1000 * 10 * 2, 1000 * 40 * 40 * 3
    one, two = found["used"]
    assert one == two and table + padded <= one < table + padded + 4096
    assert found["left"] < 30_000 and found["crowded"] == "HostTable"


@pytest.mark.parametrize(
    ("where", "value", "reason"),
    [
        ("sys.platform", "darwin", "made for Linux"),
        ("torch.version.cuda", None, "not built for CUDA 13"),
        ("shutil.which", lambda name: None, "no gcc"),
        ("fake_gpu.find_headers", list, "headers of CUDA and cuDNN are missing"),
    ],
)
def test_a_machine_that_cannot_build_the_stand_in_says_why(
    monkeypatch: pytest.MonkeyPatch, where: str, value: Any, reason: str
) -> None:
    names = ("sys.platform", "torch.version.cuda", "shutil.which", "fake_gpu.find_headers")
    for name, good in zip(names, ("linux", "13.2", str, lambda: [Path()]), strict=True):
        monkeypatch.setattr(name, value if name == where else good)
    assert reason in (find_obstacle() or "")


def test_a_broken_capture_is_tried_again_and_then_explained(everything: dict[str, Any]) -> None:
    found = everything["broken"]
    for times, each in ((1, found["1 1"]), (1, found["60 1"]), (2, found["80 2"])):
        assert each["uncaptured"] is None and each["captures"] == times + 1
        assert each["replays"] == 60 - 3 - 20 * times
    last = found["2 3"]
    assert last["uncaptured"] == "CUDA error: operation not permitted when stream is capturing"
    assert last["captures"] == 3 and last["replays"] == 0
    assert all(each["races"] == each["violations"] == 0 for each in found.values())


def test_batches_are_counted_as_without_a_graph(everything: dict[str, Any]) -> None:
    found = everything["batches"]
    assert set(found["epoch"]) == {20} and set(found["stop"]) == {27}
    assert len(found["stop"]) == 2 * 9  # of the model and of its average
    config = replace(plan_student("cifar10", "resnet_32_8", "resnet_32_8", 128).config, ema=0.9)
    cpu = TrainingState.start(build_model("resnet_32_8", "cifar10", torch.device("cpu")), losses.build("logit"), config)
    assert set(cpu.tensors()) <= set(found["names"])  # beside the state of the optimizer
    assert all(name.startswith("optimizer.") for name in set(found["names"]) - set(cpu.tensors()))


def test_trainings_side_by_side_break_no_capture_and_wait_for_no_other(everything: dict[str, Any]) -> None:
    found = everything["together"]
    assert found["uncaptured"] == [None] * 8 and found["captures"] == 8
    assert found["races"] == found["violations"] == found["device_waits"] == found["frees"] == 0
    assert found["replays"] == 8 * 97 and 32 <= found["most_ahead"] <= 64
