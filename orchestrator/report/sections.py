"""A report as values: sections of text, tables and figures, which `page` writes as HTML or Markdown."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from orchestrator.records import State, TrialRecord
from orchestrator.report import figures
from orchestrator.report.content import MISSING, Facts
from orchestrator.report.figures import MORE, Figure, Pair
from orchestrator.results.published import CLOSEST, DIFFERENCES, PUBLISHED, other_settings
from orchestrator.results.summary import DIFFERENCE, Compared, Group, PairTable, Statistic, compare_to_base, tables
from orchestrator.results.tables import PUBLISHED_COLUMNS, data_cut

# What bounds the size of a page. Texts from outside are cut where they are written, see `page`.
MAX_TABLES = 40
MAX_SETTINGS = 300  # rows over all tables of settings
MAX_INLINE = 40  # rows of one of them
MAX_LISTED = 1_000  # single runs, over all tables of runs
MAX_UNFINISHED = 200
MAX_IDS = 2_000
_PRINTED = 40  # rows up to which a folded table is on paper too


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: a text, what stands small beside it, what it sorts by where that is a number, and a mark."""

    text: str
    small: str = ""
    value: float | None = None
    is_marked: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells below a header; `folded` is the line it hides behind, `notes` follow it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    folded: str = ""

    @property
    def numbers(self) -> list[bool]:
        """Whether each column holds numbers."""
        return [any(row[place].value is not None for row in self.rows) for place in range(len(self.header))]

    @property
    def is_printed(self) -> bool:
        """Whether it is on paper though it is folded on a screen."""
        return len(self.rows) <= _PRINTED


@dataclass(frozen=True, slots=True)
class Code:
    """A text as it stands in a file."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report."""

    name: str
    title: str
    blocks: tuple[Text | Table | Figure | Code, ...]


