"""Why weights do not fit a CIFAR ResNet, in the words of its architecture rather than tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

Shape = tuple[int, ...]
_COUNTER = "num_batches_tracked"
_STAGES = ("layer1", "layer2", "layer3")
_BLOCK = re.compile(r"(layer\d+)\.(\d+)\.")
_OTHER_NAMES = {  # what other code bases call the same layers
    "linear": "fc", "classifier": "fc", "head": "fc", "shortcut": "downsample", "skip": "downsample",
}  # fmt: skip


@dataclass(slots=True)
class _Comparison:
    """The shapes of a file and of the model, without what some reason explains already."""

    found: dict[str, Shape | None]  # None for what is no dense tensor of numbers
    wanted: dict[str, Shape]
    model: str
    classes: int
    explained: set[str] = field(default_factory=set)

    def missing(self) -> list[str]:
        """Wanted names that the file lacks."""
        return [name for name in self.wanted if name not in self.found and name not in self.explained]

    def unknown(self) -> list[str]:
        """Names of the file that the model lacks."""
        return [name for name in self.found if name not in self.wanted and name not in self.explained]

    def reshaped(self) -> list[str]:
        """Names of both whose shapes differ."""
        both = [name for name in self.wanted if name in self.found and name not in self.explained]
        return [name for name in both if self.found[name] != self.wanted[name]]

    def explain(self, names: Iterable[str]) -> None:
        """Takes these names out of what is still to be said."""
        self.explained |= set(names)


def reasons(state: Mapping[str, Tensor | None], wanted: Mapping[str, Tensor], model: str, classes: int) -> list[str]:
    """What is wrong with the names and shapes of a state; nothing where it fits. The most telling come first."""
    compared = _Comparison(
        {name: None if tensor is None else tuple(tensor.shape) for name, tensor in state.items()},
        {name: tuple(tensor.shape) for name, tensor in wanted.items()},
        model,
        classes,
    )
    compared.explain(name for name in compared.missing() if name.endswith(_COUNTER))
    found = [reason for look in _LOOKS if (reason := look(compared))]
    return found + list(_one_by_one(compared))


def _one_by_one(compared: _Comparison) -> Iterable[str]:
    yield from (f"{name} is missing" for name in compared.missing())
    yield from (f"{name} is unknown" for name in compared.unknown())
    for name in compared.reshaped():
        shape = compared.found[name]
        got = "is no dense tensor of numbers" if shape is None else f"has shape {shape}"
        yield f"{name} {got}, wanted {compared.wanted[name]}"


def _other_names(compared: _Comparison) -> str:
    """Layers under the names of another code base; from here on they count as renamed."""
    renamed = {}
    for name in compared.unknown():
        parts = [_OTHER_NAMES.get(part, part) for part in name.split(".")]
        if (own := ".".join(parts)) in compared.wanted and own not in compared.found:
            renamed[name] = own
    words = {word: _OTHER_NAMES[word] for name in renamed for word in name.split(".") if word in _OTHER_NAMES}
    if not all(f"{word}.weight" in compared.found for word in words if words[word] == "fc"):
        return ""
    for name, own in renamed.items():
        compared.found[own] = compared.found.pop(name)
    listed = ", ".join(f"{word} is to be {own}" for word, own in words.items())
    return f"some layers have other names: rename them ({listed})" if listed else ""


def _stem(compared: _Comparison) -> str:
    found, wanted = compared.found.get("conv1.weight"), compared.wanted["conv1.weight"]
    if found is None or len(found) != 4 or found[2:] == wanted[2:]:
        return ""
    compared.explain(["conv1.weight"])
    return f"its first convolution is {found[2]}×{found[3]}, as in ResNets for ImageNet, wanted {wanted[2]}×{wanted[3]}"


def _blocks(compared: _Comparison) -> str:
    """Bottlenecks, or a fourth stage: another kind of ResNet, whose other differences say no more."""
    names = compared.unknown()
    stages = {match[1] for name in names if (match := _BLOCK.match(name))} - set(_STAGES)
    is_bottleneck = "layer1.0.conv3.weight" in names
    if not stages and not is_bottleneck:
        return ""
    compared.explain(name for name in (*compared.missing(), *names, *compared.reshaped()) if _BLOCK.match(name))
    listed = [f"it has {', '.join(sorted(stages))}, wanted three stages"] if stages else []
    return ", and ".join([*listed, *(["blocks of three convolutions, wanted two"] if is_bottleneck else [])])


def _depth(compared: _Comparison) -> str:
    found, wanted = _counts(compared.found), _counts(compared.wanted)
    if found == wanted or not all(found.values()):
        return ""
    names = [name for name in (*compared.missing(), *compared.unknown()) if _beyond(name, found, wanted)]
    if not names:
        return ""
    what = "extra" if sum(found.values()) > sum(wanted.values()) else "missing"
    compared.explain(names)
    listed = ", ".join(_ranges(names))
    if len(set(found.values())) == 1:
        family = compared.model.rpartition("_")[0]
        other = f"{family}_{6 * found['layer1'] + 2}"
        return f"these are weights of {other}, not {compared.model}: {listed} are {what}"
    blocks = ", ".join(str(count) for count in found.values())
    return f"its stages have {blocks} blocks, wanted {wanted['layer1']} each: {listed} are missing or extra"


def _counts(names: Iterable[str]) -> dict[str, int]:
    """How many blocks each stage has."""
    blocks = {(match[1], match[2]) for name in names if (match := _BLOCK.match(name))}
    return {stage: sum(found == stage for found, _ in blocks) for stage in _STAGES}


def _beyond(name: str, found: Mapping[str, int], wanted: Mapping[str, int]) -> bool:
    match = _BLOCK.match(name)
    return match is not None and match[1] in found and int(match[2]) >= min(found[match[1]], wanted[match[1]])


def _ranges(names: Sequence[str]) -> list[str]:
    """Blocks as `layer1.3…layer1.17`, one range a stage."""
    blocks: dict[str, list[int]] = {}
    for name in names:
        if match := _BLOCK.match(name):
            blocks.setdefault(match[1], []).append(int(match[2]))
    ends = [(stage, min(numbers), max(numbers)) for stage, numbers in sorted(blocks.items())]
    return [f"{stage}.{low}" if low == high else f"{stage}.{low}…{stage}.{high}" for stage, low, high in ends]


def _widths(compared: _Comparison) -> str:
    first = [f"{stage}.0.conv1.weight" for stage in _STAGES]
    found = [shape[0] for name in first if (shape := compared.found.get(name))]
    wanted = [compared.wanted[name][0] for name in first]
    if len(found) != len(wanted) or found == wanted:
        return ""
    shapes = [name for name in compared.reshaped() if not name.startswith("fc.bias")]
    classes = compared.found.get("fc.weight")
    compared.explain(name for name in shapes if name != "fc.weight" or not classes or classes[0] == compared.classes)
    compared.explain(name for name in compared.unknown() if name.startswith("layer1.0.downsample."))
    return f"its stages have {', '.join(map(str, found))} channels, wanted {', '.join(map(str, wanted))}"


def _classes(compared: _Comparison) -> str:
    found, wanted = compared.found.get("fc.weight"), compared.wanted["fc.weight"]
    if not found or found[0] == compared.classes:
        return ""
    bias = compared.found.get("fc.bias")
    compared.explain(["fc.weight", *(["fc.bias"] if bias == (found[0],) else [])])
    detail = f"fc.weight has shape {found}, wanted {wanted}"
    return f"it is built for {found[0]:,} classes, the dataset has {compared.classes} ({detail})"


def _shortcuts(compared: _Comparison) -> str:
    wanted = {name for name in compared.wanted if ".downsample." in name and not name.endswith(_COUNTER)}
    if not wanted or not wanted <= set(compared.missing()) or "layer2.0.conv1.weight" not in compared.found:
        return ""
    if any(re.match(r"layer[23]\.0\.(?!conv|bn)", name) for name in compared.unknown()):
        return ""  # they may be there, under names that nobody here knows
    compared.explain(wanted)
    listed = ", ".join(sorted({name.partition(".downsample.")[0] for name in wanted}))
    return f"its shortcuts have no convolution (option A of the paper), wanted one in {listed} (downsample, option B)"


_LOOKS: tuple[Callable[[_Comparison], str], ...] = (
    _other_names, _stem, _blocks, _depth, _shortcuts, _widths, _classes,
)  # fmt: skip
