"""The resources of a trial, and the error if no machine has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workloads import Make

from orchestrator.errors import ResourceError
from orchestrator.execution._resources import Shares, describe_resources, gpus_per_trial
from orchestrator.execution.job import Job
from orchestrator.study.plan import PlannedTrial
from orchestrator.study.values import Resources

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
def test_gpus_are_those_of_the_study_or_of_the_nodes(
    resources: Resources, nodes: list[dict[str, float]], gpus: float
) -> None:
    assert gpus_per_trial(resources, nodes) == gpus


@pytest.mark.parametrize(
    ("resources", "nodes", "numbers"),
    [
        (Resources(5), NODES, "5 GPUs and 1 CPU cores, but no machine here has more than 4 GPUs and 8 cores"),
        (Resources(0, 9), NODES, "0 GPUs and 9 CPU cores, but no machine here has more than 4 GPUs and 8 cores"),
        (Resources(1), [{"CPU": 2.0}], "1 GPUs and 1 CPU cores, but no machine here has more than 0 GPUs and 2 cores"),
        # Each is available, but not both on one machine.
        (Resources(1, 4), [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 8.0}], "1 GPUs and 4 CPU cores"),
        (Resources(), [], "0 GPUs and 1 CPU cores"),
    ],
)
def test_resources_that_no_node_has_are_refused(
    resources: Resources, nodes: list[dict[str, float]], numbers: str
) -> None:
    with pytest.raises(ResourceError) as caught:
        gpus_per_trial(resources, nodes)
    assert numbers in str(caught.value)
    assert "--set resources.gpus_per_trial=0 --set resources.cpus_per_trial=1" in str(caught.value)


def test_the_resources_of_a_trial_are_described() -> None:
    assert describe_resources(0.5, Resources(), "here") == "each trial trains on 0.5 GPU, here"
    assert describe_resources(0, Resources(), "here") == "no GPU is used: trials share the CPU cores, here"
    assert (
        describe_resources(0, Resources(None, 3), "here") == "no GPU is used: each trial trains on 3 CPU core(s), here"
    )


# The share of each running trial.

MakeJob = Callable[..., Job]


@pytest.fixture(scope="session")
def make_job(make_config: Make) -> MakeJob:
    """Makes a job with a number, which is its id, and the given fields."""

    def make(number: int, batch_size: int = 128, **fields: object) -> Job:
        trial = PlannedTrial(f"t{number}", "student", make_config(batch_size=batch_size), None, "new", None, None)
        return replace(Job(trial, number, "study", "nowhere", 1, None, None, None), **fields)

    return make


def start_all(shares: Shares, jobs: list[Job]) -> list[Job]:
    """Starts as many of these trials as there is room for, while none of the others waits for anything."""
    started = []
    while len(started) < len(jobs) and shares.has_room:
        started.append(shares.assign(jobs[len(started)]))
    return started


@pytest.mark.parametrize(
    ("cores", "trials", "threads"),
    [
        ([16], 4, 4),  # four teachers leave no core idle
        ([16], 1, 16),
        ([2], 5, 1),
        ([4], 3, 1),
        ([8, 8], 4, 4),
        ([2, 8], 1, 8),  # one trial trains on one machine
        ([2, 8], 3, 3),
        ([1], 3, 1),
    ],
)
def test_cores_are_divided_among_the_trials_that_can_run_together(
    make_job: MakeJob, cores: list[int], trials: int, threads: int
) -> None:
    started = start_all(Shares(cores, None), [make_job(number, peers=trials) for number in range(trials)])
    assert {job.threads for job in started} == {threads}
    assert len(started) == min(trials, sum(cores))


@pytest.mark.parametrize(("batch_size", "threads"), [(128, 16), (64, 8), (16, 2), (8, 1), (1, 1)])
def test_a_small_batch_gets_few_threads(make_job: MakeJob, batch_size: int, threads: int) -> None:
    assert Shares([16], None).assign(make_job(0, batch_size)).threads == threads


def test_a_limit_leaves_more_cores_to_each(make_job: MakeJob) -> None:
    started = start_all(Shares([16], None, at_most=2), [make_job(number, peers=9) for number in range(9)])
    assert [job.threads for job in started] == [8, 8]


def test_threads_do_not_depend_on_what_else_runs(make_job: MakeJob) -> None:
    shares, alone = Shares([4], None), Shares([4], None)
    first, second = shares.assign(make_job(0, peers=3)), shares.assign(make_job(1, peers=1))
    assert (first.threads, second.threads) == (1, 4) == (1, alone.assign(make_job(1, peers=1)).threads)
    assert not shares.has_room


def test_a_fixed_number_of_cores_is_given_to_each_trial(make_job: MakeJob) -> None:
    shares = Shares([7, 3], 3)
    assert shares.most == 3
    started = start_all(shares, [make_job(number, batch_size=1) for number in range(9)])
    assert [job.threads for job in started] == [3, 3, 3]


def test_the_cores_of_a_trial_that_ended_are_free_again(make_job: MakeJob) -> None:
    shares = Shares([4], None)
    assert len(start_all(shares, [make_job(number, peers=9) for number in range(9)])) == 4
    assert not shares.has_room
    shares.release_others({"t2"})
    assert len(start_all(shares, [make_job(number, peers=9) for number in range(4, 9)])) == 3


def test_trials_are_spread_over_the_gpus(make_job: MakeJob) -> None:
    started = start_all(Shares([2, 2, 2], 1), [make_job(number, gpus=0.5) for number in range(9)])
    assert [job.gpu for job in started] == [0, 1, 2, 0, 1, 2]
    assert {job.threads for job in started} == {1}


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.none() | st.integers(1, 3), st.data())
def test_no_core_stays_idle_while_a_trial_could_start(
    make_job: MakeJob, cores: list[int], per_trial: int | None, data: st.DataObject
) -> None:
    at_most = data.draw(st.none() | st.integers(1, 9), "at most")
    shares, running = Shares(cores, per_trial, at_most), dict[int, int]()
    for number in range(12):
        if shares.has_room:
            job = make_job(number, batch_size=10_000, peers=data.draw(st.integers(0, 12), "peers"))
            running[number] = shares.assign(job).threads
            assert 1 <= running[number] <= max(*cores, per_trial or 1)
        elif len(running) < shares.most:
            assert per_trial or sum(running.values()) >= sum(cores), "a core is free, and no trial may start"
        assert len(running) <= shares.most <= max(1, at_most or sum(cores))
        assert per_trial is None or sum(running.values()) <= max(sum(cores), per_trial)
        for ended in data.draw(st.sets(st.sampled_from(sorted(running))) if running else st.just(set()), "ended"):
            del running[ended]
        shares.release_others({f"t{number}" for number in running})
