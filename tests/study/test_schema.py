"""The JSON Schema: it accepts the study files that kdctl ships, refuses broken files, and equals the one in docs/."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from orchestrator.cli import cli
from orchestrator.errors import StudyError
from orchestrator.study import document
from orchestrator.study.reader import load_study
from orchestrator.study.schema import study_schema

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [ROOT / "experiments.yaml", *sorted((ROOT / "examples").glob("*.yaml"))]
GOOD = """\
study: tiny
recipe: {epochs: 2, milestones: [1], lr: 1e-3, flip: false}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, seed: [0, 1]}
  - method: [logit, st]
    dataset: digits
    student: {grid: [resnet_32_8, resnet_32_14]}
    teacher: [resnet_32_8, {model: resnet_32_8, epochs: [1, 2]}]
    milestones: {grid: [[1], []]}
    ce_weight: 0
resources: {gpus_per_trial: 0.5, cpus_per_trial: 1}
"""


def plain(node: document.Node) -> Any:
    """A document as plain data, as an editor reads it."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    return [plain(child) for child in node.value] if isinstance(node.value, list) else node.value


def faults(data: Any) -> list[str]:
    return [error.message for error in jsonschema.Draft7Validator(study_schema()).iter_errors(data)]


def test_it_is_a_schema() -> None:
    jsonschema.Draft7Validator.check_schema(study_schema())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_are_accepted(path: Path) -> None:
    assert faults(plain(document.read(path))) == []
    load_study(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_name_the_schema(path: Path) -> None:
    match = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", path.read_text().splitlines()[0])
    assert match and (path.parent / match[1]).resolve() == ROOT / "docs" / "study.schema.json"


def test_the_schema_in_docs_is_what_the_command_prints() -> None:
    printed = CliRunner().invoke(cli, ["schema"], catch_exceptions=False).stdout
    assert (ROOT / "docs" / "study.schema.json").read_text() == printed, "run: kdctl schema > docs/study.schema.json"


def good() -> Any:
    return copy.deepcopy(plain(document.parse(GOOD, "good")))


def test_every_form_is_accepted(tmp_path: Path) -> None:
    assert faults(good()) == []
    (tmp_path / "study.yaml").write_text(GOOD.replace("[logit, st]", "logit"))
    load_study(tmp_path / "study.yaml")  # the loader agrees


Change = Callable[[Any], object]
BROKEN: dict[str, Change] = {
    "no study": lambda data: data.pop("study"),
    "a name with a space": lambda data: data.update(study="a b"),
    "a name that is a number": lambda data: data.update(study=1),
    "no experiments": lambda data: data.pop("experiments"),
    "an empty list of experiments": lambda data: data.update(experiments=[]),
    "an unknown part": lambda data: data.update(recipes={}),
    "an unknown key in the recipe": lambda data: data["recipe"].update(epoch=1),
    "an axis in the recipe": lambda data: data["recipe"].update(lr=[0.1, 0.2]),
    "no epochs at all": lambda data: data["recipe"].update(epochs=0),
    "half an epoch": lambda data: data["recipe"].update(epochs=1.5),
    "a text for a number": lambda data: data["recipe"].update(lr="0.1"),
    "a learning rate of 0": lambda data: data["recipe"].update(lr=0),
    "a text for a flag": lambda data: data["recipe"].update(flip="no"),
    "a milestone twice": lambda data: data["recipe"].update(milestones=[1, 1]),
    "no method": lambda data: data["experiments"][0].pop("method"),
    "an unknown method": lambda data: data["experiments"][0].update(method="distillation"),
    "an unknown dataset": lambda data: data["experiments"][0].update(dataset="mnist"),
    "another kind of model": lambda data: data["experiments"][0].update(student="vit_16"),
    "an empty axis": lambda data: data["experiments"][0].update(seed=[]),
    "a negative seed": lambda data: data["experiments"][0].update(seed=-1),
    "a grid that is no list": lambda data: data["experiments"][0].update(seed={"grid": 1}),
    "an unknown key": lambda data: data["experiments"][0].update(sed=1),
    "a teacher without a model": lambda data: data["experiments"][1].update(teacher={"epochs": 1}),
    "an unknown key of a teacher": lambda data: data["experiments"][1].update(teacher={"model": "resnet_32_8", "x": 1}),
    "one and a half GPUs": lambda data: data["resources"].update(gpus_per_trial=1.5),
    "no CPU core": lambda data: data["resources"].update(cpus_per_trial=0),
    "an unknown resource": lambda data: data["resources"].update(gpus=1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_by_schema_and_loader(name: str, tmp_path: Path) -> None:
    data = good()
    BROKEN[name](data)
    assert faults(data)
    # JSON is YAML, so the loader can read exactly the same data.
    (tmp_path / "study.yaml").write_text(json.dumps(data))
    with pytest.raises(StudyError):
        load_study(tmp_path / "study.yaml")


@pytest.mark.parametrize("data", [None, [], "text", {}])
def test_other_data_is_refused(data: Any) -> None:
    assert faults(data)
