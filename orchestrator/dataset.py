"""What is true of a dataset, apart from `records`: the help of commands names datasets, and loads nothing more."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dataset:
    """What is true of a dataset before its images are read.

    `digest` (12 hex digits) is over every label and pixel in canonical order, see `data.order`; images that do not have
    it are not this dataset.
    """

    classes: int
    train: int  # images
    test: int
    side: int  # images are side × side, three channels
    mean: tuple[float, float, float]  # per channel, of the training pixels scaled to 0..1
    std: tuple[float, float, float]
    digest: str
