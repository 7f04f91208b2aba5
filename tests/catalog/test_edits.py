"""Plan says which edit of a user's own file makes finished trials new, and says nothing about any other change."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from launch_events import row

from orchestrator.cli import cli
from orchestrator.launch import plan_study
from orchestrator.records import State
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.study import stored_studies

LOSS = """
from helper import SCALE
def {name}(student, labels, teacher, progress, weight=1.0):
    return SCALE * weight * (student.logits - teacher.logits).square().mean()
"""
STUDY = """
study: s
experiments:
- {method: METHOD, dataset: digits, student: resnet_32_8, teacher: resnet_32_8, seed: SEED}
"""
BOTH = "[./one.py:one, {./one.py:one: , ./two.py:two: }]"
NOTE = (
    "note: {}, or what it imports from its folder, was edited after {} of this study had finished; all trials that use "
    "it are new"
)
Notes = Callable[..., list[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(LOSS.format(name=name))
    (tmp_path / "helper.py").write_text("SCALE = 1\n")
    return tmp_path


def notes(folder: Path, method: str = BOTH, seed: str = "[0, 1]", study: str = STUDY) -> list[str]:
    (folder / "s.yaml").write_text(study.replace("METHOD", method).replace("SEED", seed))
    plan = plan_study(folder / "s.yaml", folder / "runs")
    return [warning for warning in plan.warnings if warning.startswith("note: ")]


def finish(folder: Path, state: State = State.FINISHED) -> None:
    """Stores the study's plan, and a row of each of its trials."""
    storage = Storage.at(folder / "runs")
    storage.prepare()
    plan = plan_study(folder / "s.yaml", folder / "runs")
    launched = stored_studies.Launch.of(plan, [], datetime.now(UTC), (), Path("d"), "inline")
    stored_studies.store_plan(storage, plan, launched)
    for trial in plan.trials:
        store.write_trial(storage, row(trial, state))


def test_an_edit_is_named_with_the_number_of_finished_trials(folder: Path) -> None:
    assert notes(folder) == []
    finish(folder)
    (folder / "two.py").write_text(LOSS.format(name="two") + "# edited\n")
    assert notes(folder) == [NOTE.format("two.py", "2 trials")]
    assert notes(folder, seed="1") == [NOTE.format("two.py", "1 trial")]
    (folder / "helper.py").write_text("SCALE = 2\n")
    assert notes(folder) == [
        NOTE.format("one.py", "4 trials"),
        NOTE.format("two.py", "2 trials"),
    ]
    finish(folder)
    assert notes(folder) == []


def test_an_edited_model_makes_its_students_new_too(folder: Path) -> None:
    text = "from torch import nn\ndef build(num_classes):\n    return nn.Linear(1, num_classes)\n"
    (folder / "net.py").write_text(text)
    study = STUDY.replace("teacher: resnet_32_8", "teacher: ./net.py:build")
    assert notes(folder, "[st, ./one.py:one]", "0", study=study) == []
    finish(folder)
    (folder / "net.py").write_text(f"{text}# edited\n")
    assert notes(folder, "[st, ./one.py:one]", "0", study=study) == [NOTE.format("net.py", "3 trials")]


def test_what_is_new_for_another_reason_is_not_explained_by_an_edit(folder: Path) -> None:
    notes(folder)
    finish(folder)
    assert notes(folder, seed="[0, 1, 2]") == []
    (folder / "one.py").write_text(LOSS.format(name="one").replace("1.0", "2.0"))  # another default
    assert notes(folder, "./one.py:one") == []
    (folder / "one.py").write_text(LOSS.format(name="one") + "# edited\n")
    assert notes(folder, "./one.py:one", seed="2") == []
    assert notes(folder, "{./one.py:one: {weight: 3}}") == []


@pytest.mark.parametrize("damaged", [False, True])
def test_unfinished_and_damaged_rows_are_no_reason(damaged: bool, folder: Path) -> None:
    notes(folder)
    finish(folder, State.FINISHED if damaged else State.FAILED)
    for file in (folder / "runs/results/trials").iterdir() if damaged else ():
        file.write_bytes(b"damaged")
    (folder / "helper.py").write_text("SCALE = 2\n")
    assert notes(folder) == []


def test_the_command_prints_it_and_json_has_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes(folder, "./one.py:one")
    finish(folder)
    (folder / "one.py").write_text(LOSS.format(name="one") + "# edited\n")
    command = ["plan", str(folder / "s.yaml"), "--storage", str(folder / "runs")]
    cli.main(command, standalone_mode=False)
    assert "one.py, or what it imports" in " ".join(capsys.readouterr().err.split())
    cli.main([*command, "--json"], standalone_mode=False)
    assert NOTE.format("one.py", "2 trials") in json.loads(capsys.readouterr().out)["warnings"]
