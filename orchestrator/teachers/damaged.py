"""Finds damaged weights of teachers in a storage before a student learns from them."""

from __future__ import annotations

import hashlib

from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import acquire, trial_resource
from orchestrator.study.plan import Plan, PlanState


def drop_damaged(plan: Plan, storage: Storage) -> list[str]:
    """Removes the weights of teachers that students of the plan need, where their SHA-256 is not the one in the row.

    Returns a sentence for each removed file. A teacher without weights counts as not trained, so the launch trains it
    again.
    """
    needed = {needed for trial in plan.trials if trial.state is not PlanState.FINISHED for needed in trial.waits_for}
    ready = [trial.trial_id for trial in plan.trials if trial.state is PlanState.FINISHED and trial.trial_id in needed]
    removed = []
    for trial_id in ready:
        if _matches_row(trial_id, storage):
            continue
        lease = acquire(storage, trial_resource(trial_id))
        if lease is None:
            continue  # another launch trains it again already
        name = storage.weights(trial_id)
        with lease:
            if not _matches_row(trial_id, storage):
                storage.backend.delete(name)
        removed.append(
            f"{storage.backend.describe(name)} is damaged: its SHA-256 is not the one in its row; this launch trains "
            "the teacher again"
        )
    return removed


def _matches_row(trial_id: str, storage: Storage) -> bool:
    row = store.read_trial(storage, trial_id)
    try:
        found = hashlib.sha256(storage.backend.read(storage.weights(trial_id))).hexdigest()
    except FileNotFoundError:
        return False
    return row is not None and found == row.weights_sha256
