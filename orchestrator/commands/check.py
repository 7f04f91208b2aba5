"""`kdctl check`: every error in a study file at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from orchestrator.commands.shared.options import (
    file_argument,
    json_option,
    note,
    set_option,
    warn,
)
from orchestrator.errors import EXIT_USAGE, Fault, KdctlError, StudyError
from orchestrator.text import masked

if TYPE_CHECKING:
    from orchestrator.study.plan import Plan


@click.command()
@file_argument
@set_option
@json_option
def check(file: str, settings: Sequence[str], as_json: bool) -> None:
    """Check a study FILE and report all errors at once, each with its location and its fix.

    Also runs two training steps, on random images, of each loss and model that is in a file of your own.

    With --json the errors are printed as JSON on standard output. If there are any, the exit code is 2.

    \b
    Examples:
      kdctl check experiments.yaml
      kdctl check experiments.yaml --set recipe.epochs=2
      kdctl check experiments.yaml --json
    """
    from orchestrator.columns import width_of, wrapped
    from orchestrator.study.plan import make_plan
    from orchestrator.study.reader import load_study

    try:
        study = load_study(file, settings, open_inputs=True, on_note=note)
        plan = make_plan(study)
        if faults := _rehearse(plan):
            raise StudyError(faults)
    except StudyError as error:
        if not as_json:
            raise KdctlError(
                wrapped(masked(str(error)), width_of(sys.stderr))
            ) from None  # masked before a line break can split a secret
        click.echo(_format_json(file, None, 0, error.faults, ()))
        sys.exit(EXIT_USAGE)
    if as_json:
        click.echo(_format_json(file, study.name, len(plan.trials), (), study.warnings))
        return
    warn(study.warnings)
    click.echo(wrapped(f"{file}: study {study.name} is valid, {len(plan.trials)} trials", width_of(sys.stdout)))


def _rehearse(plan: Plan) -> list[Fault]:
    """What is wrong with the user's own losses and models: two steps of each are tried, with each pair of models."""
    found: dict[str, None] = {}
    tried = set()
    for config in (trial.config for trial in plan.trials if trial.config.own_names() and not trial.config.members):
        teacher = config.teacher.student if config.teacher else None
        what = (config.method, config.options, config.own_code, config.student, teacher, config.dataset, config.folder)
        if what not in tried:
            tried.add(what)
            from orchestrator.execution.rehearsal import rehearse  # torch, which other studies need not wait for

            try:
                rehearse(config)
            except KdctlError as error:
                found[str(error)] = None
    return [Fault(plan.source, 0, 0, "", message) for message in found]


def _format_json(file: str, study: str | None, trials: int, faults: Sequence[Fault], warnings: Sequence[Fault]) -> str:
    facts = {"file": masked(file), "good": not faults, "study": study, "trials": trials}
    found = {"faults": [fault.to_json() for fault in faults], "warnings": [fault.to_json() for fault in warnings]}
    return json.dumps({**facts, **found}, indent=1, ensure_ascii=False)
