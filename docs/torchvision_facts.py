"""Writes the tables of models/torchvision_facts.py: what kdctl must know of torchvision's classifiers without torch.

    .venv/bin/python docs/torchvision_facts.py

tests/models/test_torchvision.py compares the file with the torchvision that is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.models.torchvision_facts import Facts
from orchestrator.models.torchvision_models import build_plain, find_head, replace_stem

TARGET = Path(__file__).parents[1] / "models" / "torchvision_facts.py"
SIDES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 128, 224)
CLASSES = 10
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Identity)


def measure(name: str, is_small: bool = False, other: Facts | None = None) -> Facts | None:
    """The facts of a network; None for one that kdctl cannot use.

    One with a stem for small images has the maps of the same modules as that with its own stem, the `other`.
    """
    with _without_drawing():
        network = build_plain(name, CLASSES)
    if is_small:
        stem = next(each for each in network.modules() if isinstance(each, nn.Conv2d))
        if stem.stride == (1, 1):
            return None  # it has none to replace
        replace_stem(network)
    head = find_head(network)
    network = network.to("meta").eval()
    if not head:
        return None
    least = next((side for side in SIDES if _run(network, side)), 0)
    large, larger, between = (_run(network, side) for side in (224, 448, 320))
    if not least or not large or not larger or not between:
        return None
    shapes = large[0]
    if is_small:
        paths = list(other.paths) if other else []
    else:
        square = {path: shape for path, shape in _list_trunk(network, shapes) if shape[2] == shape[3]}
        paths = list({shape[2]: path for path, shape in square.items()}.values())  # the last of each size
    sides = [shapes[path][2] for path in paths]
    if len(paths) < 3 or sides != sorted(sides, reverse=True):
        return None
    strides = tuple(round(224 / side) for side in sides)
    pooled = network.get_submodule(head).in_features
    assert isinstance(pooled, int)
    counted, more = (each[1] - CLASSES * pooled for each in (large, larger))
    unit = (more - counted) // (14**2 - 7**2)
    if between[1] - CLASSES * pooled != counted + unit * (10**2 - 7**2):
        return None  # convolutions without padding: neither operations nor sides are proportional to the image's
    odd = _run(network, max(least, 75))
    assert odd
    rounds_down = odd[0][paths[-1]][2] == max(least, 75) // strides[-1]
    return Facts(
        tuple(paths), tuple(shapes[path][1] for path in paths), pooled, strides,
        counted - 7**2 * unit, unit, least, rounds_down,
    )  # fmt: skip


@contextmanager
def _without_drawing() -> Iterator[None]:
    """Leaves weights as the memory happens to be: drawing them takes most of the time, and no one reads them."""
    names = [name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_")]
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(patch.object(nn.init, name, lambda tensor, *args, **options: tensor))
        yield


def _run(network: nn.Module, side: int) -> tuple[dict[str, tuple[int, ...]], int] | None:
    """The shape of each module's output in the order of the calls, and the operations; None where it does not run."""
    shapes: dict[str, tuple[int, ...]] = {}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                shapes[path] = tuple(output.shape)

        return hook

    handles = [module.register_forward_hook(keep(path)) for path, module in network.named_modules() if path]
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.ones(1, 3, side, side, device="meta"))
    except (RuntimeError, ValueError, AssertionError):
        return None
    finally:
        for handle in handles:
            handle.remove()
    return shapes, counter.get_total_flops() // 2


def _list_trunk(
    network: nn.Module, shapes: dict[str, tuple[int, ...]], prefix: str = "", side: int = 224
) -> list[tuple[str, tuple[int, ...]]]:
    """The modules one after the other; a Sequential that more than halves the map is replaced by its children."""
    found = []
    for name, child in network.named_children():
        path = prefix + name
        if path not in shapes:
            continue
        if isinstance(child, nn.Sequential) and shapes[path][2] * 2 < side - 1:
            found += _list_trunk(child, shapes, f"{path}.", side)
        elif not isinstance(child, _POOLS):
            found.append((path, shapes[path]))
        side = shapes[path][2]
    return found


def main() -> None:
    """Writes the tables into the file."""
    tables: dict[str, dict[str, Facts]] = {"FACTS": {}, "FACTS_3X3": {}}
    for name in torchvision.models.list_models(module=torchvision.models):
        for table, is_small in (("FACTS", False), ("FACTS_3X3", True)):
            facts = measure(name, is_small, tables["FACTS"].get(name))
            print(name, table, facts, file=sys.stderr, flush=True)
            if facts:
                tables[table][name] = facts
    names = torchvision.models.list_models(module=torchvision.models)
    text = TARGET.read_text(encoding="utf-8").partition("FACTS: ")[0]  # the class above the tables stays
    for table, found in tables.items():
        rows = "".join(f'    "{name}": Facts{tuple(facts)!r},\n'.replace("'", '"') for name, facts in found.items())
        text += f"{table}: dict[str, Facts] = {{\n{rows}}}\n"
    unusable = tuple(name for name in names if name not in tables["FACTS"])
    text += f"UNUSABLE = {unusable!r}  # no linear layer, no maps [B, C, H, W], or images of one size\n".replace(
        "'", '"'
    )
    TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
