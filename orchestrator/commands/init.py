"""`kdctl init` and `kdctl schema`: a study file to begin with, and the schema that editors check it with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from orchestrator.commands.shared.completion import study_files
from orchestrator.commands.shared.options import (
    confirm,
    is_terminal,
    yes_option,
)
from orchestrator.data.registry import DATASETS
from orchestrator.errors import KdctlError

if TYPE_CHECKING:
    pass


@click.command()
@click.argument("file", type=click.Path(), default="experiments.yaml", shell_complete=study_files)
@click.option(
    "--dataset", type=click.Choice(tuple(DATASETS)), default="digits", show_default=True,
    help="Dataset to train on; digits needs no download and takes about a minute.",
)  # fmt: skip
@yes_option
def init(file: str, dataset: str, yes: bool) -> None:
    """Write a commented study file that is ready to run, by default experiments.yaml.

    Also writes the JSON Schema that editors use to complete and check the file, unless there is one already.

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
            raise KdctlError(f"{file} already exists; name another file, or overwrite this one with --yes")
        if not confirm(f"{file} already exists; overwrite it?"):
            click.echo("nothing was written", err=True)
            return
    written = template.write(path, dataset)
    click.echo(f"wrote {' and '.join(map(str, written))}; next:\n\n{template.next_steps(path, dataset)}", err=True)


@click.command()
def schema() -> None:
    """Print the JSON Schema of study files, for editors.

    An editor with YAML support uses it if the study file begins with `# yaml-language-server: $schema=PATH`.

    \b
    Examples:
      kdctl schema > study.schema.json
    """
    from orchestrator.study.schema import schema_text

    click.echo(schema_text(), nl=False)
