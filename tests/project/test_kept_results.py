"""The kept study on CIFAR-10: what its pages say is what SciPy computes from its rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pyarrow.dataset
import pytest
from scipy.stats import t, ttest_rel

from orchestrator.results.store import read_trials
from orchestrator.storage.layout import Storage
from orchestrator.study.plan import make_plan
from orchestrator.study.reader import load_study

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "docs" / "results" / "cifar10"
SEEDS = 8
PAIRS = (("logit", "base"), ("st", "base"), ("st", "logit"))


@cache
def rows(kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pyarrow.dataset.dataset(KEPT / "results" / kind).to_table().to_pylist()
    return found


def accuracies(method: str, metric: str) -> list[float]:
    """Of the students, in the order of their seeds."""
    students = [row for row in rows("trials") if (row["method"], row["student"]) == (method, "resnet_32_8")]
    of_seed = {row["seed"]: row[metric] for row in students}
    assert sorted(of_seed) == list(range(SEEDS))
    return [of_seed[seed] for seed in range(SEEDS)]


def interval(values: list[float]) -> tuple[float, float, float]:
    """The mean and its 95 % interval."""
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / sqrt(len(values))
    return mean(values), mean(values) - half, mean(values) + half


def signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def difference(method: str, other: str) -> str:
    pairs = zip(accuracies(method, "last_acc"), accuracies(other, "last_acc"), strict=True)
    middle, low, high = map(signed, interval([one - two for one, two in pairs]))
    return f"{middle} [{low}, {high}]"


def expected() -> Iterator[str]:
    """The lines of the table that both pages show."""
    for method in ("base", "logit", "st"):
        last, best = (accuracies(method, metric) for metric in ("last_acc", "acc"))
        figures = (f"{mean(values):.1f} ± {stdev(values):.1f}" for values in (last, best))
        gain = "|" if method == "base" else f"{difference(method, 'base')} |"
        yield f"| `{method}` | {' | '.join(figures)} | {gain}"
    (teacher,) = (row for row in rows("trials") if row["student"] == "resnet_32_20")
    yield f"| the teacher (n = 1) | {teacher['last_acc']:.1f} | {teacher['acc']:.1f} | |"


@pytest.mark.parametrize("page", [KEPT / "README.md", ROOT / "README.md"], ids=["kept", "main"])
def test_the_tables_are_computed_from_the_rows(page: Path) -> None:
    assert [line for line in expected() if line not in page.read_text()] == []


def shown() -> Iterator[tuple[str, str, bool]]:
    """The comparisons, the clearest first, and whether each is shown after Holm's correction."""
    found = {pair: ttest_rel(*(accuracies(method, "last_acc") for method in pair)).pvalue for pair in PAIRS}
    is_shown = True
    for left, (method, other) in zip(range(len(found), 0, -1), sorted(found, key=found.__getitem__), strict=True):
        is_shown = is_shown and found[method, other] * left <= 0.05
        yield method, other, is_shown


def test_the_sentences_are_no_stronger_than_the_tests() -> None:
    text = " ".join((KEPT / "README.md").read_text().split())
    for method, other, is_shown in shown():
        found = difference(method, other)
        better = "better" if found[0] == "+" else "worse"
        verb = f"is {better} than" if is_shown else "is not shown to differ from"
        assert f"`{method}` {verb} `{other}`: {found} points" in text


def test_the_kept_rows_are_those_of_the_study() -> None:
    trials = make_plan(load_study(KEPT / "study.yaml")).trials
    found = read_trials(Storage.at(str(KEPT)))
    assert {row.trial_id for row in found} == {trial.trial_id for trial in trials}
    assert {row.state.value for row in found} == {"finished"}
    assert len(rows("epochs")) == sum(row.nepoch for row in found)


def test_no_path_of_a_machine_is_kept() -> None:
    told = [str(row) for kind in ("trials", "epochs") for row in rows(kind)]
    told += [path.read_text() for path in KEPT.iterdir() if path.is_file()]
    assert [text for text in told if re.search(r"(?<![\w.])/(tmp|root|home|work|mnt|usr)\b", text)] == []
