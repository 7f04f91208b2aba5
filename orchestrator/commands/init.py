"""`kdctl init` and `kdctl schema`: a study file to begin with, and the schema that editors check it with."""

from __future__ import annotations

import click

from orchestrator.commands.shared.completion import study_files
from orchestrator.commands.shared.options import confirm, is_terminal, yes_option
from orchestrator.data.registry import DATASETS
from orchestrator.errors import KdctlError


@click.command()
@click.argument("file", type=click.Path(), default="experiments.yaml", shell_complete=study_files)
@click.option(
    "--dataset", type=click.Choice(tuple(DATASETS)), default="digits", show_default=True,
    help="Dataset to train on; digits needs no download and takes about a minute.",
)  # fmt: skip
@click.option(
    "--method", metavar="NAME",
    help="Also write NAME.py, a first loss of your own, which the new study file uses. A study file that already "
    "exists is left as it is.",
)  # fmt: skip
@yes_option
def init(file: str, dataset: str, method: str | None, yes: bool) -> None:
    """Write a commented study file that is ready to run, by default experiments.yaml.

    Also writes the JSON Schema that editors use to complete and check the file, unless there is one already.

    \b
    Examples:
      kdctl init
      kdctl init cifar.yaml --dataset cifar10
      kdctl init --method my_loss
    """
    from orchestrator.machine.paths import local
    from orchestrator.records import list_names
    from orchestrator.study import loss_template, template

    path = local(file, "study file")
    own = loss_template.method(method) if method is not None else ""
    loss = path.parent / f"{method}.py" if own else None
    named = str(loss or file)
    if (loss or path).exists() and not yes:
        if not is_terminal():
            raise KdctlError(f"{named} already exists; name another file, or overwrite this one with --yes")
        if not confirm(f"{named} already exists; overwrite it?"):
            click.echo("nothing was written", err=True)
            return
    written = template.write_loss(loss) if loss else []
    if loss and path.is_file():
        click.echo(f"wrote {loss}; in {file}, its name is `method: {own}`", err=True)
        return
    written += template.write(path, dataset, own)
    steps = template.next_steps(path, dataset, own)
    click.echo(f"wrote {list_names(map(str, written), 'and')}; next:\n\n{steps}", err=True)


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
