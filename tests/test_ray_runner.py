"""Ray for real: the same rows as in this process, and a launch that survives a killed worker and Ctrl-C."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator import results
from orchestrator.launch import look
from orchestrator.records import State
from orchestrator.storage import Storage

pytestmark = [
    pytest.mark.timeout(170),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc"),
]

STUDY = """\
study: tiny
recipe: {epochs: 2, limit_train: 64, limit_test: 50, batch_size: 32, crop_padding: 1, flip: false}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, seed: [0, 1]}
  - {method: base, dataset: digits, student: resnet_32_8, lr: 1e6, epochs: 5}
  - {method: [logit, st], dataset: digits, student: resnet_32_8, teacher: resnet_32_8}
  - {method: logit, dataset: digits, student: resnet_32_8, teacher: {model: resnet_32_8, weights: broken.bin}}
resources: {gpus_per_trial: 0}
"""
# The first trial is long enough to be met while it trains.
LONG = """\
study: long
recipe: {epochs: 1, limit_train: 64, limit_test: 50, batch_size: 32, crop_padding: 1, flip: false}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, epochs: 250}
  - {method: base, dataset: digits, student: resnet_32_8, seed: [1, 2]}
resources: {gpus_per_trial: 0}
"""

Process = tuple[int, str]  # id and start time, so that an id used again is not taken for the same process


def processes() -> dict[Process, int]:
    """Every process that is alive, with its parent's id."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *more = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended while we looked
            continue
        if state not in "ZX":
            found[int(path.parent.name), more[17]] = int(parent)
    return found


def descendants(root: int) -> set[Process]:
    """The processes below one."""
    parents = processes()
    ids = {root}
    while new := {process[0] for process, parent in parents.items() if parent in ids} - ids:
        ids |= new
    return {process for process in parents if process[0] in ids - {root}}


def workers(of: set[Process]) -> list[int]:
    """The worker processes of trials among some processes: Ray names them in their titles."""
    found = []
    for pid, _ in of:
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::") and b"TrialWorker" in title:
            found.append(pid)
    return found


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Asks until the answer is true; returns the last answer."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return answer


@dataclass
class Launched:
    """A launch that ended."""

    code: int
    stdout: str
    stderr: str
    left: set[Process]
    workers: set[int]


