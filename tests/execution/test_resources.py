"""The resources of a trial, and the error if no machine has them."""

from __future__ import annotations

import pytest

from orchestrator.errors import ResourceError
from orchestrator.execution._resources import describe_resources, gpus_per_trial
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
    assert (
        describe_resources(0, Resources(None, 3), "here") == "no GPU is used: each trial trains on 3 CPU core(s), here"
    )
