"""From a study file to its finished rows: what `kdctl launch` does, as functions for a notebook."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import results
from orchestrator.plan import Plan, make_plan
from orchestrator.records import State, TrialRecord
from orchestrator.spec import load_study
from orchestrator.storage import Storage

if TYPE_CHECKING:
    from orchestrator.trial import Job

DEFAULT_STORAGE = "runs"
DEFAULT_DATA = "data"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A study after its launch: every row of it, and how many trials this launch finished."""

    plan: Plan
    rows: tuple[TrialRecord, ...]
    trained: int

    @property
    def is_complete(self) -> bool:
        """Whether every trial is finished."""
        return len(self.rows) == len(self.plan.trials) and all(row.state is State.FINISHED for row in self.rows)


def look(study_file: str | Path, storage: str | Path = DEFAULT_STORAGE, settings: Sequence[str] = ()) -> Plan:
    """The plan of a study file beside what its storage holds. Raises StudyError; writes nothing."""
    place = Storage.at(storage)
    study = load_study(study_file, settings)
    trial_ids = [trial.trial_id for trial in make_plan(study).trials]  # a storage may hold many other studies
    return make_plan(study, results.read_states(place, trial_ids), list(place.tables()))


def launch(
    study_file: str | Path,
    *,
    data: str | Path = DEFAULT_DATA,
    storage: str | Path = DEFAULT_STORAGE,
    address: str | None = None,
    inline: bool = False,
    settings: Sequence[str] = (),
    max_concurrent: int | None = None,
    quiet: bool = False,
) -> Outcome:
    """Trains what is not finished of a study; a file launched again trains only what is left.

    Raises StudyError, DataError, StorageError or ResourceError before anything is trained, and Interrupted after
    Ctrl-C. A trial that fails raises nothing: it is a row. Progress goes to standard error unless `quiet`.
    """
    from orchestrator import data as datasets  # imports torch, which a faulty study file need not wait for
    from orchestrator.progress import Progress
    from orchestrator.runner import Run, run_inline

    place = Storage.at(storage)
    plan = look(study_file, storage, settings)
    to_do = [trial for trial in plan.trials if trial.state != "finished"]
    progress = Progress(len(plan.trials), len(plan.trials) - len(to_do), quiet=quiet)
    for warning in plan.warnings:
        progress.say(warning)
    if to_do:
        place.prepare()
        for name in sorted({trial.config.dataset for trial in to_do}):
            datasets.prepare(name, Path(data), place)
        ready = frozenset(trial.trial_id for trial in plan.trials if trial.state == "finished")
        run = Run(_jobs(plan, place), ready, place, plan.resources, max_concurrent, address)
        if inline:
            run_inline(run, progress.watch, progress.say)
        else:
            from orchestrator.ray_runner import run_ray  # Ray takes seconds to import

            run_ray(run, progress.watch, progress.say)
    rows = results.read_trials(place, [trial.trial_id for trial in plan.trials])
    tried = {trial.trial_id for trial in to_do}
    trained = sum(row.trial_id in tried and row.state is State.FINISHED for row in rows)
    return Outcome(plan, tuple(rows), trained)


def _jobs(plan: Plan, storage: Storage) -> list[Job]:
    from orchestrator.trial import Job

    commit = _git_commit(Path(plan.source).absolute().parent)
    return [
        Job(
            trial=trial,
            no=no,
            study=plan.study,
            storage=str(storage.root),
            threads=plan.resources.cpus_per_trial,
            weights=_absolute(plan.weights.get(trial.config.weights or "")),
            git_commit=commit,
            ray_version=None,
        )
        for no, trial in enumerate(plan.trials, 1)
        if trial.state != "finished"
    ]


def _absolute(path: str | None) -> str | None:
    return str(Path(path).absolute()) if path else None  # a worker runs in another folder


def _git_commit(folder: Path) -> str | None:
    """The commit that the study file's repository stands at."""
    try:
        command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
