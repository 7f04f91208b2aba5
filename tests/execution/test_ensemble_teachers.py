"""Ensembles from the study file to the report: their tables are means of tables, and equal the live mean."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from launch_events import ignore

from orchestrator.cli import cli
from orchestrator.errors import Interrupted, TeacherError
from orchestrator.launch import LaunchResult, launch
from orchestrator.models.base import Classifier
from orchestrator.monitor.events import Event
from orchestrator.records import EpochRecord, State, TrialRecord
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.teachers import _chunks, tables
from orchestrator.teachers.inventory import list_teachers, verify_teacher

STUDY = """\
study: ensemble
recipe: {epochs: 2, limit_train: 64, limit_test: 50, batch_size: 32, crop_padding: 1, flip: false, precision: float32}
experiments:
  - method: logit
    dataset: digits
    student: resnet_32_8
    teacher_cache: [table, live]
    teacher: {mean: [{model: resnet_32_8, seed: 4}, {model: resnet_32_8, seed: 5}, resnet_32_14]}
resources: {gpus_per_trial: 0, checkpoint_seconds: 0}
"""


def train(folder: Path, **options: Any) -> LaunchResult:
    return launch(folder / "study.yaml", storage=folder / "runs", inline=True, **{"on_event": ignore, **options})


def make_folder(digits: Storage, folder: Path, text: str = STUDY) -> Path:
    (folder / "study.yaml").write_text(text)
    shutil.copytree(Path(digits.backend.address) / "datasets", folder / "runs" / "datasets")
    return folder


@pytest.fixture(scope="module")
def trained(digits_storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study and its storage. Tests must only read it."""
    folder = make_folder(digits_storage, tmp_path_factory.mktemp("ensemble"))
    assert train(folder).is_complete
    return folder


def rows_of(folder: Path) -> list[TrialRecord]:
    """The rows in the order of the plan: three members, the ensemble, its students by table and live."""
    return sorted(store.read_trials(Storage.at(folder / "runs")), key=lambda row: row.no)


def test_the_ensemble_has_a_row_with_the_accuracy_of_the_mean(trained: Path) -> None:
    *members, ensemble, by_table, live = rows_of(trained)
    assert (ensemble.method, ensemble.student) == ("mean", "mean(resnet_32_14, resnet_32_8, resnet_32_8)")
    assert ensemble.state is State.FINISHED and ensemble.params == sum(row.params or 0 for row in members)
    for student in (by_table, live):
        assert (student.teacher, student.teacher_id) == (ensemble.student, ensemble.trial_id)
        assert student.teacher_acc == ensemble.last_acc is not None
    assert [row.recipe["teacher_answers"] for row in (by_table, live)] == ["table", "live"]


def test_its_table_is_the_mean_of_those_of_its_members(trained: Path) -> None:
    storage = Storage.at(trained / "runs")
    keys = {key.teacher_id: key for key in storage.list_tables()}
    *members, ensemble, _, _ = rows_of(trained)
    assert set(keys) == {row.trial_id for row in (*members, ensemble)}
    found = [np.load(storage.backend.local_path(storage.table(keys[row.trial_id]))) for row in (*members, ensemble)]
    expected = sum(table.astype(np.float64) for table in found[:-1]) / len(members)
    assert np.abs(found[-1] - expected).max() <= 2.0**-11 * np.abs(expected).max()
    [check] = verify_teacher(ensemble.trial_id, storage)  # against the live mean
    assert check.largest_difference < 0.01
    assert {stored.teacher_id for stored in list_teachers(storage)} == set(keys)


def test_no_teacher_runs_again_for_a_mean_of_tables_that_exist(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copytree(trained, tmp_path / "own"))
    storage = Storage.at(own / "runs")
    *_, ensemble, by_table, _ = rows_of(own)
    [key] = [key for key in storage.list_tables() if key.teacher_id == ensemble.trial_id]
    before = storage.backend.read(storage.table(key))
    storage.backend.delete(storage.table(key))
    storage.backend.delete(storage.weights(by_table.trial_id))
    monkeypatch.setattr(tables, "_ChunkOutputs", None)
    assert train(own).is_complete
    assert storage.backend.read(storage.table(key)) == before


