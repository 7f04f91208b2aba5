"""Ray for real: the same rows as in this process, and a launch that survives killed processes and Ctrl-C."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import LOOPBACK, Process, descendants, listening, processes, titled, trainers, until

from orchestrator.launch import plan_study
from orchestrator.records import State
from orchestrator.results import store
from orchestrator.storage.layout import Storage

pytestmark = [
    pytest.mark.timeout(290),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc"),
]

STUDY = """\
study: tiny
recipe: {epochs: 2, limit_train: 64, limit_test: 50, batch_size: 32, crop_padding: 1, flip: false}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, seed: [0, 1]}
  - {method: base, dataset: digits, student: resnet_32_8, lr: 1e6, epochs: 5}
  - {method: [logit, st], dataset: digits, student: resnet_32_8, teacher: resnet_32_8}
  - {method: logit, dataset: digits, student: resnet_32_8, teacher: {model: resnet_32_8, seed: 9, lr: 1e6, epochs: 5}}
resources: {gpus_per_trial: 0}
"""
# The first trial is long enough to be met while it trains.
LONG = """\
study: long
recipe: {epochs: 1, limit_train: 64, limit_test: 50, batch_size: 32, crop_padding: 1, flip: false}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, epochs: 250}
  - {method: base, dataset: digits, student: resnet_32_8, seed: [1, 2]}
resources: {gpus_per_trial: 0, checkpoint_seconds: 0}
"""


@dataclass
class Launched:
    """A launch that ended."""

    code: int
    stdout: str
    stderr: str
    left: set[Process]
    workers: set[int]


Events = dict[str, Callable[[int], object]]  # once a line like this comes: what to do, given the launch's pid


def launch(folder: Path, *options: str, events: Events | None = None, dashboard: bool = False) -> Launched:
    """Launches the study of a folder in a process group of its own, as a shell does, and looks at its processes."""
    command = [str(Path(sys.executable).with_name("kdctl")), "launch", "study.yaml", *options]
    command += [] if dashboard else ["--no-dashboard"]
    environment = {**os.environ, "KDCTL_CACHE": str(folder / "cache")}  # where no cluster is kept
    seen: set[Process] = set()
    trained: set[int] = set()
    coming = list((events or {}).items())
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
                seen |= descendants(process.pid)
                trained |= set(trainers(folder / "runs"))
                if coming and re.search(coming[0][0], line):
                    coming.pop(0)[1](process.pid)
            code = process.wait()
        finally:
            process.kill()
        until(lambda: not seen & set(processes()))
        stdout.seek(0)
        assert not coming, f"{coming[0][0]!r} was never said\n{stderr}"
        return Launched(code, stdout.read(), stderr, seen & set(processes()), trained)


def noise(launched: Launched) -> list[str]:
    """What a launch said on standard error besides its own lines, which begin with the time of day, and Ray's own words
    about a worker that died.
    """
    lines = launched.stderr.splitlines()  # four spaces: below a failure, its log
    return [line for line in lines if not re.match(r"\d\d:\d\d:\d\d |    |\(raylet\) A worker died", line)]


def states(folder: Path) -> dict[str, State]:
    """The state of every trial of the study of a folder."""
    return {row.trial_id: row.state for row in store.read_trials(Storage.at(folder / "runs"))}


@pytest.fixture(scope="module")
def make_folder(digits_storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a folder with a study and a storage that holds digits."""

    def make(study: str) -> Path:
        folder = tmp_path_factory.mktemp("launch")
        (folder / "study.yaml").write_text(study)
        shutil.copytree(Path(digits_storage.backend.address) / "datasets", folder / "runs" / "datasets")
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
    planned = {trial.trial_id for trial in plan_study(folder / "study.yaml", folder / "runs").trials}
    assert planned == set(states(folder))
    assert states(folder) == states(twin)
    assert sorted(states(folder).values()) == [State.FAILED] * 2 + [State.FINISHED] * 4 + [State.SKIPPED]


def test_the_errors_are_the_same(both: Both) -> None:
    (folder, _), (twin, _) = both
    errors, others = (
        [(row.error or "").replace(str(place), "") for row in store.read_trials(Storage.at(place / "runs"))]
        for place in (folder, twin)
    )
    assert errors == others
    assert sum("try a smaller lr" in error for error in errors) == 3  # with the student that was skipped for it
    assert sum(error.startswith("its teacher ") for error in errors) == 1


# What a clock, a launch or an executor says; everything else must be equal to the last bit.
MAY_DIFFER = {"seconds", "images_per_second", "start_time", "end_time", "ray_version", "resumed", "error"}


def numbers(folder: Path) -> list[str]:
    """Every row of both tables, as text so that a NaN equals itself."""
    storage = Storage.at(folder / "runs")
    rows = [{name: getattr(row, name) for name in row.__slots__} for row in store.read_trials(storage)]
    rows += store.read_epochs(storage)
    return [repr({name: value for name, value in row.items() if name not in MAY_DIFFER}) for row in rows]


def test_the_numbers_are_the_same(both: Both) -> None:
    (folder, _), (twin, _) = both
    assert numbers(folder) == numbers(twin)
    assert len(store.read_epochs(Storage.at(folder / "runs"))) >= 4 * 2


def test_the_weights_are_the_same_to_the_byte(both: Both) -> None:
    (folder, _), (twin, _) = both
    finished = [trial_id for trial_id, state in states(folder).items() if state is State.FINISHED]
    for trial_id in finished:
        name = Storage.at(folder / "runs").weights(trial_id)
        mine, other = ((place / "runs" / name).read_bytes() for place in (folder, twin))
        assert mine == other