def launch(folder: Path, *options: str, at_first_epoch: Callable[[int], None] | None = None) -> Launched:
    """Launches the study of a folder in a process group of its own, as a shell does, and looks at its processes."""
    command = [str(Path(sys.executable).with_name("kdctl")), "launch", "study.yaml", *options]
    seen: set[Process] = set()
    trained: set[int] = set()
    stderr = ""
    with (
        (folder / "stdout").open("w+") as stdout,
        subprocess.Popen(
            command, cwd=folder, stdout=stdout, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process,
    ):
        try:
            assert process.stderr
            for line in process.stderr:
                stderr += line
                below = descendants(process.pid)
                seen |= below
                trained |= set(workers(below))
                if at_first_epoch and ": epoch " in line:
                    at_first_epoch(process.pid)
                    at_first_epoch = None
            code = process.wait()
        finally:
            process.kill()
        until(lambda: not seen & set(processes()))
        stdout.seek(0)
        return Launched(code, stdout.read(), stderr, seen & set(processes()), trained)


def noise(launched: Launched) -> list[str]:
    """What a launch said on standard error besides its own lines, which begin with the time of day."""
    return [line for line in launched.stderr.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]


def states(folder: Path) -> dict[str, State]:
    """The state of every trial of the study of a folder."""
    return {row.trial_id: row.state for row in results.read_trials(Storage(folder / "runs"))}


@pytest.fixture(scope="module")
def make_folder(digits_storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a folder with a study and a storage that holds digits."""

    def make(study: str) -> Path:
        folder = tmp_path_factory.mktemp("launch")
        (folder / "study.yaml").write_text(study)
        (folder / "broken.bin").write_bytes(b"no weights")
        shutil.copytree(digits_storage.root / "datasets", folder / "runs" / "datasets")
        return folder

    return make


@pytest.fixture(scope="module")
def on_ray(make_folder: Callable[[str], Path]) -> Iterator[tuple[Path, Launched]]:
    """The tiny study on Ray."""
    folder = make_folder(STUDY)
    yield folder, launch(folder)


@pytest.fixture(scope="module")
def inline(make_folder: Callable[[str], Path]) -> Iterator[tuple[Path, Launched]]:
    """The same study in one process."""
    folder = make_folder(STUDY)
    yield folder, launch(folder, "--inline")


Both = tuple[tuple[Path, Launched], tuple[Path, Launched]]


@pytest.fixture
def both(on_ray: tuple[Path, Launched], inline: tuple[Path, Launched]) -> Both:
    """The study on Ray and in one process."""
    return on_ray, inline


def test_a_failure_is_told_by_the_exit_code(both: Both) -> None:
    assert [launched.code for _, launched in both] == [1, 1]


def test_every_trial_is_a_row_in_the_same_state(both: Both) -> None:
    (folder, _), (twin, _) = both
    planned = {trial.trial_id for trial in look(folder / "study.yaml", folder / "runs").trials}
    assert planned == set(states(folder))
    assert states(folder) == states(twin)
    assert sorted(states(folder).values()) == [State.FAILED] * 2 + [State.FINISHED] * 4 + [State.SKIPPED]


def test_the_errors_are_the_same(both: Both) -> None:
    (folder, _), (twin, _) = both
    errors, others = (
        [(row.error or "").replace(str(place), "") for row in results.read_trials(Storage(place / "runs"))]
        for place in (folder, twin)
    )
    assert errors == others
    assert sum("try a smaller lr" in error for error in errors) == 1
    assert sum(error.startswith("its teacher ") for error in errors) == 1


# What a clock, a launch or an executor says; everything else must be equal to the last bit.
MAY_DIFFER = {"seconds", "images_per_second", "start_time", "ray_version", "error"}


def numbers(folder: Path) -> list[str]:
    """Every row of both tables, as text so that a NaN equals itself."""
    storage = Storage(folder / "runs")
    rows = [{name: getattr(row, name) for name in row.__slots__} for row in results.read_trials(storage)]
    rows += results.read_epochs(storage)
    return [repr({name: value for name, value in row.items() if name not in MAY_DIFFER}) for row in rows]


def test_the_numbers_are_the_same(both: Both) -> None:
    (folder, _), (twin, _) = both
    assert numbers(folder) == numbers(twin)
    assert len(results.read_epochs(Storage(folder / "runs"))) >= 4 * 2


def test_the_weights_are_the_same_to_the_byte(both: Both) -> None:
    (folder, _), (twin, _) = both
    finished = [trial_id for trial_id, state in states(folder).items() if state is State.FINISHED]
    for trial_id in finished:
        mine, other = (Storage(place / "runs").weights(trial_id).read_bytes() for place in (folder, twin))
        assert mine == other


def test_progress_is_one_clean_line_an_event(on_ray: tuple[Path, Launched]) -> None:
    lines = on_ray[1].stderr.splitlines()
    assert noise(on_ray[1]) == []
    assert "Traceback" not in on_ray[1].stdout
    epochs = [line for line in lines if re.search(r": epoch \d+/2, acc [\d.]+ %, [\d,]+ images/s$", line)]
    assert {line.split()[1] for line in epochs} >= {t for t, s in states(on_ray[0]).items() if s is State.FINISHED}
    assert sum(bool(re.search(r" \[\d/7\] ", line)) for line in lines) == 7


def test_trials_share_worker_processes(on_ray: tuple[Path, Launched]) -> None:
    assert len(on_ray[1].workers) < 6  # as many trials ran; those seen whenever a line came


def test_no_process_is_left(both: Both) -> None:
    assert [launched.left for _, launched in both] == [set(), set()]


def test_a_killed_worker_is_a_failed_row(make_folder: Callable[[str], Path]) -> None:
    folder = make_folder(LONG)
    killed = []

    def kill(pid: int) -> None:
        # A worker's title changes with every step, and says nothing of us for a moment.
        killed.extend(until(lambda: workers(descendants(pid))))
        for worker in killed:
            os.kill(worker, signal.SIGKILL)

    first = launch(folder, "--max-concurrent", "1", at_first_epoch=kill)
    assert len(killed) == 1
    assert first.code == 1 and first.left == set()
    rows = results.read_trials(Storage(folder / "runs"))
    assert sorted(row.state for row in rows) == [State.FAILED, State.FINISHED, State.FINISHED]
    (error,) = [row.error for row in rows if row.state is State.FAILED]
    assert error and "its worker process was lost" in error and "launch again" in error
    assert noise(first) == []

    again = launch(folder, "--inline")
    assert again.code == 0
    assert "2 of 3 trials are finished" in again.stderr
    assert set(states(folder).values()) == {State.FINISHED}


def test_ctrl_c_stops_and_the_same_command_goes_on(make_folder: Callable[[str], Path]) -> None:
    folder = make_folder(LONG)
    # A terminal sends it to every process of the foreground group.
    stopped = launch(folder, "--max-concurrent", "1", at_first_epoch=lambda pid: os.killpg(pid, signal.SIGINT))
    assert stopped.code == 130
    assert "the same command goes on with the rest" in stopped.stderr
    assert noise(stopped)[1:] == [] and stopped.left == set()  # but for the reason it stopped
    assert State.FAILED not in states(folder).values()
    assert len([state for state in states(folder).values() if state is State.FINISHED]) < 3

    again = launch(folder, "--inline")
    assert again.code == 0
    assert list(states(folder).values()) == [State.FINISHED] * 3


def test_an_address_where_nobody_listens_is_refused(make_folder: Callable[[str], Path]) -> None:
    refused = launch(make_folder(LONG), "--address", "127.0.0.1:1")  # Ray itself would try for minutes
    assert refused.code == 2
    (line,) = refused.stderr.splitlines()
    assert "'127.0.0.1:1' cannot be joined" in line and "--inline" in line
