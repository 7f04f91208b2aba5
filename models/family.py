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

    Allowed are `values`, in ascending order: a range, which `rule` may state as a formula like `6n+2`, or a few.
    """

    letter: str
    word: str
    values: Sequence[int]
    rule: str = ""

    def nearest(self, value: int) -> int:
        """The allowed value that is nearest to any whole number."""
        return min(self.values, key=lambda allowed: abs(allowed - value))

    def describe(self) -> str:
        """Which values are allowed, for messages, like `depth must be 6n+2, from 8 to 1202`."""
        if not isinstance(self.values, range):
            return f"{self.word} must be {self.describe_values()}"
        rule = f"{self.rule}, " if self.rule else ""
        return f"{self.word} must be {rule}from {self.values[0]} to {self.values[-1]}"

    def describe_values(self) -> str:
        """The values as a rule, like `6n+2` or `2 or 4`; empty for a range without one."""
        if isinstance(self.values, range):
            return self.rule
        *others, last = map(str, self.values)
        return f"{', '.join(others)} or {last}"


@dataclass(frozen=True)
class Family:
    """Models that differ only in the numbers of their names.

    `builder` is `module:attribute`. It is called with the numbers in the order of the form, then the number of classes,
    and returns a `base.Classifier`. `form`, `title` and `variant` have each number's letter in braces: the name in a
    study file (`wrn_{D}_{K}`), the name in tables and figures (`WRN-{D}-{K}`), and what of the title distinguishes
    models of the family (`{D}-{K}`; the whole title where the family has one model alone).

    `widths` is called with the numbers. `multiply_adds` is called with the numbers, the number of classes and the
    images' side in pixels; it returns the multiply-accumulate operations of convolutions and linear layers in one
    forward pass of one image. `sides` is called with that side, and returns the sides of the model's maps.
    """

    builder: str
    form: str
    title: str
    variant: str
    example: str
    numbers: tuple[Number, ...]
    widths: Callable[..., Widths]
    multiply_adds: Callable[..., int]
    sides: Callable[[int], tuple[int, ...]]

    def pattern(self, number: str = "[1-9][0-9]*") -> str:
        """A regular expression of the names, where each number is written as `number`; without ^ and $."""
        return self.form.format(**{each.letter: number for each in self.numbers})

    def read(self, name: str) -> tuple[int, ...] | None:
        """The numbers in a name that has this family's form; None for any other name."""
        match = re.fullmatch(self.pattern("([1-9][0-9]{0,8})"), name, re.ASCII)
        return tuple(map(int, match.groups())) if match else None

    def adopt(self, name: str) -> str:
        """The family's name that shares most numbers with a name of any form."""
        found = re.findall("[0-9]+", name.removeprefix(self.form.partition("_{")[0]))
        read = self.read(self.example) or ()
        if not found or len(found) > len(read):
            return self.example
        numbers = [int(text[:9]) for text in found] + list(read[len(found) :])
        return self.fill(self.form, [each.nearest(value) for each, value in zip(self.numbers, numbers, strict=True)])

    def fill(self, text: str, numbers: Sequence[int]) -> str:
        """One of the family's texts (form, title or variant) with the numbers of a model."""
        return text.format(**{each.letter: value for each, value in zip(self.numbers, numbers, strict=True)})

    def describe(self) -> str:
        """The names as messages and docs write them, like `resnet_32_D (D = 6n+2)`."""
        form = self.form.format(**{each.letter: each.letter for each in self.numbers})
        described = ((each.letter, each.describe_values()) for each in self.numbers)
        rules = "; ".join(f"{letter} = {values}" for letter, values in described if values)
        return f"{form} ({rules})" if rules else form
