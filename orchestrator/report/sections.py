"""A report as values: sections of text, tables and figures, which `page` writes as HTML or Markdown."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from orchestrator.records import State, TrialRecord
from orchestrator.report import _figures, _sweeps
from orchestrator.report._figures import MORE, Figure, Pair
from orchestrator.report.content import MISSING, Facts
from orchestrator.results.evidence.comparisons import ComparedPair, Contrast, Family, compare_settings
from orchestrator.results.evidence.conclusions import Names, draw_conclusions, name_setting
from orchestrator.results.field_tables import describe_figures, find_figure
from orchestrator.results.paper_table import COLUMN_GROUPS, Mark, PaperTable, build_paper_table
from orchestrator.results.paper_table import Cell as PaperCell
from orchestrator.results.paper_text import Key, describe, find_symbol, split_columns
from orchestrator.results.published import CLOSEST, DIFFERENCES, PUBLISHED, describe_differences
from orchestrator.results.rounding import count_decimals, format_interval, format_mean, format_number, format_p
from orchestrator.results.summary import (
    DIFFERENCE,
    Comparison,
    Group,
    PairTable,
    Statistic,
    group_tables,
)
from orchestrator.results.tables import PUBLISHED_COLUMNS, describe_subset

# Limits on the size of a page. `page` cuts external texts.
MAX_TABLES = 40
MAX_SETTINGS = 300  # rows over all tables of settings
MAX_COLUMNS = 4  # of numbers, in a table of a paper: more do not fit a page
MAX_INLINE = 40  # rows of one of them
MAX_COMPARED = 300  # comparisons, over all pairs
MAX_LISTED = 300  # single runs, over all tables of runs
MAX_UNFINISHED = 200
MAX_IDS = 2_000
_OPEN = 6  # comparisons that are not folded
_PRINTED = 40  # rows up to which a folded table is printed on paper


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: its text, a small text next to it, the number to sort by if there is one, and whether it is bold."""

    text: str
    small: str = ""
    value: float | None = None
    is_marked: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells below a header; `folded` is the summary line of a folded table, `notes` follow the table."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    folded: str = ""

    @property
    def numbers(self) -> list[bool]:
        """Whether each column holds numbers."""
        return [any(row[index].value is not None for row in self.rows) for index in range(len(self.header))]

    @property
    def is_printed(self) -> bool:
        """Whether it is printed on paper although it is folded on a screen."""
        return len(self.rows) <= _PRINTED


@dataclass(frozen=True, slots=True)
class Code:
    """The text of a file."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph; `style` is its class in HTML: an `answer` is larger, a `note` smaller."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report."""

    name: str
    title: str
    blocks: tuple[Text | Table | Figure | Code, ...]


