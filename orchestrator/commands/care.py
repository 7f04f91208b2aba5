"""Commands that look after a storage and a machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from orchestrator.commands.options import data_option, json_option, storage_option
from orchestrator.errors import EXIT_TRIALS


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path())
@storage_option
@json_option
@click.option("--yes", is_flag=True, help="Free it; without this nothing is removed.")
def clean(files: Sequence[str], storage: str, as_json: bool, yes: bool) -> None:
    """Show what can be freed in a storage: what no launch needs any more.

    Rows, weights of trials and datasets always stay. So do tables that some trial to come will use: one of the last
    launch of each study, or of a FILE.
    """
    from orchestrator import housekeeping
    from orchestrator.launch import look
    from orchestrator.storage import Storage

    plans = [look(file, storage) for file in files]
    found = (housekeeping.free if yes else housekeeping.find)(Storage.at(storage), plans)
    if as_json:
        facts = {"freed": yes, "bytes": housekeeping.total(found), "files": [piece.to_json() for piece in found]}
        click.echo(json.dumps(facts, indent=1))
        return
    click.echo(housekeeping.text(found))
    if yes:
        click.echo(f"freed {len(found):,} files, {housekeeping.sized(housekeeping.total(found))}", err=True)
    elif found:
        click.echo("nothing was removed; the same command with --yes frees this", err=True)


@click.command()
@data_option
@storage_option
@json_option
def doctor(data: str, storage: str, as_json: bool) -> None:
    """Check this machine, the storage and the data: what is wrong, and what to do.

    Ends with 0 when nothing is bad, be there warnings or not, and with 1 otherwise.
    """
    from orchestrator.doctor import examine, is_fit, text

    found = examine(storage, Path(data))
    facts = {"fit": is_fit(found), "checks": [finding.to_json() for finding in found]}
    click.echo(json.dumps(facts, indent=1, ensure_ascii=False) if as_json else text(found))
    if not is_fit(found):
        sys.exit(EXIT_TRIALS)
