"""What a family of models states about itself without torch: its names, its titles, and its models' sizes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


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

    @property
    def text(self) -> str:
        """A regular expression of every number, allowed or not."""
        return "[1-9][0-9]*"

    def nearest(self, value: int | str) -> int:
        """The allowed value that is nearest to any whole number."""
        return min(self.values, key=lambda allowed: abs(allowed - int(value)))

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
class Word:
    """A word in the place of a number, one of `values`; `rule` says which these are."""

    letter: str
    word: str
    values: Sequence[str]
    rule: str

    @property
    def text(self) -> str:
        """A regular expression of every word, allowed or not."""
        return "[a-z0-9_]+"

    def nearest(self, value: int | str) -> str:
        """The allowed word that is most similar to any other."""
        return max(self.values, key=lambda allowed: difflib.SequenceMatcher(None, str(value), allowed).ratio())

    def describe(self) -> str:
        """Which words are allowed, for messages."""
        return f"{self.word} must be {self.rule}"

    def describe_values(self) -> str:
        """Empty: there are too many words, and the rule is long."""
        return ""


Part = int | str  # a number or a word in a model's name


@dataclass(frozen=True)
class Family:
    """Models that differ only in the numbers of their names, or in words that stand in their place.

    `builder` is `module:attribute` or a function. It is called with the numbers in the order of the form, then the
    number of classes, and returns a `base.Classifier`. `form`, `title` and `variant` have each number's letter in
    braces: the name in a study file (`wrn_{D}_{K}`), the name in tables and figures (`WRN-{D}-{K}`), and what of the
    title distinguishes models of the family (`{D}-{K}`; the whole title where the family has one model alone).

    `widths` is called with the numbers. `multiply_adds` is called with the numbers, the number of classes and the
    images' side in pixels; it returns the multiply-accumulate operations of convolutions and linear layers in one
    forward pass of one image. `sides` is called with the numbers and that side, and returns
    the sides of the model's maps, which are 0 for images that are too small.
    """

    builder: str | Callable[..., Any]
    form: str
    title: str
    variant: str
    example: str
    numbers: tuple[Number | Word, ...]
    widths: Callable[..., Widths]
    multiply_adds: Callable[..., int]
    sides: Callable[..., tuple[int, ...]]

    def pattern(self) -> str:
        """A regular expression of the names; without ^ and $."""
        return self.form.format(**{each.letter: each.text for each in self.numbers})

    def read(self, name: str) -> tuple[Part, ...] | None:
        """The numbers and words in a name that has this family's form; None for any other name."""
        form = self.form.format(**{each.letter: f"({each.text})" for each in self.numbers})
        match = re.fullmatch(form, name, re.ASCII)
        if not match or any(len(text) > 9 for text in match.groups() if text.isdigit()):
            return None
        pairs = zip(self.numbers, match.groups(), strict=True)
        return tuple(int(text) if isinstance(each, Number) else text for each, text in pairs)

    def adopt(self, name: str) -> str:
        """The family's name that is most similar to a name of any form: with its numbers where they fit."""
        if any(isinstance(each, Word) for each in self.numbers):
            return self.fill(self.form, [each.nearest(name.removeprefix("torchvision/")) for each in self.numbers])
        found = re.findall("[0-9]+", name.removeprefix(self.form.partition("_{")[0]))
        read = self.read(self.example) or ()
        if not found or len(found) > len(read):
            return self.example
        numbers = [*(int(text[:9]) for text in found), *read[len(found) :]]
        return self.fill(self.form, [each.nearest(value) for each, value in zip(self.numbers, numbers, strict=True)])

    def fill(self, text: str, numbers: Sequence[Part]) -> str:
        """One of the family's texts (form, title or variant) with the numbers of a model."""
        return text.format(**{each.letter: value for each, value in zip(self.numbers, numbers, strict=True)})

    def describe(self) -> str:
        """The names as messages and docs write them, like `resnet_32_D (D = 6n+2)`."""
        form = self.form.format(**{each.letter: each.letter for each in self.numbers})
        described = ((each.letter, each.describe_values()) for each in self.numbers)
        rules = "; ".join(f"{letter} = {values}" for letter, values in described if values)
        return f"{form} ({rules})" if rules else form
