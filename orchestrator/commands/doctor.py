"""`kdctl doctor`: check this machine, the storage and the data."""

from __future__ import annotations

import json
import sys

import click

from orchestrator import codec
from orchestrator.commands.shared import colours
from orchestrator.commands.shared.options import (
    data_option,
    json_option,
    storage_option,
)
from orchestrator.errors import EXIT_TRIALS


@click.command()
@data_option
@storage_option
@json_option
def doctor(data: str, storage: str, as_json: bool) -> None:
    """Check this machine, the storage and the data for problems, with a fix for each.

    The exit code is 0 if no check is bad (warnings are allowed), else 1.

    \b
    Examples:
      kdctl doctor
      kdctl doctor --storage /mnt/shared/runs --data ~/images
      kdctl doctor --json
    """
    from orchestrator.columns import width_of
    from orchestrator.doctor import examine, is_fit, text
    from orchestrator.machine.paths import local

    found = examine(storage, local(data, "data folder"))
    facts = {"fit": is_fit(found), "checks": codec.encode(found)}
    if as_json:
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        click.echo(colours.check_levels(text(found, width_of(sys.stdout))))
    if not is_fit(found):
        sys.exit(EXIT_TRIALS)
