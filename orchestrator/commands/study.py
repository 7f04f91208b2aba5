"""Commands around a study file: look at it, and train it."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.commands.options import data_option, json_option, say_how_to_resume, set_option, storage_option, warn
from orchestrator.errors import EXIT_TRIALS

if TYPE_CHECKING:
    from orchestrator.launch import Outcome
    from orchestrator.plan import Plan


@click.command()
@click.argument("file", type=click.Path())
@set_option
def check(file: str, settings: Sequence[str]) -> None:
    """Check a study FILE: all faults at once, each with its place and its cure."""
    from orchestrator.plan import make_plan
    from orchestrator.spec import load_study

    study = load_study(file, settings)
    warn(study.warnings)
    click.echo(f"{file}: study {study.name} is good, {len(make_plan(study).trials)} trials")


@click.command()
@click.argument("file", type=click.Path())
@storage_option
@set_option
@json_option
def plan(file: str, storage: str, settings: Sequence[str], as_json: bool) -> None:
    """Print what a launch of FILE would run; trains and writes nothing."""
    from orchestrator.launch import look

    found = look(file, storage, settings)
    warn(found.warnings)
    if not as_json:
        click.echo(_plan_text(found))
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
@click.argument("file", type=click.Path())
@data_option
@storage_option
@set_option
@click.option(
    "--address", metavar="ADDR", help="Join a running Ray cluster (auto: the one here) instead of starting one."
)
@click.option("--inline", is_flag=True, help="Train in this process, one trial after another, without Ray.")
@click.option("--max-concurrent", type=click.IntRange(min=1), metavar="N", help="Train at most N trials at a time.")
@click.option("--skip-failed", is_flag=True, help="Leave trials that failed; otherwise they are tried again.")
def launch(
    file: str,
    data: str,
    storage: str,
    settings: Sequence[str],
    address: str | None,
    inline: bool,
    max_concurrent: int | None,
    skip_failed: bool,
) -> None:
    """Train what is not finished of a study FILE, then print its results.

    Launching the same file again goes on where the last launch ended, however it ended.
    """
    from orchestrator.launch import launch as run
    from orchestrator.spec import load_study
    from orchestrator.supervisor import clear_session, follow_parent, is_supervised, supervise

    if inline and (address or max_concurrent):
        raise click.UsageError("--inline trains in this process; remove --address and --max-concurrent, or --inline")
    is_child = is_supervised()
    if is_child:
        follow_parent()
    elif not inline:
        load_study(file, settings)  # a fault of the file needs no second process
        sys.exit(supervise(sys.argv[1:], lambda text: click.echo(text, err=True), say_how_to_resume))
    try:
        outcome = run(
            file, data=data, storage=storage, address=address, inline=inline, settings=settings,
            max_concurrent=max_concurrent, skip_failed=skip_failed,
        )  # fmt: skip
    finally:
        if is_child:
            clear_session()
    _print_outcome(outcome, storage)
    if not outcome.is_complete:
        sys.exit(EXIT_TRIALS)


def _print_outcome(outcome: Outcome, storage: str) -> None:
    from orchestrator.report import render
    from orchestrator.storage import Storage

    click.echo(render(outcome.rows))
    folder = Storage.at(storage).place.shown("results") if "://" in storage else Path(storage) / "results"
    click.echo(f"Parquet: {folder}/trials/*.parquet (one row a trial), {folder}/epochs/*.parquet (one row an epoch)")
    click.echo(f"Query:   {_query_line(outcome.plan.study, storage)}")


def _query_line(study: str, storage: str) -> str:
    """A query as a person would type it; a study's name holds nothing that SQL or a shell would read."""
    query = (
        "SELECT dataset, student, teacher, method, avg(acc) AS acc, stddev(acc) AS std, count(*) AS n FROM trials "  # noqa: S608 - shown
        f"WHERE state = 'finished' AND study = '{study}' GROUP BY ALL"
    )
    return f'{_kdctl()} query "{query}"' + ("" if storage == "runs" else f" --storage {shlex.quote(storage)}")


def _kdctl() -> str:
    """This kdctl as a person would type it: by its name where that finds it, else by its path."""
    script = Path(sys.executable).with_name("kdctl")
    if shutil.which("kdctl") == str(script):
        return "kdctl"
    python = shlex.quote(_from_here(Path(sys.executable)))
    return shlex.quote(_from_here(script)) if script.exists() else f"{python} -m orchestrator.cli"


def _from_here(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


@click.command()
def schema() -> None:
    """Print the JSON Schema of study files, for editors."""
    from orchestrator.schema import study_schema

    click.echo(json.dumps(study_schema(), indent=1, ensure_ascii=False))
