"""Trials on a GPU from start to end: stops, failures of the device, trials side by side. The GPU is a stand-in."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import fake_gpu
from conftest import TINY
from fake_gpu import FakeGpu
from workloads import jobs_of

from orchestrator.execution.attempt import run_trial
from orchestrator.records import TrialConfig, TrialRecord
from orchestrator.storage.layout import Storage

# What runs in a process with a GPU.


def trial(**changes: Any) -> TrialConfig:
    """A trial of eight steps, of which those after the third are one graph."""
    return replace(TINY, **{"epochs": 3, "batch_size": 16, **changes})


def run_one(address: str, config: TrialConfig, stopping: Callable[[], bool] = lambda: False) -> TrialRecord:
    """Runs a trial as the only one on the GPU; returns its row."""
    (job,) = jobs_of(Storage.at(address), config)
    *_, last = run_trial(replace(job, gpus=1.0), stopping)
    assert isinstance(last, TrialRecord)
    return last


def stop_in_every_step(address: str) -> dict[str, Any]:
    """Stops a trial of 24 steps and three tests at each of them."""
    errors = []
    for stop in range(27):
        checks = iter([*[False] * stop, True])
        errors.append(run_one(address, trial(seed=stop), checks.__next__).error)
    return {"errors": errors, **fake_gpu.read_counts().totals}


# The tests.


def test_no_stop_reads_what_is_not_computed_yet(fake_gpu: FakeGpu, storage: Storage) -> None:
    found = fake_gpu.call(stop_in_every_step, storage.backend.address)
    assert all(re.match(r"stopped in epoch [123] of 3;", error) for error in found["errors"])
    assert found["replays"] > 100 and found["races"] == found["violations"] == 0
