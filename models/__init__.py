"""The models that a study file can name. Only `build` imports torch; the table and everything else do without it.

To add a family, write a module with its `base.Classifier` and an entry in `FAMILIES`; tests/models/test_models.py then
tests it like the others.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from orchestrator.models import counts
from orchestrator.models.counts import halve
from orchestrator.models.family import Family, Number, Part, Widths, Word
from orchestrator.models.torchvision_facts import FACTS, FACTS_3X3

if TYPE_CHECKING:
    from orchestrator.models.base import Classifier

_NETWORKS = "a classifier of torchvision that ends in a linear layer and has square feature maps"

FAMILIES: Mapping[str, Family] = {
    # As in the field's code: the layers of arXiv 1512.03385, section 4.2, but with projection shortcuts (the paper's
    # option B) where section 4.2 has none (option A). The paper's deepest has 1,202 layers.
    "resnet_32": Family(
        builder="orchestrator.models.resnet:ResNet",
        form="resnet_32_{D}",
        title="ResNet{D}",
        variant="{D}",
        example="resnet_32_20",
        numbers=(Number("D", "depth", range(8, 1203, 6), "6n+2"),),
        widths=lambda depth: Widths((16, 16, 32, 64), 64),
        multiply_adds=lambda depth, *image: counts.count_basic_blocks((depth - 2) // 6, 16, (16, 32, 64), *image),
        sides=lambda depth, side: (side, side, halve(side), halve(side, 2)),
    ),
    # The field publishes these two widths, both with a stem of 8K channels.
    "resnet_DxK": Family(
        builder="orchestrator.models.resnet:build_wide",
        form="resnet_{D}x{K}",
        title="ResNet-{D}×{K}",
        variant="{D}×{K}",
        example="resnet_8x4",
        numbers=(Number("D", "depth", range(8, 1203, 6), "6n+2"), Number("K", "width", (2, 4))),
        widths=lambda depth, k: Widths((8 * k, 16 * k, 32 * k, 64 * k), 64 * k),
        multiply_adds=lambda depth, k, *image: counts.count_basic_blocks(
            (depth - 2) // 6, 8 * k, (16 * k, 32 * k, 64 * k), *image
        ),
        sides=lambda depth, k, side: (side, side, halve(side), halve(side, 2)),
    ),
    "wrn": Family(
        builder="orchestrator.models.wrn:WideResNet",
        form="wrn_{D}_{K}",
        title="WRN-{D}-{K}",
        variant="{D}-{K}",
        example="wrn_16_2",
        numbers=(Number("D", "depth", range(10, 1001, 6), "6n+4"), Number("K", "width", range(1, 33))),
        widths=lambda depth, k: Widths((16, 16 * k, 32 * k, 64 * k), 64 * k),
        multiply_adds=lambda depth, k, *image: counts.count_basic_blocks(
            (depth - 4) // 6, 16, (16 * k, 32 * k, 64 * k), *image
        ),
        sides=lambda depth, k, side: (side, side, halve(side), halve(side, 2)),
    ),
    "vgg": Family(
        builder="orchestrator.models.vgg:VGG",
        form="vgg_{D}",
        title="VGG-{D}",
        variant="{D}",
        example="vgg_13",
        numbers=(Number("D", "depth", tuple(counts.VGG_BLOCKS)),),
        widths=lambda depth: Widths(counts.VGG_WIDTHS, counts.VGG_WIDTHS[-1]),
        multiply_adds=counts.count_vgg,
        sides=lambda depth, side: counts.vgg_sides(side),
    ),
    "resnet_50": Family(
        builder="orchestrator.models.resnet_50:ResNet50",
        form="resnet_50",
        title="ResNet-50",
        variant="ResNet-50",
        example="resnet_50",
        numbers=(),
        widths=lambda: Widths((64, 256, 512, 1024, 2048), 2048),
        multiply_adds=counts.count_resnet_50,
        sides=lambda side: (side, side, halve(side), halve(side, 2), halve(side, 3)),
    ),
    "mobilenet_v2": Family(
        builder="orchestrator.models.mobilenet_v2:MobileNetV2",
        form="mobilenet_v2",
        title="MobileNetV2",
        variant="MobileNetV2",
        example="mobilenet_v2",
        numbers=(),
        widths=lambda: Widths((16, 12, 16, 48, 160), 1280),
        multiply_adds=counts.count_mobilenet_v2,
        sides=lambda side: (halve(side), halve(side), halve(side, 2), halve(side, 3), halve(side, 4)),
    ),
    "shufflenet_v1": Family(
        builder="orchestrator.models.shufflenet_v1:ShuffleNetV1",
        form="shufflenet_v1",
        title="ShuffleNetV1",
        variant="ShuffleNetV1",
        example="shufflenet_v1",
        numbers=(),
        widths=lambda: Widths((24, 240, 480, 960), 960),
        multiply_adds=counts.count_shufflenet_v1,
        sides=lambda side: (side, halve(side), halve(side, 2), halve(side, 3)),
    ),
    "shufflenet_v2": Family(
        builder="orchestrator.models.shufflenet_v2:ShuffleNetV2",
        form="shufflenet_v2",
        title="ShuffleNetV2",
        variant="ShuffleNetV2",
        example="shufflenet_v2",
        numbers=(),
        widths=lambda: Widths((24, 116, 232, 464), 1024),
        multiply_adds=counts.count_shufflenet_v2,
        sides=lambda side: (side, halve(side), halve(side, 2), halve(side, 3)),
    ),
    "torchvision": Family(
        builder="orchestrator.models.torchvision_models:build",
        form="torchvision/{NAME}",
        title="{NAME} (torchvision)",
        variant="{NAME}",
        example="torchvision/resnet18",
        numbers=(Word("NAME", "NAME", tuple(FACTS), _NETWORKS),),
        widths=lambda name: Widths(FACTS[name].widths, FACTS[name].pooled),
        multiply_adds=lambda name, *image: FACTS[name].multiply_adds(*image),
        sides=lambda name, side: FACTS[name].sides(side),
    ),
    # With a stem for small images: the first convolution is 3×3 with stride 1, and no max pooling follows it.
    "torchvision_3x3": Family(
        builder="orchestrator.models.torchvision_models:build_3x3",
        form="torchvision/{NAME}/3x3",
        title="{NAME} (torchvision, 3×3 stem)",
        variant="{NAME} (torchvision, 3×3 stem)",
        example="torchvision/resnet18/3x3",
        numbers=(Word("NAME", "NAME", tuple(FACTS_3X3), _NETWORKS),),
        widths=lambda name: Widths(FACTS_3X3[name].widths, FACTS_3X3[name].pooled),
        multiply_adds=lambda name, *image: FACTS_3X3[name].multiply_adds(*image),
        sides=lambda name, side: FACTS_3X3[name].sides(side),
    ),
}


OWN: dict[str, Family] = {}  # models in a user's files, by their names like `my_net:build`; see `own_code`
_OWN_NAME = re.compile(r"\w+:[A-Za-z_]\w*", re.ASCII)


def is_own(name: str) -> bool:
    """Whether a name is that of a model in a user's file, like `my_net:build`."""
    return _OWN_NAME.fullmatch(name) is not None


