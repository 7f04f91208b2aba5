"""Explains why weights do not fit a model, in terms of its architecture rather than tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from orchestrator import models

Shape = tuple[int, ...]
_COUNTER = "num_batches_tracked"
# Stage and number, in torchvision and RepDistiller. Layers that stand in a stage without blocks are no blocks.
_BLOCK = re.compile(r"((?:layer|block)\d+)\.(?:layer\.)?(\d+)\.(?=\w+\.)")
_SHORTCUT = re.compile(r"\.(?:downsample|convShortcut)\.")
_SYNONYMS = (  # what code bases call the same layer
    {"fc", "linear", "classifier", "head"}, {"downsample", "shortcut", "skip"},
)  # fmt: skip


@dataclass(slots=True)
class _Comparison:
    """The shapes in a file and in the model, and the names that a reason already explains."""

    found: dict[str, Shape | None]  # None for a value that is not a dense tensor of numbers
    expected: dict[str, Shape]
    model: str
    classes: int
    explained: set[str] = field(default_factory=set)

    @property
    def stages(self) -> list[str]:
        """The model's stages, in order."""
        return _list_stages(self.expected)

    @property
    def head(self) -> str:
        """The name of the model's last linear layer."""
        return [name for name, shape in self.expected.items() if len(shape) == 2][-1].removesuffix(".weight")

    def list_missing(self) -> list[str]:
        """Names of the model that the file lacks."""
        return [name for name in self.expected if name not in self.found and name not in self.explained]

    def list_unknown(self) -> list[str]:
        """Names in the file that the model lacks."""
        return [name for name in self.found if name not in self.expected and name not in self.explained]

    def list_reshaped(self) -> list[str]:
        """Names in both whose shapes differ."""
        both = [name for name in self.expected if name in self.found and name not in self.explained]
        return [name for name in both if self.found[name] != self.expected[name]]

    def explain(self, names: Iterable[str]) -> None:
        """Marks names as explained, so that no later reason mentions them."""
        self.explained |= set(names)


def find_mismatches(
    state: Mapping[str, Tensor | None], expected: Mapping[str, Tensor], model: str, classes: int
) -> list[str]:
    """Reasons why the names and shapes of a state do not fit a model, the most general first; none if it fits."""
    compared = _Comparison(
        {name: None if tensor is None else tuple(tensor.shape) for name, tensor in state.items()},
        {name: tuple(tensor.shape) for name, tensor in expected.items()},
        model,
        classes,
    )
    compared.explain(name for name in compared.list_missing() if name.endswith(_COUNTER))
    if other := _find_other_model(compared):
        return [f"these are weights of {other}"]
    found = [reason for check in _CHECKS if (reason := check(compared))]
    return found + list(_list_names(compared))


def _find_other_model(compared: _Comparison) -> str:
    """The model of another architecture whose weights these are, with its classes; empty where kdctl knows none."""
    if not (compared.list_missing() or compared.list_unknown() or compared.list_reshaped()):
        return ""
    shapes = {name: shape for name, shape in compared.found.items() if not name.endswith(_COUNTER)}
    for other in models.some_names(but_not=models.parse(compared.model).family):
        own = _shapes_of(other)
        *body, _, bias = own
        if shapes.keys() == own.keys() and all(shapes[name] == own[name] for name in body):
            classes = (shapes[bias] or ("other",))[0]
            if (other, classes) != (compared.model, compared.classes):  # else only its last layer is wrong
                return f"{other} with {classes} classes"
    return ""


@lru_cache(64)
def _shapes_of(model: str) -> dict[str, Shape]:
    """The shapes of a model for 2 classes; those of its last layer, which depend on them, come last."""
    with torch.device("meta"):
        state = models.build(model, 2).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith(_COUNTER)}


