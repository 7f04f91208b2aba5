"""`kdctl clean`: free what no launch needs any more."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import click

from orchestrator.commands.shared import completion
from orchestrator.commands.shared.options import (
    confirm,
    is_terminal,
    json_option,
    storage_option,
    warn,
    yes_option,
)


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path(), shell_complete=completion.study_files)
@storage_option
@json_option
@yes_option
def clean(files: Sequence[str], storage: str, as_json: bool, yes: bool) -> None:
    """List the files in a storage that no launch needs any more, and delete them after confirmation.

    Results, weights and datasets are always kept. A teacher's table is kept as long as an
    unfinished trial needs it. The trials that count are those of each study's last launch, and
    those of each study FILE. Without a terminal, or with --json, files are deleted only with --yes.

    \b
    Examples:
      kdctl clean
      kdctl clean experiments.yaml --yes
      kdctl clean --storage /mnt/shared/runs --json
    """
    from orchestrator.catalog import cleanup, integrity
    from orchestrator.columns import width_of
    from orchestrator.launch import plan_study
    from orchestrator.storage.layout import Storage

    plans = [plan_study(file, storage) for file in files]
    warn(integrity.find_foreign(Storage.at(storage)))
    found = (cleanup.free if yes else cleanup.find)(Storage.at(storage), plans)
    if as_json:
        facts = {"freed": yes, "bytes": cleanup.count_bytes(found), "files": [piece.to_json() for piece in found]}
        click.echo(json.dumps(facts, indent=1))
        return
    click.echo(cleanup.format_garbage(found, width_of(sys.stdout)))
    if found and not yes and is_terminal():
        if not confirm(f"Delete {cleanup.describe_total(found)}?"):
            click.echo("nothing was deleted", err=True)
            return
        found, yes = cleanup.free(Storage.at(storage), plans), True
    if yes:
        click.echo(f"deleted {cleanup.describe_total(found)}", err=True)
    elif found:
        click.echo("nothing was deleted; add --yes to delete these files", err=True)