def share_rows(lengths: Sequence[int], total: int) -> list[int]:
    """How many of `total` rows each table gets: all its rows, or the same number as every other longer table."""
    given, left = [0] * len(lengths), total
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    for number, index in enumerate(order):
        given[index] = min(lengths[index], left // (len(order) - number))
        left -= given[index]
    return given


def build_sections(facts: Facts) -> list[Section]:
    """Builds the sections of the report. Raises StorageError if epochs cannot be read."""
    found = _figures.group_pairs(facts.ordered)
    family, table = compare_settings(group_tables(facts.ordered)), build_paper_table(facts.ordered)
    made = [
        Section("answer", "Answer", tuple(_answer(family, table.names))),
        Section("results", "Results", tuple(_results(family.pairs, table))),
        Section("comparisons", "Every method against every other", tuple(_contrasts(family, table.names))),
        Section("teacher", "Student against teacher and base", tuple(_comparisons(found))),
        Section("sweeps", "Sweeps", tuple(_sweeps.draw_sweeps(found))),
        Section("curves", "Learning curves", tuple(_figures.draw_learning_curves(facts, found))),
        Section("cost", "Accuracy against cost", tuple(_costs(facts, found))),
        Section("unfinished", "Trials that did not finish", tuple(_unfinished(facts))),
        Section("again", "How to reproduce this", tuple(_reproduction(facts))),
    ]
    return [section for section in made if section.blocks]


def describe_progress(facts: Facts) -> str:
    """The progress of the study in one line."""
    total, done = len(facts.members), facts.finished
    others = [f"{count:,} {state}" for state, count in sorted(facts.counts.items()) if state != State.FINISHED.value]
    return f"{done:,} of {total:,} trials finished" + (f"; {', '.join(others)}" if others else "")


def describe_incomplete(facts: Facts) -> str:
    """A note on what is missing from a study that is not complete; empty if it is."""
    missing = len(facts.members) - facts.finished
    if not missing:
        return ""
    trials = f"{missing:,} of its {len(facts.members):,} trials {'are' if missing > 1 else 'is'} missing"
    so_far = (
        f"{trials}, listed under “Trials that did not finish”. Means are over the n runs that have finished so far."
    )
    if running := facts.counts[State.RUNNING.value]:
        now = f"{running:,} trial{'s' * (running > 1)} at this moment"
        return f"This study is running, {now}: {so_far} Write this report again later."
    return f"This study is not complete: {so_far} Launch it again to continue, then write this report again."


# The answer, and the comparisons behind it.


def _answer(family: Family, names: Names) -> Iterator[Text]:
    conclusions = draw_conclusions(family, names)
    yield from (Text(answer, "answer") for answer in conclusions.answers)
    if conclusions.scope:
        yield Text(" ".join(conclusions.scope), "note")


def _contrasts(family: Family, names: Names) -> Iterator[Text | Table]:
    pairs = [pair for pair in family.pairs if pair.contrasts][:MAX_TABLES]
    if not pairs:
        return
    yield Text(
        "Each line is a mean difference in test accuracy after the last epoch, in percentage points, over the n seeds "
        "that both settings have, with its 95 % interval (Student's t). Base is the same training without a teacher. p "
        "is that of the paired t-test. Corrected p is what Holm's method makes of it for the "
        f"{family.tests:,} tests of this study; a difference is shown if that is at most 0.05."
    )
    limits = share_rows([len(pair.contrasts) for pair in pairs], MAX_COMPARED)
    for pair, limit in zip(pairs, limits, strict=True):
        kept = sorted(pair.contrasts, key=_rank)[:limit] if limit < len(pair.contrasts) else pair.contrasts
        notes = (
            f"{limit} of {len(pair.contrasts):,} comparisons, those with the smallest p; {MORE} prints the others.",
        )
        rows = tuple(_contrast(each, names) for each in kept)
        title = f"Comparisons of {pair.table.name}"
        folded = f"{title}: {len(rows)}" if len(rows) > _OPEN else ""  # the answer has what they come to
        yield Table(title, _CONTRAST_HEADER, rows, notes if limit < len(pair.contrasts) else (), folded)


_CONTRAST_HEADER = ("setting", "compared with", "difference [95 %]", "n", "p", "corrected p", "shown", "teachers")


def _rank(contrast: Contrast) -> float:
    return 2.0 if contrast.p is None else contrast.p


def _contrast(contrast: Contrast, names: Names) -> tuple[Cell, ...]:
    found, teachers = contrast.difference, contrast.teachers.count
    mean = format_number(found.mean, count_decimals(found.std), is_signed=True)
    other = "base" if contrast.is_with_base else name_setting(contrast.table, contrast.other, names)
    return (
        Cell(name_setting(contrast.table, contrast.group, names)), Cell(other),
        Cell(mean, format_interval(found, is_signed=True), found.mean), Cell(str(found.n), value=found.n),
        _p(contrast.p), _p(contrast.p_holm), Cell(contrast.verdict.value),
        Cell(str(teachers) if teachers else "-", value=teachers or None),
    )  # fmt: skip


def _p(value: float | None) -> Cell:
    return Cell(format_p(value) or "-", value=value)


_READING = (
    Text(
        "Best epoch: the highest test accuracy of all epochs. The epoch is chosen on the test set, as is "
        "customary, so this accuracy is optimistic. Last epoch: the test accuracy after the last epoch; nothing is "
        "chosen on the test set. Selected: the test accuracy at the epoch with the best accuracy on held-out training "
        "images, if the study holds some out."
    ),
    Text(
        "Figures are mean ± sample standard deviation (n − 1) over n finished runs, which differ only in their seeds; "
        "failed runs are not part of any mean. The difference to base is that of the last epoch between runs with the "
        "same seed, with the 95 % confidence interval of its mean (Student's t): an interval that contains 0 shows no "
        "significant difference. Base is the same training without a teacher."
    ),
)


# Results.

_SYMBOLS = {Mark.BEST: "bold", Mark.TIED: "≈", Mark.UNKNOWN: "?"}
_NOTE_COLUMN = "lab note (another experiment), best epoch, %"


def _results(found: Sequence[ComparedPair], whole: PaperTable) -> Iterator[Text | Table]:
    if not found:
        yield Text("No trial has started yet.")
        return
    yield from _paper_tables(whole)
    yield from _READING
    pairs = sorted(found, key=lambda pair: pair.table.teacher is None)[:MAX_TABLES]
    runs = [[row for group in pair.table.groups for row in group.rows] for pair in pairs]
    listed = share_rows([len(own) for own in runs], MAX_LISTED)
    settings = share_rows([min(len(pair.entries), MAX_INLINE) for pair in pairs], MAX_SETTINGS)
    for pair, own, few, many in zip(pairs, runs, listed, settings, strict=True):
        yield _settings_table(pair.table, pair.entries, many)
        if few:
            yield _runs_table(pair.table, own[:few], len(own))
    if len(found) > len(pairs):
        yield Text(f"This page leaves out {len(found) - len(pairs):,} more tables; {MORE} prints them.")


def _paper_tables(whole: PaperTable) -> Iterator[Table]:
    """The table of a paper, and, if it is long, its best rows first and all of them folded."""
    best = whole.keep_best(MAX_INLINE)
    notes = tuple(describe(best, _SYMBOLS))
    for table, folded in ((best, False), *([(whole.keep_best(MAX_SETTINGS), True)] if best.left_out else [])):
        parts = split_columns(table, lambda keys: len(keys) <= MAX_COLUMNS)
        for keys in parts:
            made = _paper_table(table, keys, notes if keys is parts[-1] and not folded else ())
            yield replace(made, folded=f"{len(table.rows):,} rows: {made.title}") if folded else made


def _paper_table(table: PaperTable, keys: Sequence[Key], notes: tuple[str, ...]) -> Table:
    """Some of its columns. What all of them share is in the title, and the rest in the header."""
    has_groups, has_pairs = len({metric for metric, _ in keys}) > 1, len(table.columns) > 1
    title = "Test accuracy, %" if has_groups else f"Test accuracy, {COLUMN_GROUPS[keys[0][0]]}, %"
    if not has_pairs:
        title = f"{table.columns[0].name}: {title[0].lower()}{title[1:]}"
    header = []
    for metric, number in keys:
        pair, group = table.columns[number].name, COLUMN_GROUPS[metric]
        header.append(f"{pair}, {group}" if has_pairs and has_groups else pair if has_pairs else group)
    rows = tuple(
        (Cell(row.name), *(_paper_cell(row.cells[metric][no], table) for metric, no in keys)) for row in table.rows
    )
    return Table(title, ("method", *header), rows, notes)


def _paper_cell(cell: PaperCell, table: PaperTable) -> Cell:
    found = cell.statistic
    if found is None:
        return Cell("-")
    symbol = find_symbol(cell, table, _SYMBOLS)
    is_best = cell.mark is Mark.BEST
    text = format_mean(found) if is_best else f"{format_mean(found)} {symbol}".rstrip()
    return Cell(text, f"n={found.n}", found.mean, is_marked=is_best)


def _settings_table(table: PairTable, entries: Sequence[Comparison], limit: int) -> Table:
    kept = _figures.choose_settings(entries, limit)
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
    has_figures = any(find_figure(entry.group.rows[0]) for entry in kept)
    header += ["published, %"] if has_figures else []
    rows = []
    for entry in kept:
        group = entry.group
        cells = [Cell(group.label), _of(len(group.finished), len(group.rows))]
        cells += [_mean(group.statistic(column)) for _, column in columns]
        cells += [_difference(entry)] if has_base else []
        cells += [_published_cell(table, group)] if has_published else []
        cells += [_figure_cell(group)] if has_figures else []
        rows.append(tuple(cells))
    notes = [*_notes(table, [entry.group for entry in kept]), *list(_without_base(kept))[:10]]
    if len(kept) < len(entries):
        notes.append(
            f"{len(kept)} of {len(entries):,} settings, those with the best last epoch; {MORE} prints the others."
        )
    # Next to published figures it is read; else it only adds intervals and agreement to the table of a paper.
    folded = "" if has_published or has_figures else f"Details of {table.name}"
    return Table(table.name, tuple(header), tuple(rows), tuple(notes), folded)


def _without_base(entries: Sequence[Comparison]) -> Iterator[str]:
    """Which settings lack a base run, and so a difference to base, on some of their seeds."""
    for entry in entries:
        of_base = {row.seed for row in entry.base.rows} if entry.base else set()
        missing = sorted({row.seed for row in entry.group.rows} - of_base)
        if entry.table.teacher and missing:
            listed = ", ".join([*map(str, missing[:10]), *(["…"] if len(missing) > 10 else [])])
            yield f"{entry.group.label}: no base run of the same training has seed {listed}, so no difference there."


def _of(done: int, count: int) -> Cell:
    return Cell(f"{done:,} of {count:,}", value=done)


def _mean(found: Statistic | None) -> Cell:
    return Cell(format_mean(found), f"n={found.n}", found.mean) if found else Cell("-")


def _amount(found: Statistic | None, digits: int) -> Cell:
    """A mean with the same digits as those next to it."""
    if found is None:
        return Cell("-")
    spread = "" if found.std is None else f" ± {found.std:,.{digits}f}"
    return Cell(f"{found.mean:,.{digits}f}{spread}", f"n={found.n}", found.mean)


def _difference(entry: Comparison) -> Cell:
    return _signed(entry.difference(DIFFERENCE))


def _signed(found: Statistic | None) -> Cell:
    """A difference with its interval."""
    if found is None:
        return Cell("-")
    mean = format_number(found.mean, count_decimals(found.std), is_signed=True)
    interval = format_interval(found, is_signed=True)
    return Cell(mean, ", ".join(filter(None, [interval, f"n={found.n}"])), found.mean)


def _published(table: PairTable, group: Group, *, any_method: bool = False) -> Statistic | None:
    method = "logit" if any_method else group.method
    own = (method, table.dataset, table.student, table.teacher)
    return next((published.statistic for published in PUBLISHED if published.matches(*own)), None)


def _published_cell(table: PairTable, group: Group) -> Cell:
    cell = _amount(_published(table, group), 2)  # the digits of the note
    return cell if cell.value is None else replace(cell, small=f"{cell.small}, another experiment")


def _figure_cell(group: Group) -> Cell:
    """The field's published figure for a setting."""
    figure = find_figure(group.rows[0])
    return (
        Cell(f"{figure.acc:.2f}", f"{figure.source.name}, {figure.source.epoch}", figure.acc) if figure else Cell("-")
    )


def _notes(table: PairTable, groups: Sequence[Group]) -> Iterator[str]:
    if any(_published(table, group) for group in groups):
        yield (
            "The lab note's figures come from another experiment, so a difference to ours has many possible causes: "
            f" {'; '.join(DIFFERENCES)}. Its seeds are not ours. The closest setting of kdctl is "
            f"{CLOSEST}."
        )
    texts = dict.fromkeys(
        f"Settings that differ from the lab note's as well ({group.label}): {text}."
        for group in groups
        if _published(table, group) and (text := describe_differences(group.rows[0]))
    )
    texts |= dict.fromkeys(
        f"{text[0].upper()}{text[1:]}." for group in groups if (text := describe_subset(group.rows[0]))
    )
    yield from list(texts)[:10]
    yield from (f"{text}." for text in list(describe_figures(groups))[:20])


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
        f"{len(rows):,} of {count:,} runs ({MORE} prints the others)"
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


def _comparisons(found: Sequence[Pair]) -> Iterator[Text | Figure | Table]:
    taught = [pair for pair in found if any(entry.table.teacher for entry in pair.entries)]
    if not taught:
        return
    yield Text(
        "All accuracies here are test accuracies after the last epoch, for students, base and teachers, because "
        "a teacher teaches with its last weights. The gap closed is the mean difference between student and base, "
        "divided by that between teacher and base, on the seeds that student and base share. It is meaningful only if "
        "the teacher is clearly better than base, so it is given only if the 95 % interval of teacher − base is above "
        "0. Bars are cut off at 0 and 100 %."
    )
    yield from _figures.draw_comparisons(found)
    for pair in taught[: _figures.MAX_PAIRS]:
        entries = [entry for entry in pair.entries if entry.table.teacher]
        kept = _figures.choose_settings(entries, _figures.MAX_SERIES)
        names, shared = pair.name_settings(kept)
        rows = tuple(map(_comparison, names, kept))
        yield Table(f"The gap to the teacher, {pair.title}", _COMPARISON_HEADER, rows, _notes_on(shared))


def _notes_on(shared: str) -> tuple[str, ...]:
    """The settings that all rows share, as a note below their table."""
    return (shared.strip(),) if shared else ()


_COMPARISON_HEADER = (
    "setting", "student, %", "base, %", "teacher, %", "student − base", "teacher − base", "gap closed", "agreement, %",
)  # fmt: skip


def _comparison(name: str, entry: Comparison) -> tuple[Cell, ...]:
    group, base = entry.group, entry.base
    teachers = {row.teacher_id: row.teacher_acc for row in group.finished if row.teacher_acc is not None}
    lead = _lead(group, base) if base else None
    return (
        Cell(name), _mean(group.statistic("last_acc")),
        _mean(base.statistic("last_acc") if base else None), _mean(Statistic.over(list(teachers.values()))),
        _difference(entry), _signed(lead), _gap_closed(entry, lead), _mean(group.statistic("agreement")),
    )  # fmt: skip


def _lead(group: Group, base: Group) -> Statistic | None:
    """The difference between teacher and base on the seeds that student and base share."""
    teachers, bases = group.by_seed("teacher_acc"), base.by_seed("last_acc")
    both = sorted(teachers.keys() & bases.keys() & group.by_seed("last_acc").keys())
    return Statistic.over([teachers[seed] - bases[seed] for seed in both])


def _gap_closed(entry: Comparison, lead: Statistic | None) -> Cell:
    """The percentage of the teacher's lead over base that the student gained."""
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
        "Seconds are the wall time of a run including evaluation; other jobs on the same device make it longer. A "
        "student's time excludes that of its teacher, which is trained once for all its students. The table gives the "
        "teachers' time in a column of its own."
    )
    yield from _figures.draw_costs(facts, found)
    kept = [
        (pair, entry)
        for pair in found[: _figures.MAX_PAIRS]
        for entry in _figures.choose_settings([e for e in pair.entries if e.group.finished], _figures.MAX_SERIES)
    ]
    names, shared = _figures.name_settings([pair.label(entry) for pair, entry in kept])
    rows = tuple(_cost(facts, pair, entry, name) for name, (pair, entry) in zip(names, kept, strict=True))
    header = (
        "student", "setting", "parameters", "seconds per run", "seconds, all runs", "seconds, teachers",
        "images/s", "last epoch, %",
    )  # fmt: skip
    yield Table("What it cost", header, rows, _notes_on(shared))


