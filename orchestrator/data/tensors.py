"""Datasets as tensors on the training device: read from what the user has, checked, put in one canonical order."""

from __future__ import annotations

import hashlib
import http.client
import io
import lzma
import pickle
import pickletools
import shutil
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save
from safetensors.torch import load_file
from torch import Tensor

from orchestrator import parquet
from orchestrator.data import layouts
from orchestrator.data.layouts import Copy
from orchestrator.data.registry import DATASETS, Dataset
from orchestrator.errors import DataError
from orchestrator.machine import proxies
from orchestrator.records import TrialConfig
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import waiting

Pixels = NDArray[np.uint8]  # [N, S, S, 3]
Labels = NDArray[np.int64]  # [N]
Splits = Mapping[str, tuple[Pixels, Labels]]

_BUILDERS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}  # torchvision's classes
# The files of the binary version by split, and how many bytes of labels come before an image; the last is the fine one.
_BINARY: Mapping[str, tuple[Mapping[str, Sequence[str]], int]] = {
    "cifar10": ({"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}, 1),
    "cifar100": ({"train": ["train.bin"], "test": ["test.bin"]}, 2),
}
_LABELS = {"cifar10": ("label", "labels"), "cifar100": ("fine_label", "fine_labels", "label", "labels")}
_LARGEST = 200_000_000  # bytes of a file in an archive; the largest of CIFAR's has 155 million

_FORMATS = ("PNG", "WEBP", "BMP", "JPEG")  # Pillow knows many more, some of which start other programs


@dataclass(frozen=True)
class Images:
    """One split on one device: uint8 images [N, 3, S, S] and int64 labels [N]."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """What a trial is trained on (`train`), selected with (`val`, None without a holdout) and tested on (`test`)."""

    train: Images
    val: Images | None
    test: Images
    facts: Dataset

    def normalise(self, pixels: Tensor) -> Tensor:
        """Float images, zero mean and unit variance a channel over the training set, from uint8 [B, 3, S, S]."""
        mean, std = _statistics(self.facts, pixels.device)
        return (pixels.float() - mean) / std


@lru_cache
def _statistics(facts: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    shape = (1, 3, 1, 1)
    mean, std = (torch.tensor(values, device=device).mul(255).view(shape) for values in (facts.mean, facts.std))
    _wait(device)
    return mean, std


def _wait(device: torch.device) -> None:
    """Waits until what this thread made on a GPU is there, for other threads have streams of their own."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def load(config: TrialConfig, storage: Storage, device: torch.device) -> Data:
    """The images of a trial, from what `prepare` left in the storage.

    The first images of the canonical order are taken: classes stay balanced, and a smaller limit is a subset of a
    larger one. The held-out images are the last of those. Raises DataError where `prepare` was not called.
    """
    with _loading:
        whole = _whole(config.dataset, storage, device)
    train = _first(whole["train"], config.limit_train)
    kept = len(train) - config.holdout
    val = Images(train.pixels[kept:], train.labels[kept:]) if config.holdout else None
    return Data(_first(train, kept), val, _first(whole["test"], config.limit_test), DATASETS[config.dataset])


def _first(images: Images, count: int | None) -> Images:
    return Images(images.pixels[:count], images.labels[:count])


_loading = threading.Lock()  # trials of one process that start side by side load the images once


@lru_cache(maxsize=2)  # a worker goes from trial to trial; the images stay on its device
def _whole(name: str, storage: Storage, device: torch.device) -> dict[str, Images]:
    file = storage.dataset(name, DATASETS[name].digest)
    shown = storage.backend.describe(file)
    try:
        tensors = load_file(storage.backend.local_path(file), device=str(device))
        _wait(device)
        return {split: Images(tensors[f"{split}.pixels"], tensors[f"{split}.labels"]) for split in ("train", "test")}
    except FileNotFoundError:
        raise DataError(f"{shown} is missing; launch the study again, which prepares {name} anew") from None
    except (OSError, SafetensorError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"{shown} is damaged ({error}); remove it and launch again, which prepares {name} anew"
        ) from None


def is_prepared(name: str, storage: Storage) -> bool:
    """Whether a dataset is in the storage, so that `prepare` has nothing to do."""
    return storage.backend.stat(storage.dataset(name, DATASETS[name].digest)) is not None


def prepare(name: str, folder: Path | None, storage: Storage, while_waiting: Callable[[], None] = lambda: None) -> None:
    """Puts a dataset into the storage, decoded, checked and in canonical order, unless it is there.

    `folder` is the data folder; CIFAR is read from it in any of `layouts`, and downloaded into it where it is missing.
    `while_waiting` is called while another launch does so. Raises DataError that says which file is missing or damaged
    and how to get it.
    """
    facts = DATASETS[name]
    target = storage.dataset(name, facts.digest)
    if storage.backend.stat(target):
        return
    with waiting(storage, f"dataset-{name}", while_waiting):
        if storage.backend.stat(target):
            return
        splits = _checked(name, facts, _digits()) if name == "digits" else _cifar(name, facts, folder)
        tensors: dict[str, NDArray[Any]] = {}
        for split, (pixels, labels) in splits.items():
            tensors[f"{split}.pixels"] = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
            tensors[f"{split}.labels"] = labels
        storage.backend.write(target, save(tensors))


def _checked(name: str, facts: Dataset, splits: Splits) -> dict[str, tuple[Pixels, Labels]]:
    ordered = canonical(splits)
    check(name, facts, ordered)
    return ordered


def canonical(splits: Splits) -> dict[str, tuple[Pixels, Labels]]:
    """The same images in an order that depends on nothing but themselves: not on the layout, nor on how it was made.

    Within a class images are sorted by the SHA-256 of their pixels, which mixes them; then one of each class is taken
    in turn, so that the first n images hold every class alike.
    """
    return {split: _canonical(*both) for split, both in splits.items()}


def _canonical(pixels: Pixels, labels: Labels) -> tuple[Pixels, Labels]:
    keys = np.array([hashlib.sha256(image.tobytes()).digest() for image in pixels], dtype="S32")
    order = np.lexsort((keys, labels))
    turn = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        turn[members] = np.arange(len(members))
    order = np.lexsort((keys, labels, turn))
    return pixels[order], labels[order]


def digest(splits: Splits) -> str:
    """12 hex digits over every pixel and label, as they are ordered."""
    sha = hashlib.sha256()
    for split in ("train", "test"):
        pixels, labels = splits[split]
        sha.update(np.ascontiguousarray(pixels).data)
        sha.update(np.ascontiguousarray(labels).data)
    return sha.hexdigest()[:12]


def check(name: str, facts: Dataset, splits: Splits) -> None:
    """Raises DataError where counts, shapes, classes or the digest are not those of the dataset."""
    for split, count in (("train", facts.train), ("test", facts.test)):
        pixels, labels = splits[split]
        shape = (count, facts.side, facts.side, 3)
        if pixels.shape != shape:
            raise DataError(f"{name} {split}: got images of shape {pixels.shape}, wanted {shape}; {_cure(name)}")
        classes = np.unique(labels)
        if not np.array_equal(classes, np.arange(facts.classes)):
            got = f"{len(classes)} classes from {labels.min()} to {labels.max()}"
            raise DataError(f"{name} {split}: got {got}, wanted 0 to {facts.classes - 1}; {_cure(name)}")
    if digest(splits) != facts.digest:
        raise DataError(
            f"{name}: these images are not {facts.title}'s: got digest {digest(splits)}, wanted {facts.digest}; "
            f"some are changed or damaged; {_cure(name)}"
        )


def _cure(name: str) -> str:
    if name == "digits":
        return "reinstall scikit-learn, which ships them"
    return (
        f"put whole files there ({layouts.wanted(name)}), or remove them and launch where there is a network, which "
        "downloads them"
    )


def _digits() -> Splits:
    """scikit-learn's 1,797 scans, 17 levels of grey; the first 500 of the canonical order are the test set."""
    from sklearn.datasets import load_digits  # takes seconds to import, and only digits need it

    raw = load_digits()
    grey = np.rint(raw.images * (255 / 16)).astype(np.uint8)
    pixels, labels = _canonical(np.repeat(grey[..., None], 3, axis=3), raw.target.astype(np.int64))
    test = DATASETS["digits"].test
    return {"train": (pixels[test:], labels[test:]), "test": (pixels[:test], labels[:test])}


def _cifar(name: str, facts: Dataset, folder: Path | None) -> Splits:
    """CIFAR from the first copy in a folder that is whole, downloaded where there is none."""
    if folder is None:
        raise DataError(f"{name} needs a data folder; name it with --data DIR or in KDCTL_DATA")
    copies = layouts.find(name, folder)
    if not copies:
        _download(name, folder)
        copies = layouts.find(name, folder)
    faults = []
    for copy in copies:
        try:
            return _checked(name, facts, _read(copy, name, facts))
        except DataError as error:
            faults.append(str(error))
    raise DataError("\n".join(faults))


def _read(copy: Copy, name: str, facts: Dataset) -> Splits:
    if copy.lacks:
        raise DataError(f"{copy.place}: {copy.lacks}; {_cure(name)}")
    if copy.kind == "parquet":
        return {split: _read_shards(paths, name, facts) for split, paths in copy.shards.items()}
    if copy.kind == "binary":
        return _read_binary(name, copy.place)
    return _read_torchvision(name, copy.place)


def _read_shards(paths: Sequence[Path], name: str, facts: Dataset) -> tuple[Pixels, Labels]:
    parts, labels = [], []
    for path in paths:
        try:
            images, found = parquet.read_images(path, _LABELS[name])
            if isinstance(images, list):
                with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
                    images = np.stack(list(pool.map(_decode(facts.side), images)))
            parts.append(images)
        except (parquet.UnreadableFile, ValueError) as error:
            raise DataError(f"{path}: {error}; {_cure(name)}") from None
        labels += found
    if len({part.shape[1:] for part in parts}) > 1:
        raise DataError(f"{paths[0].parent}: its shards hold images of several sizes; {_cure(name)}")
    return np.concatenate(parts), np.array(labels, np.int64)


def _decode(side: int) -> Callable[[bytes], Pixels]:
    from PIL import Image

    def decode(raw: bytes) -> Pixels:
        try:
            image = Image.open(io.BytesIO(raw), formats=_FORMATS)
            size = image.size
            pixels = np.asarray(image.convert("RGB")) if size == (side, side) else None  # or it may fill the memory
        except Exception as error:  # a damaged image makes Pillow raise errors of a dozen types
            raise ValueError(f"an image in it cannot be decoded ({_first_line(error)})") from None
        if pixels is None:
            raise ValueError(f"an image in it is {size[0]}×{size[1]}, wanted {side}×{side}")
        return pixels

    return decode


def _read_torchvision(name: str, place: Path) -> Splits:
    """The batches of torchvision's layout, which are pickles: each is compared with its published MD5, then decoded."""
    from torchvision import datasets

    builder = getattr(datasets, _BUILDERS[name])  # for its lists of files; it reads them with a bare pickle.load
    side = DATASETS[name].side
    files = _files_of(place, {file for file, _ in (*builder.train_list, *builder.test_list)}, name)
    splits = {}
    for split, listed in (("train", builder.train_list), ("test", builder.test_list)):
        batches = [_read_batch(place / file, files(file), md5, name, 3 * side * side) for file, md5 in listed]
        rows, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        splits[split] = (rows.reshape(-1, 3, side, side).transpose(0, 2, 3, 1), labels)
    return splits


def _read_binary(name: str, place: Path) -> Splits:
    """The files of the binary version: of each image its labels, then its red, green and blue pixels."""
    (listed, head), side = _BINARY[name], DATASETS[name].side
    files = _files_of(place, {file for files in listed.values() for file in files}, name)
    width = head + 3 * side * side
    splits = {}
    for split, names in listed.items():
        raw = b"".join(files(file) for file in names)
        if len(raw) % width:
            raise DataError(f"{place}: the {split} files are not whole ({len(raw):,} bytes); {_cure(name)}")
        rows = np.frombuffer(raw, np.uint8).reshape(-1, width)
        pixels = rows[:, head:].reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
        splits[split] = (pixels, rows[:, head - 1].astype(np.int64))
    return splits


def _files_of(place: Path, wanted: set[str], name: str) -> Callable[[str], bytes]:
    """Gives the content of a file by its name: of a folder, or of an archive, from which nothing is extracted."""
    inside = None if place.is_dir() else _unpacked(place, wanted, name)

    def content(file: str) -> bytes:
        try:
            if inside is None:
                return (place / file).read_bytes()
            return inside[file]
        except (OSError, KeyError) as error:
            reason = f"it holds no {file}" if isinstance(error, KeyError) else _first_line(error)
            raise DataError(f"{place}: a file is missing or damaged ({reason}); {_cure(name)}") from None

    return content


def _unpacked(archive: Path, wanted: set[str], name: str) -> dict[str, bytes]:
    """Some files of an archive, in memory, by their names without any folder."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                file = PurePosixPath(member.name).name
                if member.isreg() and file in wanted and member.size <= _LARGEST:
                    stream = tar.extractfile(member)
                    found[file] = stream.read() if stream else b""
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise DataError(
            f"{archive} is damaged or cut off ({_first_line(error)}); download it again, or {_cure(name)}"
        ) from None
    return found


def _read_batch(path: Path, raw: bytes, md5: str, name: str, width: int) -> tuple[Pixels, Labels]:
    found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if found != md5:
        reason = f"{path.name} has the MD5 {found}, wanted {md5}"
        raise DataError(f"{path.parent}: a file is missing or damaged ({reason}); {_cure(name)}")
    try:
        return _rows_of(_unpickled(raw), width)
    except Exception as error:  # a damaged pickle raises errors of a dozen types
        raise DataError(f"{path} is no batch of CIFAR images ({_first_line(error)}); {_cure(name)}") from None


class _Part:
    """Stands where a batch asks for something of NumPy: takes down what it is made of, and runs nothing of NumPy."""

    def __init__(self, *args: object) -> None:
        self.args = args
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _BatchUnpickler(pickle.Unpickler):
    """An unpickler that can make plain values and `_Part`s, so that no file can have it run anything."""

    # What the published files name; Python 2 wrote them with a NumPy of before 2.0.
    admitted = (("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"))

    def find_class(self, module: str, name: str) -> type[_Part]:
        """The stand-in for one of the admitted names. Raises UnpicklingError for all others."""
        if (module, name) in self.admitted:
            return _Part
        raise pickle.UnpicklingError(f"it asks for {f'{module}.{name}'!r}, which no batch needs and kdctl never loads")


def _unpickled(raw: bytes) -> object:
    for opcode, argument, _ in pickletools.genops(raw):  # also that every length in it is that of the file
        # The unpickler makes room for as many objects as the largest number says that it is told to keep one under.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument not in range(len(raw)):
            raise pickle.UnpicklingError(f"it keeps an object under the number {argument}")
    return _BatchUnpickler(io.BytesIO(raw), encoding="bytes").load()


def _rows_of(batch: object, width: int) -> tuple[Pixels, Labels]:
    """The images of a batch, [N, width], and their labels. Raises ValueError where it holds something else."""
    if not isinstance(batch, dict):
        raise ValueError(f"got {type(batch).__name__}, wanted a dict")
    match batch.get(b"data"):
        case _Part(state=(_, (int(count), int(found)), _Part(args=(b"u1", *_)), int(by_column), bytes(pixels))):
            if found != width or count < 1:
                raise ValueError(f"got an array of shape {(count, found)}, wanted rows of {width:,}")
            rows = np.frombuffer(pixels, np.uint8).reshape((count, width), order="F" if by_column else "C")
        case _:
            raise ValueError("its data is no whole array of two axes of bytes")
    labels = batch.get(b"labels", batch.get(b"fine_labels"))
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise ValueError("its labels are no list of whole numbers")
    if len(labels) != count:
        raise ValueError(f"got {len(labels):,} labels for {count:,} images")
    return rows, np.array(labels, np.int64)


def _download(name: str, folder: Path) -> None:
    """Downloads with torchvision into a folder of its own, then moves the whole into place."""
    from torchvision import datasets
    from torchvision.datasets.utils import download_and_extract_archive

    layout = layouts.PYTHON[name]
    source = getattr(datasets, _BUILDERS[name])  # not made: that would read the batches with a bare pickle.load
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as part:
            download_and_extract_archive(source.url, part, filename=source.filename, md5=source.tgz_md5)
            shutil.move(Path(part) / layout, folder / layout)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:
        raise DataError(
            f"{name} is not in {folder}, {layouts.listed(folder)}, and could not be downloaded"
            f"{proxies.through(source.url)} ({_first_line(error)}); put it there by hand: {layouts.wanted(name)}"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
