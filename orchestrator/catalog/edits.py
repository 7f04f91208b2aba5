"""Why trials are new although the study was launched before: an edit of the user's own code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from orchestrator.errors import StorageError
from orchestrator.records import State, TrialConfig
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.study import stored_studies
from orchestrator.study.plan import Plan, PlanState
from orchestrator.text import printable


def describe_edits(storage: Storage, plan: Plan) -> list[str]:
    """A note for each file whose edit alone makes trials new that were finished for the last launch of this study.

    Rows are read only if the plan has new trials with own code, and only those of trials that this plan has no more.
    """
    new = [trial for trial in plan.trials if trial.state is PlanState.NEW and trial.config.own_names()]
    last = stored_studies.read_study(storage, plan.study) if new else None
    if last is None:
        return []
    methods, planned = {trial.config.method for trial in new}, {trial.trial_id for trial in plan.trials}
    dropped = [m.trial_id for m in last.members if m.method in methods and m.trial_id not in planned]
    try:
        rows = [row for row in store.read_trials(storage, dropped) if row.state is State.FINISHED]
    except StorageError:  # a damaged row of a trial that is not planned; commands that need it say so
        return []
    finished = {row.trial_id for row in rows}
    since: dict[str, set[str]] = {}  # the finished trials before an edit of each file
    for version in {tuple(sorted(_list_digests(row.recipe).items())) for row in rows}:
        digests = dict(version)
        edited = {name for name, code in plan.own_code.items() if digests.get(name, code.digest) != code.digest}
        for trial in new:
            names = edited & trial.config.own_names()
            if names and (earlier := _with_digests(trial.config, digests).trial_id()) in finished:
                for name in names:
                    since.setdefault(plan.own_code[name].file, set()).add(earlier)
    return [_describe_edit(file, len(trial_ids)) for file, trial_ids in sorted(since.items())]


def _list_digests(recipe: Mapping[str, Any]) -> dict[str, str]:
    """The version of each file of the user's that a trial was trained with, and its teacher or members."""
    others = [recipe["teacher"]] if recipe.get("teacher") else []
    found: dict[str, str] = {}
    for other in (*others, *(recipe.get("members") or ())):
        found |= _list_digests(other)
    return {**found, **(recipe.get("own_code") or {})}


def _with_digests(config: TrialConfig, digests: Mapping[str, str]) -> TrialConfig:
    """The same trial with other versions of the user's files."""
    teacher = _with_digests(config.teacher, digests) if config.teacher else None
    own_code = tuple((name, digests.get(name, digest)) for name, digest in config.own_code)
    members = tuple(_with_digests(member, digests) for member in config.members)
    return replace(config, own_code=own_code, teacher=teacher, members=members)


def _describe_edit(file: str, count: int) -> str:
    noun = "trial" if count == 1 else "trials"
    return (
        f"note: {printable(file)}, or what it imports from its folder, was edited after {count:,} {noun} of this study "
        "had finished; all trials that use it are new"
    )
