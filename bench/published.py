"""Our figures next to those of a lab note, another experiment: Markdown from the rows of experiments.yaml in a storage.

python bench/published.py STORAGE [--study FILE] [--set KEY=VALUE ...] [--out DIR]
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Any

from orchestrator import parquet
from orchestrator.errors import EXIT_USAGE, KdctlError
from orchestrator.launch import plan_study
from orchestrator.markdown import escape, format_table
from orchestrator.records import State, TrialRecord
from orchestrator.results import store
from orchestrator.results.published import CLOSEST, DIFFERENCES, PUBLISHED, Published, describe_differences
from orchestrator.results.summary import Group, group_tables
from orchestrator.results.tables import PUBLISHED_COLUMNS
from orchestrator.storage.layout import Storage
from orchestrator.study.plan import Plan, PlannedTrial
from orchestrator.text import masked

STUDY = Path(__file__).resolve().parents[1] / "experiments.yaml"

_INTRODUCTION = f"""\
The four tables beside ours come from a lab note. **It describes another experiment**, so what separates its figures
from ours has many possible causes, and equal figures show nothing. What differs whatever the settings are:

{chr(10).join(f"- {text}" for text in DIFFERENCES)}

Closest setting of kdctl: {CLOSEST}. Below each table are the
settings of our runs that differ from that.

`acc` is the note's convention, for its runs and ours: the best test accuracy of all epochs. It is picked on the test
set, so it flatters; the last epoch's accuracy involves no pick, and the note does not contain it. Ours are measured
over all 10,000 test images unless a setting says otherwise. The note's runs are in its order and belong to none of our
seeds. Deviations are those of a sample (n − 1)."""


@dataclass(frozen=True, slots=True)
class Study:
    """A planned study with the rows that its storage holds, by trial id."""

    plan: Plan
    rows: Mapping[str, TrialRecord]

    @classmethod
    def read(cls, file: str | Path, storage: Storage, settings: Sequence[str]) -> Study:
        """Plans the study and reads its rows. Raises KdctlError if the file or a row is faulty, or no row exists."""
        plan = plan_study(file, storage.backend.address, settings)
        rows = {row.trial_id: row for row in store.read_trials(storage, [trial.trial_id for trial in plan.trials])}
        for row in rows.values():
            if not _is_sound(row):
                name = storage.backend.describe(storage.trial_row(row.trial_id))
                raise KdctlError(f"{name} holds a damaged row; launch its study again, which writes it again")
        if not rows:
            others = len(storage.backend.list_files(storage.trial_rows))
            hint = f"; {others} trials are there, of other studies or settings: give the --set of the launch"
            raise KdctlError(
                f"{storage.backend.address} holds no trial of study {plan.study}{hint if others else ''}; launch it "
                "first (make table DATA=...), or name the storage it was launched with"
            )
        return cls(plan, rows)

    def state(self, trial: PlannedTrial) -> str:
        """The state of a trial's row; `missing` if there is none."""
        row = self.rows.get(trial.trial_id)
        return str(row.state) if row else "missing"


def _is_sound(row: TrialRecord) -> bool:
    """Whether a row has the values that every row of kdctl has in any state."""
    return "teacher" in row.recipe and row.start_time is not None


def _format_percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


# One of the four tables.


def render_section(reference: Published, study: Study) -> str:
    """Renders one of the four tables: our runs in the note's columns, then next to the note's runs."""
    trials = [trial for trial in study.plan.trials if _matches(reference, trial)]
    pair = f"{reference.student} ← {reference.teacher} on {reference.dataset}"
    heading = f"## {pair} (lab note: {reference.statistic.mean:.1f})"
    if not trials:
        return f"{heading}\n\nmissing: the study has no such trial; lab note {_format_reference(reference)}"
    runs = format_table(PUBLISHED_COLUMNS, [_format_run(no, trial, study) for no, trial in enumerate(trials, 1)])
    parts = [heading, runs, _format_comparison(reference, trials, study), "\n".join(_list_remarks(trials, study))]
    return "\n\n".join(parts)


def _matches(reference: Published, trial: PlannedTrial) -> bool:
    config, teacher = trial.config, trial.config.teacher
    return reference.matches(config.method, config.dataset, config.student, teacher.student if teacher else None)


def _format_reference(reference: Published) -> str:
    return f"{', '.join(map(_format_percent, reference.acc))}, mean {reference.statistic}"


