"""`kdctl completion`: the script with which a shell completes commands on Tab."""

from __future__ import annotations

import click

from orchestrator.commands.shared.completion import SHELLS, script


@click.command()
@click.argument("shell", metavar="SHELL", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a shell script that completes commands, options, study files, studies and trial ids on Tab.

    SHELL is bash, zsh or fish.

    \b
    bash: add this line to ~/.bashrc
      eval "$(kdctl completion bash)"
    zsh: add this line to ~/.zshrc, after compinit
      eval "$(kdctl completion zsh)"
    fish: run this once, and again after an update of kdctl
      kdctl completion fish > ~/.config/fish/completions/kdctl.fish

    Trials and studies come from the storage of the command being typed (--storage, KDCTL_STORAGE, or runs). Buckets are
    not searched, because they can be slow. kdctl must be on the PATH.

    \b
    Examples:
      eval "$(kdctl completion bash)"    # for this terminal alone
    """
    click.echo(script(shell, context.find_root().command), nl=False)
