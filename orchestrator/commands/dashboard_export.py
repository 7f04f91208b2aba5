"""`kdctl dashboard export`: a Grafana dashboard, and a configuration of Prometheus that finds every launch."""

from __future__ import annotations

import click

from orchestrator.commands.completing import folders
from orchestrator.commands.options import agrees, is_terminal, yes_option
from orchestrator.errors import KdctlError


@click.command()
@click.option(
    "--output", default="monitoring", show_default=True, metavar="DIR", shell_complete=folders,
    help="Folder to write into; made where it is not there.",
)  # fmt: skip
@yes_option
def export(output: str, yes: bool) -> None:
    """Write a Grafana dashboard, and a Prometheus configuration that finds every launch of yours on this machine.

    Files of an earlier export are renewed; what was changed since, or is not kdctl's, is overwritten after a question.

    \b
    Examples:
      kdctl dashboard export
      kdctl dashboard export --output ~/monitoring --yes
    """
    from orchestrator.errors import printable
    from orchestrator.machine.paths import local
    from orchestrator.monitor import grafana

    folder = local(output, "--output")
    strangers = grafana.strangers(folder)
    if strangers and not yes:
        names = printable(", ".join(str(folder / name) for name in strangers))
        they = "is not" if len(strangers) == 1 else "are not"
        if not is_terminal():
            raise KdctlError(f"{names} {they} as an export wrote it; name another --output, or overwrite it with --yes")
        if not agrees(f"{names} {they} as an export wrote it; overwrite it?"):
            click.echo("nothing was written", err=True)
            return
    grafana.export(folder)
    click.echo(f"wrote {printable(', '.join(grafana.files(folder)))}; how to use them:\n", err=True)
    click.echo(f"  {printable(str(folder / grafana.README))}")
