"""The arguments and options that several commands share, and the questions that they ask."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import click

from orchestrator.commands import completing
from orchestrator.data.registry import DATASETS
from orchestrator.errors import masked

Command = Callable[..., Any]


def file_argument(command: Command) -> Command:
    """`FILE`, a study file."""
    return click.argument("file", type=click.Path(), shell_complete=completing.study_files)(command)


def study_argument(command: Command) -> Command:
    """`[STUDY]`, for commands that only read: a study file, or a name that the storage remembers (`lookup.study`)."""
    return click.argument("study", metavar="[STUDY]", required=False, shell_complete=completing.studies)(command)


def trial_argument(command: Command) -> Command:
    """`[TRIAL]`, the beginning of a trial's id; see `trial_ids.resolve`."""
    return click.argument("trial", metavar="[TRIAL]", required=False, shell_complete=completing.trials)(command)


def storage_option(command: Command) -> Command:
    """`--storage`, where trials, teachers and results are."""
    option = click.option(
        "--storage", default="runs", envvar="KDCTL_STORAGE", show_default=True, show_envvar=True, metavar="PLACE",
        shell_complete=completing.folders,
        help="Folder, or bucket like s3://bucket/folder, of trials, teachers and results.",
    )  # fmt: skip
    return option(command)


def data_option(command: Command) -> Command:
    """`--data`, where the images of datasets are that scikit-learn does not ship."""
    own = [dataset.name for dataset in DATASETS.values() if dataset.from_data_folder]
    option = click.option(
        "--data", default="data", envvar="KDCTL_DATA", show_default=True, show_envvar=True, metavar="DIR",
        shell_complete=completing.folders,
        help=f"Folder of {' and '.join(own)}; a launch downloads into it what is missing.",
    )  # fmt: skip
    return option(command)


def set_option(command: Command) -> Command:
    """`--set`, which changes the study file for once."""
    option = click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", shell_complete=completing.settings,
        help="Change the study file, like recipe.epochs=2; may be given several times.",
    )  # fmt: skip
    return option(command)


def json_option(command: Command) -> Command:
    """`--json`, for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def address_option(command: Command) -> Command:
    """`--address` of commands that work on studies which were handed to a cluster."""
    option = click.option(
        "--address", metavar="URL", callback=_dashboard,
        help="Dashboard of the Ray cluster that studies were handed to, like http://HOST:8265.",
    )  # fmt: skip
    return option(command)


def cluster_option(command: Command) -> Command:
    """`--address` of a launch: a cluster to join, or a dashboard to hand the study to."""
    option = click.option(
        "--address", metavar="ADDR", callback=_cluster,
        help="Ray cluster to join (auto: the one here; local: start one for this launch), or to hand the study to "
        "(http://HOST:8265). Without it the one that RAY_ADDRESS names, or that `kdctl up` keeps, or else one for this "
        "launch.",
    )  # fmt: skip
    return option(command)


def _cluster(context: click.Context, option: click.Parameter, address: str | None) -> str | None:
    if address is None:
        return None
    from orchestrator.machine import addresses

    return addresses.dashboard(address) if addresses.is_dashboard(address) else addresses.to_join(address)


def _dashboard(context: click.Context, option: click.Parameter, address: str | None) -> str | None:
    if address is None:
        return None
    from orchestrator.machine import addresses

    return addresses.dashboard(address)


def yes_option(command: Command) -> Command:
    """`--yes`, which answers what `agrees` would ask."""
    return click.option("--yes", is_flag=True, help="Do not ask; without a terminal nobody is asked.")(command)


def is_terminal() -> bool:
    """Whether somebody can be asked: no stream is a pipe or a file."""
    return all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))


def agrees(question: str) -> bool:
    """Whether the person at the terminal says yes; asked on standard error. Only where `is_terminal`."""
    return click.confirm(question, err=True)


def note(text: str) -> None:
    """Prints on standard error what takes longer than a moment."""
    click.echo(text, err=True)


def warn(warnings: Sequence[object]) -> None:
    """Says each on standard error, broken at spaces where a terminal is too narrow."""
    from orchestrator.columns import width_of, wrapped

    for warning in warnings:
        click.echo(wrapped(str(warning), width_of(sys.stderr)), err=True)


def say_how_to_resume() -> None:
    """Says the command line that goes on with what was stopped."""
    # A job on a cluster was launched by another command line, on another machine.
    command = os.environ.get("KDCTL_COMMAND") or shlex.join(["kdctl", *sys.argv[1:]])
    with suppress(OSError):  # nobody may read it any more
        click.echo(f"go on with:  {masked(command)}", err=True)
