"""The canonical order of a dataset's images, their digest, and the check that images are those of a dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from orchestrator.dataset import Dataset
from orchestrator.errors import DataError

Pixels: TypeAlias = NDArray[np.uint8]  # [N, S, S, 3]
Labels: TypeAlias = NDArray[np.int64]  # [N]
Splits: TypeAlias = Mapping[str, tuple[Pixels, Labels]]  # train and test
SPLITS = ("train", "test")


def sort_splits(splits: Splits) -> dict[str, tuple[Pixels, Labels]]:
    """Sorts images into an order that depends only on the images, not on the layout or on how its files were made.

    Within a class, images are sorted by the SHA-256 of their pixels, which mixes them. Then one image of each class is
    taken in turn, so that the first n images contain every class equally often.
    """
    return {split: sort_images(*both) for split, both in splits.items()}


def sort_images(pixels: Pixels, labels: Labels) -> tuple[Pixels, Labels]:
    """Sorts one split into canonical order."""
    keys = np.array([hashlib.sha256(image.tobytes()).digest() for image in pixels], dtype="S32")
    order = np.lexsort((keys, labels))
    turn = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        turn[members] = np.arange(len(members))
    order = np.lexsort((keys, labels, turn))
    return pixels[order], labels[order]


def digest(splits: Splits) -> str:
    """12 hex digits over every pixel and label, in their order."""
    sha = hashlib.sha256()
    for split in SPLITS:
        pixels, labels = splits[split]
        sha.update(np.ascontiguousarray(pixels).data)
        sha.update(np.ascontiguousarray(labels).data)
    return sha.hexdigest()[:12]


def check(dataset: str, facts: Dataset, splits: Splits, fix: str) -> None:
    """Raises DataError where counts, shapes, classes or the digest are not those of a named dataset.

    `fix` ends the message: how to get the right images.
    """
    for split, count in (("train", facts.train), ("test", facts.test)):
        pixels, labels = splits[split]
        shape = (count, facts.side, facts.side, 3)
        if pixels.shape != shape:
            raise DataError(f"{dataset} {split}: found images of shape {pixels.shape}, expected {shape}; {fix}")
        classes = np.unique(labels)
        if not np.array_equal(classes, np.arange(facts.classes)):
            found = f"{len(classes)} classes from {labels.min()} to {labels.max()}"
            raise DataError(f"{dataset} {split}: found {found}, expected 0 to {facts.classes - 1}; {fix}")
    if (found := digest(splits)) != facts.digest:
        raise DataError(
            f"{dataset}: these images are not the published ones: found digest {found}, expected {facts.digest}; "
            f"some are changed or damaged; {fix}"
        )
