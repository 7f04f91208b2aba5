"""What a family of models states about itself without torch: its names, its titles, and its models' sizes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Widths(NamedTuple):
    """The channels of each of a model's maps (the stem's, then each stage's), and of its pooled features."""

    maps: tuple[int, ...]
    pooled: int


@dataclass(frozen=True)
class Number:
    """A number in a model's name: `letter` stands for it in the name's form, `word` in messages.

    Allowed are `least`, `least + step`, … up to `most`; `rule` states the same as a formula, like `6n+2`.
    """

    letter: str
    word: str
    least: int
    most: int
    step: int = 1
    rule: str = ""

    def allows(self, value: int) -> bool:
        """Whether a model of the family may have this value."""
        return self.least <= value <= self.most and (value - self.least) % self.step == 0

    def nearest(self, value: int) -> int:
        """The allowed value that is nearest to any whole number."""
        nearest = self.least + round((value - self.least) / self.step) * self.step
        return min(max(nearest, self.least), self.most)

    def describe(self) -> str:
        """Which values are allowed, for messages, like `depth must be 6n+2, from 8 to 1202`."""
        rule = f"{self.rule}, " if self.rule else ""
        return f"{self.word} must be {rule}from {self.least} to {self.most}"


@dataclass(frozen=True)
class Family:
    """Models that differ only in the numbers of their names.

    `builder` is `module:attribute`. It is called with the numbers in the order of the form, then the number of classes,
    and returns a `base.Classifier`. `form`, `title` and `variant` have each number's letter in braces: the name in a
    study file (`wrn_{D}_{K}`), the name in tables and figures (`WRN-{D}-{K}`), and what of the title distinguishes
    models of the family (`{D}-{K}`).

    `widths` is called with the numbers. `multiply_adds` is called with the numbers, the number of classes and the
    images' side in pixels; it returns the multiply-accumulate operations of convolutions and linear layers in one
    forward pass of one image.
    """

    builder: str
    form: str
    title: str
    variant: str
    example: str
    numbers: tuple[Number, ...]
    widths: Callable[..., Widths]
    multiply_adds: Callable[..., int]

    def pattern(self, number: str = "[1-9][0-9]*") -> str:
        """A regular expression of the names, where each number is written as `number`; without ^ and $."""
        return self.form.format(**{each.letter: number for each in self.numbers})

    def read(self, name: str) -> tuple[int, ...] | None:
        """The numbers in a name that has this family's form; None for any other name."""
        match = re.fullmatch(self.pattern("([1-9][0-9]{0,8})"), name, re.ASCII)
        return tuple(map(int, match.groups())) if match else None

    def fill(self, text: str, numbers: Sequence[int]) -> str:
        """One of the family's texts (form, title or variant) with the numbers of a model."""
        return text.format(**{each.letter: value for each, value in zip(self.numbers, numbers, strict=True)})

    def describe(self) -> str:
        """The names as messages and docs write them, like `resnet_32_D with D = 6n+2`."""
        form = self.form.format(**{each.letter: each.letter for each in self.numbers})
        rules = " and ".join(f"{each.letter} = {each.rule}" for each in self.numbers if each.rule)
        return f"{form} with {rules}" if rules else form


def count_basic_blocks(blocks: int, stem: int, widths: Sequence[int], num_classes: int, side: int) -> int:
    """Multiply-accumulate operations of one forward pass of one image, for the CIFAR layout with basic blocks.

    The layout: a 3×3 convolution from 3 to `stem` channels; a stage of `blocks` blocks per width, which halves the map
    from the second stage on; a linear layer. A block is two 3×3 convolutions, and a 1×1 convolution beside them where
    the number of channels changes.
    """
    total = 9 * 3 * stem * side**2
    inputs = stem
    for stage, width in enumerate(widths):
        side = -(-side // 2) if stage else side
        shortcut = inputs * width if inputs != width else 0
        per_pixel = 9 * inputs * width + shortcut + 9 * width**2 * (2 * blocks - 1)
        total += per_pixel * side**2
        inputs = width
    return total + inputs * num_classes