def describe_own(name: str, builder: Callable[[int], Classifier], widths: Callable[[], Widths]) -> Family:
    """What is known of a user's model without building it: neither its operations nor the sides of its maps."""

    def multiply_adds(*image: int) -> int:
        raise ValueError(f"the operations of {name} are not known")

    return Family(builder, name, name, name, name, (), widths, multiply_adds, lambda side: (side,))


def _family(key: str) -> Family:
    """The family of a parsed name. A user's model that results name may be in no file that was read here."""

    def missing(*numbers: int) -> Any:
        raise ValueError(f"the file of the model {key} was not read; name it in the study file")

    return FAMILIES.get(key) or OWN.get(key) or describe_own(key, missing, missing)


@dataclass(frozen=True)
class ModelName:
    """A model's name as its family reads it: `resnet_32_20` has the number 20 in family `resnet_32`."""

    family: str
    numbers: tuple[Part, ...]

    @property
    def title(self) -> str:
        """What tables and figures call the model, like `ResNet20`."""
        family = _family(self.family)
        return family.fill(family.title, self.numbers)

    @property
    def variant(self) -> str:
        """What distinguishes the model within its family, like `20`."""
        family = _family(self.family)
        return family.fill(family.variant, self.numbers)


@lru_cache(1024)  # a status view parses the same few names again and again
def parse(name: str) -> ModelName:
    """Reads a model's name. Raises ValueError that states what is allowed and the nearest valid name."""
    if is_own(name):
        return ModelName(name, ())
    for key, family in FAMILIES.items():
        numbers = family.read(name)
        if numbers is not None:
            wrong = [each for each, value in zip(family.numbers, numbers, strict=True) if value not in each.values]
            if not wrong:
                return ModelName(key, numbers)
            values = [each.nearest(value) for each, value in zip(family.numbers, numbers, strict=True)]
            rules = "; ".join(each.describe() for each in wrong)
            raise ValueError(f"unknown model {name!r}; {rules} (did you mean {family.fill(family.form, values)}?)")
    raise ValueError(f"unknown model {name!r}; models are {describe()}; write a name like {_nearest(name)}")


def name_ensemble(members: Iterable[str]) -> str:
    """The name of an ensemble in plans and rows, like `mean(resnet_32_20, resnet_32_56)`; no study file can name it."""
    return f"mean({', '.join(members)})"


