"""A planned trial as its worker receives it, on any machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from orchestrator.machine import commits
from orchestrator.monitor.forecast import count_operations
from orchestrator.own_code.source import OwnCode
from orchestrator.records import Failure, State, TrialRecord
from orchestrator.storage.layout import Storage
from orchestrator.study.plan import Plan, PlannedTrial
from orchestrator.study.stored_studies import Launch


@dataclass(frozen=True, slots=True)
class Job:
    """A planned trial with what its worker needs to know of the launch. It travels to the worker as JSON."""

    trial: PlannedTrial
    no: int
    study: str
    storage: str
    threads: int
    weights: str | None  # the file of a teacher that the user brought
    git_commit: str | None
    ray_version: str | None
    launch: str = ""  # the resource of its launch's lease; empty for a trial without a launch
    since: str = ""  # when its launch started, UTC in ISO 8601: rows that ended later come from another launch
    checkpoint_seconds: float = 30.0
    gpus: float = 0.0
    peers: int = 1  # trials of its study with as many teachers in their chain: those that can train beside it
    gpu: int = 0  # the number of its GPU among those that its process sees
    own_code: tuple[OwnCode, ...] = ()  # the user's files that the trial needs

    def row(self, state: State, error: str | None = None, failure: Failure | None = None) -> TrialRecord:
        """The row of the job, without any measurement."""
        config = self.trial.config
        return TrialRecord(
            no=self.no,
            method=config.method,
            dataset=config.dataset,
            student=config.student,
            teacher=config.teacher.student if config.teacher else None,
            start_time=datetime.now(UTC),
            nepoch=config.epochs,
            lr=config.lr,
            batch_size=config.batch_size,
            trial_id=self.trial.trial_id,
            study=self.study,
            state=state,
            error=error,
            failure=failure,
            seed=config.seed,
            teacher_id=self.trial.teacher_id,
            recipe={**config.recipe(), "teacher_answers": self.trial.teacher_cache},
            kdctl_version=version("kdctl"),
            ray_version=self.ray_version,
            git_commit=self.git_commit,
        )


def order_jobs(jobs: Sequence[Job]) -> list[Job]:
    """The order in which jobs start: those that others wait for, then those that take longest, else that of the plan.

    A long trial that starts last would leave the other workers idle until it ends.
    """
    wanted = {trial_id for job in jobs for trial_id in job.trial.waits_for}
    return sorted(jobs, key=lambda job: (job.trial.trial_id not in wanted, -count_operations(job.trial)))


def make_jobs(plan: Plan, to_do: Sequence[PlannedTrial], storage: Storage, launched: Launch) -> list[Job]:
    """The jobs of a launch, in the order of its plan; their numbers are their positions in the plan."""
    chosen = {trial.trial_id for trial in to_do}
    commit = commits.of_folder(Path(plan.source).absolute().parent)
    depths = _find_depths(plan.trials)
    peers = Counter(depths[trial.trial_id] for trial in plan.trials if trial.config.epochs)
    return [
        Job(
            trial=trial,
            no=no,
            study=plan.study,
            storage=storage.backend.address,
            threads=plan.resources.cpus_per_trial or 1,  # `Shares` may give it more
            weights=_absolute(plan.weights.get(trial.config.weights or "")),
            git_commit=commit,
            ray_version=None,
            launch=launched.resource,
            since=launched.since.isoformat(),
            checkpoint_seconds=plan.resources.checkpoint_seconds,
            peers=peers[depths[trial.trial_id]],
            own_code=tuple(plan.own_code[name] for name in sorted(trial.config.own_names())),
        )
        for no, trial in enumerate(plan.trials, 1)
        if trial.trial_id in chosen
    ]


def _find_depths(trials: Sequence[PlannedTrial]) -> dict[str, int]:
    """How many trials each trial waits for, one after another."""
    depths: dict[str, int] = {}
    for trial in trials:  # teachers before their students
        depths[trial.trial_id] = 1 + max((depths[trial_id] for trial_id in trial.waits_for), default=-1)
    return depths


def _absolute(path: str | None) -> str | None:
    return str(Path(path).absolute()) if path else None  # a worker runs in another folder