def _cost(facts: Facts, pair: Pair, entry: Comparison, name: str) -> tuple[Cell, ...]:
    group = entry.group
    params = group.statistic("params")
    spent = [row.seconds for row in group.finished if row.seconds is not None]
    name = f"{name}{' (teacher)' if any(r.trial_id in facts.teacher_ids for r in group.rows) else ''}"
    return (
        Cell(pair.title), Cell(name), Cell(f"{params.mean:,.0f}", value=params.mean) if params else Cell("-"),
        _amount(group.statistic("seconds"), 1), Cell(f"{sum(spent):,.1f}", value=sum(spent)),
        _cost_of_teachers(facts, group), _amount(group.statistic("images_per_second"), 0),
        _mean(group.statistic("last_acc")),
    )  # fmt: skip


def _cost_of_teachers(facts: Facts, group: Group) -> Cell:
    ids = {row.teacher_id for row in group.finished if row.teacher_id}
    if not ids:
        return Cell("-", "no teacher")
    known = [row.seconds for teacher_id in ids if (row := facts.rows.get(teacher_id)) and row.seconds is not None]
    if len(known) < len(ids):
        return Cell("-", "not in this study")
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
    notes = (f"And {hidden:,} more; {MORE} prints them.",) if hidden else ()
    yield Text("They are not part of any mean. Launching the study again retries them from their last checkpoints.")
    yield Table("Trials that did not finish", ("trial", "state", "reason", "log"), tuple(rows), notes)