def shares(wanted: Sequence[int], total: int) -> list[int]:
    """How many of `total` rows each table gets: all that it has, or as many as any other that has more."""
    given, left = [0] * len(wanted), total
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    for number, index in enumerate(order):
        given[index] = min(wanted[index], left // (len(order) - number))
        left -= given[index]
    return given


def sections(facts: Facts) -> list[Section]:
    """The whole report. Raises StorageError where epochs cannot be read."""
    found = figures.pairs(facts.ordered)
    made = [
        Section("results", "Results", tuple(_results(facts))),
        Section("teacher", "Student against teacher and base", tuple(_standings(found))),
        Section("curves", "Learning curves", tuple(figures.learning_curves(facts, found))),
        Section("cost", "Accuracy against cost", tuple(_costs(facts, found))),
        Section("unfinished", "Trials that did not finish", tuple(_unfinished(facts))),
        Section("again", "How to reproduce this", tuple(_again(facts))),
    ]
    return [section for section in made if section.blocks]


def head(facts: Facts) -> str:
    """One line on how far the study is."""
    total, done = len(facts.members), facts.finished
    others = [f"{count:,} {state}" for state, count in sorted(facts.counts.items()) if state != State.FINISHED.value]
    return f"{done:,} of {total:,} trials finished" + (f"; {', '.join(others)}" if others else "")


def caution(facts: Facts) -> str:
    """What to keep in mind while a study is not whole; empty where it is."""
    if facts.finished == len(facts.members):
        return ""
    return (
        "This study is not complete: means are over the runs that finished so far, and n says how many those are. "
        "Launch it again to go on, and write this report again."
    )


_READING = (
    Text(
        "Best epoch: the highest test accuracy of all epochs. It is picked on the test set, as is customary, so it "
        "flatters. Last epoch: the accuracy after the last epoch, with no pick. Selected: the accuracy at "
        "the epoch that was best on held-out training images, where a study holds some out."
    ),
    Text(
        "Figures are mean ± sample standard deviation (n − 1) over n finished runs, which differ in their seeds alone; "
        "runs that failed are in no mean. The difference to base is that of the last epoch, between runs with the same "
        "seed, with the 95 % confidence interval of its mean (Student's t): an interval that holds 0 shows no "
        "difference. Base is the same training without a teacher."
    ),
)


# Results.

_NOTE_COLUMN = "lab note (another experiment), best epoch, %"


def _results(facts: Facts) -> Iterator[Text | Table]:
    found = tables(facts.ordered)
    if not found:
        yield Text("No trial has begun yet.")
        return
    yield from _READING
    entries: dict[tuple[str, str, str | None], list[Compared]] = {}
    for entry in compare_to_base(found):
        entries.setdefault((entry.table.dataset, entry.table.student, entry.table.teacher), []).append(entry)
    shown = sorted(found, key=lambda table: table.teacher is None)[:MAX_TABLES]
    runs = [[row for group in table.groups for row in group.rows] for table in shown]
    listed = shares([len(own) for own in runs], MAX_LISTED)
    settings = shares([min(len(table.groups), MAX_INLINE) for table in shown], MAX_SETTINGS)
    for table, own, few, many in zip(shown, runs, listed, settings, strict=True):
        yield _settings_table(table, entries[(table.dataset, table.student, table.teacher)], many)
        if few:
            yield _runs_table(table, own[:few], len(own))
    if len(found) > len(shown):
        yield Text(f"And {len(found) - len(shown):,} more tables that are not on this page: {MORE}.")


def _settings_table(table: PairTable, entries: Sequence[Compared], limit: int) -> Table:
    kept = figures.choose(entries, limit)
    columns = [("best epoch, %", "acc"), ("last epoch, %", "last_acc")]
    columns += [
        (name, column)
        for name, column in (("selected, %", "selected_acc"), ("agreement, %", "agreement"))
        if any(entry.group.statistic(column) for entry in kept)
    ]
    has_base = any(entry.base for entry in kept)
    has_published = bool(_published(table, table.groups[0], any_method=True))
    header = ["setting", "finished", *(name for name, _ in columns)]
    header += ["difference to base [95 %]"] if has_base else []
    header += [_NOTE_COLUMN] if has_published else []
    rows = []
    for entry in kept:
        group = entry.group
        cells = [Cell(group.label), _of(len(group.finished), len(group.rows))]
        cells += [_mean(group.statistic(column)) for _, column in columns]
        cells += [_difference(entry)] if has_base else []
        cells += [_published_cell(table, group)] if has_published else []
        rows.append(tuple(cells))
    notes = [*_notes(table, [entry.group for entry in kept]), *list(_without_base(kept))[:10]]
    if len(kept) < len(entries):
        notes.append(f"{len(kept)} of {len(entries):,} settings, the best of the last epoch; the others: {MORE}.")
    return Table(table.name, tuple(header), tuple(rows), tuple(notes))


def _without_base(entries: Sequence[Compared]) -> Iterator[str]:
    """Which settings have a difference to base on some of their seeds alone, or on none."""
    for entry in entries:
        of_base = {row.seed for row in entry.base.rows} if entry.base else set()
        missing = sorted({row.seed for row in entry.group.rows} - of_base)
        if entry.table.teacher and missing:
            listed = ", ".join([*map(str, missing[:10]), *(["…"] if len(missing) > 10 else [])])
            yield f"{entry.group.label}: no base run of the same training on seed {listed}, so no difference there."


def _of(done: int, count: int) -> Cell:
    return Cell(f"{done:,} of {count:,}", value=done)


def _mean(found: Statistic | None, digits: int = 2) -> Cell:
    if found is None:
        return Cell("-")
    spread = "" if found.std is None else f" ± {found.std:,.{digits}f}"
    return Cell(f"{found.mean:,.{digits}f}{spread}", f"n={found.n}", found.mean)


def _difference(entry: Compared) -> Cell:
    return _signed(entry.difference(DIFFERENCE))


def _signed(found: Statistic | None) -> Cell:
    """A difference with its interval."""
    if found is None:
        return Cell("-")
    interval = found.interval()
    shown = f"[{interval[0]:+.2f}, {interval[1]:+.2f}], " if interval else ""
    return Cell(f"{found.mean:+.2f}", f"{shown}n={found.n}", found.mean)


def _published(table: PairTable, group: Group, *, any_method: bool = False) -> Statistic | None:
    method = "logit" if any_method else group.method
    own = (method, table.dataset, table.student, table.teacher)
    return next((published.statistic for published in PUBLISHED if published.is_of(*own)), None)


def _published_cell(table: PairTable, group: Group) -> Cell:
    cell = _mean(_published(table, group))
    return cell if cell.value is None else replace(cell, small=f"{cell.small}, another experiment")


def _notes(table: PairTable, groups: Sequence[Group]) -> Iterator[str]:
    if any(_published(table, group) for group in groups):
        yield (
            "The lab note's figures come from another experiment, so what separates them from ours has many possible "
            f"causes: {'; '.join(DIFFERENCES)}. Its runs belong to none of our seeds. Closest setting of kdctl: "
            f"{CLOSEST}."
        )
    texts = dict.fromkeys(
        f"Settings that differ from the lab note's as well ({group.label}): {text}."
        for group in groups
        if _published(table, group) and (text := other_settings(group.rows[0]))
    )
    texts |= dict.fromkeys(f"{text[0].upper()}{text[1:]}." for group in groups if (text := data_cut(group.rows[0])))
    yield from list(texts)[:10]


def _runs_table(table: PairTable, rows: Sequence[TrialRecord], count: int) -> Table:
    header = (*PUBLISHED_COLUMNS, "last epoch", "seed", "state", "trial id")
    cells = tuple(
        (
            Cell(str(no), value=no),
            *(_plain(name, getattr(row, name)) for name in PUBLISHED_COLUMNS[1:]),
            _plain("acc", row.last_acc), _plain("seed", row.seed), Cell(row.state.value), Cell(row.trial_id),
        )
        for no, row in enumerate(rows, 1)
    )  # fmt: skip
    some = (
        f"{len(rows):,} of {count:,} runs (the others: {MORE})"
        if len(rows) < count
        else f"{count:,} run{'s' * (count > 1)}"
    )
    return Table(f"Runs of {table.name}", header, cells, folded=f"{some} of {table.name}")


def _plain(name: str, value: Any) -> Cell:
    if value is None:
        return Cell("-")
    if isinstance(value, datetime):
        return Cell(_moment(value), value=value.timestamp())
    if isinstance(value, int | float):
        return Cell(f"{value:.2f}" if name == "acc" else str(value), value=float(value))
    return Cell(str(value))


def _moment(value: datetime) -> str:
    return value.strftime("%Y-%m-%d %H:%M:%S")


# Student against teacher and base.


def _standings(found: Sequence[Pair]) -> Iterator[Text | Figure | Table]:
    taught = [pair for pair in found if any(entry.table.teacher for entry in pair.entries)]
    if not taught:
        return
    yield Text(
        "All accuracies here are those after the last epoch, of students, base and teachers alike: these are the "
        "weights that teach. The gap closed is the mean difference of student and base over that of teacher and base, "
        "both on the seeds that student and base share; it says nothing where the teacher is not clearly better than "
        "base, so it stands only where the 95 % interval of the teacher's lead is above 0. Bars end at 0 and 100 %."
    )
    yield from figures.standings(found)
    for pair in taught[: figures.MAX_PAIRS]:
        entries = [entry for entry in pair.entries if entry.table.teacher]
        rows = tuple(_standing(pair, entry) for entry in figures.choose(entries, figures.MAX_SERIES))
        yield Table(f"The gap to the teacher, {pair.title}", _STANDING, rows)


_STANDING = (
    "setting", "student, %", "base, %", "teacher, %", "student − base", "teacher − base", "gap closed", "agreement, %",
)  # fmt: skip


def _standing(pair: Pair, entry: Compared) -> tuple[Cell, ...]:
    group, base = entry.group, entry.base
    teachers = {row.teacher_id: row.teacher_acc for row in group.finished if row.teacher_acc is not None}
    lead = _lead(group, base) if base else None
    return (
        Cell(pair.label(entry)), _mean(group.statistic("last_acc")),
        _mean(base.statistic("last_acc") if base else None), _mean(Statistic.over(list(teachers.values()))),
        _difference(entry), _signed(lead), _gap_closed(entry, lead), _mean(group.statistic("agreement")),
    )  # fmt: skip


def _lead(group: Group, base: Group) -> Statistic | None:
    """What the teacher is ahead of base, over the seeds that student and base share."""
    teachers, bases = group.by_seed("teacher_acc"), base.by_seed("last_acc")
    both = sorted(teachers.keys() & bases.keys() & group.by_seed("last_acc").keys())
    return Statistic.over([teachers[seed] - bases[seed] for seed in both])


def _gap_closed(entry: Compared, lead: Statistic | None) -> Cell:
    """The share of the teacher's lead over base that the student has made up."""
    ours = entry.difference(DIFFERENCE)
    interval = lead.interval() if lead else None
    if ours is None or lead is None or interval is None or interval[0] <= 0:
        return Cell("-")
    share = 100 * ours.mean / lead.mean
    return Cell(f"{share:.0f} %", f"n={lead.n}", share)


# Accuracy against cost.


def _costs(facts: Facts, found: Sequence[Pair]) -> Iterator[Text | Figure | Table]:
    if not facts.counts[State.FINISHED.value]:
        return
    yield Text(
        "Seconds are the wall time of a run, tests included, and what else ran on the device counts in. Those of a "
        "student do not hold its teacher's, which is trained once for all who ask it: the table adds it once a row."
    )
    yield from figures.costs(facts, found)
    rows = []
    for pair in found[: figures.MAX_PAIRS]:
        entries = [entry for entry in pair.entries if entry.group.finished]
        for entry in figures.choose(entries, figures.MAX_SERIES):
            rows.append(_cost(facts, pair, entry))
    header = (
        "student", "setting", "parameters", "seconds a run", "seconds, all runs", "seconds, teacher once",
        "images/s", "last epoch, %",
    )  # fmt: skip
    yield Table("What it cost", header, tuple(rows))


def _cost(facts: Facts, pair: Pair, entry: Compared) -> tuple[Cell, ...]:
    group = entry.group
    params = group.statistic("params")
    spent = [row.seconds for row in group.finished if row.seconds is not None]
    name = f"{pair.label(entry)}{' (taught)' if any(r.trial_id in facts.teacher_ids for r in group.rows) else ''}"
    return (
        Cell(pair.title), Cell(name), Cell(f"{params.mean:,.0f}", value=params.mean) if params else Cell("-"),
        _mean(group.statistic("seconds"), 1), Cell(f"{sum(spent):,.1f}", value=sum(spent)),
        _cost_of_teachers(facts, group), _mean(group.statistic("images_per_second"), 0),
        _mean(group.statistic("last_acc")),
    )  # fmt: skip


def _cost_of_teachers(facts: Facts, group: Group) -> Cell:
    ids = {row.teacher_id for row in group.finished if row.teacher_id}
    if not ids:
        return Cell("-", "no teacher")
    known = [row.seconds for one in ids if (row := facts.rows.get(one)) and row.seconds is not None]
    if len(known) < len(ids):
        return Cell("-", "not known here")
    return Cell(f"{sum(known):,.1f}", f"{len(ids)} teacher{'s' * (len(ids) > 1)}", sum(known))


# What did not finish.


def _unfinished(facts: Facts) -> Iterator[Text | Table]:
    left = [member for member in facts.members if facts.state(member) != State.FINISHED.value]
    if not left:
        return
    order = ("failed", "skipped", "stopped", "running", MISSING)
    left.sort(key=lambda member: order.index(facts.state(member)))
    rows = []
    for member in left[:MAX_UNFINISHED]:
        row = facts.rows.get(member.trial_id)
        reason = (row.error if row else None) or "-"
        state = facts.state(member)
        log = facts.log(member.trial_id) if row else "-"
        failure = row.failure.value if row and row.failure else ""
        rows.append((Cell(member.title), Cell(state, failure, is_marked=state == "failed"), Cell(reason), Cell(log)))
    hidden = len(left) - len(rows)
    notes = (f"And {hidden:,} more: {MORE}.",) if hidden else ()
    yield Text("They are in no mean. Launching the study again tries them again, from their last checkpoint.")
    yield Table("Trials that did not finish", ("trial", "state", "reason", "log"), tuple(rows), notes)


# How to reproduce it.


def _again(facts: Facts) -> Iterator[Text | Table | Code]:
    pairs = [*_launch_facts(facts), *_machine_facts(facts.ordered)]
    yield Table(
        "Facts of this study", ("what", "value"), tuple((Cell(name), Cell(text)) for name, text in pairs if text)
    )
    yield Text(
        "Launching the same file trains what is missing. A trial's id is made from everything that can change its "
        "result: the same id is the same training. On the CPU and one kind of processor it gives the same figures to "
        "the last bit; elsewhere sums are rounded in another order."
    )
    if facts.source:
        yield Code("The study file", facts.source.text)
    rows = tuple(
        (Cell(member.trial_id), Cell(member.title), Cell(facts.state(member)), Cell(member.teacher_id or "-"))
        for member in facts.members[:MAX_IDS]
    )
    hidden = len(facts.members) - len(rows)
    notes = (f"And {hidden:,} more: {MORE}.",) if hidden else ()
    header = ("trial id", "trial", "state", "teacher's id")
    yield Table("Trials", header, rows, notes, folded=f"Ids of {len(rows):,} trials")


def _launch_facts(facts: Facts) -> Iterator[tuple[str, str]]:
    yield "study", facts.name
    yield "trials", head(facts)
    if facts.source:
        yield "command", shlex.join(facts.source.command)
        if facts.source.launched:
            yield "last launch", f"{_moment(facts.source.launched)} UTC on {facts.source.host}"
        yield "commit of the file", facts.source.commit or ""
    yield "storage", facts.storage.backend.address
    yield "this report", f"{_moment(facts.now)} UTC"


def _machine_facts(rows: Sequence[TrialRecord]) -> Iterator[tuple[str, str]]:
    if not rows:
        return
    ends = [row.end_time for row in rows if row.end_time]
    first = f"{_moment(min(row.start_time for row in rows))} UTC"
    yield "trained", f"{first} to {_moment(max(ends))} UTC, pauses included" if ends else f"since {first}"
    seconds = [row.seconds for row in rows if row.state is State.FINISHED and row.seconds is not None]
    yield "training time", f"{sum(seconds) / 3600:,.2f} h, the sum over {len(seconds):,} finished trials"
    for name, column in (
        ("device", "device"), ("machine", "host"), ("kdctl", "kdctl_version"), ("torch", "torch_version"),
        ("Ray", "ray_version"),
    ):  # fmt: skip
        values = [getattr(row, column) for row in rows]
        yield name, describe_values(values) if any(values) else ""
    recipes = [row.recipe for row in rows]
    yield "convolutions computed in", describe_values(_word(recipe.get("arithmetic")) for recipe in recipes)
    yield (
        "teachers' answers",
        describe_values(_word(recipe["teacher_answers"]) for recipe in recipes if recipe.get("teacher_answers")),
    )
    if resumed := sum(row.resumed > 0 for row in rows):
        yield "resumed", f"{resumed:,} trials went on from a checkpoint"


def _word(value: Any) -> str | None:
    return None if value is None else str(value)


def describe_values(values: Iterable[str | None], limit: int = 12) -> str:
    """What trials have in common, or how many have what; `none` is where it is unknown or unused."""
    found = Counter("none" if value is None else value for value in values)
    if len(found) == 1:
        return next(iter(found))
    parts = [f"{name} ({count:,} trials)" for name, count in found.most_common(limit)]
    return ", ".join(parts) + (f" and {len(found) - limit:,} more" if len(found) > limit else "")
