"""Commands around a study file: look at it, and train it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

import click

from orchestrator.commands import colours
from orchestrator.commands.completing import study_files
from orchestrator.commands.options import (
    agrees,
    file_argument,
    is_terminal,
    json_option,
    note,
    set_option,
    storage_option,
    warn,
    yes_option,
)
from orchestrator.data.registry import DATASETS
from orchestrator.errors import EXIT_USAGE, KdctlError, StudyError, masked

if TYPE_CHECKING:
    from orchestrator.errors import Fault
    from orchestrator.study.plan import Plan


@click.command()
@click.argument("file", type=click.Path(), default="experiments.yaml", shell_complete=study_files)
@click.option(
    "--dataset", type=click.Choice(tuple(DATASETS)), default="digits", show_default=True,
    help="What to train on; digits needs no download and takes about a minute.",
)  # fmt: skip
@yes_option
def init(file: str, dataset: str, yes: bool) -> None:
    """Write a commented study file that runs as it is, by default experiments.yaml.

    Beside it goes the schema that editors complete and check the file with, unless one is there.

    \b
    Examples:
      kdctl init
      kdctl init cifar.yaml --dataset cifar10
    """
    from orchestrator.machine.paths import local
    from orchestrator.study import template

    path = local(file, "study file")
    if path.exists() and not yes:
        if not is_terminal():
            raise KdctlError(f"{file} is there already; name another file, or overwrite this one with --yes")
        if not agrees(f"{file} is there already; overwrite it?"):
            click.echo("nothing was written", err=True)
            return
    written = template.write(path, dataset)
    click.echo(f"wrote {' and '.join(map(str, written))}; next:\n\n{template.next_steps(path, dataset)}", err=True)


@click.command()
@file_argument
@set_option
@json_option
def check(file: str, settings: Sequence[str], as_json: bool) -> None:
    """Check a study FILE: all faults at once, each with its place and its cure.

    With --json the faults are data, on standard output; the exit code is 2 all the same.

    \b
    Examples:
      kdctl check experiments.yaml
      kdctl check experiments.yaml --set recipe.epochs=2
      kdctl check experiments.yaml --json
    """
    from orchestrator.columns import width_of, wrapped
    from orchestrator.study.plan import make_plan
    from orchestrator.study.reader import load_study

    try:
        study = load_study(file, settings, open_weights=True, on_note=note)
        count = len(make_plan(study).trials)
    except StudyError as error:
        if not as_json:
            raise KdctlError(wrapped(masked(str(error)), width_of(sys.stderr))) from None  # masked while it is whole
        click.echo(_check_json(file, None, 0, error.faults, ()))
        sys.exit(EXIT_USAGE)
    if as_json:
        click.echo(_check_json(file, study.name, count, (), study.warnings))
        return
    warn(study.warnings)
    click.echo(wrapped(f"{file}: study {study.name} is good, {count} trials", width_of(sys.stdout)))


def _check_json(file: str, study: str | None, trials: int, faults: Sequence[Fault], warnings: Sequence[Fault]) -> str:
    facts = {"file": masked(file), "good": not faults, "study": study, "trials": trials}
    told = {"faults": [fault.to_json() for fault in faults], "warnings": [fault.to_json() for fault in warnings]}
    return json.dumps({**facts, **told}, indent=1, ensure_ascii=False)


@click.command()
@file_argument
@storage_option
@set_option
@json_option
def plan(file: str, storage: str, settings: Sequence[str], as_json: bool) -> None:
    """Print what a launch of FILE would run; trains and writes nothing.

    \b
    Examples:
      kdctl plan experiments.yaml
      kdctl plan experiments.yaml --set recipe.epochs=2 --set 'experiments[0].seed=[0, 1, 2, 3]'
      kdctl plan experiments.yaml --storage /mnt/shared/runs --json
    """
    from orchestrator.catalog import integrity
    from orchestrator.columns import width_of
    from orchestrator.launch import plan_study
    from orchestrator.storage.layout import Storage

    found = plan_study(file, storage, settings, on_note=note)
    warn((*found.warnings, *integrity.foreign(Storage.at(storage))))
    if not as_json:
        click.echo(colours.states(_plan_text(found, width_of(sys.stdout))))
        return
    sys.stdout.writelines(f"{line}\n" for line in _plan_json(found))  # `echo` would flush every line
    sys.stdout.flush()


def _plan_json(plan: Plan) -> Iterator[str]:
    """The lines of a plan as JSON: one a trial, as a plan of all may not fit the memory, and this is faster."""
    encode = json.JSONEncoder(ensure_ascii=False).encode
    facts = replace(plan, trials=()).to_json()
    del facts["trials"]
    yield "{"
    yield encode(facts)[1:-1] + ', "trials": ['
    last = len(plan.trials)
    for number, trial in enumerate(plan.trials, 1):
        yield encode(trial.to_json()) + ("," if number < last else "")
    yield "]}"


def _plan_text(plan: Plan, width: int | None) -> str:
    """A table of the trials with what varies in this study, how many are to come, and what all have in common."""
    from orchestrator.columns import fits, table, wrapped

    for header, *rows in _layouts(plan):
        if fits(header, rows, width):
            break
    states = [trial.state for trial in plan.trials]
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("new", "unfinished", "failed", "finished") if s in states)
    lines = [*_common(plan), f"{len(states)} trials of study {plan.study}: {counts}"]
    return "\n".join([table(header, rows, width), "", *(wrapped(line, width) for line in lines)])


def _layouts(plan: Plan) -> Iterator[list[tuple[str, ...]]]:
    """Tables of a plan with their headers, from the widest to one for the narrowest terminals."""
    from orchestrator.study.short_names import all_settings, names, short_ids, varying

    configs = [trial.config for trial in plan.trials]
    settings = all_settings(configs)
    varies = list(dict.fromkeys(["method", *varying(settings)]))
    own = [
        (*(found.get(name, "-") for name in varies), str(c.seed)) for found, c in zip(settings, configs, strict=True)
    ]
    whole = [(trial.trial_id, trial.role) for trial in plan.trials]
    states = [(trial.state,) for trial in plan.trials]
    teachers = [(trial.teacher_id or "-", trial.teacher_cache or "-") for trial in plan.trials]
    last = ("waits for", "teacher cache", "state")
    yield _table(("trial_id", "role", *varies, "seed", *last), whole, own, teachers, states)
    short = {"-": "-", **short_ids([trial.trial_id for trial in plan.trials])}
    ids = [(short[trial.trial_id],) for trial in plan.trials]
    teachers = [(short[teacher_id], cache) for teacher_id, cache in teachers]
    yield _table(("id", *varies, "seed", *last), ids, own, teachers, states)
    named = [(name,) for name in names(configs)]
    yield _table(("id", "trial", *last), ids, named, teachers, states)
    yield _table(("id", "trial", "state"), ids, named, states)


def _table(header: tuple[str, ...], *parts: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [header, *(tuple(chain(*cells)) for cells in zip(*parts, strict=True))]


def _common(plan: Plan) -> list[str]:
    """What is the same in all trials that have it, in a line; without what has its default anyway."""
    from orchestrator.study.short_names import all_settings, default, varying

    settings = all_settings(trial.config for trial in plan.trials)
    varies = set(varying(settings))
    found = {name: value for own in settings for name, value in own.items() if name not in varies}
    own = {f"teacher.{name}": value for name, value in found.items()}  # a teacher follows its students
    usual = {name for name, value in found.items() if value in (default(name), own.get(name))}
    shown = [f"{name} {value}" for name, value in found.items() if name not in usual and name != "method"]
    return [f"the same in all: {', '.join(shown)}"] if shown else []


@click.command()
def schema() -> None:
    """Print the JSON Schema of study files, for editors.

    An editor with YAML support finds it by the first line of a study file: `# yaml-language-server: $schema=PATH`.

    \b
    Examples:
      kdctl schema > study.schema.json
    """
    from orchestrator.study.schema import schema_text

    click.echo(schema_text(), nl=False)
