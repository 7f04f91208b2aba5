"""Why trials are new although the study was launched before: an edit of the user's own code."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.errors import StorageError
from orchestrator.records import State
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.study import stored_studies
from orchestrator.study.plan import Plan, PlanState
from orchestrator.text import printable


def describe_edits(storage: Storage, plan: Plan) -> list[str]:
    """A note for each file whose edit alone makes trials new that were finished for the last launch of this study.

    Rows are read only if the plan has new trials with own code, and only those of trials that this plan has no more.
    """
    new = [trial for trial in plan.trials if trial.config.own_code and trial.state is PlanState.NEW]
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
    versions = {tuple(sorted((row.recipe.get("own_code") or {}).items())) for row in rows}
    since: dict[str, set[str]] = {}  # the finished trials before an edit of each file
    for trial in new:
        for version in versions:
            earlier = replace(trial.config, own_code=version).trial_id(trial.teacher_id)
            if earlier in finished:
                for name, _ in set(trial.config.own_code) - set(version):
                    since.setdefault(plan.own_code[name].file, set()).add(earlier)
    return [_describe_edit(file, len(trial_ids)) for file, trial_ids in sorted(since.items())]


def _describe_edit(file: str, count: int) -> str:
    noun = "trial" if count == 1 else "trials"
    return (
        f"note: {printable(file)}, or what it imports from its folder, was edited since {count:,} finished {noun} of "
        "this study; its trials are new"
    )
