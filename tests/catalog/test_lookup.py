"""A study by its file or its name: a file comes first, then a remembered name; else the error names both."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.catalog import lookup
from orchestrator.errors import KdctlError
from orchestrator.storage.layout import Storage
from orchestrator.study import stored_studies
from orchestrator.study.plan import make_plan
from orchestrator.study.reader import load_study

STUDY = """\
study: tiny
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, seed: [0, 1]}
"""


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A storage that remembers the study, in the current folder, where its file is `study.yaml`."""
    monkeypatch.chdir(tmp_path)
    storage = Storage.at("runs")
    storage.prepare()
    Path("study.yaml").write_text(STUDY)
    launched = stored_studies.Launch("launch-1", datetime.now(UTC), "host", "inline", "study.yaml", STUDY, (), "data")
    stored_studies.store_plan(storage, make_plan(load_study("study.yaml")), launched)
    return storage


def test_a_file_and_its_name_mean_the_same(storage: Storage) -> None:
    found = lookup.find_study(storage, "tiny")
    assert found == lookup.find_study(storage, "study.yaml")
    assert (found.name, len(found.trial_ids), found.members[1].title) == ("tiny", 2, "base digits resnet_32_8 seed 1")


def test_a_file_counts_as_it_is_now(storage: Storage) -> None:
    Path("study.yaml").write_text(STUDY.replace("[0, 1]", "[0, 1, 2]"))
    assert len(lookup.find_study(storage, "study.yaml").members) == 3
    assert len(lookup.find_study(storage, "tiny").members) == 2
    assert len(lookup.find_study(storage, "study.yaml", ["experiments[0].seed=5"]).members) == 1


def test_a_file_wins_over_a_name_and_a_name_over_a_folder(storage: Storage) -> None:
    Path("tiny").mkdir()
    assert len(lookup.find_study(storage, "tiny").members) == 2
    Path("tiny").rmdir()
    Path("tiny").write_text(STUDY.replace("tiny", "other"))
    assert lookup.find_study(storage, "tiny").name == "other"


def test_a_folder_and_a_faulty_file_are_reported(storage: Storage) -> None:
    with pytest.raises(KdctlError, match="this is a folder"):
        lookup.find_study(storage, "runs")
    Path("bad.yaml").write_text("study: 1")
    with pytest.raises(KdctlError, match="bad.yaml:1:8: study"):
        lookup.find_study(storage, "bad.yaml")


def test_a_pipe_is_a_file(storage: Storage) -> None:
    os.mkfifo("pipe")
    threading.Thread(target=lambda: Path("pipe").write_text(STUDY)).start()
    assert lookup.find_study(storage, "pipe").name == "tiny"


@pytest.mark.parametrize("text", ["tyni", "study.yml", "studdy.yaml", "x" * 5000, "nowhere/\x1b[31m.yaml"])
def test_an_unknown_name_is_reported_as_a_file_and_as_a_study(storage: Storage, text: str) -> None:
    with pytest.raises(KdctlError, match="there is no such file, and no study of this name in .*runs") as caught:
        lookup.find_study(storage, text)
    assert "which remembers tiny; " in str(caught.value) and "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 500
    suggestions = {
        "tyni": "did you mean tiny?",
        "study.yml": "choose one of them",
        "studdy.yaml": "did you mean study.yaml?",
    }
    assert str(caught.value).endswith(suggestions.get(text, "choose one of them"))


def test_an_empty_storage_is_reported(tmp_path: Path) -> None:
    with pytest.raises(KdctlError, match="has no studies; name another storage with --storage, or check the path"):
        lookup.find_study(Storage.at(tmp_path / "none"), "tiny")
    assert not (tmp_path / "none").exists()


def test_settings_need_a_file(storage: Storage) -> None:
    with pytest.raises(KdctlError, match="name its file, which was study.yaml"):
        lookup.find_study(storage, "tiny", ["recipe.epochs=1"])