def _format_run(no: int, trial: PlannedTrial, study: Study) -> list[str]:
    """Formats a run in the note's columns. An unknown value is replaced by the reason, never by a guess."""
    config, state = trial.config, study.state(trial)
    cells = [str(no), config.method, config.dataset, config.student, config.teacher.student if config.teacher else "-"]
    row = study.rows.get(trial.trial_id)
    if row is None:
        return [*cells, state, state, state, str(config.epochs), str(config.lr), str(config.batch_size)]
    start = row.start_time.strftime("%Y-%m-%d %H:%M:%S")
    measured = [_format_percent(row.acc), str(row.epoch)] if row.state is State.FINISHED else [f"**{state}**", "-"]
    cells = [str(no), *map(escape, (row.method, row.dataset, row.student, row.teacher or "-"))]
    return [*cells, start, *measured, str(row.nepoch), str(row.lr), str(row.batch_size)]


def _format_comparison(reference: Published, trials: Sequence[PlannedTrial], study: Study) -> str:
    header = (
        "run", "seed", "ours, best epoch (picked on the test set)", "ours, last epoch", "agreement with the teacher",
        "lab note (another experiment), best epoch (picked on the test set)",
    )  # fmt: skip
    lines = []
    for no, (trial, acc) in enumerate(zip_longest(trials, reference.acc), 1):
        ours = _format_measured(trial, study) if trial else ["-"] * 4
        lines.append([str(no), *ours, _format_percent(acc)])
    return format_table(header, [*lines, *_format_means(reference, trials, study)])


def _format_measured(trial: PlannedTrial, study: Study) -> list[str]:
    row, seed = study.rows.get(trial.trial_id), str(trial.config.seed)
    if row is None or row.state is not State.FINISHED:
        return [seed, *[study.state(trial)] * 3]
    return [seed, _format_percent(row.acc), _format_percent(row.last_acc), _format_percent(row.agreement)]


def _format_means(reference: Published, trials: Sequence[PlannedTrial], study: Study) -> Iterator[list[str]]:
    """One line for each setting, because runs that differ in more than their seeds have no common mean."""
    label = "mean ± std (n)"
    groups = _group_runs(trials, study)
    if not groups:
        yield [label, "", "missing", "missing", "missing", str(reference.statistic)]
    for group in groups:
        name = f"{label}, {escape(group.label)}" if len(groups) > 1 else label
        ours = [_format_mean(group, column) for column in ("acc", "last_acc", "agreement")]
        yield [name, "", *ours, str(reference.statistic)]


def _group_runs(trials: Sequence[PlannedTrial], study: Study) -> list[Group]:
    rows = [study.rows[trial.trial_id] for trial in trials if trial.trial_id in study.rows]
    return [group for table in group_tables(rows) for group in table.groups]


def _format_mean(group: Group, column: str) -> str:
    return str(group.statistic(column) or "-")


def _list_remarks(trials: Sequence[PlannedTrial], study: Study) -> Iterator[str]:
    teachers = dict.fromkeys(trial.teacher_id for trial in trials)
    for teacher in study.plan.trials:
        if teacher.trial_id in teachers:
            yield f"- teacher {_describe_teacher(teacher, study)}"
    counts = Counter(study.state(trial) for trial in trials)
    yield f"- {len(trials)} runs: " + ", ".join(f"{counts[state]} {state}" for state in _order_states(counts))
    found = dict.fromkeys(
        text for trial in trials if (row := study.rows.get(trial.trial_id)) and (text := describe_differences(row))
    )
    yield from (f"- settings that differ from the closest ones: {escape(text)}" for text in found)


def _describe_teacher(trial: PlannedTrial, study: Study) -> str:
    row, config = study.rows.get(trial.trial_id), trial.config
    name = f"{config.student} seed {config.seed} (`base`: cross-entropy alone)"
    if row is None or row.state is not State.FINISHED:
        return f"{name}: {study.state(trial)}"
    return (
        f"{name}: best epoch {_format_percent(row.acc)} (picked on the test set), "
        f"last epoch {_format_percent(row.last_acc)} (n=1); the last epoch's weights teach"
    )


def _order_states(counts: Mapping[str, int]) -> list[str]:
    """The states to print: those that matter even if no trial has them, then all others that occur."""
    return ["finished", "failed", "missing", *sorted(set(counts) - {"finished", "failed", "missing"})]


# The whole page.


def render(study: Study) -> str:
    """Renders the four tables, and what they cost on which machines."""
    parts = [
        "# Our runs and those of a lab note",
        _INTRODUCTION,
        *(render_section(reference, study) for reference in PUBLISHED),
        _describe_cost(study),
    ]
    return "\n\n".join(parts) + "\n"


