"""A user's own images: a folder for each split, and in it a folder for each class, as torchvision's ImageFolder reads.

`root/train/CLASS/*.png` and `root/test/CLASS/*.png` (or `val` for `test`). The number of a class is the position of its
name in the sorted list of names. What is measured here (the number of images, their classes, size, mean and digest) is
part of the config of every trial on them.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from orchestrator.data import measurements
from orchestrator.data.registry import OwnDataset
from orchestrator.errors import DataError
from orchestrator.text import printable

if TYPE_CHECKING:  # NumPy and Pillow are loaded where images are read, not where a stored measurement is
    from orchestrator.data.order import Pixels, Splits

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_OTHER_IMAGES = (  # refused by name, as their owner would miss them in the dataset
    ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif", ".avif", ".jfif", ".jp2", ".svg", ".npy",
)  # fmt: skip
_SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}  # the first that exists is read
_EXPECTED = "expected train/CLASS/*.png and test/CLASS/*.png (or val for test) in it, a folder for each class"
_MIN_AGE = 2.0  # seconds after the last change of a file; from then on another change gets another file time

Progress: TypeAlias = Callable[[int, int], None]  # images read, of how many


@dataclass(frozen=True, slots=True)
class _Listing:
    """The files of a folder by split, each with the number of its class; `digest` changes with any of the files."""

    files: dict[str, list[tuple[Path, int]]]
    digest: str
    changed: float  # the time of the latest change; seconds since the epoch


@dataclass(frozen=True, slots=True)
class FolderDataset(OwnDataset):
    """The images in a folder: `dataset: {folder: PATH, size: N}` of a study file."""

    size: int | None = field(compare=False)

    def read(self) -> Splits:
        """Reads the images, in canonical order. Raises DataError, also if they have changed."""
        path = Path(self.path)
        splits = _read(path, _list(path), self.size)
        measurements.check(_escape(path), splits, self.facts)
        return splits

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, for programs."""
        own = OwnDataset.to_json(self)
        return {"path": own.pop("path"), "size": self.size, **own}


def measure(path: Path, size: int | None, progress: Progress = lambda done, of: None) -> FolderDataset:
    """Measures the images in a folder, each resized and cropped to `size` pixels a side if that is given.

    They are read once: the result is stored with the names, sizes and times of the files. Raises DataError for a folder
    with another structure, and for an image that cannot be used.
    """
    listing = _list(path)
    kept = measurements.locate(path, size)
    facts = measurements.load(kept, listing.digest)
    if facts is None:
        facts = measurements.measure(_read(path, listing, size, progress))
        if time.time() - listing.changed > _MIN_AGE:
            measurements.save(kept, listing.digest, facts)
    return FolderDataset(str(path), measurements.name_images(path.resolve().name, facts), facts, size)


def _escape(path: Path) -> str:
    return printable(str(path))


# The list of files.


def _list(path: Path) -> _Listing:
    try:
        if not path.is_dir():
            found = "it is not a folder" if path.exists() else "there is no such folder"
            raise DataError(
                f"{_escape(path)}: {found}; name the folder that has train/ and test/ in it, relative to the study file"
            )
        return _list_splits(path)
    except OSError as error:
        raise DataError(
            f"{_escape(Path(error.filename or path))} cannot be read ({error.strerror or error}); make it readable, or "
            "name another folder"
        ) from None


def _list_splits(path: Path) -> _Listing:
    named, files = {}, {}
    for split, names in _SPLIT_FOLDERS.items():
        folder = next((path / name for name in names if (path / name).is_dir()), None)
        if folder is None:
            raise DataError(
                f"{_escape(path)} has {_describe_folders(_list_folders(path))}, and no {names[0]}/; {_EXPECTED}"
            )
        named[split] = _list_folders(folder)
        files[split] = [
            (file, number) for number, name in enumerate(named[split]) for file in _list_images(folder / name)
        ]
    if len(named["train"]) < 2:
        raise DataError(f"{_escape(path / 'train')} has {_describe_folders(named['train'])}; {_EXPECTED}, at least two")
    if named["train"] != named["test"]:
        only = {split: sorted(set(named[split]) - set(named[other])) for split, other in _PAIRS}
        differing = ", ".join(f"{_describe_folders(names)} only in {split}" for split, names in only.items() if names)
        raise DataError(f"{_escape(path)}: its splits have different classes: {differing}; give both the same folders")
    return _Listing(files, *_digest_files(path, files))


