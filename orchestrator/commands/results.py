"""`kdctl results`: the result tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from orchestrator.commands.shared import colours
from orchestrator.commands.shared.options import set_option, storage_option, study_argument, warn
from orchestrator.results.output_formats import ResultsFormat

if TYPE_CHECKING:
    from orchestrator.catalog.lookup import Found
    from orchestrator.storage.layout import Storage


@click.command()
@study_argument
@storage_option
@set_option
@click.option(
    "--format", "form", type=click.Choice([form.value for form in ResultsFormat]), default="table", show_default=True,
    help="Output format.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--runs", is_flag=True, help="Also list the individual runs, in the columns of the published tables.")
def results(study: str | None, storage: str, settings: Sequence[str], form: str, as_json: bool, runs: bool) -> None:
    """Print the result tables of a STUDY, or of every study in the storage.

    STUDY is a study file, or the name of a study that was launched with this storage. The first
    table is that of a paper: one row per method, with the settings in which rows differ, below the
    teacher and base; one column per pair of models and dataset. A cell is the mean and the sample
    standard deviation of the test accuracy in % over (n) finished runs. "best epoch" is the best of
    all epochs; it is optimistic, because the epoch is chosen on the test set. "last epoch" is the
    one after the last epoch. "selected epoch" is that of the epoch that was best on held-out
    training images. The best of each column is marked, and what is not distinguishable from it.

    Sentences say what the study shows: which settings are better than base, which is best, and what is
    not shown to differ, after a correction for the number of comparisons.

    The tables below have what the first one lacks: 95 % intervals of the means, the paired difference to
    base (each run against the base run with the same seed, over (n) seeds), and published figures.
    A table on a terminal has at most 40 rows. json and markdown also contain the individual runs;
    csv has one row per run and no means; latex is the first table alone, for the package booktabs.

    \b
    Examples:
      kdctl results
      kdctl results experiments.yaml --runs
      kdctl results my-digits --format markdown > results.md
      kdctl results my-digits --format latex > table.tex
      kdctl results --json | python -m json.tool
    """
    from orchestrator import columns
    from orchestrator.catalog import integrity, lookup
    from orchestrator.results import store as stored
    from orchestrator.results.tables import render_studies
    from orchestrator.storage.layout import Storage
    from orchestrator.study.stored_studies import Membership, StudyRows

    opened = Storage.at(storage)
    found = None if study is None else lookup.find_study(opened, study, settings)
    membership = None if found else Membership.of(opened)  # before the rows, to which a running launch may add
    rows = stored.read_trials(opened, found.trial_ids if found else None)
    warn(integrity.find_missing(opened, found.trial_ids if found else None))
    if not rows:
        click.echo(_nothing(storage, opened, found), err=True)
    parts = membership.split(rows) if membership else [StudyRows(found.name, tuple(rows))] if found and rows else []
    form = "json" if as_json else form
    text = render_studies(parts, form, runs=runs, width=columns.width_of(sys.stdout))
    click.echo(colours.states(text) if form == "table" else text, nl=False)


def _nothing(storage: str, opened: Storage, found: Found | None) -> str:
    from orchestrator.catalog import lookup

    reason = lookup.describe_other_settings(opened, found) if found else None
    if found and reason:
        return f"{reason}; `kdctl results {found.name}` prints the results of its last launch"
    return f"no trials in {storage}; launch a study first, or name another storage with --storage"
