"""The datasets that a study file can name: facts alone, readable without importing torch. `data.py` loads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dataset:
    """What is true of a dataset before it is read.

    `digest` (12 hex digits) is over every label and pixel in canonical order, see `data.canonical`; images that do
    not have it are not this dataset. `label` is the label's column in the Parquet layout.
    """

    title: str
    classes: int
    train: int
    test: int
    side: int  # images are side × side, three channels
    mean: tuple[float, float, float]  # per channel, of the training pixels scaled to 0..1
    std: tuple[float, float, float]
    digest: str
    label: str = ""


DATASETS: Mapping[str, Dataset] = {
    "digits": Dataset("Digits", 10, 1297, 500, 8, (0.3052,) * 3, (0.3758,) * 3, "69c80b255e16"),
    "cifar10": Dataset(
        "Cifar10", 10, 50_000, 10_000, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "aaa027d53769", "label"
    ),
    "cifar100": Dataset(
        "Cifar100",
        100,
        50_000,
        10_000,
        32,
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        "e29b20de058e",
        "fine_label",
    ),
}