def _list_names(compared: _Comparison) -> Iterable[str]:
    yield from (f"{name} is missing" for name in compared.list_missing())
    yield from (f"{name} is unknown" for name in compared.list_unknown())
    for name in compared.list_reshaped():
        shape = compared.found[name]
        found = "is not a dense tensor of numbers" if shape is None else f"has shape {shape}"
        yield f"{name} {found}, expected {compared.expected[name]}"


def _check_names(compared: _Comparison) -> str:
    """Layers under the names of another code base. Later checks compare them under the model's names."""
    own_words = {part for name in compared.expected for part in name.split(".")}
    others = {word: own for synonyms in _SYNONYMS for own in synonyms & own_words for word in synonyms - own_words}
    renamed = {}
    for name in compared.list_unknown():
        parts = [others.get(part, part) for part in name.split(".")]
        if (own := ".".join(parts)) in compared.expected and own not in compared.found:
            renamed[name] = own
    words = {word: others[word] for name in renamed for word in name.split(".") if word in others}
    if not all(f"{word}.weight" in compared.found for word in words if words[word] == compared.head):
        return ""
    for name, own in renamed.items():
        compared.found[own] = compared.found.pop(name)
    listed = ", ".join(f"{word} to {own}" for word, own in words.items())
    return f"some layers have other names: rename {listed}" if listed else ""


def _check_architecture(compared: _Comparison) -> str:
    """Stages with the names of another family: its other differences add nothing."""
    found = _list_stages(compared.found)
    if not found or set(found) & set(compared.stages):
        return ""
    names = [*compared.list_missing(), *compared.list_unknown(), *compared.list_reshaped()]
    compared.explain(name for name in names if not name.startswith(f"{compared.head}."))
    expected = ", ".join(compared.stages) or "layers of other names"
    return f"it has another architecture: its stages are {', '.join(found)}, expected {expected}"


def _check_stem(compared: _Comparison) -> str:
    found, expected = compared.found.get("conv1.weight"), compared.expected.get("conv1.weight")
    if found is None or expected is None or len(found) != 4 or found[2:] == expected[2:]:
        return ""
    compared.explain(["conv1.weight"])
    imagenet = ", as in ResNets for ImageNet" if found[2] == 7 else ""
    return f"its first convolution is {found[2]}×{found[3]}{imagenet}, expected {expected[2]}×{expected[3]}"


def _check_blocks(compared: _Comparison) -> str:
    """Bottlenecks, or a fourth stage: another kind of ResNet, whose other differences add nothing."""
    names = compared.list_unknown()
    stages = sorted(set(_list_stages(names)) - set(compared.stages))
    is_bottleneck = _has_bottlenecks(names) and not _has_bottlenecks(compared.expected)
    if not stages and not is_bottleneck:
        return ""
    compared.explain(
        name for name in (*compared.list_missing(), *names, *compared.list_reshaped()) if _BLOCK.match(name)
    )
    listed = [f"it has {', '.join(stages)}, expected {len(compared.stages)} stages"] if stages else []
    return ", and ".join([*listed, *(["blocks of three convolutions, expected two"] if is_bottleneck else [])])


def _has_bottlenecks(names: Iterable[str]) -> bool:
    return any(_BLOCK.match(name) and name.endswith(".conv3.weight") for name in names)


def _check_depth(compared: _Comparison) -> str:
    found = {stage: _count_blocks(compared.found, stage) for stage in compared.stages}
    expected = {stage: _count_blocks(compared.expected, stage) for stage in compared.stages}
    if found == expected or not all(found.values()):
        return ""
    names = [name for name in (*compared.list_missing(), *compared.list_unknown()) if _is_beyond(name, found, expected)]
    if not names:
        return ""
    compared.explain(names)
    listed = ", ".join(_format_ranges(names))
    more = {found[stage] - expected[stage] for stage in found}
    other = models.deeper(compared.model, more.pop()) if len(more) == 1 else None
    if other:
        what = "extra" if sum(found.values()) > sum(expected.values()) else "missing"
        return f"these are weights of {other}, not {compared.model}: {listed} are {what}"
    blocks = ", ".join(str(count) for count in found.values())
    return f"its stages have {blocks} blocks, expected {max(expected.values())} each: {listed} are missing or extra"


