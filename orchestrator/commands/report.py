"""`kdctl report`: write a study's report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.commands.shared.options import set_option, storage_option, study_argument, warn
from orchestrator.results.output_formats import ReportFormat

if TYPE_CHECKING:
    from orchestrator.report.content import Facts
    from orchestrator.storage.layout import Storage


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
def report(study: str | None, storage: str, settings: Sequence[str], output: str | None, form: str) -> None:
    """Write a study's report: one self-contained HTML file, or Markdown with its figures next to it.

    STUDY is a study file or a study's name; without it, the study that was launched last. The study may still be
    running. Prints the path of the report. An existing report is replaced; any other file is not.

    \b
    Examples:
      kdctl report
      kdctl report experiments.yaml --output resnet.html
      kdctl report digits --storage s3://bucket/runs
      kdctl report --format markdown --output docs/results.md
    """
    from orchestrator.catalog import integrity, lookup
    from orchestrator.machine.paths import local
    from orchestrator.report.page import render, write
    from orchestrator.report.sections import describe_progress
    from orchestrator.storage.layout import Storage

    suffix = ReportFormat(form).suffix
    path = local(output, "--output") if output is not None else Path(f"report{suffix}")
    if path.suffix != suffix:
        raise click.UsageError(
            f"--output {path} must end in {suffix} for --format {form}; rename it, or choose the other --format"
        )
    opened = Storage.at(storage)
    facts: Facts = _gather_facts(study, opened, settings)
    warn(integrity.find_missing(opened, [member.trial_id for member in facts.members]))
    write(path.parent, render(facts, form, path.stem))
    click.echo(f"study {facts.name}: {describe_progress(facts)}", err=True)
    if not facts.rows and (reason := lookup.describe_other_settings(opened, lookup.Found(facts.name, facts.members))):
        click.echo(f"{reason}; `kdctl report {facts.name}` writes the report of its last launch", err=True)
    click.echo(path)


def _gather_facts(study: str | None, storage: Storage, settings: Sequence[str]) -> Facts:
    """The facts about a study file, a study by name, the last study, or a storage without any study."""
    from datetime import UTC, datetime

    from orchestrator.catalog import lookup
    from orchestrator.machine import commits
    from orchestrator.machine.paths import word
    from orchestrator.report import content
    from orchestrator.study import stored_studies

    now = datetime.now(UTC)
    if study is None:
        if settings:
            raise click.UsageError("--set overrides a key of a study file; name the file, or remove --set")
        last = next(iter(stored_studies.list_studies(storage)), None)
        if last is None:
            return content.gather(storage, "everything in the storage", None, None, now)
        return content.gather(storage, last.name, last.members, content.Source.of(last), now)
    found = lookup.find_study(storage, study, settings)
    if found.text is not None:
        words = [word for setting in settings for word in ("--set", setting)]
        command = ("kdctl", "launch", word(study), *words)
        source = content.Source(command, found.text, None, None, commits.of_file(Path(study)))
    else:
        source = content.Source.of(stored_studies.find(storage, study))
    return content.gather(storage, found.name, found.members, source, now)
