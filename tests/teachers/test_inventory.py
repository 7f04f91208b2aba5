"""The teachers of a storage: the list of them, the studies that use them, and the check of their tables."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from launch_events import ignore

from orchestrator.cli import cli
from orchestrator.errors import KdctlError, TeacherError
from orchestrator.launch import launch
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.teachers.inventory import list_teachers, verify_teacher

# Two teachers, one of which has a table.
STUDY = """\
study: tiny
recipe: {epochs: 1, limit_train: 64, limit_test: 50, batch_size: 32, crop_padding: 0, flip: false}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, seed: 3}
  - {method: st, dataset: digits, student: resnet_32_8, seed: [0, 1], teacher: resnet_32_8, teacher_cache: table}
  - {method: logit, dataset: digits, student: resnet_32_8, teacher: {model: resnet_32_8, seed: 9}, teacher_cache: live}
resources: {gpus_per_trial: 0}
"""


@pytest.fixture(scope="module")
def trained(digits_storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A storage that contains the study. Tests must only read it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "study.yaml").write_text(STUDY)
    storage = Storage.at(shutil.copytree(digits_storage.backend.address, folder / "runs"))
    assert launch(folder / "study.yaml", storage=storage.backend.address, inline=True, on_event=ignore).is_complete
    return storage


@pytest.fixture
def own(trained: Storage, tmp_path: Path) -> Storage:
    """A copy of it that a test may damage."""
    return Storage.at(shutil.copytree(trained.backend.address, tmp_path / "runs"))


def teachers(storage: Storage, *words: str) -> Result:
    return CliRunner().invoke(cli, ["teachers", "--storage", storage.backend.address, *words])


def by_seed(storage: Storage) -> dict[int, str]:
    return {stored.row.seed: stored.teacher_id for stored in list_teachers(storage)}


def test_every_teacher_is_listed_and_no_other_trial(trained: Storage) -> None:
    found = {stored.row.seed: stored for stored in list_teachers(trained)}
    assert set(found) == {0, 9}  # seed 3 is a trial without students
    assert [found[seed].users for seed in (0, 9)] == [{"tiny": 2}, {"tiny": 1}]
    assert [len(found[seed].tables) for seed in (0, 9)] == [1, 0]
    (key,) = found[0].tables
    sizes = trained.backend.read_sizes([trained.weights(found[0].teacher_id), trained.table(key)])
    assert found[0].bytes == sum(size or 0 for size in sizes) and all(sizes) and key.name == "logits-p0-noflip-n64"


def test_the_list_is_json_for_programs(trained: Storage) -> None:
    found = json.loads(teachers(trained, "--json").stdout)
    assert [set(teacher) for teacher in found] == [
        {"teacher_id", "model", "setting", "dataset", "seed", "acc", "last_acc", "bytes", "tables", "used_by"}
        for _ in range(2)
    ]
    assert sorted(teacher["used_by"]["tiny"] for teacher in found) == [1, 2]
    assert {teacher["model"] for teacher in found} == {"resnet_32_8"}


def test_the_list_is_a_table_for_people(trained: Storage) -> None:
    header, *lines = teachers(trained).stdout.splitlines()
    assert header.split() == [
        "teacher_id", "model", "setting", "dataset", "seed", "acc", "last", "size", "tables", "used", "by",
    ]  # fmt: skip
    assert sorted(line.split()[0] for line in lines) == sorted(by_seed(trained).values())
    assert sum("logits-p0-noflip-n64" in line and line.endswith("2 of tiny") for line in lines) == 1


def test_an_empty_storage_has_no_teachers(tmp_path: Path) -> None:
    empty = Storage.at(tmp_path / "nowhere")
    assert list_teachers(empty) == [] and json.loads(teachers(empty, "--json").stdout) == []
    with pytest.raises(KdctlError, match="holds no teacher yet"):
        verify_teacher("00", empty)
    assert not Path(empty.backend.address).exists()


def test_a_good_table_is_verified(trained: Storage) -> None:
    teacher_id = by_seed(trained)[0]
    (check,) = verify_teacher(teacher_id, trained)
    assert check.table.teacher_id == teacher_id and 0 <= check.largest_difference < 0.1
    result = teachers(trained, "verify", teacher_id[:6])
    assert result.exit_code == 0 and result.stdout.startswith("logits-p0-noflip-n64: matches the teacher")


def test_a_teacher_without_a_table_has_nothing_to_compare(trained: Storage) -> None:
    result = teachers(trained, "verify", by_seed(trained)[9])
    assert (result.exit_code, result.stdout) == (0, "") and "no table" in result.stderr


def test_an_unknown_teacher_is_refused(trained: Storage) -> None:
    known = by_seed(trained)[0]
    with pytest.raises(KdctlError, match=f"no teacher '.*'; did you mean {known}"):
        verify_teacher(f"{known[:11]}x", trained)


def test_an_ambiguous_beginning_is_refused(trained: Storage) -> None:
    with pytest.raises(KdctlError, match="write more digits") as caught:
        verify_teacher("", trained)
    assert all(teacher_id in str(caught.value) for teacher_id in by_seed(trained).values())


def test_changed_outputs_are_found(own: Storage) -> None:
    (key,) = list(own.list_tables())
    np.load(own.backend.local_path(own.table(key)), mmap_mode="r+")[:] += 1
    with pytest.raises(TeacherError, match="not the teacher's"):
        verify_teacher(key.teacher_id, own)


def test_a_cut_table_is_found(own: Storage) -> None:
    (key,) = list(own.list_tables())
    own.backend.write(own.table(key), own.backend.read(own.table(key))[:200])
    with pytest.raises(TeacherError, match="was not made from this teacher"):
        verify_teacher(key.teacher_id, own)


def test_a_table_of_other_weights_is_found(own: Storage) -> None:
    ids = by_seed(own)
    own.backend.write(own.weights(ids[0]), own.backend.read(own.weights(ids[9])))
    with pytest.raises(TeacherError, match="not made from this teacher"):
        verify_teacher(ids[0], own)


def test_a_teacher_that_is_not_finished_is_not_listed(own: Storage) -> None:
    ids = by_seed(own)
    row = store.read_trial(own, ids[9])
    assert row
    store.write_trial(own, replace(row, state=type(row.state).FAILED))
    assert by_seed(own) == {0: ids[0]}