def members(name: str) -> tuple[str, ...]:
    """The models of an ensemble; empty for any other name."""
    is_ensemble = name.startswith("mean(") and name.endswith(")")
    return tuple(name[5:-1].split(", ")) if is_ensemble else ()


def title(name: str) -> str:
    """What tables and figures call a model or an ensemble. Raises ValueError for an unknown name."""
    if own := members(name):
        return name_ensemble(map(title, own))
    return parse(name).title


def title_beside(name: str, other: str) -> str:
    """What a model is called next to another: within one family, what distinguishes it. ValueError: unknown name."""
    model = parse(name)
    return model.variant if not members(other) and model.family == parse(other).family else model.title


def _nearest(name: str) -> str:
    """The most similar name: where some have all numbers of an unknown one, the most similar of these."""
    lower = name.lower()
    numbers = re.findall("[0-9]+", lower)

    def similarity(other: str) -> tuple[bool, float]:
        found = re.findall("[0-9]+", other)
        return found[len(found) - len(numbers) :] == numbers, difflib.SequenceMatcher(None, lower, other).ratio()

    return max((family.adopt(lower) for family in FAMILIES.values()), key=similarity)


def build(name: str, num_classes: int) -> Classifier:
    """A model or ensemble with fresh weights, drawn from torch's global generator.

    It maps float images [B, 3, H, W] to logits [B, num_classes]; `model.embed` returns its features too.
    Raises ValueError for an unknown name or fewer than 2 classes.
    """
    if own := members(name):
        from orchestrator.models.ensemble import Ensemble  # which imports torch

        return Ensemble(build(member, num_classes) for member in own)
    model = parse(name)
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}, but a classifier needs at least 2")
    builder = _family(model.family).builder
    if isinstance(builder, str):
        module, attribute = builder.split(":")
        builder = cast(Callable[..., Any], getattr(import_module(module), attribute))
    built: Classifier = builder(*model.numbers, num_classes)
    return built


def widths(name: str) -> Widths:
    """The channels of a model's maps and of its pooled features. Raises ValueError for an unknown name.

    An ensemble has none: it teaches with its logits.
    """
    if members(name):
        return Widths((), 0)
    model = parse(name)
    return _family(model.family).widths(*model.numbers)


def multiply_adds(name: str, num_classes: int = 10, side: int = 32) -> int:
    """The cost of one forward pass of one image of `side`² pixels, in multiply-accumulate operations.

    Convolutions and linear layers count. Raises ValueError for an unknown name.
    """
    if own := members(name):
        return sum(multiply_adds(member, num_classes, side) for member in own)
    model = parse(name)
    return _family(model.family).multiply_adds(*model.numbers, num_classes, side)


def sides(name: str, side: int) -> tuple[int, ...]:
    """The sides of a model's maps for images of `side`² pixels; 0 where these are too small. ValueError: unknown."""
    if members(name):
        return ()
    model = parse(name)
    return _family(model.family).sides(*model.numbers, side)


def deeper(name: str, blocks: int) -> str | None:
    """The model of the same family with `blocks` more blocks in each stage; None where there is none.

    Raises ValueError for an unknown name.
    """
    model = parse(name)
    family = _family(model.family)
    # Where depths are a range, a step of it is one block more in each stage.
    pairs = list(zip(family.numbers, model.numbers, strict=True))
    numbers: list[Part] = [
        int(value) + blocks * each.values.step if each.word == "depth" and isinstance(each.values, range) else value
        for each, value in pairs
    ]
    allowed = all(value in each.values for each, value in zip(family.numbers, numbers, strict=True))
    return family.fill(family.form, numbers) if allowed and numbers != list(model.numbers) else None


def some_names(but_not: str = "") -> list[str]:
    """Every name of the families with few models, and an example of each with many but one; none of torchvision."""
    found: list[str] = []
    for key, family in FAMILIES.items():
        if any(isinstance(each, Word) for each in family.numbers):
            continue  # too many, and their library is slow to import
        if not any(isinstance(each.values, range) for each in family.numbers):
            choices: Iterable[tuple[Part, ...]] = itertools.product(*(each.values for each in family.numbers))
            found += (family.fill(family.form, numbers) for numbers in choices)
        elif key != but_not:
            found.append(family.example)
    return found


def describe() -> str:
    """Every name that there is, for messages and docs, like `resnet_32_D (D = 6n+2)`."""
    *others, last = (family.describe() for family in FAMILIES.values())
    return f"{', '.join(others)} or {last}"


def pattern() -> str:
    """A regular expression that every model's name matches, for a JSON Schema: it checks the form, not the numbers."""
    return f"^({'|'.join(family.pattern() for family in FAMILIES.values())})$"
