"""Small workloads for executors: jobs as a launch makes them, and a listener."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from orchestrator.execution.job import Job
from orchestrator.monitor.events import Event, EventKind, EventListener
from orchestrator.records import EpochRecord, TrialConfig, TrialRecord
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Lease, acquire
from orchestrator.study.plan import PlannedTrial
from orchestrator.study.values import Resources

# Settings of a launch that make the demo, and the study that `kdctl init` writes, a matter of seconds.
SMALL_DEMO = (
    *("recipe.epochs=1", "recipe.limit_train=64", "recipe.limit_test=50"),
    *("experiments[1].teacher.epochs=1", "experiments[1].teacher.limit_train=64"),
)
ON_CPU = Resources(gpus_per_trial=0, cpus_per_trial=1)
OPTIONS = {"logit": (("ce_weight", 1.0), ("match", "logits")), "st": (("temperature", 4.0),)}
Make = Callable[..., TrialConfig]
Reported = list[tuple[str, EpochRecord | TrialRecord]]


def student(teacher: TrialConfig, method: str) -> TrialConfig:
    """A student that trains well, of a teacher that may not."""
    return replace(teacher, method=method, options=OPTIONS[method], lr=0.05, teacher=teacher, teacher_cache="live")


def jobs_of(storage: Storage, *configs: TrialConfig) -> list[Job]:
    """Jobs as a launch makes them."""
    jobs = []
    for no, config in enumerate(configs, 1):
        teacher_id = config.teacher.trial_id() if config.teacher else None
        trial = PlannedTrial(config.trial_id(), "student", config, teacher_id, "new", config.teacher_cache, None)
        jobs.append(Job(trial, no, "tiny", storage.backend.address, 1, None, None, None))
    return jobs


def take(storage: Storage, resource: str) -> Lease:
    """Acquires a lease that nobody holds yet."""
    lease = acquire(storage, resource)
    assert lease
    return lease


def listen(
    on_record: Callable[[str, EpochRecord | TrialRecord], None], on_text: Callable[[str], None] = print
) -> EventListener:
    """A listener that passes records to `on_record` and the text of other events, except starts, to `on_text`."""

    def on_event(event: Event) -> None:
        if isinstance(event.facts, EpochRecord | TrialRecord):
            assert event.trial
            on_record(event.trial.trial_id, event.facts)
        elif event.kind is not EventKind.STARTED:
            on_text(f"{event.trial.trial_id} {event.trial.title()}: {event.text}" if event.trial else event.text)

    return on_event
