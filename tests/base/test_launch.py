"""Launching: only what is left is trained, and what cannot be trained is refused before anything is written."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest
from launch_events import ignore
from processes import until

from orchestrator.data import cifar
from orchestrator.errors import DataError, Interrupted, StudyError
from orchestrator.launch import LaunchResult, launch, plan_study
from orchestrator.monitor.events import Event, EventKind
from orchestrator.records import State
from orchestrator.results import store
from orchestrator.storage import stops
from orchestrator.storage.layout import Storage
from orchestrator.study import stored_studies
from orchestrator.study.plan import Plan

STUDY = """\
study: tiny
recipe: {epochs: 1, limit_train: 64, limit_test: 50, batch_size: 32, crop_padding: 1, flip: false}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, seed: [0, 1]}
  - {method: logit, dataset: digits, student: resnet_32_8, teacher: {model: resnet_32_8, seed: 1}}
resources: {gpus_per_trial: 0}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study file; seed 1 of its first experiment is the teacher of its second."""
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def train(study: Path, storage: Storage, *settings: str) -> LaunchResult:
    return launch(study, storage=storage.backend.address, inline=True, settings=settings, on_event=ignore)


def root_of(storage: Storage) -> Path:
    return Path(storage.backend.address)


def files(root: Path) -> dict[str, tuple[int, int]]:
    """Every file with its time and size."""
    paths = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}


def test_a_teacher_that_is_also_an_experiment_is_trained_once(study: Path, storage: Storage) -> None:
    outcome = train(study, storage)
    assert outcome.is_complete and outcome.trained == 3
    assert [trial.role for trial in outcome.plan.trials] == ["teacher", "student", "student"]
    assert [row.trial_id for row in outcome.rows] == [trial.trial_id for trial in outcome.plan.trials]
    assert [(row.method, row.seed) for row in outcome.rows] == [("base", 1), ("base", 0), ("logit", 0)]
    assert outcome.rows[2].teacher_id == outcome.rows[0].trial_id


def test_a_second_launch_trains_nothing(study: Path, storage: Storage) -> None:
    first = train(study, storage)
    before = files(root_of(storage))
    second = train(study, storage)
    assert second.trained == 0 and second.is_complete
    assert second.rows == first.rows
    after = files(root_of(storage))
    assert set(after) == set(before)
    (plan,) = [name for name in before if after[name] != before[name]]
    assert plan.startswith("plans/"), "the study is that of its last launch, and nothing else is written"


def test_a_new_seed_trains_the_new_alone(study: Path, storage: Storage) -> None:
    train(study, storage)
    before = files(root_of(storage))
    outcome = train(study, storage, "experiments[1].seed=[0, 7]")
    assert outcome.trained == 1 and len(outcome.rows) == 4
    assert (outcome.rows[-1].seed, outcome.rows[-1].no) == (7, 4)
    after = files(root_of(storage))
    assert [name for name in before if after[name] != before[name] and not name.startswith("plans/")] == []
    assert {Path(name).parts[0] for name in set(after) - set(before)} == {"trials", "results", "logs"}


def test_lost_weights_are_trained_again(study: Path, storage: Storage) -> None:
    teacher = train(study, storage).rows[0]
    weights = storage.backend.local_path(storage.weights(teacher.trial_id))
    before = weights.read_bytes()
    weights.unlink()
    assert train(study, storage).trained == 1
    assert weights.read_bytes() == before


def test_a_trial_that_failed_is_trained_again(study: Path, storage: Storage) -> None:
    diverging = ("experiments[1].lr=1e6", "experiments[1].epochs=5")
    for _ in range(2):
        outcome = train(study, storage, *diverging)
        assert not outcome.is_complete
        assert [row.state for row in outcome.rows] == [State.FINISHED, State.FINISHED, State.FAILED]
    assert outcome.trained == 0, "a trial that failed again is none that was finished"


def test_looking_writes_nothing(study: Path, tmp_path: Path) -> None:
    before = files(tmp_path)
    plan = plan_study(study, tmp_path / "nowhere")
    assert isinstance(plan, Plan) and [trial.state for trial in plan.trials] == ["new"] * 3
    assert files(tmp_path) == before and not (tmp_path / "nowhere").exists()


def test_looking_sees_what_is_there(study: Path, storage: Storage) -> None:
    train(study, storage)
    before = files(root_of(storage))
    plan = plan_study(study, storage.backend.address, ["experiments[1].seed=[0, 7]"])
    assert [trial.state for trial in plan.trials] == ["finished"] * 3 + ["new"]
    assert files(root_of(storage)) == before


def test_a_commit_of_the_study_files_repository_is_kept(study: Path, storage: Storage) -> None:
    assert train(study, storage).rows[0].git_commit is None  # a temporary folder is no repository


def test_missing_images_are_refused_before_anything_is_written(
    study: Path, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, folder: Path) -> None:
        raise DataError(f"{name} is not in {folder}")

    monkeypatch.setattr(cifar, "_download", refuse)
    with pytest.raises(DataError, match="cifar10 is not in"):
        launch(
            study,
            data=tmp_path / "images",
            storage=storage.backend.address,
            inline=True,
            settings=["experiments[0].dataset=cifar10"],
            on_event=ignore,
        )
    assert store.read_trials(storage) == []
    assert not any(name.startswith(("results", "trials")) for name in files(root_of(storage)))


def test_a_faulty_study_makes_no_storage(study: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="recipe.epochs"):
        launch(study, storage=tmp_path / "runs", inline=True, settings=["recipe.epochs=0"], on_event=ignore)
    assert not (tmp_path / "runs").exists()


def test_progress_is_told_unless_quiet(study: Path, storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    launch(study, storage=storage.backend.address, inline=True)
    out, err = capsys.readouterr()
    assert out == "" and "[3/3]" in err and "epoch 1/1, acc" in err
    train(study, storage)
    assert capsys.readouterr() == ("", "")


# A study that grows and shrinks, and what failed.


def ends(outcome: LaunchResult) -> dict[str, object]:
    """When each trial was finished: a trial that is trained again ends later."""
    return {row.trial_id: row.end_time for row in outcome.rows}


SECOND = "  - {method: logit"


@pytest.mark.parametrize(
    ("old", "new", "trained"),
    [
        ("seed: [0, 1]", "seed: [0, 1, 2]", 1),
        (SECOND, "  - {method: base, dataset: digits, student: resnet_32_14}\n" + SECOND, 1),
        ("resources:", "  - {method: st, dataset: digits, student: resnet_32_8, teacher: resnet_32_8}\nresources:", 1),
        ("resources:", "  - {method: base, dataset: digits, student: resnet_32_8, seed: 1}\nresources:", 0),
        ("epochs: 1", "epochs: 2", 3),
        ("student: resnet_32_8, teacher", "student: resnet_32_8, lr: 0.05, teacher", 1),
        ("model: resnet_32_8, seed: 1", "model: resnet_32_8, seed: 0", 1),
        ("study: tiny", "study: renamed", 0),
    ],
)
def test_a_changed_study_trains_what_changed(old: str, new: str, trained: int, study: Path, storage: Storage) -> None:
    before = ends(train(study, storage))
    assert STUDY.count(old) == 1
    study.write_text(STUDY.replace(old, new))
    outcome = train(study, storage)
    assert outcome.is_complete and outcome.trained == trained
    after = ends(outcome)
    assert {trial_id for trial_id, end in after.items() if before.get(trial_id) != end} == after.keys() - before.keys()
    assert len(after.keys() - before.keys()) == trained
    assert train(study, storage).trained == 0


def test_an_experiment_that_was_removed_stays_in_the_storage(study: Path, storage: Storage) -> None:
    first = train(study, storage)
    study.write_text("\n".join(line for line in STUDY.splitlines() if not line.startswith(SECOND)))
    second = train(study, storage)
    assert second.trained == 0 and {row.method for row in second.rows} == {"base"}
    assert len(store.read_trials(storage)) == 3, "the row stays ..."
    assert all(storage.backend.stat(storage.weights(row.trial_id)) for row in first.rows), "... with its weights"
    study.write_text(STUDY)
    third = train(study, storage)
    assert third.trained == 0 and third.rows == first.rows, "and is there when it comes back"


def test_what_failed_is_left_where_that_is_asked(study: Path, storage: Storage) -> None:
    broken = ["recipe.lr=1e6", "recipe.epochs=3", "experiments[0].lr=0.05"]
    first = launch(study, storage=storage.backend.address, inline=True, settings=broken, on_event=ignore)
    states = {row.method: row.state for row in first.rows if row.lr == 1e6}
    assert states == {"base": State.FAILED, "logit": State.SKIPPED}

    def again(*, skip_failed: bool) -> LaunchResult:
        return launch(
            study,
            storage=storage.backend.address,
            inline=True,
            settings=broken,
            on_event=ignore,
            skip_failed=skip_failed,
        )

    left = again(skip_failed=True)
    assert ends(left) == ends(first) and not left.is_complete and left.trained == 0
    tried = ends(again(skip_failed=False))
    later = {trial_id for trial_id, end in tried.items() if end != ends(first)[trial_id]}
    assert later == {row.trial_id for row in first.rows if row.lr == 1e6}


def test_what_failed_is_left_and_the_rest_trained(study: Path, storage: Storage) -> None:
    broken = ["experiments[1].lr=1e6", "experiments[1].epochs=5"]
    first = train(study, storage, *broken)
    outcome = launch(
        study, storage=storage.backend.address, inline=True, settings=[*broken, "experiments[0].seed=[0, 1, 2]"],
        on_event=ignore, skip_failed=True,
    )  # fmt: skip
    assert outcome.trained == 1 and not outcome.is_complete
    assert ends(first).items() <= ends(outcome).items()


# Launches in processes of their own, and what happens to them.

KDCTL = Path(sys.executable).with_name("kdctl")
LONG = """\
study: long
recipe: {epochs: 10, limit_train: 192, limit_test: 100, batch_size: 32, crop_padding: 1, flip: true, holdout: 32}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, seed: [0, 1]}
  - {method: logit, dataset: digits, student: resnet_32_8, teacher: resnet_32_8, teacher_cache: table}
