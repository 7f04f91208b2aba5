"""Chains of teachers, from the study file to the report: trained in order, resumed, skipped, and verified."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner
from launch_events import ignore

from orchestrator.cli import cli
from orchestrator.errors import Interrupted
from orchestrator.launch import LaunchResult, launch
from orchestrator.monitor.events import Event
from orchestrator.records import EpochRecord, State, TrialRecord
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.teachers.inventory import list_teachers, verify_teacher

STUDY = """\
study: chain
recipe: {epochs: 2, limit_train: 64, limit_test: 50, batch_size: 32, crop_padding: 0, flip: false, precision: float32}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8}
  - method: logit
    dataset: digits
    student: resnet_32_8
    teacher_cache: table
    teacher:
      student: resnet_32_14
      method: st
      teacher_cache: table
      teacher: {model: resnet_32_8, seed: 4}
resources: {gpus_per_trial: 0, checkpoint_seconds: 0}
"""


def train(folder: Path, **options: object) -> LaunchResult:
    options = {"on_event": ignore, **options}
    return launch(folder / "study.yaml", storage=folder / "runs", inline=True, **options)  # type: ignore[arg-type]


def make_folder(digits: Storage, folder: Path) -> Path:
    (folder / "study.yaml").write_text(STUDY)
    shutil.copytree(Path(digits.backend.address) / "datasets", folder / "runs" / "datasets")
    return folder


@pytest.fixture(scope="module")
def trained(digits_storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study and its storage. Tests must only read it."""
    folder = make_folder(digits_storage, tmp_path_factory.mktemp("chain"))
    assert train(folder).is_complete
    return folder


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "own"))


def rows_of(folder: Path) -> tuple[TrialRecord, TrialRecord, TrialRecord, TrialRecord]:
    """The rows in the order of the plan: the first teacher, the distilled one, base and the student."""
    found = sorted(store.read_trials(Storage.at(folder / "runs")), key=lambda row: row.no)
    top, middle, base, student = found
    return top, middle, base, student


def run(folder: Path, *words: str) -> str:
    result = CliRunner().invoke(cli, [*words, "--storage", str(folder / "runs")])
    assert result.exit_code == 0, result.output
    return result.output


def test_each_row_names_its_own_teacher(trained: Path) -> None:
    top, middle, _, student = rows_of(trained)
    assert (middle.teacher, middle.teacher_id, middle.teacher_acc) == ("resnet_32_8", top.trial_id, top.last_acc)
    assert (student.teacher, student.teacher_id) == ("resnet_32_14", middle.trial_id)
    assert student.teacher_acc == middle.last_acc
    taught = student.recipe["teacher"]
    assert (taught["method"], taught["teacher"]["student"], taught["teacher"]["seed"]) == ("st", "resnet_32_8", 4)
    assert taught["options"]["temperature"] == 4.0


def test_both_teachers_are_listed_and_their_tables_verified(trained: Path) -> None:
    storage = Storage.at(trained / "runs")
    top, middle, *_ = rows_of(trained)
    assert {found.teacher_id for found in list_teachers(storage)} == {top.trial_id, middle.trial_id}
    for teacher in (top, middle):
        [check] = verify_teacher(teacher.trial_id, storage)
        assert check.table.teacher_id == teacher.trial_id and check.largest_difference < 0.01
    listed = run(trained, "teachers")
    assert "st epochs=2" in listed and "teacher.teacher=" not in listed  # its own label says so without a prefix


def test_views_name_the_chain(trained: Path, tmp_path: Path) -> None:
    name = "resnet_32_8 ← resnet_32_14 (st ← resnet_32_8 (seed 4))"
    assert name in run(trained, "logs", rows_of(trained)[3].trial_id)
    run(trained, "report", "chain", "--output", str(tmp_path / "r.html"))
    page = (tmp_path / "r.html").read_text()
    assert name in page
    assert "teacher ResNet14 (st ← resnet_32_8)" in page
    assert "teacher.method = st; teacher.teacher = resnet_32_8" in run(trained, "results", "chain")
    plan = CliRunner().invoke(cli, ["plan", str(trained / "study.yaml"), "--storage", str(trained / "runs"), "--json"])
    waits = {trial["trial_id"]: trial["waits_for"] for trial in json.loads(plan.stdout)["trials"]}
    top, middle, base, student = rows_of(trained)
    assert waits == {
        top.trial_id: [], middle.trial_id: [top.trial_id], base.trial_id: [], student.trial_id: [middle.trial_id],
    }  # fmt: skip


def test_a_stop_resumes_to_the_same_weights(trained: Path, digits_storage: Storage, tmp_path: Path) -> None:
    folder = make_folder(digits_storage, tmp_path)
    stops_at = [1, 3, 7]  # in each of the first two trials, and in the student
    seen = 0

    def stop(event: Event) -> None:
        nonlocal seen
        if isinstance(event.facts, EpochRecord):
            seen += 1
            if seen in stops_at:
                signal.raise_signal(signal.SIGINT)

    complete = False
    for _ in range(8):
        try:
            complete = train(folder, on_event=stop).is_complete
            break
        except Interrupted:
            continue
    assert complete
    for ours, theirs in zip(rows_of(folder), rows_of(trained), strict=True):
        assert (ours.trial_id, ours.weights_sha256) == (theirs.trial_id, theirs.weights_sha256)


def test_a_teacher_that_fails_skips_everything_below_it(digits_storage: Storage, tmp_path: Path) -> None:
    folder = make_folder(digits_storage, tmp_path)
    text = STUDY.replace("seed: 4}", "seed: 4, lr: 1.0e+6}")
    (folder / "study.yaml").write_text(text)
    train(folder)
    top, middle, base, student = rows_of(folder)
    assert [row.state for row in (top, middle, base, student)] == [
        State.FAILED, State.SKIPPED, State.FINISHED, State.SKIPPED,
    ]  # fmt: skip
    assert middle.error == f"its teacher {top.trial_id} failed: {top.error}"
    assert student.error == f"its teacher {middle.trial_id} skipped: {middle.error}"
    before = {row.trial_id: row.end_time for row in rows_of(folder)}
    result = train(folder, skip_failed=True)
    assert (result.trained, {row.trial_id: row.end_time for row in result.rows}) == (0, before)


def test_a_damaged_chain_is_trained_again_from_its_first_teacher(own: Path) -> None:
    storage = Storage.at(own / "runs")
    top, middle, _, student = rows_of(own)
    for row in (top, middle):
        name = storage.weights(row.trial_id)
        storage.backend.write(name, storage.backend.read(name)[:-1] + b"\xee")
    storage.backend.delete(storage.weights(student.trial_id))
    notes: list[str] = []
    assert train(own, on_event=lambda event: notes.append(event.text)).is_complete
    assert sum("is damaged" in note for note in notes) == 2
    assert [row.weights_sha256 for row in rows_of(own)] == [
        row.weights_sha256 for row in (top, middle, rows_of(own)[2], student)
    ]


def test_clean_keeps_the_table_that_an_unfinished_teacher_needs(own: Path) -> None:
    storage = Storage.at(own / "runs")
    top, middle, _, student = rows_of(own)
    for row in (middle, student):
        storage.backend.delete(storage.weights(row.trial_id))  # counts as not trained
    run(own, "clean", "--yes")
    assert {key.teacher_id for key in storage.list_tables()} == {top.trial_id, middle.trial_id}
    assert train(own).is_complete
    run(own, "clean", "--yes")
    assert list(storage.list_tables()) == []
    assert all(storage.backend.stat(storage.weights(row.trial_id)) for row in rows_of(own))
