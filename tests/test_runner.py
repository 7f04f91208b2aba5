"""The executor in this process, and what every executor shares: rows for what failed, resources that can be given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator import results
from orchestrator.errors import ResourceError
from orchestrator.plan import PlannedTrial
from orchestrator.records import EpochRecord, State, TrialConfig, TrialRecord
from orchestrator.runner import Run, described, gpus_of, run_inline
from orchestrator.spec import Resources
from orchestrator.storage import Storage
from orchestrator.trial import Job

ON_CPU = Resources(gpus_per_trial=0)
OPTIONS = {"logit": (("ce_weight", 1.0), ("match", "logits")), "st": (("temperature", 4.0),)}
Make = Callable[..., TrialConfig]
Seen = list[tuple[str, EpochRecord | TrialRecord]]


def student(teacher: TrialConfig, method: str) -> TrialConfig:
    """A sane student of a teacher, which may not be sane."""
    return replace(teacher, method=method, options=OPTIONS[method], lr=0.05, teacher=teacher, teacher_cache="live")


def run(storage: Storage, *configs: TrialConfig, ready: frozenset[str] = frozenset()) -> Seen:
    """Runs trials in this process; returns what the watcher was told."""
    jobs = []
    for no, config in enumerate(configs, 1):
        teacher_id = config.teacher.trial_id() if config.teacher else None
        trial = PlannedTrial(config.trial_id(), "student", config, teacher_id, "new", config.teacher_cache, None)
        jobs.append(Job(trial, no, "tiny", str(storage.root), 1, None, None, None))
    seen: Seen = []
    run_inline(Run(jobs, ready, storage, ON_CPU), lambda job, record: seen.append((job.trial.trial_id, record)), print)
    return seen


def small(make_config: Make, **overrides: object) -> TrialConfig:
    """A trial of two steps an epoch."""
    return make_config(limit_train=64, limit_test=50, **overrides)


def test_a_tiny_study_becomes_rows(storage: Storage, make_config: Make) -> None:
    teacher = small(make_config, seed=1)
    configs = [student(teacher, "st"), teacher, small(make_config), student(teacher, "logit")]
    seen = run(storage, *configs)
    rows = {row.trial_id: row for row in results.read_trials(storage)}
    assert {config.trial_id() for config in configs} == set(rows)
    assert all(row.state is State.FINISHED and row.error is None for row in rows.values())
    assert all(storage.weights(trial_id).is_file() for trial_id in rows)
    assert [rows[config.trial_id()].no for config in configs] == [1, 2, 3, 4]
    assert rows[configs[0].trial_id()].teacher_acc == rows[teacher.trial_id()].last_acc
    # Each trial: an epoch, then its end; nobody waits longer than for a teacher.
    order = [configs[1], configs[0], configs[2], configs[3]]
    assert [trial_id for trial_id, _ in seen] == [config.trial_id() for config in order for _ in range(2)]
    assert [type(record) for _, record in seen] == [EpochRecord, TrialRecord] * 4
    assert [row["trial_id"] for row in results.read_epochs(storage)] == sorted(rows)


def test_a_failed_teacher_skips_its_students_alone(storage: Storage, make_config: Make) -> None:
    teacher = small(make_config, lr=1e6, epochs=5)
    pupil = student(teacher, "logit")
    pupils_pupil = student(pupil, "st")  # no study file asks for such a chain, but a row must not be missing
    seen = run(storage, teacher, pupil, pupils_pupil, small(make_config))
    ended = {trial_id: record for trial_id, record in seen if isinstance(record, TrialRecord)}
    states = [ended[config.trial_id()].state for config in (teacher, pupil, pupils_pupil, small(make_config))]
    assert states == [State.FAILED, State.SKIPPED, State.SKIPPED, State.FINISHED]
    failed, skipped, last, _ = (ended[trial.trial_id()] for trial in (teacher, pupil, pupils_pupil, small(make_config)))
    assert failed.error and "try a smaller lr than 1e+06" in failed.error
    assert skipped.error == f"its teacher {teacher.trial_id()} failed: {failed.error}"
    assert last.error == f"its teacher {pupil.trial_id()} skipped: {skipped.error}"
    assert {row.trial_id: row for row in results.read_trials(storage)} == ended


def test_a_student_of_a_finished_teacher_starts_at_once(storage: Storage, make_config: Make) -> None:
    teacher = small(make_config)
    run(storage, teacher)
    seen = run(storage, student(teacher, "logit"), ready=frozenset([teacher.trial_id()]))
    assert isinstance(seen[-1][1], TrialRecord) and seen[-1][1].state is State.FINISHED


def test_a_stop_is_not_a_failed_trial(storage: Storage, make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(job: Job) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.runner.run_trial", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(storage, small(make_config))
    assert results.read_trials(storage) == []


NODES = [{"CPU": 2.0}, {"CPU": 8.0, "GPU": 4.0}]


@pytest.mark.parametrize(
    ("resources", "nodes", "gpus"),
    [
        (Resources(), [{"CPU": 2.0}], 0.0),
        (Resources(), [{"CPU": 2.0, "GPU": 0.0}], 0.0),
        (Resources(), NODES, 1.0),
        (Resources(0.5, 8), NODES, 0.5),
        (Resources(4), NODES, 4.0),
        (Resources(0, 2), NODES, 0.0),
    ],
)
def test_gpus_are_what_was_asked_or_what_there_is(
    resources: Resources, nodes: list[dict[str, float]], gpus: float
) -> None:
    assert gpus_of(resources, nodes) == gpus


@pytest.mark.parametrize(
    ("resources", "nodes", "numbers"),
    [
        (Resources(5), NODES, "5 GPUs and 1 CPU cores, but no machine here has more than 4 GPUs and 8 cores"),
        (Resources(0, 9), NODES, "0 GPUs and 9 CPU cores, but no machine here has more than 4 GPUs and 8 cores"),
        (Resources(1), [{"CPU": 2.0}], "1 GPUs and 1 CPU cores, but no machine here has more than 0 GPUs and 2 cores"),
        # Each is somewhere, but not both on one machine.
        (Resources(1, 4), [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 8.0}], "1 GPUs and 4 CPU cores"),
        (Resources(), [], "0 GPUs and 1 CPU cores"),
    ],
)
def test_what_can_never_be_given_is_refused(resources: Resources, nodes: list[dict[str, float]], numbers: str) -> None:
    with pytest.raises(ResourceError) as caught:
        gpus_of(resources, nodes)
    assert numbers in str(caught.value)
    assert "--set resources.gpus_per_trial=0 --set resources.cpus_per_trial=1" in str(caught.value)


def test_impossible_resources_train_nothing(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ResourceError, match="2 GPUs"):
        run_inline(Run([], frozenset(), storage, Resources(2)), lambda job, record: None, print)


def test_it_is_said_what_a_trial_trains_on() -> None:
    assert described(0.5, Resources(), "here") == "each trial trains on 0.5 GPU, here"
    assert described(0, Resources(None, 3), "here") == "no GPU is used: each trial trains on 3 CPU core(s), here"
