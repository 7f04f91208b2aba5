"""Finds CIFAR in a data folder, in any of the layouts that people have. Only looks at names, not at images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator import parquet
from orchestrator.data.order import SPLITS


@dataclass(frozen=True, slots=True)
class Layout:
    """The names and the structure of the files of one dataset, except what torchvision itself knows."""

    builder: str  # torchvision's class
    python: str  # the folder of its batches
    binary: str  # the folder of the binary version
    archives: str  # the beginning of the names of both archives
    binary_files: Mapping[str, Sequence[str]]  # those of the binary version, by split
    binary_labels: int  # bytes before each image in these files; the last is the label, for CIFAR-100 the fine label
    columns: Sequence[str]  # that may contain the labels in Parquet, in order of preference


LAYOUTS: Mapping[str, Layout] = {
    "cifar10": Layout(
        "CIFAR10",
        "cifar-10-batches-py",
        "cifar-10-batches-bin",
        "cifar-10",
        {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]},
        1,
        ("label", "labels"),
    ),
    "cifar100": Layout(
        "CIFAR100",
        "cifar-100-python",
        "cifar-100-binary",
        "cifar-100",
        {"train": ["train.bin"], "test": ["test.bin"]},
        2,
        ("fine_label", "fine_labels", "label", "labels"),
    ),
}
_SUFFIXES = (".tar.gz", ".tgz", ".tar")  # some browsers turn the first into the last
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?")


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a dataset in a folder or archive. `lacks` describes what is missing, judging by file names alone."""

    kind: str  # parquet, python or binary
    path: Path  # a folder or an archive
    shards: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)  # of Parquet, by split
    lacks: str = ""

    def __str__(self) -> str:
        if self.kind == "parquet":
            counts = " and ".join(f"{len(self.shards[split])} {split}" for split in SPLITS)
            return f"Parquet in {self.path} ({counts} shards)"
        return f"the {self.kind} version in {self.path}"


def find(name: str, folder: Path) -> list[Copy]:
    """Finds every copy of a dataset that a folder seems to contain, complete copies first."""
    layout = LAYOUTS[name]
    named = [("python", layout.python), ("binary", layout.binary)]
    copies = list(_find_parquet(name, folder))
    with suppress(OSError):  # a folder that cannot be read contains no copy
        copies += [Copy(kind, path) for kind, part in named for path in _find_below(name, folder, part, Path.is_dir)]
        for kind, _ in named:
            for suffix in _SUFFIXES:
                archive = f"{layout.archives}-{kind}{suffix}"
                copies += [Copy(kind, path) for path in _find_below(name, folder, archive, Path.is_file)]
    return sorted(copies, key=lambda copy: bool(copy.lacks))


def _find_below(name: str, folder: Path, part: str, is_there: Callable[[Path], bool]) -> Iterator[Path]:
    paths = [folder / part, folder / name / part, *([folder] if folder.name == part else [])]
    return (path for path in paths if is_there(path))


def describe_expected(name: str) -> str:
    """What to put into a data folder, for a message."""
    layout = LAYOUTS[name]
    return (
        f"torchvision's {layout.python}/ or its {layout.archives}-python.tar.gz, or {name}/train-*.parquet and "
        f"{name}/test-*.parquet"
    )


def describe_folder(folder: Path) -> str:
    """What a folder contains, in a few words for a message."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return "which cannot be read as a folder"
    return f"which contains {', '.join(names[:6])}{', …' if len(names) > 6 else ''}" if names else "which is empty"


# Parquet.


def _find_parquet(name: str, folder: Path) -> Iterator[Copy]:
    visited = set()
    for base in _list_bases(name, folder):
        for directory in (base, *(base / part for part in ("plain_text", name, "data"))):
            if directory in visited:
                continue
            visited.add(directory)
            shards = {split: _find_shards(directory, split) for split in SPLITS}
            if any(shards.values()) and _is_of(name, directory, [*shards["train"], *shards["test"]][0]):
                yield Copy("parquet", directory, shards, _describe_missing(shards))


def _list_bases(name: str, folder: Path) -> Iterator[Path]:
    """The dataset's folder, its snapshots in a cache of the Hugging Face hub, and the data folder itself."""
    yield folder / name
    for cache in (folder, folder / "hub"):
        yield from sorted(cache.glob(f"datasets--*--{name}/snapshots/*"))
    yield from sorted(folder.glob("snapshots/*"))
    yield folder


def _is_of(name: str, directory: Path, shard: Path) -> bool:
    """Whether shards belong to this dataset: by the name of a folder in their path, otherwise by their columns."""
    if any(part == name or part.endswith(f"--{name}") for part in directory.absolute().parts[-4:]):
        return True
    try:
        has_fine = any(column.startswith("fine_label") for column in parquet.column_names(shard))
    except parquet.UnreadableFile:
        return False
    return has_fine == (name == "cifar100")


def _find_shards(directory: Path, split: str) -> tuple[Path, ...]:
    """Finds the shards of a split by their names on the hub; copies of them under other names are ignored."""
    with suppress(OSError):
        names = sorted(path.name for path in directory.iterdir() if path.is_file())
        of_hub = [name for name in names if re.fullmatch(split + _SHARD.pattern + r"\.parquet", name)]
        found = of_hub or [name for name in names if re.fullmatch(rf"{split}(-\w+)*\.parquet", name)]
        if found:
            return tuple(directory / name for name in found)
        inner = sorted(path for path in (directory / split).iterdir() if re.fullmatch(r"\d+\.parquet", path.name))
        return tuple(inner)  # as the hub converts other formats: train/0000.parquet
    return ()


def _describe_missing(shards: Mapping[str, tuple[Path, ...]]) -> str:
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