resources: {gpus_per_trial: 0, checkpoint_seconds: 0}
"""
MAY_DIFFER = {"seconds", "images_per_second", "start_time", "end_time", "resumed", "git_commit"}


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """A study that takes a few seconds, in a folder of its own."""
    path = tmp_path / "long.yaml"
    path.write_text(LONG)
    return path


def numbers(storage: Storage) -> dict[str, object]:
    """All that a finished study says but for times, and the bytes of its weights."""
    rows = [asdict(row) for row in store.read_trials(storage)] + store.read_epochs(storage)
    assert all(row.get("state", State.FINISHED) is State.FINISHED for row in rows)
    found = {
        f"{row['trial_id']} {row.get('state') or row['epoch']} {name}": value
        for row in rows
        for name, value in row.items()
        if name not in MAY_DIFFER
    }
    weights = [entry.name for entry in storage.backend.list_files("trials")]
    assert len(weights) == 3 and list(storage.backend.list_files("checkpoints")) == []
    return found | {name: storage.backend.read(name) for name in weights}


@pytest.fixture(scope="module")
def undisturbed(digits_storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the long study says when nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "long.yaml").write_text(LONG)
    own = Storage.at(folder / "runs")
    own.prepare()
    shutil.copytree(root_of(digits_storage) / "datasets", folder / "runs" / "datasets")
    assert train(folder / "long.yaml", own).is_complete
    return numbers(own)


class Launched:
    """A launch in a process of its own."""

    def __init__(self, study: Path, storage: Path, name: str = "log") -> None:
        self.storage = storage
        self._log = study.with_name(f"{name}.txt")
        words = [str(KDCTL), "launch", str(study), "--inline", "--storage", str(storage)]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=log, cwd=study.parent)

    def until(self, condition: Callable[[], object]) -> None:
        """Waits for something that the launch will do."""
        assert until(lambda: condition() or self.process.poll() is not None, 120)
        assert self.process.poll() is None, f"it ended before that: {self.log}"

    def until_checkpoint(self, number: int) -> None:
        """Waits for the first trial to reach an epoch."""
        self.until(
            lambda: any(int(path.name[:6]) >= number for path in self.storage.glob("checkpoints/*/*.checkpoint"))
        )

    def end(self) -> int:
        return self.process.wait(timeout=120)

    @property
    def log(self) -> str:
        return self._log.read_text()


def resume(study: Path, storage: Storage, undisturbed: dict[str, object]) -> str:
    """Runs the same command again: it finishes, with the same numbers. Returns its output."""
    again = Launched(study, root_of(storage), "again")
    assert again.end() == 0, again.log
    assert numbers(storage) == undisturbed
    assert storage.backend.list_unfinished() == [] and list(storage.backend.list_files(storage.leases)) == []
    return again.log


@pytest.mark.parametrize("seed", [0])
def test_a_launch_that_is_killed_again_and_again_ends_with_the_same_numbers(
    seed: int, long: Path, storage: Storage, undisturbed: dict[str, object]
) -> None:
    chance, held = random.Random(seed), root_of(storage) / "leases"
    for number in range(2):
        launched = Launched(long, root_of(storage), f"log{number}")
        assert until(lambda process=launched.process: any(held.glob("trial-*")) or process.poll() is not None, 120)
        until(lambda process=launched.process: process.poll() is not None, chance.uniform(0, 2))
        launched.process.kill()
        assert launched.end() in (0, -signal.SIGKILL) and "Traceback" not in launched.log
    again = Launched(long, root_of(storage), "again")
    assert again.end() == 0, again.log
    assert numbers(storage) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_with_a_checkpoint(
    number: signal.Signals, long: Path, storage: Storage, undisturbed: dict[str, object]
) -> None:
    launched = Launched(long, root_of(storage))
    launched.until_checkpoint(2)
    launched.process.send_signal(number)
    assert launched.end() == 130
    assert f"{number.name}: stopping; running trials write a checkpoint first" in launched.log
    last = launched.log.splitlines()[-1]
    assert last == f"resume with:  kdctl launch {long} --inline --storage {storage.backend.address}"
    assert "Traceback" not in launched.log
    stopped = [row for row in store.read_trials(storage) if row.state is not State.FINISHED]
    assert stopped and {row.state for row in stopped} == {State.STOPPED}
    assert all(row.error and "the same command resumes it from there" in row.error for row in stopped)
    assert "from its checkpoint" in resume(long, storage, undisturbed)


def test_any_user_of_the_storage_can_stop_a_launch(
    study: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stops, "BEAT", 0.01)
    told: list[Event] = []

    def on_event(event: Event) -> None:
        told.append(event)
        if event.kind is EventKind.EPOCH and not stops.is_requested(
            storage, stored_studies.find(storage).launched.resource
        ):
            stops.request(storage, stored_studies.find(storage).launched.resource)

    settings = ["recipe.epochs=3000"]
    with pytest.raises(Interrupted, match="the same command resumes"):
        launch(study, storage=storage.backend.address, inline=True, settings=settings, on_event=on_event)
    rows = store.read_trials(storage)
    assert {row.state for row in rows} == {State.STOPPED}
    assert [told[0].kind, told[-2].kind, told[-1].kind] == [EventKind.LAUNCH, EventKind.ENDED, EventKind.END]
    assert told[-1].facts and told[-1].to_json()["states"] == {"stopped": len(rows)}
    assert list(storage.backend.list_files(storage.stops)) == [], "the next launch is not asked"


def test_a_signal_while_something_is_told_waits_for_its_turn(study: Path, storage: Storage) -> None:
    told: list[Event] = []

    def on_event(event: Event) -> None:
        if event.kind is EventKind.EPOCH and not any("SIGTERM" in one.text for one in told):
            signal.raise_signal(signal.SIGTERM)  # its handler runs here, in the middle of telling
            told.append(event)
            return
        told.append(event)

    with pytest.raises(Interrupted, match="the same command resumes"):
        launch(study, storage=storage.backend.address, inline=True, settings=["recipe.epochs=3000"], on_event=on_event)
    assert until(lambda: any("SIGTERM: stopping" in event.text for event in told))


def test_a_launch_with_nothing_to_do_is_known_by_its_name(study: Path, storage: Storage) -> None:
    assert train(study, storage).is_complete
    study.write_text(STUDY.replace("study: tiny", "study: other"))
    assert train(study, storage).trained == 0
    assert {found.name for found in stored_studies.list_studies(storage)} == {"tiny", "other"}


def test_what_is_left_is_remembered(study: Path, storage: Storage) -> None:
    train(study, storage, "experiments[1].lr=1e6", "experiments[1].epochs=5")
    settings = ["experiments[1].lr=1e6", "experiments[1].epochs=5", "experiments[0].seed=[0, 1, 2]"]
    launch(study, storage=storage.backend.address, inline=True, settings=settings, on_event=ignore, skip_failed=True)
    found = stored_studies.find(storage, "tiny")
    states = {row.trial_id: row.state for row in store.read_trials(storage)}
    assert [states[trial_id] for trial_id in found.launched.left] == [State.FAILED]
    assert sorted(states.values()) == [State.FAILED, *[State.FINISHED] * 3]


def test_the_second_signal_ends_at_once(long: Path, storage: Storage, undisturbed: dict[str, object]) -> None:
    launched = Launched(long, root_of(storage))
    launched.until_checkpoint(2)
    launched.process.send_signal(signal.SIGINT)
    launched.process.send_signal(signal.SIGTERM)
    assert launched.end() == 130 and "Traceback" not in launched.log
    resume(long, storage, undisturbed)


def trained_last_epochs(*logs: str) -> list[str]:
    """Which trials were trained to their end, once for each time: the last epoch is always told."""
    return sorted(match[1] for log in logs for match in re.finditer(r"([0-9a-f]{12}) [^\n]*: epoch 10/10", log))


def test_two_launches_share_a_storage(long: Path, storage: Storage, undisturbed: dict[str, object]) -> None:
    both = [Launched(long, root_of(storage), name) for name in ("one", "two")]
    assert [launched.end() for launched in both] == [0, 0], [launched.log for launched in both]
    assert numbers(storage) == undisturbed
    rows = store.read_trials(storage)
    assert trained_last_epochs(*(launched.log for launched in both)) == sorted(row.trial_id for row in rows)
    assert [row.resumed for row in rows] == [0, 0, 0], "neither had to resume a trial of the other"
    assert list(storage.backend.list_files(storage.leases)) == []


def test_of_two_launches_one_is_killed(long: Path, storage: Storage, undisturbed: dict[str, object]) -> None:
    one = Launched(long, root_of(storage), "one")
    one.until_checkpoint(2)
    one.process.send_signal(signal.SIGSTOP)  # so that it does not end before the other one is there
    two = Launched(long, root_of(storage), "two")
    two.until(lambda: len(list(root_of(storage).glob("leases/launch-*"))) == 2)
    one.process.kill()
    one.end()
    assert two.end() == 0, two.log
    assert numbers(storage) == undisturbed
    assert trained_last_epochs(one.log, two.log) == sorted(row.trial_id for row in store.read_trials(storage))


# Storages that fail.


@pytest.fixture
def small_disk(tmp_path: Path, digits_storage: Storage) -> Iterator[Path]:
    """A file system of a few MB with a storage in it; only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        Storage.at(folder / "runs").prepare()
        shutil.copytree(root_of(digits_storage) / "datasets", folder / "runs" / "datasets")
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Writes until there is no room."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def check_told(launched: Launched, words: str) -> None:
    """It ended with one clear line."""
    assert launched.end() == 2, launched.log
    assert "Traceback" not in launched.log and "bug" not in launched.log
    last = launched.log.splitlines()[-1]
    assert words in last and "the same command" in last


