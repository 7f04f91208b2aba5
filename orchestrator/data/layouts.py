"""Where a data folder holds CIFAR, in any of the layouts that people have. Only names are looked at here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator import parquet

PYTHON = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}  # torchvision's folders
BINARY = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}
_ARCHIVES = {"cifar10": "cifar-10", "cifar100": "cifar-100"}  # and -python.tar.gz, or -binary.tar.gz
_SUFFIXES = (".tar.gz", ".tgz", ".tar")  # the last is what some browsers make of the first
_SPLITS = ("train", "test")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?")


@dataclass(frozen=True, slots=True)
class Copy:
    """A dataset as some folder or archive holds it. `lacks` says what is missing, as far as names tell."""

    kind: str  # parquet, python or binary
    place: Path
    shards: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)  # of Parquet, by split
    lacks: str = ""

    def __str__(self) -> str:
        if self.kind == "parquet":
            counts = " and ".join(f"{len(self.shards[split])} {split}" for split in _SPLITS)
            return f"Parquet in {self.place} ({counts} shards)"
        return f"the {self.kind} version in {self.place}"


def find(name: str, folder: Path) -> list[Copy]:
    """Every copy of a dataset that a folder seems to hold, the most handy first."""
    named = [("python", PYTHON[name]), ("binary", BINARY[name])]
    copies = list(_parquet(name, folder))
    with suppress(OSError):  # a folder that nobody may read holds nothing for us
        copies += [Copy(kind, place) for kind, layout in named for place in _below(name, folder, layout, Path.is_dir)]
        for kind, _ in named:
            for suffix in _SUFFIXES:
                archive = f"{_ARCHIVES[name]}-{kind}{suffix}"
                copies += [Copy(kind, place) for place in _below(name, folder, archive, Path.is_file)]
    return sorted(copies, key=lambda copy: bool(copy.lacks))


def _below(name: str, folder: Path, wanted: str, is_there: Callable[[Path], bool]) -> Iterator[Path]:
    places = [folder / wanted, folder / name / wanted, *([folder] if folder.name == wanted else [])]
    return (place for place in places if is_there(place))


def wanted(name: str) -> str:
    """What to put into a data folder, for a message."""
    return (
        f"torchvision's {PYTHON[name]}/ or its {_ARCHIVES[name]}-python.tar.gz, or {name}/train-*.parquet and "
        f"{name}/test-*.parquet"
    )


def listed(folder: Path) -> str:
    """What a folder holds, in a few words for a message."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return "which is no folder that can be read"
    return f"which holds {', '.join(names[:6])}{', …' if len(names) > 6 else ''}" if names else "which is empty"


# Parquet.


def _parquet(name: str, folder: Path) -> Iterator[Copy]:
    seen = set()
    for base in _bases(name, folder):
        for place in (base, *(base / part for part in ("plain_text", name, "data"))):
            if place in seen:
                continue
            seen.add(place)
            shards = {split: _shards(place, split) for split in _SPLITS}
            if any(shards.values()) and _is_of(name, place, [*shards["train"], *shards["test"]][0]):
                yield Copy("parquet", place, shards, _lacking(shards))


def _bases(name: str, folder: Path) -> Iterator[Path]:
    """The dataset's folder, a snapshot of it in a cache of the Hugging Face hub, or the data folder itself."""
    yield folder / name
    for cache in (folder, folder / "hub"):
        yield from sorted(cache.glob(f"datasets--*--{name}/snapshots/*"))
    yield from sorted(folder.glob("snapshots/*"))
    yield folder


def _is_of(name: str, place: Path, shard: Path) -> bool:
    """Whether shards are of this dataset: by a folder that has its name, else by their columns."""
    if any(part == name or part.endswith(f"--{name}") for part in place.absolute().parts[-4:]):
        return True
    try:
        has_fine = any(column.startswith("fine_label") for column in parquet.column_names(shard))
    except parquet.UnreadableFile:
        return False
    return has_fine == (name == "cifar100")


def _shards(place: Path, split: str) -> tuple[Path, ...]:
    """The shards of a split, by their names on the hub; copies that some program made beside them are none."""
    with suppress(OSError):
        names = sorted(path.name for path in place.iterdir() if path.is_file())
        of_hub = [name for name in names if re.fullmatch(split + _SHARD.pattern + r"\.parquet", name)]
        found = of_hub or [name for name in names if re.fullmatch(rf"{split}(-\w+)*\.parquet", name)]
        if found:
            return tuple(place / name for name in found)
        inner = sorted(path for path in (place / split).iterdir() if re.fullmatch(r"\d+\.parquet", path.name))
        return tuple(inner)  # as the hub converts other formats: train/0000.parquet
    return ()


def _lacking(shards: Mapping[str, tuple[Path, ...]]) -> str:
    for split, paths in shards.items():
        if not paths:
            return f"there is no {split}-*.parquet"
        numbers = [(int(match[1]), int(match[2])) for path in paths if (match := _SHARD.search(path.name))]
        totals = {total for _, total in numbers}
        if len(totals) > 1 or len(set(numbers)) < len(numbers):
            return f"the {split} shards of several downloads are mixed: {', '.join(path.name for path in paths)}"
        for total in totals:
            missing = sorted(set(range(total)) - {number for number, _ in numbers})
            if missing:
                return f"{split}-{missing[0]:05}-of-{total:05}.parquet is missing"
    return ""
