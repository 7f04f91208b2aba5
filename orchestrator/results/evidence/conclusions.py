"""What a study shows, in sentences that claim no more than its corrected comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator import models
from orchestrator.data.registry import title_of
from orchestrator.records import TrialRecord
from orchestrator.results.evidence.comparisons import (
    MAX_GROUPS,
    ComparedPair,
    Contrast,
    Family,
    Teachers,
    Verdict,
    compare_settings,
    find_best,
)
from orchestrator.results.rounding import count_decimals, format_interval, format_mean, format_number, format_p
from orchestrator.results.summary import DIFFERENCE, Comparison, Group, PairTable, Statistic, group_tables

Names = Mapping[tuple[str, str, str], str]  # of the settings, see PaperTable.names

_MAX_NAMED = 3  # settings in one clause; of more, the first is an example

_MEASURE = (
    "Differences are percentage points of test accuracy after the last epoch: the mean over n seeds that both have, "
    "with its 95 % interval."
)
_ONE_TEACHER = (
    "all students of a pair have one teacher, so an interval covers other seeds of the students, and says nothing "
    "about other teachers"
)
_SHARED_TEACHERS = (
    "students with different seeds share teachers, so an interval covers other seeds of the students, and says little "
    "about other teachers"
)
_OWN_TEACHERS = "each seed has a teacher of its own, so an interval covers other seeds and other teachers"


@dataclass(frozen=True, slots=True)
class Conclusions:
    """What a study shows, a sentence for each question, and how far these answers go."""

    answers: tuple[str, ...]
    scope: tuple[str, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """All of them."""
        return self.answers + self.scope


def conclude(rows: Iterable[TrialRecord], names: Names) -> Conclusions:
    """What one study shows, whose rows these are. Raises StorageError where one is damaged."""
    return draw_conclusions(compare_settings(group_tables(rows)), names)


def draw_conclusions(family: Family, names: Names) -> Conclusions:
    """What a study with these comparisons shows about the accuracy after the last epoch."""
    pairs = [_describe_pair(pair, [each.table for each in family.pairs], names) for pair in family.pairs]
    pairs = [pair for pair in pairs if pair.finished]
    if not pairs:
        return Conclusions(("No run has finished yet, so there is no answer.",))
    answers = [answer for pair in pairs for answer in (*pair.compare_with_base(), *pair.compare_with_best())]
    if not answers:
        return Conclusions(tuple(pair.describe_means() for pair in pairs))
    scope = [_MEASURE, *_describe_teachers(pairs), *_describe_tests(family)] if family.tests else []
    return Conclusions(tuple(answers), tuple(scope))


def _describe_pair(pair: ComparedPair, tables: Sequence[PairTable], names: Names) -> _Pair:
    finished = [entry for entry in pair.entries if entry.group.by_seed(DIFFERENCE)]
    own = {group.label: name_setting(pair.table, group, names) for group in pair.table.groups}
    return _Pair(_locate(pair.table, tables), pair.table, finished, pair.contrasts, own)


def name_setting(table: PairTable, group: Group, names: Names) -> str:
    """What the table of the paper calls a setting; one that is not in it has its label."""
    return names.get((table.dataset, table.student, group.label), group.label)


def _locate(table: PairTable, tables: Sequence[PairTable]) -> str:
    """Where a sentence applies, like `ResNet8 taught by ResNet20 (Digits)`, with what tells the pairs apart."""
    text = models.title(table.student)
    same = [each for each in tables if (each.dataset, each.student) == (table.dataset, table.student)]
    if table.teacher and sum(each.teacher is not None for each in same) > 1:
        text += f" taught by {models.title(table.teacher)}"
    if not table.teacher and len(same) > 1:
        text += " without a teacher"
    return f"{text} ({title_of(table.dataset)})" if len({each.dataset for each in tables}) > 1 else text


@dataclass(frozen=True, slots=True)
class _Pair:
    """The settings of a pair that have finished runs, their comparisons, and how sentences name all of these."""

    where: str
    table: PairTable
    finished: Sequence[Comparison]
    contrasts: Sequence[Contrast]
    names: Mapping[str, str]

    def compare_with_base(self) -> Iterator[str]:
        """Which settings are better than `base`, which are worse, and of which that cannot be said."""
        if not self.table.teacher:
            return
        found = [each for each in self.contrasts if each.is_with_base]
        compared = {each.group.label for each in found}
        clauses = list(self._describe(found, "base"))
        for has_base, reason in ((True, "no finished run of base has a seed of"), (False, "the study has no base for")):
            names = [
                self.names[entry.group.label]
                for entry in self.finished
                if entry.group.label not in compared and bool(entry.base) is has_base
            ]
            if names:
                listed = _enumerate(names) if len(names) <= _MAX_NAMED else f"{len(names):,} settings"
                clauses.append(f"whether distillation helps cannot be said, as {reason} {listed}")
        yield f"On {self.where}, {'; '.join(clauses)}."

    def compare_with_best(self) -> Iterator[str]:
        """Which setting has the highest mean, and which others differ from it."""
        between = [each for each in self.contrasts if not each.is_with_base]
        best = find_best({group.label: group for each in between for group in (each.other, each.group)}.values())
        if best:
            own = [_turn(each, best) for each in between if best in (each.group, each.other)]
            others = [each for each in between if best not in (each.group, each.other)]
            name = self.names[best.label]
            clauses = [f"the highest mean is that of {name}", *self._describe(own, name), *self._describe_rest(others)]
            yield f"On {self.where}, {'; '.join(clauses)}."
        elif len(self.finished) > MAX_GROUPS:
            yield self._describe_best_of_many()

    def _describe(self, found: Sequence[Contrast], other: str) -> Iterator[str]:
        """A clause for each verdict on some settings, all compared with `other`; the greatest differences first."""
        for verdict, say in _CLAUSES.items():
            own = [each for each in found if each.verdict is verdict]
            if own:
                own.sort(key=lambda each: -abs(each.difference.mean))
                yield say(own, [self.names[each.group.label] for each in own], other)

    def _describe_rest(self, found: Sequence[Contrast]) -> Iterator[str]:
        """The differences that are shown between settings of which none is the best."""
        shown = [each for each in found if each.verdict in (Verdict.BETTER, Verdict.WORSE)]
        if len(shown) > _MAX_NAMED:
            yield f"{len(shown)} of the other {len(found)} pairs differ from each other"
            return
        for each in shown:
            turned = _turn(each, each.other if each.difference.mean > 0 else each.group)
            yield from self._describe([turned], self.names[turned.other.label])

    def _describe_best_of_many(self) -> str:
        best = find_best(entry.group for entry in self.finished)
        assert best, "they have finished"
        return (
            f"On {self.where}, {self.names[best.label]} has the highest of {len(self.finished):,} means; so many "
            "settings are not compared with each other: launch the best few again with new seeds, as a study of their "
            "own."
        )

    def describe_means(self) -> str:
        """The means of settings that nothing can be compared with."""
        means = [
            f"{self.names[entry.group.label]} reaches {format_mean(mean)} % (n = {mean.n})"
            for entry in self.finished[:_MAX_NAMED]
            if (mean := entry.group.statistic(DIFFERENCE))
        ]
        return f"On {self.where}, {_enumerate(means)} after the last epoch; there is nothing to compare it with."


def _turn(contrast: Contrast, other: Group) -> Contrast:
    """The same comparison as a difference to the given one of its sides."""
    if contrast.other == other:
        return contrast
    difference = replace(contrast.difference, mean=-contrast.difference.mean)
    return replace(contrast, group=contrast.other, other=contrast.group, difference=difference)


# Clauses about what is compared with `other`: the comparisons, the greatest difference first, and their names.


def _say_better(found: Sequence[Contrast], names: Sequence[str], other: str) -> str:
    return _say_shown(found, names, f"better than {other}")


def _say_worse(found: Sequence[Contrast], names: Sequence[str], other: str) -> str:
    return _say_shown([_turn(each, each.group) for each in found], names, f"worse than {other}")


def _say_shown(found: Sequence[Contrast], names: Sequence[str], relation: str) -> str:
    amounts = [_format_amount(each.difference) for each in found]
    if len(found) > _MAX_NAMED:
        return f"{len(found):,} settings are {relation}, most of all {names[0]} by {amounts[0]}"
    rest = [f"{name} by {amount}" for name, amount in zip(names[1:], amounts[1:], strict=True)]
    return _enumerate([f"{names[0]} is {relation} by {amounts[0]}", *rest], ", and ")


def _say_uncorrected(found: Sequence[Contrast], names: Sequence[str], other: str) -> str:
    least = min(each.p_holm for each in found if each.p_holm is not None)
    p = f"corrected p {'=' if len(found) == 1 else '≥'} {format_p(least)}"
    example = f", most of all {_list_signed(found[:1], names[:1])}," if len(found) > _MAX_NAMED else ""
    return (
        f"{_list_signed(found, names)}{example} would differ from {other} as the only comparison, but not after the "
        f"correction for all ({p})"
    )


def _say_not_shown(found: Sequence[Contrast], names: Sequence[str], other: str) -> str:
    return f"{_list_signed(found, names)} {'is' if len(found) == 1 else 'are'} not shown to differ from {other}"


def _say_no_spread(found: Sequence[Contrast], names: Sequence[str], other: str) -> str:
    verb = "has" if len(found) == 1 else "have"
    return f"{_list_signed(found, names)} {verb} the same difference to {other} with every seed, which cannot be tested"


def _say_one_seed(found: Sequence[Contrast], names: Sequence[str], other: str) -> str:
    verb = "has" if len(found) == 1 else "have"
    return f"{_list_signed(found, names)} {verb} a single seed in common with {other}, which shows nothing"


_CLAUSES: Mapping[Verdict, Callable[[Sequence[Contrast], Sequence[str], str], str]] = {
    Verdict.BETTER: _say_better,
    Verdict.WORSE: _say_worse,
    Verdict.UNCORRECTED: _say_uncorrected,
    Verdict.NOT_SHOWN: _say_not_shown,
    Verdict.NO_SPREAD: _say_no_spread,
    Verdict.ONE_SEED: _say_one_seed,
}


def _list_signed(found: Sequence[Contrast], names: Sequence[str]) -> str:
    if len(found) > _MAX_NAMED:
        return f"{len(found):,} settings"
    return _enumerate([f"{name} ({_format_signed(each.difference)})" for name, each in zip(names, found, strict=True)])


def _enumerate(texts: Sequence[str], conjunction: str = " and ") -> str:
    """Like `a, b and c`."""
    *first, last = texts
    return f"{', '.join(first)}{conjunction}{last}" if first else last


def _format_amount(found: Statistic) -> str:
    """A difference whose direction is told in words."""
    return f"{format_number(found.mean, count_decimals(found.std))} points {format_interval(found)}, n = {found.n}"


def _format_signed(found: Statistic) -> str:
    mean = format_number(found.mean, count_decimals(found.std), is_signed=True)
    interval = f" {format_interval(found, is_signed=True)}" if found.std else ""
    return f"{mean} points{interval}, n = {found.n}"


# How far the answers go.


def _describe_teachers(pairs: Sequence[_Pair]) -> Iterator[str]:
    """What the intervals of the pairs cover; once, if that is the same for all."""
    found: dict[str, list[str]] = {}
    for pair in pairs:
        if teachers := [each.teachers for each in pair.contrasts if each.teachers.count]:
            found.setdefault(_describe_scope(teachers), []).append(pair.where)
    for text, places in found.items():
        yield f"On {_enumerate(places)}, {text}." if len(found) > 1 else f"{text[0].upper()}{text[1:]}."


def _describe_scope(teachers: Sequence[Teachers]) -> str:
    if all(each.count == 1 for each in teachers):
        return _ONE_TEACHER
    return _OWN_TEACHERS if all(each.is_one_per_seed for each in teachers) else _SHARED_TEACHERS


def _describe_tests(family: Family) -> Iterator[str]:
    if family.tests > 1:
        yield (
            f"Of {family.tests:,} comparisons, one in twenty would show a difference by luck alone, so better and "
            "worse are said only after Holm's correction: the chance that any of it is luck is at most 5 %."
        )
