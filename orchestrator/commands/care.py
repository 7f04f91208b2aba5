"""Commands that look after a storage and a machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import click

from orchestrator.commands import colours, completing
from orchestrator.commands.options import (
    agrees,
    data_option,
    is_terminal,
    json_option,
    storage_option,
    warn,
    yes_option,
)
from orchestrator.errors import EXIT_TRIALS


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path(), shell_complete=completing.study_files)
@storage_option
@json_option
@yes_option
def clean(files: Sequence[str], storage: str, as_json: bool, yes: bool) -> None:
    """Show what can be freed in a storage, what no launch needs any more, and free it once you agree.

    Rows, weights of trials and datasets always stay. So do tables that some trial to come will use: one of the last
    launch of each study, or of a FILE. On a terminal it asks; without one, or with --json, only --yes frees.

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
    warn(integrity.foreign(Storage.at(storage)))
    found = (cleanup.free if yes else cleanup.find)(Storage.at(storage), plans)
    if as_json:
        facts = {"freed": yes, "bytes": cleanup.total(found), "files": [piece.to_json() for piece in found]}
        click.echo(json.dumps(facts, indent=1))
        return
    click.echo(cleanup.text(found, width_of(sys.stdout)))
    if found and not yes and is_terminal():
        if not agrees(f"Free {cleanup.counted(found)}?"):
            click.echo("nothing was removed", err=True)
            return
        found, yes = cleanup.free(Storage.at(storage), plans), True
    if yes:
        click.echo(f"freed {cleanup.counted(found)}", err=True)
    elif found:
        click.echo("nothing was removed; the same command with --yes frees this", err=True)


@click.command()
@data_option
@storage_option
@json_option
def doctor(data: str, storage: str, as_json: bool) -> None:
    """Check this machine, the storage and the data: what is wrong, and what to do.

    Ends with 0 when nothing is bad, be there warnings or not, and with 1 otherwise.

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
    facts = {"fit": is_fit(found), "checks": [finding.to_json() for finding in found]}
    if as_json:
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        click.echo(colours.verdicts(text(found, width_of(sys.stdout))))
    if not is_fit(found):
        sys.exit(EXIT_TRIALS)


@click.command()
@click.argument("shell", metavar="SHELL", type=click.Choice(completing.SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands, options, study files, studies and trial ids on Tab.

    SHELL is bash, zsh or fish.

    \b
    bash: put this line into ~/.bashrc
      eval "$(kdctl completion bash)"
    zsh: put this line into ~/.zshrc, after compinit
      eval "$(kdctl completion zsh)"
    fish: once, and again after an update
      kdctl completion fish > ~/.config/fish/completions/kdctl.fish

    Trials and studies are those of the storage that the line names (--storage, KDCTL_STORAGE, or runs); a bucket is not
    asked, as it may be slow. kdctl must be found on the PATH.

    \b
    Examples:
      eval "$(kdctl completion bash)"    # for this terminal alone
    """
    click.echo(completing.script(shell, context.find_root().command), nl=False)
