"""The ids of the trials of published studies, as literals: a storage of any age must find its trials again.

An id that changes here means that every user trains that trial again. A new key of the study file must therefore not
be part of an id where it has its default value.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from orchestrator.study.plan import make_plan
from orchestrator.study.reader import load_study

ROOT = Path(__file__).resolve().parents[2]

# The pin of each study file.
FILES = {
    "experiments.yaml": (16, "6682adf545104721"),
    "examples/cifar_small.yaml": (7, "e4224d6894f2a510"),
    "examples/crd.yaml": (1171, "7badd5ea2e7b4016"),
    "examples/digits.yaml": (16, "2779b7465ba1ba4e"),
    "docs/results/cifar10/study.yaml": (25, "a62dcaf124fe7994"),
}

# The demo of kdctl 0.1: its trials are in the storages of those who ran it.
FIRST_DEMO = """\
study: digits
recipe: {epochs: 20, batch_size: 32, lr: 0.05, milestones: [10, 15], crop_padding: 1, flip: false}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, seed: [0, 1, 2]}
  - {method: [logit, st], dataset: digits, teacher: resnet_32_20, student: resnet_32_8, seed: [0, 1, 2]}
"""

# Every setting that an id depends on, each with a value that is not its default.
EVERY_SETTING = """\
study: every-setting
recipe: {epochs: 7, batch_size: 64, lr: 0.03, momentum: 0.8, weight_decay: 5e-4, milestones: [3, 5], gamma: 0.2,
         crop_padding: 2, flip: false, precision: float32, limit_train: 1000, limit_test: 500, holdout: 100}
experiments:
  - {method: base, dataset: cifar100, student: resnet_32_14, seed: 4}
  - {method: logit, dataset: cifar100, student: resnet_32_14, teacher: {model: resnet_32_20, seed: 3, epochs: 9},
     seed: 4, match: pooled, ce_weight: 0.5}
  - {method: st, dataset: cifar100, student: resnet_32_14, teacher: {model: resnet_32_20, seed: 3, epochs: 9},
     seed: 4, temperature: 2}
"""
IDS = ["8d64a2eb58cd", "5511b859a695", "42d5a6c8ceff", "d256f68db8eb"]


def ids_of(file: Path) -> list[str]:
    return [trial.trial_id for trial in make_plan(load_study(file)).trials]


def pin(file: Path) -> tuple[int, str]:
    """The number of its trials, and the start of the SHA-256 of their ids in the order of the plan."""
    ids = ids_of(file)
    return len(ids), hashlib.sha256(" ".join(ids).encode()).hexdigest()[:16]


def test_every_published_study_is_pinned() -> None:
    found = [path for folder in ("examples", "docs/results/*") for path in sorted(ROOT.glob(f"{folder}/*.yaml"))]
    assert list(FILES) == ["experiments.yaml", *(str(path.relative_to(ROOT)) for path in found)]


@pytest.mark.parametrize("name", FILES)
def test_ids_of_a_published_study(name: str) -> None:
    assert pin(ROOT / name) == FILES[name]


def test_ids_of_the_first_demo(tmp_path: Path) -> None:
    file = tmp_path / "digits.yaml"
    file.write_text(FIRST_DEMO)
    assert pin(file) == (10, "fa39644a5a31320c")


def test_ids_of_a_study_with_every_setting(tmp_path: Path) -> None:
    file = tmp_path / "every_setting.yaml"
    file.write_text(EVERY_SETTING)
    assert ids_of(file) == IDS
