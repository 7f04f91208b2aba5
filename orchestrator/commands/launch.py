"""The commands that start a study and end it."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from orchestrator.commands import colours
from orchestrator.commands.jobs import stop_job, submit
from orchestrator.commands.options import (
    address_option,
    agrees,
    cluster_option,
    data_option,
    file_argument,
    is_terminal,
    note,
    say_how_to_resume,
    set_option,
    storage_option,
    study_argument,
    yes_option,
)
from orchestrator.errors import EXIT_TRIALS

if TYPE_CHECKING:
    from orchestrator.launch import LaunchResult
    from orchestrator.storage.layout import Storage


@click.command()
@file_argument
@data_option
@storage_option
@set_option
@cluster_option
@click.option("--no-dashboard", is_flag=True, help="Start Ray without its dashboard.")
@click.option("--inline", is_flag=True, help="Train in this process, one trial after another, without Ray.")
@click.option("--max-concurrent", type=click.IntRange(min=1), metavar="N", help="Train at most N trials at a time.")
@click.option("--skip-failed", is_flag=True, help="Leave trials that failed; otherwise they are tried again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object an event, and no tables, for programs.")
@click.option("--quiet", is_flag=True, help="Say nothing on the way but what fails.")
def launch(file: str, address: str | None, inline: bool, as_json: bool, **options: Any) -> None:
    """Train what is not finished of a study FILE, then print its results.

    Launching the same file again goes on where the last launch ended, however it ended.

    \b
    Examples:
      kdctl launch experiments.yaml
      kdctl launch experiments.yaml --data ~/images --storage /mnt/shared/runs
      kdctl launch experiments.yaml --set recipe.epochs=2 --set recipe.limit_train=256    # a small try
      kdctl launch experiments.yaml --inline                                              # without Ray
      kdctl launch experiments.yaml --address http://127.0.0.1:8265 --storage s3://bucket/runs
    """
    from orchestrator.cluster.supervisor import follow_parent, is_supervised, supervise
    from orchestrator.machine.addresses import is_dashboard
    from orchestrator.monitor.sinks import write_line
    from orchestrator.study.reader import load_study

    if inline and (address or options["max_concurrent"]):
        raise click.UsageError("--inline trains in this process; remove --address and --max-concurrent, or --inline")
    if address and is_dashboard(address):
        _hand_over(file, address, as_json, options)
        return
    if is_supervised():
        follow_parent()
    elif not inline:
        study = load_study(file, options["settings"], on_note=note)  # a fault of the file needs no second process
        sys.exit(supervise(sys.argv[1:], study.text, lambda text: write_line(sys.stderr, text), say_how_to_resume))
    dashboard = not options.pop("no_dashboard")
    _train(file, address=address, inline=inline, as_json=as_json, dashboard=dashboard, **options)


def _hand_over(file: str, address: str, as_json: bool, options: dict[str, Any]) -> None:
    """Hands the study to a cluster; `--data` goes along where somebody named it, as the default is of this machine."""
    is_named = click.get_current_context().get_parameter_source("data") is not ParameterSource.DEFAULT
    names = ("storage", "settings", "max_concurrent", "skip_failed")
    data = options["data"] if is_named else None
    submit(file, address, data=data, as_json=as_json, **{name: options[name] for name in names})


def _train(file: str, *, storage: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Launches in this process, shows how it goes, and prints what came of it."""
    from orchestrator.cluster.supervisor import clear_session, is_supervised, study_text
    from orchestrator.launch import launch as run
    from orchestrator.machine.streams import reserved_stdout
    from orchestrator.monitor.sinks import event_sink

    with reserved_stdout() as stdout:
        try:
            with event_sink(as_json=as_json, quiet=quiet, stdout=stdout) as on_event:
                outcome = run(file, storage=storage, on_event=on_event, text=study_text(), **options)
        finally:
            if is_supervised():
                clear_session()
    if not as_json:
        _print_outcome(outcome, storage)
    if not outcome.is_complete:
        sys.exit(EXIT_TRIALS)


def _print_outcome(outcome: LaunchResult, storage: str) -> None:
    from orchestrator import columns
    from orchestrator.cluster.kept_cluster import command
    from orchestrator.machine.paths import local
    from orchestrator.results.tables import render
    from orchestrator.storage.layout import Storage

    click.echo(colours.states(render(outcome.rows, width=columns.width_of(sys.stdout))))
    folder = Storage.at(storage).place.shown("results") if "://" in storage else local(storage, "storage") / "results"
    click.echo(f"Parquet: {folder}/trials/*.parquet (one row a trial), {folder}/epochs/*.parquet (one row an epoch)")
    click.echo(f"Query:   {command('query', _query(outcome.plan.study))}{_of(storage)}")
    click.echo(f"Report:  {command('report', outcome.plan.study)}{_of(storage)}")


def _query(study: str) -> str:
    """The query that answers with the tables above it; a study's name holds nothing that SQL or a shell would read."""
    return f"\"FROM results WHERE study = '{study}'\""


def _of(storage: str) -> str:
    return "" if storage == "runs" else f" --storage {shlex.quote(storage)}"


@click.command()
@study_argument
@storage_option
@address_option
@yes_option
def stop(study: str | None, storage: str, address: str | None, yes: bool) -> None:
    """Stop a running STUDY, wherever it runs; what is trained writes a checkpoint first.

    Without a name it is the study that was launched last; of several launches of one study, the last. It goes through
    the storage, or with --address through the cluster that the study was handed to.

    \b
    Examples:
      kdctl stop
      kdctl stop resnet-logit --storage /mnt/shared/runs --yes
      kdctl stop resnet-logit --address http://127.0.0.1:8265
    """
    from orchestrator.catalog import lookup
    from orchestrator.storage.layout import Storage
    from orchestrator.study import stored_studies

    if address:
        stop_job(address, study, yes)
        return
    place = Storage.at(storage)
    found = stored_studies.find(place, lookup.study(place, study).name if study else None)
    if _stop(place, found.name, found.launched.resource, yes=yes):
        click.echo(f"go on with:  {shlex.join(stored_studies.command(found))}{_of(storage)}", err=True)


def _stop(storage: Storage, name: str, resource: str, *, yes: bool) -> bool:
    """Asks a launch to stop, and waits until it has; False where the person would rather not."""
    from orchestrator.errors import KdctlError
    from orchestrator.storage import stops

    holder = stops.holder(storage, resource)
    if holder is None:
        raise KdctlError(f"the last launch of study {name} has ended; there is nothing to stop")
    if not yes and is_terminal() and not agrees(f"Stop study {name}, {holder}?"):
        click.echo("nothing was stopped", err=True)
        return False
    stops.request(storage, resource)
    click.echo(f"stopping study {name}; what runs writes a checkpoint first", err=True)
    if not stops.wait(storage, resource):
        raise KdctlError(
            f"study {name}, {holder}, has not stopped within {stops.PATIENCE:g} s; it was asked and may still do so: "
            "look with `kdctl status`, or end that process"
        )
    click.echo(f"study {name} has stopped", err=True)
    return True