def _describe_cost(study: Study) -> str:
    trials, rows = study.plan.trials, list(study.rows.values())
    counts = Counter(map(study.state, trials))
    outcomes = ", ".join(f"{counts[state]} {state}" for state in _order_states(counts))
    lines = [f"- study {escape(study.plan.study)}: n = {len(trials)} trials, teachers included: {outcomes}"]
    lines += [f"- {line}" for line in _list_unfinished(study)]
    lines += [
        f"- wall time: {_describe_wall_time(rows)}",
        *(f"- {line}" for line in _list_hours(rows)),
        *_list_machines(rows),
    ]
    return "## The study\n\n" + "\n".join(lines)


def _list_unfinished(study: Study) -> Iterator[str]:
    for trial in study.plan.trials:
        row = study.rows.get(trial.trial_id)
        if row is None or row.state is not State.FINISHED:
            reason = f": {escape(row.error)}" if row and row.error else ""
            yield f"{trial.title()} {study.state(trial)}{reason}"


def _describe_wall_time(rows: Sequence[TrialRecord]) -> str:
    ends = [row.end_time for row in rows if row.end_time]
    if not ends:
        return "-, no trial has ended"
    passed = max(ends) - min(row.start_time for row in rows)
    return f"{timedelta(seconds=round(passed.total_seconds()))} (h:mm:ss) from first start to last end, pauses included"


def _list_hours(rows: Sequence[TrialRecord]) -> Iterator[str]:
    """The time of the trials by device."""
    devices: dict[str, list[float]] = {}
    for row in rows:
        if row.state is State.FINISHED and row.device is not None and row.seconds is not None:
            devices.setdefault(row.device, []).append(row.seconds)
    for device, seconds in sorted(devices.items()):
        unit = "CPU-hours" if device.startswith("cpu") else "GPU-hours"
        yield (
            f"{sum(seconds) / 3600:.3f} {unit} on {escape(device)}: the sum over {len(seconds)} trials; those that "
            "shared it count in full, unfinished ones do not count"
        )


def _list_machines(rows: Sequence[TrialRecord]) -> Iterator[str]:
    hosts = {row.host for row in rows if row.host is not None}
    yield f"- machines: {len(hosts)}, trials that resumed from a checkpoint: {sum(row.resumed > 0 for row in rows)}"
    for title, column in (("kdctl", "kdctl_version"), ("torch", "torch_version"), ("Ray", "ray_version")):
        yield f"- {title}: {_join_distinct([getattr(row, column) for row in rows])}"
    yield f"- commit: {_join_distinct([row.git_commit for row in rows])}"
    precisions = [row.recipe.get("precision") for row in rows]
    yield f"- precision: {_join_distinct([value if value is None else str(value) for value in precisions])}"


def _join_distinct(values: Sequence[str | None]) -> str:
    """Joins the different values, with the number of trials of each if there are several."""
    found = Counter(values)
    known = {escape(name): count for name, count in sorted(found.items(), key=str) if name is not None}
    if len(found) == 1 and known:
        return next(iter(known))
    none = [f"unknown or unused ({found[None]} trials)"] if found[None] else []
    return ", ".join([*(f"{name} ({count} trials)" for name, count in known.items()), *none])


def write(folder: Path, text: str, study: Study, storage: Storage) -> None:
    """Writes the page and the rows behind it, to be kept with the sources. Raises KdctlError if that fails."""
    files = (
        "\nThe rows behind this page: [trials.parquet](trials.parquet), one a trial, and "
        "[epochs.parquet](epochs.parquet), one an epoch.\n"
    )
    trials = [row.to_row() for row in study.rows.values()]
    epochs = store.read_epochs(storage, list(study.rows))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "trials.parquet").write_bytes(_encode_parquet(store.TRIAL_COLUMNS, trials))
        (folder / "epochs.parquet").write_bytes(_encode_parquet(store.EPOCH_COLUMNS, epochs))
        (folder / "README.md").write_text(text + files, encoding="utf-8")
    except OSError as error:
        raise KdctlError(f"{folder} cannot be written ({error.strerror or error}); name another with --out") from None


def _encode_parquet(columns: Mapping[str, tuple[str, str]], rows: list[dict[str, Any]]) -> bytes:
    types = {name: kind for name, (kind, _) in columns.items()}
    return parquet.to_parquet(types, rows, {"kdctl_schema": store.SCHEMA_VERSION})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage", help="the folder or bucket that the study was launched with")
    parser.add_argument("--study", default=STUDY, metavar="FILE", help="(default: experiments.yaml)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as it was launched with")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the page and its rows there too")
    options = parser.parse_args(arguments)
    try:
        storage = Storage.at(options.storage)
        study = Study.read(options.study, storage, options.set)
        text = render(study)
        if options.out:
            write(options.out, text, study, storage)
    except KdctlError as error:
        print(masked(str(error)), file=sys.stderr)
        return EXIT_USAGE
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
