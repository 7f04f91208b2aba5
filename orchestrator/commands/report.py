"""`kdctl report`: write a study's report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from orchestrator.commands.shared.options import set_option, storage_option, study_argument, warn
from orchestrator.results.output_formats import ReportFormat


@click.command()
@study_argument
@storage_option
@set_option
@click.option(
    "--output", metavar="FILE",
    help="File to write; default: report.html or report.md in this folder.",
)  # fmt: skip
@click.option(
    "--format", "form", type=click.Choice([form.value for form in ReportFormat]), default="html", show_default=True,
    help="One HTML file, or Markdown with SVG figures next to it.",
)  # fmt: skip
@click.option(
    "--figures", metavar="DIR",
    help="Also write each figure as SVG, PDF and PNG into this folder, as wide as a column of a paper.",
)  # fmt: skip
def report(
    study: str | None, storage: str, settings: Sequence[str], output: str | None, form: str, figures: str | None
) -> None:
    """Write a study's report: one self-contained HTML file, or Markdown with its figures next to it.

    STUDY is a study file or a study's name; without it, the study that was launched last. The study may still be
    running. Prints the path of the report. Files of earlier reports are replaced, no others.

    \b
    Examples:
      kdctl report
      kdctl report experiments.yaml --output resnet.html
      kdctl report digits --storage s3://bucket/runs
      kdctl report --format markdown --output docs/results.md
      kdctl report --figures paper/figures
    """
    from orchestrator.catalog import integrity, lookup
    from orchestrator.machine.paths import local
    from orchestrator.report import content
    from orchestrator.report.figures import render_files
    from orchestrator.report.page import render, write
    from orchestrator.report.sections import describe_progress
    from orchestrator.storage.layout import Storage

    suffix = ReportFormat(form).suffix
    path = local(output, "--output") if output is not None else Path(f"report{suffix}")
    if path.suffix != suffix:
        raise click.UsageError(
            f"--output {path} must end in {suffix} for --format {form}; rename it, or choose the other --format"
        )
    if study is None and settings:
        raise click.UsageError("--set overrides a key of a study file; name the file, or remove --set")
    folder = local(figures, "--figures") if figures is not None else None
    opened = Storage.at(storage)
    facts = content.find_facts(opened, study, settings)
    warn(integrity.find_missing(opened, [member.trial_id for member in facts.members]))
    write(path.parent, render(facts, form, path.stem))
    if folder is not None:
        files = render_files(facts)
        write(folder, files)
        click.echo(f"{len(files)} files of figures in {folder}", err=True)
    click.echo(f"study {facts.name}: {describe_progress(facts)}", err=True)
    if not facts.rows and (reason := lookup.describe_other_settings(opened, lookup.Found(facts.name, facts.members))):
        click.echo(f"{reason}; `kdctl report {facts.name}` writes the report of its last launch", err=True)
    click.echo(path)
