"""Trials on a GPU from start to end: stops, too little memory, a device that dies. The GPU is a stand-in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_gpu
import pytest
from conftest import TINY
from fake_gpu import FakeGpu
from launches import make_folder
from workloads import jobs_of

from orchestrator.execution.attempt import run_trial
from orchestrator.records import State, TrialConfig, TrialRecord
from orchestrator.results import store
from orchestrator.storage.layout import Storage

# What runs in a process with a GPU.


def trial(**changes: Any) -> TrialConfig:
    """A trial of 24 steps and three tests."""
    return replace(TINY, **{"epochs": 3, "batch_size": 16, **changes})


def run_one(address: str, config: TrialConfig, stopping: Callable[[], bool] = lambda: False) -> TrialRecord:
    """Runs a trial as the only one on the GPU; returns its row."""
    (job,) = jobs_of(Storage.at(address), config)
    *_, last = run_trial(replace(job, gpus=1.0), stopping)
    assert isinstance(last, TrialRecord)
    return last


def stop_everywhere(address: str) -> list[str | None]:
    """Stops a trial in each of its steps and tests; returns what the rows say."""
    errors = []
    for stop in range(27):
        checks = iter([*[False] * stop, True])
        errors.append(run_one(address, trial(seed=stop), checks.__next__).error)
    return errors


def go_through_everything(address: str) -> dict[str, Any]:
    stops = stop_everywhere(address)
    totals = fake_gpu.read_counts().totals
    # Every block of memory that PyTorch holds is too small for these batches.
    os.environ["FAKECUDA_MEMORY"] = str(30 << 20)
    crowded = run_one(address, trial(seed=100, batch_size=128))
    del os.environ["FAKECUDA_MEMORY"]
    again = run_one(address, trial(seed=100, batch_size=128))
    fake_gpu.die_after(2000)
    died = [run_one(address, trial(seed=seed)) for seed in (200, 201)]
    rows = {"crowded": crowded, "again": again, "first": died[0], "second": died[1]}
    return {"stops": stops, "totals": totals, **{name: [row.failure, row.error] for name, row in rows.items()}}


# The tests.


@pytest.fixture(scope="module")
def found(fake_gpu: FakeGpu, digits_storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    storage = Storage.at(make_folder(digits_storage, tmp_path_factory.mktemp("gpu")) / "runs")
    storage.prepare()
    result: dict[str, Any] = fake_gpu.call(go_through_everything, storage.backend.address)
    return result


def test_no_stop_reads_what_is_not_computed_yet(found: dict[str, Any]) -> None:
    assert all(re.match(r"stopped in epoch [123] of 3;", error) for error in found["stops"])
    totals = found["totals"]
    assert totals["replays"] > 100 and totals["races"] == totals["violations"] == 0


def test_too_little_memory_is_the_fault_of_no_later_trial(found: dict[str, Any]) -> None:
    failure, error = found["crowded"]
    assert failure == "out_of_memory" and error.startswith("out of memory (")
    assert found["again"] == [None, None]


def test_a_dead_device_is_a_failure_of_its_own_for_every_later_trial(found: dict[str, Any]) -> None:
    error = r"its GPU no longer answers this process \(CUDA error: an illegal memory access was encountered\)"
    for failure, text in (found["first"], found["second"]):
        assert failure == "device" and re.match(error, text)


def launch(gpu: FakeGpu, folder: Path, *options: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """Launches the study of a folder in a process with a GPU, which dies in the first one of all."""
    command = [sys.executable, "-m", "orchestrator", "launch", "study.yaml", "--no-dashboard", *options]
    environment = {
        **gpu.environment(die_at=1500, died=folder / "died", **settings),
        "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 2, "GPU": 1}),
        "KDCTL_CACHE": str(folder / "cache"),
    }
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250)


@pytest.fixture
def folder(digits_storage: Storage, tmp_path: Path) -> Path:
    """A folder with a study of three trials, two at a time on a GPU."""
    made = make_folder(digits_storage, tmp_path, epochs=9)
    study = (made / "study.yaml").read_text()
    (made / "study.yaml").write_text(study.replace("gpus_per_trial: 0,", "gpus_per_trial: 0.5, retries: 1,"))
    return made


def test_a_launch_in_one_process_says_to_launch_again(fake_gpu: FakeGpu, folder: Path) -> None:
    first = launch(fake_gpu, folder, "--inline")
    assert first.returncode == 1 and "launch again: a new process continues every trial" in first.stderr, first.stderr
    rows = store.read_trials(Storage.at(folder / "runs"))
    assert [row.failure for row in rows if row.state is State.FAILED][:1] == ["device"]
    again = launch(fake_gpu, folder, "--inline", gpus=2)
    assert again.returncode == 0, again.stderr
    assert "up to 4 at a time" in again.stderr
    rows = store.read_trials(Storage.at(folder / "runs"))
    assert [row.state for row in rows] == [State.FINISHED] * 3
    assert {row.device for row in rows} == {"Fake H100"}


def test_on_ray_a_worker_whose_device_died_is_replaced(fake_gpu: FakeGpu, folder: Path) -> None:
    launched = launch(fake_gpu, folder)
    assert launched.returncode == 0, launched.stderr
    assert (folder / "died").exists()
    assert re.search(
        r"its GPU no longer answers .*; retried in 5 s from its last checkpoint \(1 of 1\)", launched.stderr
    )
    rows = store.read_trials(Storage.at(folder / "runs"))
    assert [(row.state, row.device) for row in rows] == [(State.FINISHED, "Fake H100")] * 3