def test_progress_is_one_clean_line_an_event(on_ray: tuple[Path, Launched]) -> None:
    lines = on_ray[1].stderr.splitlines()
    assert noise(on_ray[1]) == []
    assert "Traceback" not in on_ray[1].stdout
    epochs = [
        line for line in lines if re.search(r": epoch \d+/2, acc [\d.]+ %, last [\d.]+ %, [\d,]+ images/s$", line)
    ]
    assert {line.split()[1] for line in epochs} >= {t for t, s in states(on_ray[0]).items() if s is State.FINISHED}
    assert sum(bool(re.search(r" \[\d/7\] ", line)) for line in lines) == 7


def test_trials_share_worker_processes(on_ray: tuple[Path, Launched]) -> None:
    assert len(on_ray[1].workers) < 6  # as many trials ran; those seen whenever a line came


def test_no_process_is_left(both: Both) -> None:
    assert [launched.left for _, launched in both] == [set(), set()]


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


def test_a_dead_gcs_costs_no_trial(make_folder: Callable[[str], Path]) -> None:
    folder = make_folder(LONG)
    one = ("--set", "experiments[1].seed=1", "--max-concurrent", "1")
    launched = launch(folder, *one, events={": epoch 1/": kill_gcs})
    assert launched.code == 0, launched.stderr
    # Ray's library ends the launch with code 1, unless the launch notices the dead process first.
    assert re.search(r"Ray was lost \((its processes died|its library .*)\); starting again in 1 s", launched.stderr)
    assert launched.left == set() and launched.stdout.count("Parquet:") == 1
    assert [row.state for row in store.read_trials(Storage.at(folder / "runs"))] == [State.FINISHED] * 2


def test_a_killed_worker_and_a_dead_raylet_cost_no_trial(make_folder: Callable[[str], Path]) -> None:
    folder = make_folder(LONG)
    events: Events = {": epoch 1/": kill_trainers(folder), "goes on in epoch": kill_raylet}
    launched = launch(folder, "--max-concurrent", "1", events=events)
    assert launched.code == 0, launched.stderr
    assert "its worker process was lost; tried again in 5 s from its last checkpoint (1 of 2)" in launched.stderr
    assert "Ray was lost (its processes died); starting again in 1 s from the last checkpoints" in launched.stderr
    assert launched.left == set()
    rows = store.read_trials(Storage.at(folder / "runs"))
    assert [row.state for row in rows] == [State.FINISHED] * 3
    assert max(row.resumed for row in rows) >= 1

    undisturbed = make_folder(LONG)
    assert launch(undisturbed, "--inline").code == 0
    assert numbers(folder) == numbers(undisturbed)


def test_a_worker_that_is_lost_too_often_is_a_failed_row(make_folder: Callable[[str], Path]) -> None:
    folder = make_folder(LONG)
    events: Events = {": epoch 1/": kill_trainers(folder)}
    first = launch(folder, "--max-concurrent", "1", "--set", "resources.retries=0", events=events)
    assert first.code == 1 and first.left == set()
    rows = store.read_trials(Storage.at(folder / "runs"))
    assert sorted(row.state for row in rows) == [State.FAILED, State.FINISHED, State.FINISHED]
    (failed,) = [row for row in rows if row.state is State.FAILED]
    assert failed.error == "its worker process was lost, 1 times; launch again to go on from its checkpoint"
    assert failed.failure == "lost_worker"
    assert noise(first) == []

    again = launch(folder, "--inline")
    assert again.code == 0
    assert "2 of 3 trials are finished" in again.stderr and "goes on in epoch" in again.stderr
    assert set(states(folder).values()) == {State.FINISHED}


def test_ctrl_c_stops_and_the_same_command_goes_on(make_folder: Callable[[str], Path]) -> None:
    folder = make_folder(LONG)
    # A terminal sends it to every process of the foreground group.
    events: Events = {": epoch 1/": lambda pid: os.killpg(pid, signal.SIGINT)}
    stopped = launch(folder, "--max-concurrent", "1", events=events)
    assert stopped.code == 130
    assert "resume with:  kdctl launch study.yaml --max-concurrent 1 --no-dashboard" in stopped.stderr
    assert len(noise(stopped)) == 2 and stopped.left == set()  # why it stopped, and how to go on
    (row,) = store.read_trials(Storage.at(folder / "runs"))
    assert row.state is State.STOPPED
    assert row.error and re.fullmatch(r"stopped in epoch \d+ of 250; the same command goes on from there", row.error)

    again = launch(folder, "--inline")
    assert again.code == 0 and "goes on in epoch" in again.stderr
    assert list(states(folder).values()) == [State.FINISHED] * 3


def test_second_ctrl_c_ends_at_once_and_nobody_else_could_get_in(make_folder: Callable[[str], Path]) -> None:
    folder = make_folder(LONG)
    addresses: set[str] = set()

    def look_and_stop(pid: int) -> None:
        addresses.update(listening({process for process, _ in descendants(pid)}))
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)

    stopped = launch(folder, events={"dashboard: http://127.0.0.1:": look_and_stop}, dashboard=True)
    assert stopped.code == 130
    assert "stopped at once" in stopped.stderr and "resume with:" in stopped.stderr
    assert stopped.left == set()
    assert addresses and addresses <= LOOPBACK
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    assert token.stat().st_mode & 0o077 == 0


def test_an_address_where_nobody_listens_is_refused(make_folder: Callable[[str], Path]) -> None:
    refused = launch(make_folder(LONG), "--address", "127.0.0.1:1")  # Ray itself would try for minutes
    assert refused.code == 2
    begins, *_, line = refused.stderr.splitlines()
    assert "study long: 3 trials" in begins
    assert "'127.0.0.1:1' cannot be joined" in line and "--inline" in line
