"""What is measured on a user's own images, and stored, so that the same files are read once.

A folder of images and a function that returns images have the same measurements: `folder` and `own_code.datasets`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import codec
from orchestrator.dataset import Dataset
from orchestrator.errors import DataError, KdctlError
from orchestrator.machine import folders

if TYPE_CHECKING:  # NumPy is loaded where images are read, not where a stored measurement is
    from orchestrator.data.order import Pixels, Splits

_FORMAT = 1  # of a stored measurement; raise it when the same files would be measured differently
_NAME_LENGTH = 40
_MOST_BYTES = 16 << 30  # of all pixels, which are in memory at the same time
_BATCH = 256  # images whose pixels are counted at a time, so that the counts take little memory


def measure(splits: Splits) -> Dataset:
    """The facts of images in canonical order. Every class from 0 to the last has a training image."""
    from orchestrator.data import order

    pixels, labels = splits["train"]
    test, _ = splits["test"]
    mean, std = _compute_statistics(pixels)
    return Dataset(int(labels.max()) + 1, len(pixels), len(test), pixels.shape[1], mean, std, order.digest(splits))


def check(source: str, splits: Splits, facts: Dataset) -> None:
    """Raises DataError where images are not those that were measured."""
    if (found := measure(splits)) != facts:
        raise DataError(
            f"{source}: its images changed after they were measured: found digest {found.digest}, expected "
            f"{facts.digest}; launch again, which measures them again"
        )


def check_size(source: str, images: int, side: int, fix: str) -> None:
    """Raises DataError where images take too much memory; `fix` ends the message."""
    if images * side * side * 3 > _MOST_BYTES:
        raise DataError(
            f"{source}: {images:,} images of {side}×{side} take more than {_MOST_BYTES >> 30} GiB of memory; {fix}"
        )


def name_images(name: str, facts: Dataset) -> str:
    """A name for people, safe in a column, a label and a file name; the digest distinguishes images of one name."""
    safe = re.sub(r"[^\w-]+", "-", name).strip("-")[:_NAME_LENGTH] or "images"
    return f"{safe}-{facts.digest[:8]}"


def locate(path: Path, what: object) -> Path | None:
    """The file of a stored measurement of `what` at a path; None where nothing can be stored."""
    try:
        own = folders.own()
    except KdctlError:
        return None
    name = hashlib.sha256(repr((_FORMAT, str(path.resolve()), what)).encode(errors="surrogateescape")).hexdigest()
    return own / "image-folders" / f"{name[:32]}.json"


def load(kept: Path | None, files: str) -> Dataset | None:
    """A stored measurement, if it was made of the same files, of which `files` is a digest."""
    try:
        data = json.loads(kept.read_bytes()) if kept else {}
        return codec.decode(Dataset, data["facts"]) if data["files"] == files else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save(kept: Path | None, files: str, facts: Dataset) -> None:
    """Stores a measurement, if there is a place for it."""
    if kept is None:
        return
    part = kept.with_suffix(f".{os.getpid()}")
    try:
        folders.make(kept.parent)
        part.write_text(json.dumps({"files": files, "facts": codec.encode(facts)}), encoding="utf-8")
        part.replace(kept)
    except OSError:  # the images are measured again next time
        part.unlink(missing_ok=True)


def _compute_statistics(pixels: Pixels) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel, of pixels scaled to 0..1, to four digits.

    Computed with integers, so that they are the same on every machine. A channel without contrast gets deviation 1.
    """
    import numpy as np

    counts = np.zeros((3, 256), np.int64)
    for start in range(0, len(pixels), _BATCH):
        part = pixels[start : start + _BATCH].reshape(-1, 3)
        counts += np.stack([np.bincount(part[:, channel], minlength=256) for channel in range(3)])
    means, stds = [], []
    for own in counts.tolist():
        number = sum(own)
        total, squares = (sum(count * value**power for value, count in enumerate(own)) for power in (1, 2))
        means.append(round(total / number / 255, 4))
        variance = (squares * number - total * total) / number**2
        stds.append(round(variance**0.5 / 255, 4) or 1.0)
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])