def test_a_full_disk(long: Path, small_disk: Path, undisturbed: dict[str, object]) -> None:
    storage = Storage.at(small_disk / "runs")
    launched = Launched(long, root_of(storage))
    launched.until_checkpoint(2)
    fill(small_disk / "ballast")
    check_told(launched, "No space left on device")
    assert storage.backend.list_unfinished() == []
    refused = Launched(long, root_of(storage))
    assert refused.end() == 2 and "No space left on device" in refused.log and "Traceback" not in refused.log
    (small_disk / "ballast").unlink()
    assert "from its checkpoint" in resume(long, storage, undisturbed)


def test_a_disk_that_becomes_read_only(long: Path, small_disk: Path, undisturbed: dict[str, object]) -> None:
    def remount(mode: str) -> bool:
        done = subprocess.run(["mount", "-o", f"remount,{mode}", str(small_disk)], capture_output=True)
        return done.returncode == 0  # it is refused while a file is open for writing

    storage = Storage.at(small_disk / "runs")
    launched = Launched(long, root_of(storage))
    launched.until_checkpoint(2)
    assert until(lambda: remount("ro"), 60)
    check_told(launched, "Read-only file system")
    refused = Launched(long, root_of(storage))
    assert refused.end() == 2 and "cannot be written (Read-only file system)" in refused.log
    assert remount("rw")
    for part in storage.backend.list_unfinished():  # a file that was being written could not be removed any more
        storage.backend.delete(part.name)
    assert "from its checkpoint" in resume(long, storage, undisturbed)


def test_a_folder_that_vanishes(long: Path, storage: Storage, undisturbed: dict[str, object], tmp_path: Path) -> None:
    launched = Launched(long, root_of(storage))
    launched.until_checkpoint(2)
    root_of(storage).rename(tmp_path / "away")
    check_told(launched, "is gone")
    assert not root_of(storage).exists(), "nothing was written where nobody looks for it"
    (tmp_path / "away").rename(root_of(storage))
    assert "from its checkpoint" in resume(long, storage, undisturbed)
