"""`kdctl up`, `kdctl down` and `kdctl dashboard`: a Ray cluster on this machine, and how to watch it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from orchestrator.commands.shared.completion import folders
from orchestrator.commands.shared.layout import Group
from orchestrator.commands.shared.options import confirm, is_terminal, yes_option
from orchestrator.errors import EXIT_TRIALS, KdctlError

if TYPE_CHECKING:
    from orchestrator.cluster.persistent_cluster import PersistentCluster


def _say(text: str) -> None:
    click.echo(text, err=True)


@click.command()
def up() -> None:
    """Start a Ray cluster on this machine that keeps running, so that its dashboard outlives a study.

    Every later launch joins it. `kdctl down` shuts it down.

    \b
    Examples:
      kdctl up
      kdctl up && kdctl launch experiments.yaml && kdctl down --yes
    """
    from orchestrator.cluster.dashboard import describe_login
    from orchestrator.cluster.persistent_cluster import start_cluster
    from orchestrator.cluster.signals import handle_stops
    from orchestrator.machine.command_line import format_command

    with handle_stops(_interrupted):
        cluster, is_new = start_cluster(_say)
    click.echo(
        f"started a Ray cluster at {cluster.address}"
        if is_new
        else f"a Ray cluster is already running at {cluster.address}"
    )
    click.echo(describe_login(cluster.dashboard))
    click.echo(f"`{format_command('launch', 'FILE')}` joins it, `{format_command('down')}` shuts it down", err=True)


def _interrupted(name: str) -> None:
    from orchestrator.errors import Interrupted

    raise Interrupted(f"{name}: stopped before a cluster was started")


@click.command()
@yes_option
def down(yes: bool) -> None:
    """Shut down the cluster that `kdctl up` started, and no other.

    Asks first if a program is running on it. A study that is interrupted resumes with the same launch command.

    \b
    Examples:
      kdctl down
      kdctl down --yes
    """
    from orchestrator.cluster.persistent_cluster import end_cluster, find_cluster

    cluster = find_cluster(_say)
    if cluster is None:
        click.echo("no cluster of `kdctl up` is running here; there is nothing to shut down", err=True)
        return
    if not yes and (question := _question(cluster)) and not _may_end(question):
        return
    end_cluster(cluster)
    click.echo(f"shut down the cluster at {cluster.address}", err=True)


def _may_end(question: str) -> bool:
    """Whether running programs may be interrupted. Raises UsageError if no question can be asked."""
    if not is_terminal():
        raise click.UsageError(
            "a program is running on the cluster, and this is no terminal to ask on; shut it down with --yes"
        )
    if confirm(question):
        return True
    click.echo("nothing was shut down", err=True)
    return False


def _question(cluster: PersistentCluster) -> str | None:
    """What to ask before a cluster is shut down; None if nothing runs on it."""
    from orchestrator.cluster.dashboard import list_programs

    try:
        programs = list_programs(cluster.dashboard)
    except OSError as error:
        return f"the cluster at {cluster.address} does not answer what runs on it ({error}); shut it down?"
    if not programs:
        return None
    click.echo("\n".join(("running on the cluster:", *(f"  {program}" for program in programs))), err=True)
    return "shut it down anyway? A launch resumes later with the same command"


@click.group(cls=Group, invoke_without_command=True)
@click.pass_context
def dashboard(context: click.Context) -> None:
    """Print the address of Ray's dashboard and how to log in.

    \b
    Examples:
      kdctl dashboard
      kdctl dashboard token
      kdctl dashboard export
    """
    if context.invoked_subcommand:
        return
    from orchestrator.cluster.dashboard import describe_login, list_dashboards
    from orchestrator.cluster.persistent_cluster import find_cluster
    from orchestrator.machine.command_line import format_command

    cluster = find_cluster(_say)
    if cluster:
        click.echo(f"cluster of `kdctl up`: {describe_login(cluster.dashboard)}")
    others = [live for live in list_dashboards() if not cluster or live.dashboard != cluster.dashboard]
    for live in others:
        click.echo(f"launch of {live.study}, process {live.pid}: {describe_login(live.dashboard)}")
    if not cluster and not others:
        start = format_command("up")
        click.echo(f"no dashboard is running here; a launch on Ray starts one, and so does `{start}`", err=True)
        sys.exit(EXIT_TRIALS)


@dashboard.command("token")
def token() -> None:
    """Print Ray's token, to paste into the dashboard's login dialog.

    Anyone who has the token and can reach the dashboard can run programs as you.

    \b
    Examples:
      kdctl dashboard token
    """
    from orchestrator.cluster import tokens
    from orchestrator.errors import ResourceError
    from orchestrator.machine.command_line import format_command

    known = tokens.read_token()
    if known is None:
        raise ResourceError(f"there is no token yet; `{format_command('up')}` or a launch on Ray creates one")
    _say("anyone who has this token can run programs as you; keep it secret, and paste it only into the dashboard")
    click.echo(known)


@dashboard.command("export")
@click.option(
    "--output", default="monitoring", show_default=True, metavar="DIR", shell_complete=folders,
    help="Folder to write to; created if missing.",
)  # fmt: skip
@yes_option
def export(output: str, yes: bool) -> None:
    """Write a Grafana dashboard and a matching Prometheus configuration.

    Prometheus then finds all your launches on this machine.

    Files of an earlier export are replaced. Files that were edited since, or that kdctl did not write, are replaced
    only after confirmation.

    \b
    Examples:
      kdctl dashboard export
      kdctl dashboard export --output ~/monitoring --yes
    """
    from orchestrator.machine.paths import local
    from orchestrator.monitor import grafana
    from orchestrator.text import printable

    folder = local(output, "--output")
    foreign = grafana.foreign(folder)
    if foreign and not yes:
        names = printable(", ".join(str(folder / name) for name in foreign))
        if not is_terminal():
            raise KdctlError(
                f"not written by an export, or edited since: {names}; name another --output, or overwrite with --yes"
            )
        if not confirm(f"not written by an export, or edited since: {names}; overwrite?"):
            click.echo("nothing was written", err=True)
            return
    grafana.export(folder)
    click.echo(f"wrote {printable(', '.join(grafana.files(folder)))}; instructions:\n", err=True)
    click.echo(f"  {printable(str(folder / grafana.README))}")
