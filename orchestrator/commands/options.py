"""The options that several commands share."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import click

from orchestrator.errors import masked

Command = Callable[..., Any]


def storage_option(command: Command) -> Command:
    """`--storage`, where trials, teachers and results are."""
    option = click.option(
        "--storage", default="runs", envvar="KDCTL_STORAGE", show_default=True, show_envvar=True, metavar="PLACE",
        help="Folder, or bucket like s3://bucket/folder, of trials, teachers and results.",
    )  # fmt: skip
    return option(command)


def data_option(command: Command) -> Command:
    """`--data`, where the images of CIFAR are."""
    option = click.option(
        "--data", default="data", envvar="KDCTL_DATA", show_default=True, show_envvar=True, metavar="DIR",
        help="Folder of CIFAR-10 and CIFAR-100; a launch downloads into it what is missing.",
    )  # fmt: skip
    return option(command)


def set_option(command: Command) -> Command:
    """`--set`, which changes the study file for once."""
    return click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change the study file, like recipe.epochs=2."
    )(command)


def json_option(command: Command) -> Command:
    """`--json`, for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def warn(warnings: Sequence[object]) -> None:
    """Says each on standard error."""
    for warning in warnings:
        click.echo(str(warning), err=True)


def say_how_to_resume() -> None:
    """Says the command line that goes on with what was stopped."""
    # A job on a cluster was launched by another command line, on another machine.
    command = os.environ.get("KDCTL_COMMAND") or shlex.join(["kdctl", *sys.argv[1:]])
    with suppress(OSError):  # nobody may read it any more
        click.echo(f"go on with:  {masked(command)}", err=True)
