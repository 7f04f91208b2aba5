"""The digits that scikit-learn ships: the only module that imports scikit-learn."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from orchestrator.data import order
from orchestrator.data.order import Splits
from orchestrator.data.registry import DATASETS
from orchestrator.errors import DataError


def read(dataset: str, folder: Path | None) -> Splits:
    """Reads the 1,797 scans in 17 levels of grey; the first 500 in canonical order are the test set.

    Raises DataError if scikit-learn has other images.
    """
    from sklearn.datasets import load_digits  # takes seconds to import, and only digits need it

    raw = load_digits()
    grey = np.rint(raw.images * (255 / 16)).astype(np.uint8)
    pixels, labels = order.sort_images(np.repeat(grey[..., None], 3, axis=3), raw.target.astype(np.int64))
    test = DATASETS[dataset].test
    splits = order.sort_splits({"train": (pixels[test:], labels[test:]), "test": (pixels[:test], labels[:test])})
    order.check(dataset, DATASETS[dataset], splits, "reinstall scikit-learn, which ships them")
    return splits


def locate(dataset: str, folder: Path) -> tuple[str, str]:
    """States that the images come with scikit-learn. Raises DataError where it is not installed."""
    if find_spec("sklearn") is None:
        raise DataError("scikit-learn, which ships them, is not installed; install kdctl again, which installs it too")
    return "comes with scikit-learn", ""
