"""What a storage remembers of studies: their trials and their last launch, found again by name."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.errors import KdctlError, StorageError
from orchestrator.records import State
from orchestrator.storage.layout import Storage
from orchestrator.study import stored_studies
from orchestrator.study.plan import Plan, make_plan
from orchestrator.study.reader import load_study
from orchestrator.study.stored_studies import Launch

STUDY = """\
study: {name}
recipe: {{epochs: 20}}
experiments:
  - {{method: logit, dataset: digits, student: resnet_32_8, teacher: resnet_32_14, seed: [0, 1], teacher_cache: table}}
"""


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """An empty storage."""
    storage = Storage.at(tmp_path / "runs")
    storage.prepare()
    return storage


def planned(folder: Path, name: str, *finished: int) -> Plan:
    """The plan of a study of three trials, of which some are finished."""
    file = folder / "study.yaml"
    file.write_text(STUDY.format(name=name))
    study = load_study(file)
    ids = [trial.trial_id for trial in make_plan(study).trials]
    return make_plan(study, {ids[no]: State.FINISHED for no in finished})


def launched(day: int = 1, **changes: object) -> Launch:
    values = {
        "resource": "launch-1", "since": datetime(2026, 1, day, tzinfo=UTC), "host": "h", "executor": "ray",
        "file": "study.yaml", "text": "study: …\n", "settings": ("recipe.lr=1e-3",), "data": "data",
    }  # fmt: skip
    return Launch(**{**values, **changes})  # type: ignore[arg-type]


def test_a_study_is_remembered_completely(storage: Storage, tmp_path: Path) -> None:
    plan = planned(tmp_path, "one", 0)
    stored_studies.store_plan(storage, plan, launched())
    found = stored_studies.find(storage, "one")
    assert (found.name, found.launched) == ("one", launched())
    assert found.members == stored_studies.members(plan)
    assert [member.is_cached for member in found.members] == [True, False, False]
    teacher, student, _ = found.members
    assert (teacher.role, student.role) == ("teacher", "student") and student.teacher_id == teacher.trial_id
    title = "logit epochs=20 teacher_cache=table · digits · resnet_32_8 ← resnet_32_14 · seed 0"
    assert student.title == title and student.epochs == 20
    assert (student.method, student.dataset, student.student) == ("logit", "digits", "resnet_32_8")
    assert (student.teacher, teacher.teacher) == ("resnet_32_14", None)
    assert stored_studies.command(replace(found, launched=launched(executor="inline"))) == [
        *("kdctl", "launch", "study.yaml", "--set", "recipe.lr=1e-3", "--inline")
    ]


def test_the_last_launch_is_the_one_that_counts(storage: Storage, tmp_path: Path) -> None:
    for day, name in ((1, "one"), (3, "two"), (2, "three"), (4, "one")):
        stored_studies.store_plan(storage, planned(tmp_path, name), launched(day))
    assert [study.name for study in stored_studies.list_studies(storage)] == ["one", "two", "three"]
    assert stored_studies.find(storage).launched.since.day == 4


def test_an_unknown_name_is_refused_with_the_nearest(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(KdctlError, match="holds no study yet; launch one"):
        stored_studies.find(storage)
    stored_studies.store_plan(storage, planned(tmp_path, "resnet-logit"), launched())
    with pytest.raises(KdctlError, match="no study 'resnet-logits'.*did you mean resnet-logit?"):
        stored_studies.find(storage, "resnet-logits")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"study": 1, "members": [[1]], "launched": {}}'])
def test_a_damaged_study_is_left_out_but_its_tables_raise(storage: Storage, tmp_path: Path, content: bytes) -> None:
    stored_studies.store_plan(storage, planned(tmp_path, "one"), launched())
    (entry,) = storage.backend.list_files(storage.plans)
    assert dict(stored_studies.read_table_keys(storage, entry.name))
    storage.backend.write(entry.name, content)
    assert stored_studies.list_studies(storage) == []
    with pytest.raises(StorageError, match="is damaged; expected the plan of a study"):
        list(stored_studies.read_table_keys(storage, entry.name))


def test_a_plan_of_an_older_kdctl_is_read(storage: Storage, tmp_path: Path) -> None:
    stored_studies.store_plan(storage, planned(tmp_path, "one"), launched())
    (entry,) = storage.backend.list_files(storage.plans)
    facts = json.loads(storage.backend.read(entry.name))
    facts["members"] = [fields[:7] for fields in facts["members"]]
    storage.backend.write(entry.name, json.dumps(facts).encode())
    member = stored_studies.find(storage, "one").members[1]
    assert member.title and (member.method, member.dataset, member.student, member.teacher) == ("", "", "", None)


def test_members_are_stored_by_name(storage: Storage, tmp_path: Path) -> None:
    plan = planned(tmp_path, "one", 0)
    stored_studies.store_plan(storage, plan, launched())
    (file,) = Path(storage.backend.address, "plans").iterdir()
    data = json.loads(file.read_text())
    data["member_fields"].append("a_field_of_a_later_version")
    for values in data["members"]:
        values.append("its value")
    file.write_text(json.dumps(data))
    assert stored_studies.find(storage, "one").members == stored_studies.members(plan)


@pytest.mark.parametrize("fields", [7, 11, 12])
def test_members_that_an_older_version_stored_without_names_are_read(
    storage: Storage, tmp_path: Path, fields: int
) -> None:
    plan = planned(tmp_path, "one", 0)
    stored_studies.store_plan(storage, plan, launched())
    (file,) = Path(storage.backend.address, "plans").iterdir()
    data = json.loads(file.read_text())
    del data["member_fields"]
    data["members"] = [values[:fields] for values in data["members"]]
    file.write_text(json.dumps(data))
    first = stored_studies.members(plan)[0]
    found = stored_studies.find(storage, "one").members[0]
    assert [getattr(found, name) for name in ("trial_id", "title", "is_cached")] == [
        first.trial_id, first.title, first.is_cached,
    ]  # fmt: skip
    assert found.dataset == ("digits" if fields > 7 else "")
