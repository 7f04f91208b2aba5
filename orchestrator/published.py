"""The published tables: their figures, the training behind them, and whether a run of ours was trained alike."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.records import TrialRecord
from orchestrator.summary import Statistic


@dataclass(frozen=True, slots=True)
class Published:
    """One of the published tables: `acc` of its runs, each the best of 200 epochs on the test set."""

    student: str
    teacher: str
    dataset: str
    acc: tuple[float, ...]

    @property
    def statistic(self) -> Statistic:
        """Mean and deviation of the published runs, worked out as ours are."""
        found = Statistic.over(self.acc)
        assert found, "a published table has runs"
        return found

    def is_of(self, method: str, dataset: str, student: str, teacher: str | None) -> bool:
        """Whether runs of such a pair belong into this table."""
        own = ("logit", self.dataset, self.student, self.teacher)
        return (method, dataset, student, teacher) == own


PUBLISHED = (
    Published("resnet_32_20", "resnet_32_20", "cifar10", (92.52, 92.49, 92.53)),
    Published("resnet_32_20", "resnet_32_20", "cifar100", (69.26, 69.27, 69.10)),
    Published("resnet_32_110", "resnet_32_110", "cifar10", (94.23, 94.31, 94.03)),
    Published("resnet_32_110", "resnet_32_110", "cifar100", (72.50, 71.40, 71.42)),
)

# What the published runs were trained with, teachers and students alike. It stands here and not in a study file, as a
# file that somebody changed must not make its runs comparable.
RECIPE: Mapping[str, Any] = {
    "epochs": 200, "batch_size": 128, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "milestones": [100, 150],
    "gamma": 0.1, "crop_padding": 4, "flip": True, "limit_train": None, "limit_test": None, "holdout": 0,
    "weights": None,
}  # fmt: skip
OPTIONS: Mapping[str, Any] = {"ce_weight": 1.0, "match": "logits"}


def differences(row: TrialRecord) -> str:
    """How the training of a run, or of its teacher, was another than the published; empty where it was not."""
    recipe = json.loads(row.recipe)
    own = {**recipe, "epochs": row.nepoch, "lr": row.lr, "batch_size": row.batch_size}
    found = list(_unlike({**RECIPE, "options": OPTIONS}, own, ""))
    return "; ".join(found + list(_unlike({**RECIPE, "options": {}}, recipe.get("teacher") or {}, "teacher.")))


def _unlike(wanted: Mapping[str, Any], own: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in wanted.items():
        if own.get(name) != value:
            yield f"{prefix}{name} {_value(own.get(name))}, not {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return " and ".join(map(str, value)) or "none"
    return "unset" if value is None else json.dumps(value)
