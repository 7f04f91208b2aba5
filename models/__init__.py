"""The models that a study file can name. Reading the registry does not import torch; `build` does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.models.resnet import ResNet


@dataclass(frozen=True)
class Family:
    """Models that differ in depth alone. `builder` is `module:attribute`, called with (depth, num_classes)."""

    builder: str
    title: str
    example: str
    shallowest: int
    step: int
    deepest: int
    rule: str


# `resnet_32_D` are CIFAR ResNets as in the field's code: the layers of arXiv 1512.03385, section 4.2, but with
# projection shortcuts (the paper's option B) where section 4.2 has none (option A). The paper's deepest has 1,202.
FAMILIES = {
    "resnet_32": Family(
        "orchestrator.models.resnet:ResNet", "ResNet", "resnet_32_20", 8, 6, 1202, "depth must be 6n+2"
    ),
}


@dataclass(frozen=True)
class ModelName:
    """A model name taken apart: `resnet_32_20` is depth 20 of family `resnet_32`."""

    family: str
    depth: int

    @property
    def title(self) -> str:
        """How tables call the family."""
        return FAMILIES[self.family].title


def parse(name: str) -> ModelName:
    """Takes a model name apart. Raises ValueError that says what is allowed and which known name is nearest."""
    match = re.fullmatch(r"(.+)_([1-9][0-9]{0,8})", name, re.ASCII)
    family = FAMILIES.get(match[1]) if match else None
    if match is None or family is None:
        known = ", ".join(f"{key}_D ({family.rule})" for key, family in FAMILIES.items())
        raise ValueError(f"unknown model {name!r}; models are {known}, for example {_first().example}")
    depth = int(match[2])
    if not family.shallowest <= depth <= family.deepest or (depth - family.shallowest) % family.step:
        nearest = family.shallowest + round((depth - family.shallowest) / family.step) * family.step
        nearest = min(max(nearest, family.shallowest), family.deepest)
        limits = f"from {family.shallowest} to {family.deepest}"
        raise ValueError(f"unknown model {name!r}; {family.rule}, {limits} (did you mean {match[1]}_{nearest}?)")
    return ModelName(match[1], depth)


def build(name: str, num_classes: int) -> ResNet:
    """A model with fresh weights, drawn from torch's global generator.

    It maps float images [B, 3, H, W] to logits [B, num_classes]; `model.embed` gives the features too.
    Raises ValueError for an unknown name or fewer than 2 classes.
    """
    model = parse(name)
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}, but a classifier needs at least 2")
    module, attribute = FAMILIES[model.family].builder.split(":")
    builder: type[ResNet] = getattr(import_module(module), attribute)
    return builder(model.depth, num_classes)


def _first() -> Family:
    return next(iter(FAMILIES.values()))