def test_a_wrong_mean_is_refused(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(shutil.copytree(trained, tmp_path / "own"))
    storage = Storage.at(own / "runs")
    *_, ensemble, _, _ = rows_of(own)
    [key] = [key for key in storage.list_tables() if key.teacher_id == ensemble.trial_id]
    path = storage.backend.local_path(storage.table(key))
    table = np.load(path)
    np.save(path, (table * np.float16(1.1)).astype(np.float16))
    with pytest.raises(TeacherError, match="are not the teacher's"):
        verify_teacher(ensemble.trial_id, storage)


def test_an_interrupted_table_resumes_with_its_chunks(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copytree(trained, tmp_path / "own"))
    storage = Storage.at(own / "runs")
    *_, ensemble, by_table, _ = rows_of(own)
    [key] = [key for key in storage.list_tables() if key.teacher_id == ensemble.trial_id]
    before = storage.backend.read(storage.table(key))
    storage.backend.delete(storage.table(key))
    storage.backend.delete(storage.weights(by_table.trial_id))
    monkeypatch.setattr(_chunks, "CHUNK", 100)
    compute, built = tables._ChunkMeans.compute, []

    def count(self: Any, start: int, end: int) -> bytes:
        built.append(start)
        if len(built) == 3:
            signal.raise_signal(signal.SIGINT)
            self._check()
        return compute(self, start, end)

    monkeypatch.setattr(tables._ChunkMeans, "compute", count)
    with pytest.raises(Interrupted):
        train(own, max_concurrent=1)
    assert train(own, max_concurrent=1).is_complete
    assert len(built) == 1 + -(-key.views * key.images // 100)  # only the interrupted one was begun twice
    assert storage.backend.read(storage.table(key)) == before


def test_a_stop_resumes_to_the_same_weights(trained: Path, digits_storage: Storage, tmp_path: Path) -> None:
    folder = make_folder(digits_storage, tmp_path)
    seen = 0

    def stop(event: Event) -> None:
        nonlocal seen
        seen += isinstance(event.facts, EpochRecord)
        if isinstance(event.facts, EpochRecord) and seen in (3, 7):
            signal.raise_signal(signal.SIGINT)

    for _ in range(2):
        with pytest.raises(Interrupted):
            train(folder, on_event=stop)
    assert train(folder).is_complete
    assert [row.weights_sha256 for row in rows_of(folder)] == [row.weights_sha256 for row in rows_of(trained)]


def test_a_member_that_fails_skips_the_ensemble_and_its_students(digits_storage: Storage, tmp_path: Path) -> None:
    folder = make_folder(digits_storage, tmp_path, STUDY.replace("seed: 4}", "seed: 4, lr: 1.0e+6, epochs: 5}"))
    train(folder)
    *members, ensemble, by_table, live = rows_of(folder)
    [failed] = [row for row in members if row.state is State.FAILED]
    assert [row.state for row in (ensemble, by_table, live)] == [State.SKIPPED] * 3
    assert ensemble.error == f"its member {failed.trial_id} failed: {failed.error}"
    assert by_table.error == live.error == f"its teacher {ensemble.trial_id} skipped: {ensemble.error}"
    assert train(folder, skip_failed=True).trained == 0


def test_views_show_the_ensemble(trained: Path, tmp_path: Path) -> None:
    storage = ["--storage", str(trained / "runs")]
    words = [
        ["results", "ensemble"],
        ["report", "ensemble", "--output", str(tmp_path / "r.html")],
        ["status", "ensemble"],
    ]
    printed = [CliRunner().invoke(cli, [*each, *storage]) for each in words]
    assert [result.exit_code for result in printed] == [0, 0, 0], [result.output for result in printed]
    assert "mean(ResNet14, ResNet8, ResNet8)>>ResNet8/Digits" in printed[0].output
    assert "tested on 50 of 500 images" in printed[0].output
    page = (tmp_path / "r.html").read_text()
    assert "resnet_32_8 ← mean(resnet_32_14, resnet_32_8 (seed 4), resnet_32_8 (seed 5))" in page.replace(
        "resnet_32_8 (seed 5), resnet_32_8 (seed 4)", "resnet_32_8 (seed 4), resnet_32_8 (seed 5)"
    )


def test_a_live_ensemble_is_the_mean_of_its_members() -> None:
    from orchestrator import models

    torch.manual_seed(0)
    ensemble = models.build("mean(resnet_32_8, resnet_32_14)", 10).eval()
    images = torch.randn(3, 3, 8, 8)
    members = [member for member in ensemble.members if isinstance(member, Classifier)]  # type: ignore[union-attr]
    expected = (members[0](images) + members[1](images)) / 2
    assert torch.allclose(ensemble(images), expected, atol=1e-6)
    assert torch.allclose(ensemble.folded()(images), expected, atol=1e-4)
    outputs = ensemble.embed(images)
    assert (outputs.pooled.shape, outputs.maps) == ((3, 0), ())
