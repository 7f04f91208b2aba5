"""Commands around Ray's cluster on this machine: keep one, end it, and find its dashboard."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from orchestrator.commands.layout import Group
from orchestrator.commands.options import agrees, is_terminal, yes_option
from orchestrator.errors import EXIT_TRIALS

if TYPE_CHECKING:
    from orchestrator.cluster.kept_cluster import KeptCluster


def _say(text: str) -> None:
    click.echo(text, err=True)


@click.command()
def up() -> None:
    """Start a Ray cluster on this machine that stays, so that its dashboard outlives a study.

    A launch joins it from then on; `kdctl down` ends it.

    \b
    Examples:
      kdctl up
      kdctl up && kdctl launch experiments.yaml && kdctl down --yes
    """
    from orchestrator.cluster import kept_cluster
    from orchestrator.cluster.signals import stopping

    with stopping(_interrupted):
        found, is_new = kept_cluster.up(_say)
    click.echo(f"a Ray cluster is up at {found.address}" if is_new else f"it is up already, at {found.address}")
    click.echo(kept_cluster.login(found.dashboard))
    click.echo(
        f"`{kept_cluster.command('launch', 'FILE')}` joins it, `{kept_cluster.command('down')}` ends it", err=True
    )


def _interrupted(name: str) -> None:
    from orchestrator.errors import Interrupted

    raise Interrupted(f"{name}: stopped, and nothing was started")


@click.command()
@yes_option
def down(yes: bool) -> None:
    """End the cluster that `kdctl up` started, and no other.

    Asks first where a program is running on it. A study that is cut off goes on with the same launch command.

    \b
    Examples:
      kdctl down
      kdctl down --yes
    """
    from orchestrator.cluster import kept_cluster

    found = kept_cluster.kept(_say)
    if found is None:
        click.echo("no cluster is kept here: there is nothing to end", err=True)
        return
    if not yes and (question := _question(found)) and not _may_end(question):
        return
    kept_cluster.down(found)
    click.echo(f"the cluster at {found.address} is ended", err=True)


def _may_end(question: str) -> bool:
    """Whether what runs may be cut off. Raises UsageError where there is nobody to ask."""
    if not is_terminal():
        raise click.UsageError("something is running on the cluster, and nobody can be asked here; say --yes to end it")
    if agrees(question):
        return True
    click.echo("nothing was ended", err=True)
    return False


def _question(found: KeptCluster) -> str | None:
    """What to ask before a cluster is ended; None where nothing runs on it."""
    from orchestrator.cluster import kept_cluster

    try:
        programs = kept_cluster.busy_with(found)
    except OSError as error:
        return f"the cluster at {found.address} does not say what runs on it ({error}); end it?"
    if not programs:
        return None
    click.echo("\n".join(("on it there runs:", *(f"  {program}" for program in programs))), err=True)
    return "end it all the same? A launch goes on later with the same command"


@click.group(cls=Group, invoke_without_command=True)
@click.pass_context
def dashboard(context: click.Context) -> None:
    """Print where Ray's dashboard is, and how to log in.

    \b
    Examples:
      kdctl dashboard
      kdctl dashboard token
      kdctl dashboard export
    """
    if context.invoked_subcommand:
        return
    from orchestrator.cluster import kept_cluster

    kept = kept_cluster.kept(_say)
    if kept:
        click.echo(f"the cluster that `kdctl up` keeps: {kept_cluster.login(kept.dashboard)}")
    shown = [one for one in kept_cluster.shown() if not kept or one.dashboard != kept.dashboard]
    for one in shown:
        click.echo(f"the launch of {one.study}, process {one.pid}: {kept_cluster.login(one.dashboard)}")
    if not kept and not shown:
        start = kept_cluster.command("up")
        click.echo(f"no dashboard is up here; it comes with a launch on Ray, or start one with `{start}`", err=True)
        sys.exit(EXIT_TRIALS)


@dashboard.command("token")
def token() -> None:
    """Print Ray's token, to be pasted into the dashboard's dialog.

    Whoever has it and reaches the dashboard can run programs as you.

    \b
    Examples:
      kdctl dashboard token
    """
    from orchestrator.cluster import kept_cluster
    from orchestrator.errors import ResourceError

    known = kept_cluster.token()
    if known is None:
        raise ResourceError(f"there is no token yet; `{kept_cluster.command('up')}` or a launch on Ray makes one")
    _say("whoever has this token can run programs as you; show it to nobody, and paste it into the dashboard alone")
    click.echo(known)