def _list_stages(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(match[1] for name in names if (match := _BLOCK.match(name))))


def _count_blocks(names: Iterable[str], stage: str) -> int:
    return len({match[2] for name in names if (match := _BLOCK.match(name)) and match[1] == stage})


def _is_beyond(name: str, found: Mapping[str, int], expected: Mapping[str, int]) -> bool:
    """Whether a name belongs to a block that only the file or only the model has."""
    match = _BLOCK.match(name)
    return match is not None and match[1] in found and int(match[2]) >= min(found[match[1]], expected[match[1]])


def _format_ranges(names: Sequence[str]) -> list[str]:
    """Blocks as `layer1.3…layer1.17`, one range per stage."""
    blocks: dict[str, list[int]] = {}
    for name in names:
        if match := _BLOCK.match(name):
            blocks.setdefault(match[1], []).append(int(match[2]))
    ends = [(stage, min(numbers), max(numbers)) for stage, numbers in sorted(blocks.items())]
    return [f"{stage}.{low}" if low == high else f"{stage}.{low}…{stage}.{high}" for stage, low, high in ends]


def _check_widths(compared: _Comparison) -> str:
    first = [name for name in compared.expected if _is_in_first_block(name) and name.endswith(".conv1.weight")]
    found = [shape[0] for name in first if (shape := compared.found.get(name))]
    expected = [compared.expected[name][0] for name in first]
    if len(found) != len(expected) or found == expected:
        return ""
    shapes = [name for name in compared.list_reshaped() if not name.startswith(f"{compared.head}.bias")]
    head = f"{compared.head}.weight"
    classes = compared.found.get(head)
    compared.explain(name for name in shapes if name != head or not classes or classes[0] == compared.classes)
    # Whether the first stage needs a shortcut with weights follows from its width.
    shortcuts = (name for name in (*compared.list_missing(), *compared.list_unknown()) if _SHORTCUT.search(name))
    compared.explain(name for name in shortcuts if name.startswith(compared.stages[0]) and _is_in_first_block(name))
    return f"its stages have {', '.join(map(str, found))} channels, expected {', '.join(map(str, expected))}"


def _is_in_first_block(name: str) -> bool:
    match = _BLOCK.match(name)
    return match is not None and match[2] == "0"


def _check_classes(compared: _Comparison) -> str:
    weight, bias = f"{compared.head}.weight", f"{compared.head}.bias"
    found, expected = compared.found.get(weight), compared.expected[weight]
    if not found or found[0] == compared.classes:
        return ""
    compared.explain([weight, *([bias] if compared.found.get(bias) == (found[0],) else [])])
    detail = f"{weight} has shape {found}, expected {expected}"
    return f"it is built for {found[0]:,} classes, the dataset has {compared.classes} ({detail})"


def _check_shortcuts(compared: _Comparison) -> str:
    expected = {name for name in compared.expected if ".downsample." in name and not name.endswith(_COUNTER)}
    if not expected or not expected <= set(compared.list_missing()) or "layer2.0.conv1.weight" not in compared.found:
        return ""
    if any(re.match(r"layer[23]\.0\.(?!conv|bn)", name) for name in compared.list_unknown()):
        return ""  # the shortcuts may exist under names that kdctl does not know
    compared.explain(expected)
    listed = ", ".join(sorted({name.partition(".downsample.")[0] for name in expected}))
    return f"its shortcuts have no convolution (option A of the paper), expected one in {listed} (downsample, option B)"


_CHECKS: tuple[Callable[[_Comparison], str], ...] = (
    _check_names, _check_architecture, _check_stem, _check_blocks, _check_depth, _check_shortcuts,
    _check_widths, _check_classes,
)  # fmt: skip
