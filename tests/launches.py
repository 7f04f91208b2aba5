"""Launches on Ray in processes of their own, for tests that kill some of those processes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from processes import Process, descendants, processes, titled, trainers, until

from orchestrator.launch import launch as launch_here
from orchestrator.monitor.events import Event
from orchestrator.records import State
from orchestrator.results import store
from orchestrator.storage.layout import Storage

# The first trial is long enough to be killed while it trains.
LONG = """\
study: long
recipe: {epochs: 1, limit_train: 64, limit_test: 50, batch_size: 32, crop_padding: 1, flip: false}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, epochs: EPOCHS}
  - {method: base, dataset: digits, student: resnet_32_8, seed: [1, 2]}
resources: {gpus_per_trial: 0, cpus_per_trial: 1, checkpoint_seconds: 0}
"""


@dataclass
class Launched:
    """A launch that ended."""

    code: int
    stdout: str
    stderr: str
    left: set[Process]
    workers: set[int]


Events = Sequence[
    tuple[str, Callable[[int], object]]
]  # a pattern, and what to do with the launch's pid once a line matches


def launch(folder: Path, *options: str, events: Events = (), dashboard: bool = False) -> Launched:
    """Launches the study of a folder in a process group of its own, as a shell does, and records its processes."""
    command = [str(Path(sys.executable).with_name("kdctl")), "launch", "study.yaml", *options]
    command += [] if dashboard else ["--no-dashboard"]
    environment = {**os.environ, "KDCTL_CACHE": str(folder / "cache")}  # without a persistent cluster
    found: set[Process] = set()
    trained: set[int] = set()
    coming = list(events)
    stderr = ""
    with (
        (folder / "stdout").open("w+") as stdout,
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            assert process.stderr
            for line in process.stderr:
                stderr += line
                found |= descendants(process.pid)
                trained |= set(trainers(folder / "runs"))
                if coming and re.search(coming[0][0], line):
                    coming.pop(0)[1](process.pid)
            code = process.wait()
        finally:
            process.kill()
        until(lambda: not found & set(processes()))
        stdout.seek(0)
        assert not coming, f"{coming[0][0]!r} was never printed\n{stderr}"
        return Launched(code, stdout.read(), stderr, found & set(processes()), trained)


def find_noise(launched: Launched) -> list[str]:
    """The lines on standard error that are neither a launch's own, which begin with the time of day, nor Ray's about a
    worker that died.
    """
    lines = launched.stderr.splitlines()  # four spaces: below a failure, its log
    return [line for line in lines if not re.match(r"\d\d:\d\d:\d\d |    |\(raylet\) A worker died", line)]


def states(folder: Path) -> dict[str, State]:
    """The state of every trial of the study of a folder."""
    return {row.trial_id: row.state for row in store.read_trials(Storage.at(folder / "runs"))}


def make_folder(digits: Storage, folder: Path, epochs: int = 120) -> Path:
    """A folder with the study LONG, whose first trial has this many epochs, and a storage that holds digits."""
    (folder / "study.yaml").write_text(LONG.replace("EPOCHS", str(epochs)))
    shutil.copytree(Path(digits.backend.address) / "datasets", folder / "runs" / "datasets")
    return folder


def finish_inline(folder: Path) -> list[str]:
    """Trains what is left of the study of a folder in this process; returns the text of every event."""
    events: list[Event] = []
    assert launch_here(folder / "study.yaml", storage=folder / "runs", inline=True, on_event=events.append).is_complete
    return [event.text for event in events]


def kill_trainers(folder: Path) -> Callable[[int], object]:
    """Kills the processes that train for a folder's study."""
    return lambda pid: [os.kill(worker, signal.SIGKILL) for worker in until(lambda: trainers(folder / "runs"))]


def kill_raylet(pid: int) -> None:
    """Kills the process of Ray that every trial needs."""
    (raylet,) = titled(descendants(pid), b"raylet/raylet")
    os.kill(raylet, signal.SIGKILL)


def kill_gcs(pid: int) -> None:
    """Kills Ray's central process, whose end makes Ray's library end the launch."""
    (gcs,) = titled(descendants(pid), b"gcs/gcs_server")
    os.kill(gcs, signal.SIGKILL)
