"""`kdctl stop`: end a running study."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from orchestrator.commands.shared.jobs import stop_job
from orchestrator.commands.shared.options import (
    address_option,
    confirm,
    is_terminal,
    storage_option,
    storage_words,
    study_argument,
    yes_option,
)

if TYPE_CHECKING:
    from orchestrator.storage.layout import Storage


@click.command()
@study_argument
@storage_option
@address_option
@yes_option
def stop(study: str | None, storage: str, address: str | None, yes: bool) -> None:
    """Stop a running STUDY; running trials write a checkpoint first.

    STUDY is a study file or a study's name; without it, the study that was launched last. The study may run on any
    machine that uses the storage. With --address, STUDY is one that was submitted to that cluster.

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
    opened = Storage.at(storage)
    found = stored_studies.find(opened, lookup.find_study(opened, study).name if study else None)
    if _stop(opened, found.name, found.launched.resource, yes=yes):
        click.echo(f"resume with:  {shlex.join(stored_studies.command(found))}{storage_words(storage)}", err=True)


def _stop(storage: Storage, name: str, resource: str, *, yes: bool) -> bool:
    """Asks a launch to stop and waits until it has; False if the user declines."""
    from orchestrator.errors import KdctlError
    from orchestrator.storage import stops

    holder = stops.find_holder(storage, resource)
    if holder is None:
        raise KdctlError(f"the last launch of study {name} has already ended; there is nothing to stop")
    if not yes and is_terminal() and not confirm(f"Stop study {name}, {holder}?"):
        click.echo("nothing was stopped", err=True)
        return False
    stops.request(storage, resource)
    click.echo(f"stopping study {name}; running trials write a checkpoint first", err=True)
    if not stops.wait(storage, resource):
        raise KdctlError(
            f"study {name}, {holder}, has not stopped within {stops.PATIENCE:g} s; it may still do so: "
            "check with `kdctl status`, or end that process"
        )
    click.echo(f"study {name} has stopped", err=True)
    return True
