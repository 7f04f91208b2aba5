"""`kdctl launch`: train a study and print its results."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from orchestrator.commands.shared import colours
from orchestrator.commands.shared.jobs import submit
from orchestrator.commands.shared.options import (
    cluster_option,
    data_option,
    file_argument,
    note,
    print_resume_command,
    set_option,
    storage_option,
    storage_words,
)
from orchestrator.errors import EXIT_TRIALS
from orchestrator.executors import DEFAULT, EXECUTORS

if TYPE_CHECKING:
    from orchestrator.launch import LaunchResult


@click.command()
@file_argument
@data_option
@storage_option
@set_option
@cluster_option
@click.option("--no-dashboard", is_flag=True, help="Start Ray without its dashboard.")
@click.option("--executor", type=click.Choice([*EXECUTORS]), help=f"Where to train; {DEFAULT} by default.")
@click.option("--inline", is_flag=True, help="Short for --executor inline: train in this process, without Ray.")
@click.option(
    "--max-concurrent", type=click.IntRange(min=1), metavar="N", help="Train at most N trials at the same time."
)
@click.option("--skip-failed", is_flag=True, help="Do not retry trials that failed in an earlier launch.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per event instead of tables, for programs."
)
@click.option("--quiet", is_flag=True, help="Report only failures while training.")
def launch(file: str, address: str | None, executor: str | None, inline: bool, as_json: bool, **options: Any) -> None:
    """Train the unfinished trials of a study FILE, then print its results.

    Launching the same file again resumes where the last launch ended, for whatever reason it ended.

    \b
    Examples:
      kdctl launch experiments.yaml
      kdctl launch experiments.yaml --data ~/images --storage /mnt/shared/runs
      kdctl launch experiments.yaml --set recipe.epochs=2 --set recipe.limit_train=256    # a quick try
      kdctl launch experiments.yaml --inline                                              # without Ray
      kdctl launch experiments.yaml --address http://127.0.0.1:8265 --storage s3://bucket/runs
    """
    from orchestrator.cluster.launch_supervisor import follow_parent, is_supervised, supervise
    from orchestrator.machine.addresses import is_dashboard
    from orchestrator.monitor.sinks import write_line
    from orchestrator.study.reader import load_study

    name = _choose_executor(executor, inline, {"address": address, "max_concurrent": options["max_concurrent"]})
    if address and is_dashboard(address):
        _submit(file, address, as_json, {**options, "executor": name})
        return
    if is_supervised():
        follow_parent()
    elif EXECUTORS[name].is_supervised:
        study = load_study(file, options["settings"], on_note=note)  # an error in the file needs no second process
        sys.exit(supervise(sys.argv[1:], study.text, lambda text: write_line(sys.stderr, text), print_resume_command))
    dashboard = not options.pop("no_dashboard")
    _train(file, address=address, executor=name, as_json=as_json, dashboard=dashboard, **options)


def _choose_executor(executor: str | None, inline: bool, given: dict[str, Any]) -> str:
    """The executor of a launch. Raises UsageError where the options that were given do not fit together."""
    if inline and executor not in (None, "inline"):
        raise click.UsageError(f"--inline is short for --executor inline; remove it, or --executor {executor}")
    name = "inline" if inline else executor or DEFAULT
    foreign = [
        f"--{option.replace('_', '-')}"
        for option, value in given.items()
        if value is not None and option not in EXECUTORS[name].options
    ]
    if foreign:
        chosen = "--inline" if inline else f"--executor {name}"
        raise click.UsageError(f"{chosen} takes no {' or '.join(foreign)}; remove {' and '.join(foreign)}, or {chosen}")
    return name


def _submit(file: str, address: str, as_json: bool, options: dict[str, Any]) -> None:
    """Submits the study to a cluster. `--data` is passed on only if given: its default is a folder of this machine."""
    is_named = click.get_current_context().get_parameter_source("data") is not ParameterSource.DEFAULT
    names = ("storage", "settings", "max_concurrent", "skip_failed", "executor")
    data = options["data"] if is_named else None
    submit(file, address, data=data, as_json=as_json, **{name: options[name] for name in names})


def _train(file: str, *, storage: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Launches in this process, shows progress, and prints the results."""
    from orchestrator.cluster.launch_supervisor import clear_session, is_supervised, read_study_text
    from orchestrator.launch import launch as run
    from orchestrator.machine.streams import reserved_stdout
    from orchestrator.monitor.sinks import event_sink

    with reserved_stdout() as stdout:
        try:
            with event_sink(as_json=as_json, quiet=quiet, stdout=stdout) as on_event:
                result = run(file, storage=storage, on_event=on_event, text=read_study_text(), **options)
        finally:
            if is_supervised():
                clear_session()
    if not as_json:
        _print_results(result, storage)
    if not result.is_complete:
        sys.exit(EXIT_TRIALS)


def _print_results(result: LaunchResult, storage: str) -> None:
    from orchestrator import columns
    from orchestrator.machine.command_line import format_command
    from orchestrator.machine.paths import local
    from orchestrator.results.tables import render
    from orchestrator.storage.layout import Storage

    click.echo(colours.states(render(result.rows, width=columns.width_of(sys.stdout))))
    is_bucket = "://" in storage
    folder = Storage.at(storage).backend.describe("results") if is_bucket else local(storage, "storage") / "results"
    click.echo(f"Parquet: {folder}/trials/*.parquet (one row per trial), {folder}/epochs/*.parquet (one row per epoch)")
    click.echo(f"Query:   {format_command('query', _query(result.plan.study))}{storage_words(storage)}")
    click.echo(f"Report:  {format_command('report', result.plan.study)}{storage_words(storage)}")


def _query(study: str) -> str:
    """The query for the tables printed above it. A study's name has no character special to SQL or a shell."""
    return f"\"FROM results WHERE study = '{study}'\""
