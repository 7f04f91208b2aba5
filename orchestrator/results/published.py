"""The four tables of a lab note: its results, how its experiment differs from ours, and our closest settings.

No run of kdctl repeats the note's experiment, so its results are shown next to ours and never as a target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.records import TrialRecord
from orchestrator.results.summary import Statistic


@dataclass(frozen=True, slots=True)
class Published:
    """One of the lab note's tables: `acc` of its runs, each the best of 200 epochs on the test set."""

    student: str
    teacher: str
    dataset: str
    acc: tuple[float, ...]

    @property
    def statistic(self) -> Statistic:
        """Mean and deviation of the note's runs, computed as ours are."""
        found = Statistic.over(self.acc)
        assert found, "a table of the note has runs"
        return found

    def matches(self, method: str, dataset: str, student: str, teacher: str | None) -> bool:
        """Whether runs of this method, dataset and pair are shown next to this table."""
        own = ("logit", self.dataset, self.student, self.teacher)
        return (method, dataset, student, teacher) == own


PUBLISHED = (
    Published("resnet_32_20", "resnet_32_20", "cifar10", (92.52, 92.49, 92.53)),
    Published("resnet_32_20", "resnet_32_20", "cifar100", (69.26, 69.27, 69.10)),
    Published("resnet_32_110", "resnet_32_110", "cifar10", (94.23, 94.31, 94.03)),
    Published("resnet_32_110", "resnet_32_110", "cifar100", (72.50, 71.40, 71.42)),
)

# The note's code trained another experiment. No setting of kdctl removes these differences.
DIFFERENCES = (
    "its models begin with a 7×7 convolution instead of 3×3 and so have 1,920 more parameters",
    "its teacher stayed in training mode, so batch norm used the statistics of each batch; ours is in eval mode",
    "its teacher's weights are those of the best epoch on the test set; ours are those of the last epoch",
    "it dropped the last, smaller batch of every epoch and of the test: 9,984 of the 10,000 test images count",
)

# Settings that a recipe leaves out where they have these values, which are also the note's.
OMITTED: Mapping[str, Any] = {
    "optimizer": "sgd", "optimizer_options": {}, "schedule": "steps", "schedule_options": {}, "padding": "reflect",
    "label_smoothing": 0.0, "clip_norm": 0.0, "ema": 0.0,
}  # fmt: skip

# These settings come closest to the note's, for both teachers and students. They are here and not in a study file,
# because editing a study file must not change what its runs are compared with.
RECIPE: Mapping[str, Any] = {
    "epochs": 200, "batch_size": 128, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "milestones": [100, 150],
    "gamma": 0.1, "crop_padding": 4, "flip": True, "limit_train": None, "limit_test": None, "holdout": 0,
    "weights": None, **OMITTED,
}  # fmt: skip
OPTIONS: Mapping[str, Any] = {"ce_weight": 1.0, "match": "pooled"}
CLOSEST = "logit with match: pooled (the 64 average-pooled features) and the recipe of experiments.yaml"


def describe_differences(row: TrialRecord) -> str:
    """The settings of a run or of its teacher that differ from the closest settings; empty if none does."""
    recipe = {**OMITTED, **row.recipe}
    own = {**recipe, **(recipe.get("options") or {}), "epochs": row.nepoch, "lr": row.lr, "batch_size": row.batch_size}
    found = list(compare_settings({**RECIPE, **OPTIONS}, own))
    teacher = {**OMITTED, "method": "base", **(recipe.get("teacher") or {})}
    return "; ".join(found + list(compare_settings({**RECIPE, "method": "base"}, teacher, "teacher.")))


def compare_settings(closest: Mapping[str, Any], own: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The settings that differ from given ones, like `padding reflect, not zero`."""
    for name, value in closest.items():
        if own.get(name) != value:
            yield f"{prefix}{name} {_format_value(own.get(name))}, not {_format_value(value)}"


def _format_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{name}={_format_value(each)}" for name, each in value.items()) or "none"
    if isinstance(value, list):
        return " and ".join(map(str, value)) or "none"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "unset" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