# How to reproduce it.


def _reproduction(facts: Facts) -> Iterator[Text | Table | Code]:
    pairs = [*_launch_facts(facts), *_machine_facts(facts.ordered)]
    yield Table(
        "Facts of this study", ("what", "value"), tuple((Cell(name), Cell(text)) for name, text in pairs if text)
    )
    yield Text(
        "Launching the same file trains the trials that are missing. A trial's id is computed from everything that can "
        "change its result, so the same id means the same training. On the CPU, with the same kind of processor, it "
        "gives bit-for-bit the same results; on other devices rounding may differ."
    )
    if facts.source:
        yield Code("The study file", facts.source.text)
    rows = tuple(
        (Cell(member.trial_id), Cell(member.title), Cell(facts.state(member)), Cell(member.teacher_id or "-"))
        for member in facts.members[:MAX_IDS]
    )
    hidden = len(facts.members) - len(rows)
    notes = (f"And {hidden:,} more; {MORE} prints them.",) if hidden else ()
    header = ("trial id", "trial", "state", "teacher's id")
    yield Table("Trials", header, rows, notes, folded=f"Ids of {len(rows):,} trials")


def _launch_facts(facts: Facts) -> Iterator[tuple[str, str]]:
    yield "study", facts.name
    yield "trials", describe_progress(facts)
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
    yield "trained", f"{first} to {_moment(max(ends))} UTC, including pauses" if ends else f"since {first}"
    seconds = [row.seconds for row in rows if row.state is State.FINISHED and row.seconds is not None]
    yield "training time", f"{sum(seconds) / 3600:,.2f} h, summed over {len(seconds):,} finished trials"
    for name, column in (
        ("device", "device"), ("machine", "host"), ("kdctl", "kdctl_version"), ("torch", "torch_version"),
        ("Ray", "ray_version"),
    ):  # fmt: skip
        values = [getattr(row, column) for row in rows]
        yield name, describe_values(values) if any(values) else ""
    recipes = [row.recipe for row in rows]
    yield "compute dtype", describe_values(_word(recipe.get("arithmetic")) for recipe in recipes)
    yield (
        "teacher mode",
        describe_values(_word(recipe["teacher_answers"]) for recipe in recipes if recipe.get("teacher_answers")),
    )
    if resumed := sum(row.resumed > 0 for row in rows):
        yield "resumed", f"{resumed:,} trials continued from a checkpoint"


def _word(value: Any) -> str | None:
    return None if value is None else str(value)


def describe_values(values: Iterable[str | None], limit: int = 12) -> str:
    """The value that all trials share, or each value with its count; `none` if it is unknown or unused."""
    found = Counter("none" if value is None else value for value in values)
    if len(found) == 1:
        return next(iter(found))
    parts = [f"{name} ({count:,} trials)" for name, count in found.most_common(limit)]
    return ", ".join(parts) + (f" and {len(found) - limit:,} more" if len(found) > limit else "")