_PAIRS = (("train", "test"), ("test", "train"))


def _list_folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def _describe_folders(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:6])
    return (
        f"{'folder' if len(names) == 1 else 'folders'} {shown}{', …' if len(names) > 6 else ''}"
        if names
        else ("no folder")
    )


def _list_images(folder: Path) -> list[Path]:
    """The images in a folder and its subfolders, sorted; hidden files and other files are ignored."""
    found = sorted(_walk(folder, set()))
    for file in found:
        if file.suffix.lower() in _OTHER_IMAGES:
            raise DataError(
                f"{_escape(file)} has a format that kdctl does not read; expected {', '.join(_SUFFIXES)}; save it as "
                "PNG, or remove it"
            )
    images = [file for file in found if file.suffix.lower() in _SUFFIXES]
    if not images:
        raise DataError(
            f"{_escape(folder)} has no image; expected files that end in {', '.join(_SUFFIXES)}; add some, or remove "
            "the folder"
        )
    return images


def _walk(folder: Path, visited: set[str]) -> Iterator[Path]:
    """Every file below a folder. Links are followed; each folder is visited once."""
    if (real := os.path.realpath(folder)) in visited:
        return
    visited.add(real)
    for entry in list(os.scandir(folder)):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), visited)
        else:
            yield Path(entry.path)


def _digest_files(path: Path, files: dict[str, list[tuple[Path, int]]]) -> tuple[str, float]:
    sha, changed = hashlib.sha256(), 0.0
    for split, found in files.items():
        for file, number in found:
            facts = file.stat()
            changed = max(changed, facts.st_mtime, facts.st_ctime)
            entry = (split, number, str(file.relative_to(path)), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
            sha.update(repr(entry).encode(errors="surrogateescape"))
    return sha.hexdigest(), changed


# The content of the images.


def _read(path: Path, listing: _Listing, size: int | None, progress: Progress = lambda done, of: None) -> Splits:
    import numpy as np

    from orchestrator.data import order

    total, done, splits = sum(map(len, listing.files.values())), 0, {}
    first: Path | None = None
    side = size
    for split, files in listing.files.items():
        pixels: Pixels | None = None
        for index, (file, image) in enumerate(_decode_all([file for file, _ in files], size)):
            side, first = side or len(image), first or file
            if len(image) != side:
                raise DataError(
                    f"{_escape(path)}: its images have different sizes: {_escape(first)} is {side}×{side}, "
                    f"{_escape(file)} is {len(image)}×{len(image)}; {_advise_size(side)}"
                )
            if pixels is None:
                measurements.check_size(_escape(path), total, side, _advise_size(64))
                pixels = np.empty((len(files), side, side, 3), np.uint8)
            pixels[index] = image
            progress(done := done + 1, total)
        assert pixels is not None  # no class is empty
        splits[split] = (pixels, np.array([number for _, number in files], np.int64))
    return order.sort_splits(splits)


def _advise_size(side: int) -> str:
    return f"write `dataset: {{folder: PATH, size: {side}}}`, which resizes every image and cuts out its centre"


def _decode_all(files: Sequence[Path], size: int | None) -> Iterator[tuple[Path, Pixels]]:
    """Every image with its file, in order, decoded in batches. Raises DataError at an image that cannot be used."""
    from orchestrator.data._decode import decode_square

    def decode(file: Path) -> Pixels | DataError:
        try:
            return decode_square(file.read_bytes(), size)
        except OSError as error:
            return DataError(f"{_escape(file)} cannot be read ({error.strerror or error}); make it readable")
        except ValueError as error:
            text = f"{_escape(file)} {printable(str(error))}"
            return DataError(f"{text}; {_advise_size(32)}" if text.endswith("expected a square") else text)

    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        for start in range(0, len(files), _BATCH):
            part = files[start : start + _BATCH]
            for file, image in zip(part, pool.map(decode, part), strict=True):
                if isinstance(image, DataError):
                    raise image
                yield file, image


_BATCH = 256  # images that are decoded at a time, so that few wait in memory
