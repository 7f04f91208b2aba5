"""The models that a study file can name. Only `build` imports torch; the table and everything else do without it.

To add a family, write a module with its `base.Classifier` and an entry in `FAMILIES`; tests/models/test_models.py then
tests it like the others.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING

from orchestrator.models.family import Family, Number, Widths, count_basic_blocks

if TYPE_CHECKING:
    from orchestrator.models.base import Classifier

FAMILIES: Mapping[str, Family] = {
    # As in the field's code: the layers of arXiv 1512.03385, section 4.2, but with projection shortcuts (the paper's
    # option B) where section 4.2 has none (option A). The paper's deepest has 1,202 layers.
    "resnet_32": Family(
        builder="orchestrator.models.resnet:ResNet",
        form="resnet_32_{D}",
        title="ResNet{D}",
        variant="{D}",
        example="resnet_32_20",
        numbers=(Number("D", "depth", 8, 1202, 6, "6n+2"),),
        widths=lambda depth: Widths((16, 16, 32, 64), 64),
        multiply_adds=lambda depth, *image: count_basic_blocks((depth - 2) // 6, 16, (16, 32, 64), *image),
    ),
    "wrn": Family(
        builder="orchestrator.models.wrn:WideResNet",
        form="wrn_{D}_{K}",
        title="WRN-{D}-{K}",
        variant="{D}-{K}",
        example="wrn_16_2",
        numbers=(Number("D", "depth", 10, 1000, 6, "6n+4"), Number("K", "width", 1, 32)),
        widths=lambda depth, k: Widths((16, 16 * k, 32 * k, 64 * k), 64 * k),
        multiply_adds=lambda depth, k, *image: count_basic_blocks(
            (depth - 4) // 6, 16, (16 * k, 32 * k, 64 * k), *image
        ),
    ),
}


@dataclass(frozen=True)
class ModelName:
    """A model's name as its family reads it: `resnet_32_20` has the number 20 in family `resnet_32`."""

    family: str
    numbers: tuple[int, ...]

    @property
    def title(self) -> str:
        """What tables and figures call the model, like `ResNet20`."""
        family = FAMILIES[self.family]
        return family.fill(family.title, self.numbers)

    @property
    def variant(self) -> str:
        """What distinguishes the model within its family, like `20`."""
        family = FAMILIES[self.family]
        return family.fill(family.variant, self.numbers)


@lru_cache(1024)  # a status view parses the same few names again and again
def parse(name: str) -> ModelName:
    """Reads a model's name. Raises ValueError that states what is allowed and the nearest valid name."""
    for key, family in FAMILIES.items():
        numbers = family.read(name)
        if numbers is not None:
            wrong = [each for each, value in zip(family.numbers, numbers, strict=True) if not each.allows(value)]
            if not wrong:
                return ModelName(key, numbers)
            values = [each.nearest(value) for each, value in zip(family.numbers, numbers, strict=True)]
            rules = "; ".join(each.describe() for each in wrong)
            raise ValueError(f"unknown model {name!r}; {rules} (did you mean {family.fill(family.form, values)}?)")
    examples = [family.example for family in FAMILIES.values()]
    nearest = [*difflib.get_close_matches(name, examples, n=1, cutoff=0.5), *examples][0]
    raise ValueError(f"unknown model {name!r}; models are {describe()}; write a name like {nearest}")


def build(name: str, num_classes: int) -> Classifier:
    """A model with fresh weights, drawn from torch's global generator.

    It maps float images [B, 3, H, W] to logits [B, num_classes]; `model.embed` returns its features too.
    Raises ValueError for an unknown name or fewer than 2 classes.
    """
    model = parse(name)
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}, but a classifier needs at least 2")
    module, attribute = FAMILIES[model.family].builder.split(":")
    builder: Callable[..., Classifier] = getattr(import_module(module), attribute)
    return builder(*model.numbers, num_classes)


def widths(name: str) -> Widths:
    """The channels of a model's maps and of its pooled features. Raises ValueError for an unknown name."""
    model = parse(name)
    return FAMILIES[model.family].widths(*model.numbers)


def multiply_adds(name: str, num_classes: int = 10, side: int = 32) -> int:
    """The cost of one forward pass of one image of `side`² pixels, in multiply-accumulate operations.

    Convolutions and linear layers count. Raises ValueError for an unknown name.
    """
    model = parse(name)
    return FAMILIES[model.family].multiply_adds(*model.numbers, num_classes, side)


def deeper(name: str, blocks: int) -> str | None:
    """The model of the same family with `blocks` more blocks in each stage; None where there is none.

    Raises ValueError for an unknown name.
    """
    model = parse(name)
    family = FAMILIES[model.family]
    # In every family with a depth, a step of it is one block more in each stage.
    pairs = zip(family.numbers, model.numbers, strict=True)
    numbers = [value + blocks * each.step if each.word == "depth" else value for each, value in pairs]
    other = family.fill(family.form, numbers)
    return other if other != name and all(map(Number.allows, family.numbers, numbers)) else None


def describe() -> str:
    """The form of every name, for messages and docs, like `resnet_32_D with D = 6n+2`."""
    return ", or ".join(family.describe() for family in FAMILIES.values())


def pattern() -> str:
    """A regular expression that every model's name matches, for a JSON Schema: it checks the form, not the numbers."""
    return f"^({'|'.join(family.pattern() for family in FAMILIES.values())})$"
