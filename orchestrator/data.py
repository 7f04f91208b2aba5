"""Datasets as tensors on the training device: read from what the user has, checked, put in one canonical order."""

from __future__ import annotations

import hashlib
import http.client
import io
import shutil
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save
from safetensors.torch import load_file
from torch import Tensor

from orchestrator import arrow
from orchestrator.datasets import DATASETS, Dataset
from orchestrator.errors import DataError
from orchestrator.records import TrialConfig
from orchestrator.storage import Storage, replacing

Pixels = NDArray[np.uint8]  # [N, S, S, 3]
Labels = NDArray[np.int64]  # [N]
Splits = Mapping[str, tuple[Pixels, Labels]]

_TORCHVISION = {  # folder of torchvision's layout, and its class
    "cifar10": ("cifar-10-batches-py", "CIFAR10"),
    "cifar100": ("cifar-100-python", "CIFAR100"),
}


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
    return mean, std


def load(config: TrialConfig, storage: Storage, device: torch.device) -> Data:
    """The images of a trial, from what `prepare` left in the storage.

    The first images of the canonical order are taken: classes stay balanced, and a smaller limit is a subset of a
    larger one. The held-out images are the last of those. Raises DataError where `prepare` was not called.
    """
    whole = _whole(config.dataset, storage, device)
    train = _first(whole["train"], config.limit_train)
    kept = len(train) - config.holdout
    val = Images(train.pixels[kept:], train.labels[kept:]) if config.holdout else None
    return Data(_first(train, kept), val, _first(whole["test"], config.limit_test), DATASETS[config.dataset])


def _first(images: Images, count: int | None) -> Images:
    return Images(images.pixels[:count], images.labels[:count])


@lru_cache(maxsize=2)  # a worker goes from trial to trial; the images stay on its device
def _whole(name: str, storage: Storage, device: torch.device) -> dict[str, Images]:
    path = storage.dataset(name, DATASETS[name].digest)
    try:
        tensors = load_file(path, device=str(device))
    except FileNotFoundError:
        raise DataError(f"{path} is missing; launch the study again, which prepares {name} anew") from None
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} is damaged ({error}); remove it and launch again, which prepares {name} anew"
        ) from None
    return {split: Images(tensors[f"{split}.pixels"], tensors[f"{split}.labels"]) for split in ("train", "test")}


def prepare(name: str, folder: Path | None, storage: Storage) -> Path:
    """Puts a dataset into the storage, decoded, checked and in canonical order, unless it is there; returns where.

    `folder` is the data folder; CIFAR is read from it in either layout, and downloaded into it where it is missing.
    Raises DataError that says which file is missing or damaged and how to get it.
    """
    facts = DATASETS[name]
    target = storage.dataset(name, facts.digest)
    if target.exists():
        return target
    with storage.lock(f"dataset-{name}"):
        if not target.exists():
            splits = canonical(_digits() if name == "digits" else _cifar(name, facts, folder))
            check(name, facts, splits)
            tensors: dict[str, NDArray[Any]] = {}
            for split, (pixels, labels) in splits.items():
                tensors[f"{split}.pixels"] = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
                tensors[f"{split}.labels"] = labels
            with replacing(target) as part:
                part.write_bytes(save(tensors))
    return target


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
        f"put whole files there (torchvision's {_TORCHVISION[name][0]}/, or {name}/train-*.parquet and "
        f"{name}/test-*.parquet), or remove them and launch where there is a network, which downloads them"
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
    if folder is None:
        raise DataError(f"{name} needs a data folder; name it with --data DIR or in KDCTL_DATA")
    shards = {split: sorted((folder / name).glob(f"{split}-*.parquet")) for split in ("train", "test")}
    if any(shards.values()):
        for split, paths in shards.items():
            if not paths:
                raise DataError(f"{folder / name}: there is no {split}-*.parquet; {_cure(name)}")
        return {split: _read_shards(paths, name, facts) for split, paths in shards.items()}
    if not (folder / _TORCHVISION[name][0]).exists():
        _download(name, folder)
    return _read_torchvision(name, folder)


def _read_shards(paths: list[Path], name: str, facts: Dataset) -> tuple[Pixels, Labels]:
    parts, labels = [], []
    for path in paths:
        try:
            images, found = arrow.read_images(path, facts.label)
            with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
                parts.append(np.stack(list(pool.map(_decode(facts.side), images))))
        except (arrow.UnreadableFile, ValueError) as error:
            raise DataError(f"{path}: {error}; {_cure(name)}") from None
        labels += found
    return np.concatenate(parts), np.array(labels, np.int64)


def _decode(side: int) -> Callable[[bytes], Pixels]:
    from PIL import Image, UnidentifiedImageError

    def decode(raw: bytes) -> Pixels:
        try:
            pixels = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"an image in it cannot be decoded ({error})") from None
        if pixels.shape != (side, side, 3):
            raise ValueError(f"an image in it is {pixels.shape[1]}×{pixels.shape[0]}, wanted {side}×{side}")
        return pixels

    return decode


def _read_torchvision(name: str, folder: Path) -> Splits:
    """torchvision checks the MD5 of every file against the published one before it unpickles it."""
    from torchvision import datasets

    builder = getattr(datasets, _TORCHVISION[name][1])
    splits = {}
    for split, is_train in (("train", True), ("test", False)):
        try:
            dataset = builder(folder, train=is_train, download=False)
        except (RuntimeError, OSError, ValueError, EOFError) as error:
            where = folder / _TORCHVISION[name][0]
            raise DataError(f"{where}: a file is missing or damaged ({_first_line(error)}); {_cure(name)}") from None
        splits[split] = (np.asarray(dataset.data, np.uint8), np.asarray(dataset.targets, np.int64))
    return splits


def _download(name: str, folder: Path) -> None:
    """Downloads with torchvision into a folder of its own, then moves the whole into place."""
    from torchvision import datasets

    layout, builder = _TORCHVISION[name]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as part:
            getattr(datasets, builder)(part, download=True)
            shutil.move(Path(part) / layout, folder / layout)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:
        raise DataError(
            f"{name} is not in {folder} and could not be downloaded ({_first_line(error)}); "
            f"put it there by hand: torchvision's {layout}/, or {name}/train-*.parquet and {name}/test-*.parquet"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
