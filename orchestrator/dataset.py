"""What is true of a dataset, apart from `records`: the help of commands names datasets, and loads nothing more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data from which `from_json` makes equal facts."""
        return {name: list(v) if isinstance(v := getattr(self, name), tuple) else v for name in Dataset.__slots__}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Dataset:
        """The facts that `to_json` returned. Raises KeyError or TypeError on other data."""
        (red, green, blue), (red_std, green_std, blue_std) = data["mean"], data["std"]
        mean, std = (red, green, blue), (red_std, green_std, blue_std)
        return cls(data["classes"], data["train"], data["test"], data["side"], mean, std, data["digest"])
