"""Two study files with the same name: plan and launch warn, unless one file was edited, moved or copied."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.launch import launch, plan_study
from orchestrator.monitor.events import Event, EventKind
from orchestrator.storage.layout import Storage, read_json, write_json
from orchestrator.study import stored_studies

TEXT = """\
study: one
recipe: {{epochs: {epochs}, limit_train: 100, limit_test: 50, milestones: []}}
experiments:
- {{method: base, dataset: digits, student: resnet_32_8}}
"""

Write = Callable[[str, int], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a study file of this name, which trains for the given number of epochs."""

    def write(name: str, epochs: int) -> Path:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(TEXT.format(epochs=epochs))
        return file

    return write


@pytest.fixture
def storage(tmp_path: Path, write: Write) -> Storage:
    """A storage that remembers the study of `a/s.yaml`, although none of its trials was trained."""
    storage = Storage.at(tmp_path / "runs")
    storage.prepare()
    remember(storage, write("a/s.yaml", 1))
    return storage


def remember(storage: Storage, file: Path) -> None:

    plan = plan_study(file, storage.backend.address)
    stored_studies.store_plan(
        storage, plan, stored_studies.Launch.of(plan, [], datetime.now(UTC), (), Path("d"), "inline")
    )


def warnings(storage: Storage, file: Path) -> tuple[str, ...]:
    return plan_study(file, storage.backend.address).warnings


def test_another_file_of_the_same_name_is_a_warning(storage: Storage, write: Write, tmp_path: Path) -> None:
    (warning,) = warnings(storage, write("b/s.yaml", 2))
    assert f"already has a study one from another file, {tmp_path / 'a/s.yaml'}; a launch of this file takes" in warning
    remember(storage, tmp_path / "b/s.yaml")
    assert warnings(storage, tmp_path / "b/s.yaml") == ()
    assert len(warnings(storage, tmp_path / "a/s.yaml")) == 1


def test_an_edited_a_moved_and_a_copied_file_are_the_same(
    storage: Storage, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert warnings(storage, write("copy.yaml", 1)) == ()
    assert warnings(storage, write("a/s.yaml", 5)) == ()
    (tmp_path / "link.yaml").symlink_to(tmp_path / "a/s.yaml")
    assert warnings(storage, tmp_path / "link.yaml") == ()
    monkeypatch.chdir(tmp_path / "a")
    assert warnings(storage, Path("s.yaml")) == ()
    (tmp_path / "a/s.yaml").rename(tmp_path / "moved.yaml")
    assert warnings(storage, write("moved.yaml", 7)) == ()


def test_a_file_of_another_machine_is_another_where_its_path_and_text_are(storage: Storage, write: Write) -> None:
    name = storage.plan(stored_studies._digest("one"))
    facts = read_json(storage, name)
    elsewhere = {**facts["launched"], "host": f"not-{socket.gethostname()}", "path": "/elsewhere/s.yaml"}
    write_json(storage, name, {**facts, "launched": elsewhere})
    assert len(warnings(storage, write("b/s.yaml", 2))) == 1
    assert warnings(storage, write("b/s.yaml", 1)) == ()


def test_the_file_of_an_earlier_version_is_unknown(storage: Storage, write: Write) -> None:
    found = stored_studies.find(storage, "one")
    assert asdict(found.launched)["path"].endswith("a/s.yaml")
    stored_studies.store_plan(
        storage, plan_study(write("a/s.yaml", 1), storage.backend.address), replace(found.launched, path="")
    )
    name = storage.plan(stored_studies._digest("one"))
    facts = read_json(storage, name)
    del facts["launched"]["path"]
    write_json(storage, name, facts)
    assert stored_studies.find(storage, "one").launched.path == ""
    assert warnings(storage, write("b/s.yaml", 2)) == ()


def test_a_file_that_will_be_gone_has_no_path(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write("s.yaml", 1)
    assert stored_studies.path_of(str(file)) == str(file) and stored_studies.path_of("/dev/null") == ""
    monkeypatch.setenv("KDCTL_COMMAND", "kdctl launch s.yaml --address http://head:8265")
    assert stored_studies.path_of(str(file)) == ""


def test_a_launch_warns_once(storage: Storage, write: Write) -> None:
    events: list[Event] = []
    for _ in range(2):
        launch(write("b/s.yaml", 2), storage=storage.backend.address, inline=True, on_event=events.append)
    notes = [event.text for event in events if event.kind is EventKind.NOTE and "another file" in event.text]
    assert len(notes) == 1
