"""The arguments and options that several commands share, and their questions and warnings."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import click

from orchestrator.commands.shared import completion
from orchestrator.data.registry import DATASETS
from orchestrator.text import masked

Command = Callable[..., Any]


def file_argument(command: Command) -> Command:
    """`FILE`, a study file."""
    return click.argument("file", type=click.Path(), shell_complete=completion.study_files)(command)


def study_argument(command: Command) -> Command:
    """`[STUDY]`, for commands that only read: a study file, or a name in the storage (`lookup.find_study`)."""
    return click.argument("study", metavar="[STUDY]", required=False, shell_complete=completion.studies)(command)


def trial_argument(command: Command) -> Command:
    """`[TRIAL]`, the beginning of a trial's id; see `trial_ids.resolve`."""
    return click.argument("trial", metavar="[TRIAL]", required=False, shell_complete=completion.trials)(command)


def storage_option(command: Command) -> Command:
    """`--storage`, the folder or bucket with trials, teachers and results."""
    option = click.option(
        "--storage", default="runs", envvar="KDCTL_STORAGE", show_default=True, show_envvar=True, metavar="LOCATION",
        shell_complete=completion.folders,
        help="Folder or bucket (s3://bucket/folder) for trials, teachers and results.",
    )  # fmt: skip
    return option(command)


def data_option(command: Command) -> Command:
    """`--data`, the folder with the images of datasets that no package ships."""
    own = [dataset.name for dataset in DATASETS.values() if dataset.from_data_folder]
    option = click.option(
        "--data", default="data", envvar="KDCTL_DATA", show_default=True, show_envvar=True, metavar="DIR",
        shell_complete=completion.folders,
        help=f"Folder with {' and '.join(own)}; a launch downloads what is missing into it.",
    )  # fmt: skip
    return option(command)


def set_option(command: Command) -> Command:
    """`--set`, which overrides a key of the study file for this command."""
    option = click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", shell_complete=completion.settings,
        help="Override a key of the study file, like recipe.epochs=2; can be given several times.",
    )  # fmt: skip
    return option(command)


def json_option(command: Command) -> Command:
    """`--json`, output for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def address_option(command: Command) -> Command:
    """`--address` of commands about studies that were submitted to a cluster."""
    option = click.option(
        "--address", metavar="URL", callback=_parse_dashboard,
        help="Dashboard of the Ray cluster that the study was submitted to, like http://HOST:8265.",
    )  # fmt: skip
    return option(command)


def cluster_option(command: Command) -> Command:
    """`--address` of a launch: a cluster to join, or a dashboard to submit the study to."""
    option = click.option(
        "--address", metavar="ADDR", callback=_parse_cluster,
        help="Ray cluster to join (auto: the one on this machine; local: a new one for this launch), or dashboard to "
        "submit the study to (http://HOST:8265). Default: the cluster in RAY_ADDRESS, else the one that `kdctl up` "
        "started, else a new one for this launch.",
    )  # fmt: skip
    return option(command)


def _parse_cluster(context: click.Context, option: click.Parameter, address: str | None) -> str | None:
    if address is None:
        return None
    from orchestrator.machine import addresses

    return addresses.dashboard(address) if addresses.is_dashboard(address) else addresses.to_join(address)


def _parse_dashboard(context: click.Context, option: click.Parameter, address: str | None) -> str | None:
    if address is None:
        return None
    from orchestrator.machine import addresses

    return addresses.dashboard(address)


def yes_option(command: Command) -> Command:
    """`--yes`, which answers the question of `confirm`."""
    return click.option("--yes", is_flag=True, help="Do not ask for confirmation.")(command)


def storage_words(storage: str) -> str:
    """The ` --storage` to append to a command line; empty for the default."""
    return "" if storage == "runs" else f" --storage {shlex.quote(storage)}"


def is_terminal() -> bool:
    """Whether a question can be asked: no stream is a pipe or a file."""
    return all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))


def confirm(question: str) -> bool:
    """Asks the user a question on standard error; True for yes. Call it only where `is_terminal`."""
    return click.confirm(question, err=True)


def note(text: str) -> None:
    """Prints on standard error a note about a step that takes a while."""
    click.echo(text, err=True)


def warn(warnings: Sequence[object]) -> None:
    """Prints each warning on standard error, wrapped to the terminal's width."""
    from orchestrator.columns import width_of, wrapped

    for warning in warnings:
        click.echo(wrapped(str(warning), width_of(sys.stderr)), err=True)


def print_resume_command() -> None:
    """Prints the command line that resumes what was stopped."""
    # A job on a cluster was submitted with another command line, on another machine.
    command = os.environ.get("KDCTL_COMMAND") or shlex.join(["kdctl", *sys.argv[1:]])
    with suppress(OSError):  # the reader of standard error may be gone
        click.echo(f"resume with:  {masked(command)}", err=True)
