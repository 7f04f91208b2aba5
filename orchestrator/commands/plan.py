"""`kdctl plan`: what a launch would run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

import click

from orchestrator.commands.shared import colours
from orchestrator.commands.shared.options import (
    file_argument,
    json_option,
    note,
    set_option,
    storage_option,
    warn,
)

if TYPE_CHECKING:
    from orchestrator.study.plan import Plan


@click.command()
@file_argument
@storage_option
@set_option
@json_option
def plan(file: str, storage: str, settings: Sequence[str], as_json: bool) -> None:
    """Print the trials that a launch of FILE would run, without training or writing anything.

    The last lines count trials and tables, and say how long they take on this machine, one trial after the other. That
    follows from their counted operations and from the speed of trials that finished here on the device used last.

    \b
    Examples:
      kdctl plan experiments.yaml
      kdctl plan experiments.yaml --set recipe.epochs=2 --set 'experiments[0].seed=[0, 1, 2, 3]'
      kdctl plan experiments.yaml --storage /mnt/shared/runs --json
    """
    from orchestrator.catalog import integrity
    from orchestrator.columns import width_of
    from orchestrator.launch import plan_study
    from orchestrator.monitor.forecast import predict_time
    from orchestrator.storage.layout import Storage

    found = plan_study(file, storage, settings, on_note=note)
    warn((*found.warnings, *integrity.find_foreign(Storage.at(storage))))
    if not as_json:
        forecast = predict_time(found, Storage.at(storage))
        click.echo(colours.states(_format_text(found, forecast, width_of(sys.stdout))))
        return
    sys.stdout.writelines(f"{line}\n" for line in _format_json(found))  # `echo` would flush every line
    sys.stdout.flush()


def _format_json(plan: Plan) -> Iterator[str]:
    """The lines of a plan as JSON, one per trial: a single text of a huge plan may not fit into memory."""
    encode = json.JSONEncoder(ensure_ascii=False).encode
    facts = replace(plan, trials=()).to_json()
    del facts["trials"]
    yield "{"
    yield encode(facts)[1:-1] + ', "trials": ['
    last = len(plan.trials)
    for number, trial in enumerate(plan.trials, 1):
        yield encode(trial.to_json()) + ("," if number < last else "")
    yield "]}"


def _format_text(plan: Plan, forecast: str, width: int | None) -> str:
    """A table of the trials with the settings that vary, the settings that all share, and the number in each state.

    `forecast` says how long the trials take.
    """
    from orchestrator.columns import fits, table, wrapped
    from orchestrator.study.plan import PlanState

    for header, *rows in _make_layouts(plan):
        if fits(header, rows, width):
            break
    states = [trial.state for trial in plan.trials]
    counts = ", ".join(f"{states.count(s)} {s}" for s in PlanState if s in states)
    lines = [*_describe_common(plan), *_describe_tables(plan), *([forecast] if forecast else [])]
    lines += [f"{len(states)} trials of study {plan.study}: {counts}"]
    return "\n".join([table(header, rows, width), "", *(wrapped(line, width) for line in lines)])


def _describe_tables(plan: Plan) -> list[str]:
    """One line with the number and size of the tables that the trials read, if any does."""
    from orchestrator.text import format_size

    sizes = {table: trial.table_bytes() for trial in plan.trials for table in trial.tables()}
    noun = "table" if len(sizes) == 1 else "tables"
    return [f"{len(sizes)} {noun} of teacher outputs: {format_size(sum(sizes.values()))}"] if sizes else []


def _make_layouts(plan: Plan) -> Iterator[list[tuple[str, ...]]]:
    """Tables of a plan with their headers, from the widest to one for the narrowest terminals."""
    from orchestrator.study.short_names import all_settings, find_varying, names, short_ids

    configs = [trial.config for trial in plan.trials]
    settings = all_settings(configs)
    varies = list(dict.fromkeys(["method", *find_varying(settings)]))
    own = [
        (*(found.get(name, "-") for name in varies), str(c.seed)) for found, c in zip(settings, configs, strict=True)
    ]
    ids_and_roles = [(trial.trial_id, trial.role) for trial in plan.trials]
    states = [(trial.state,) for trial in plan.trials]
    teachers = [(trial.teacher_id or "-", trial.teacher_cache or "-") for trial in plan.trials]
    last = ("waits for", "teacher cache", "state")
    yield _make_table(("trial_id", "role", *varies, "seed", *last), ids_and_roles, own, teachers, states)
    short = {"-": "-", **short_ids([trial.trial_id for trial in plan.trials])}
    ids = [(short[trial.trial_id],) for trial in plan.trials]
    teachers = [(short[teacher_id], cache) for teacher_id, cache in teachers]
    yield _make_table(("id", *varies, "seed", *last), ids, own, teachers, states)
    named = [(name,) for name in names(configs)]
    yield _make_table(("id", "trial", *last), ids, named, teachers, states)
    yield _make_table(("id", "trial", "state"), ids, named, states)


def _make_table(header: tuple[str, ...], *parts: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [header, *(tuple(chain(*cells)) for cells in zip(*parts, strict=True))]


def _describe_common(plan: Plan) -> list[str]:
    """One line with the settings that all trials share, without those at their default."""
    from orchestrator.study.short_names import all_settings, default, find_varying

    settings = all_settings(trial.config for trial in plan.trials)
    varies = set(find_varying(settings))
    found = {name: value for own in settings for name, value in own.items() if name not in varies}
    own = {name: found.get(name.rpartition(".")[2]) for name in found if "." in name}  # a teacher follows its students
    usual = {name for name, value in found.items() if value in (default(name), own.get(name))}
    common = [f"{name} {value}" for name, value in found.items() if name not in usual and name != "method"]
    return [f"the same in all trials: {', '.join(common)}"] if common else []
