"""Commands around a study file: look at it, and train it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from orchestrator.commands import colours
from orchestrator.commands.completing import study_files
from orchestrator.commands.options import (
    agrees,
    file_argument,
    is_terminal,
    json_option,
    set_option,
    storage_option,
    warn,
    yes_option,
)
from orchestrator.datasets import DATASETS
from orchestrator.errors import EXIT_USAGE, KdctlError, StudyError, masked

if TYPE_CHECKING:
    from orchestrator.errors import Fault
    from orchestrator.plan import Plan


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
    from orchestrator import starter
    from orchestrator.paths import local

    path = local(file, "study file")
    if path.exists() and not yes:
        if not is_terminal():
            raise KdctlError(f"{file} is there already; name another file, or overwrite this one with --yes")
        if not agrees(f"{file} is there already; overwrite it?"):
            click.echo("nothing was written", err=True)
            return
    written = starter.write(path, dataset)
    click.echo(f"wrote {' and '.join(map(str, written))}; next:\n\n{starter.next_steps(path, dataset)}", err=True)


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
    from orchestrator.plan import make_plan
    from orchestrator.spec import load_study

    try:
        study = load_study(file, settings)
        count = len(make_plan(study).trials)
    except StudyError as error:
        if not as_json:
            raise
        click.echo(_check_json(file, None, 0, error.faults, ()))
        sys.exit(EXIT_USAGE)
    if as_json:
        click.echo(_check_json(file, study.name, count, (), study.warnings))
        return
    warn(study.warnings)
    click.echo(f"{file}: study {study.name} is good, {count} trials")


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
    from orchestrator.launch import look

    found = look(file, storage, settings)
    warn(found.warnings)
    if not as_json:
        click.echo(colours.states(_plan_text(found)))
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


def _plan_text(plan: Plan) -> str:
    from orchestrator.report import aligned

    header = (
        "trial_id",
        "role",
        "method",
        "dataset",
        "student ← teacher",
        "seed",
        "waits for",
        "teacher cache",
        "state",
    )
    rows = []
    for trial in plan.trials:
        config = trial.config
        pair = f"{config.student} ← {config.teacher.student}" if config.teacher else config.student
        source = " (weights from a file)" if config.weights else ""
        cells = (trial.trial_id, trial.role, config.method, config.dataset, pair + source, str(config.seed))
        rows.append((*cells, trial.teacher_id or "-", trial.teacher_cache or "-", trial.state))
    states = [trial.state for trial in plan.trials]
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("new", "unfinished", "failed", "finished") if s in states)
    return "\n".join([aligned(header, rows), "", f"{len(rows)} trials of study {plan.study}: {counts}"])


@click.command()
def schema() -> None:
    """Print the JSON Schema of study files, for editors.

    An editor with YAML support finds it by the first line of a study file: `# yaml-language-server: $schema=PATH`.

    \b
    Examples:
      kdctl schema > study.schema.json
    """
    from orchestrator.schema import schema_text

    click.echo(schema_text(), nl=False)
