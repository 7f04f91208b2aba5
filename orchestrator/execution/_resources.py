"""The resources that one trial takes, and whether any machine has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.errors import ResourceError
from orchestrator.study.values import Resources


def gpus_per_trial(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> float:
    """The GPUs of one trial. Raises ResourceError if no node has the resources that a trial needs."""
    most_gpus = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    gpus = resources.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if most_gpus >= 1 else 0.0
    if not any(node.get("GPU", 0.0) >= gpus and node.get("CPU", 0.0) >= resources.cpus_per_trial for node in nodes):
        most_cpus = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
        raise ResourceError(
            f"a trial needs {gpus:g} GPUs and {resources.cpus_per_trial} CPU cores, but no machine here has more than "
            f"{most_gpus:g} GPUs and {most_cpus:g} cores; lower them, for example with "
            "--set resources.gpus_per_trial=0 --set resources.cpus_per_trial=1"
        )
    return gpus


def describe_resources(gpus: float, resources: Resources, where: str) -> str:
    """What one trial trains on, as a sentence."""
    if gpus:
        return f"each trial trains on {gpus:g} GPU, {where}"
    return f"no GPU is used: each trial trains on {resources.cpus_per_trial} CPU core(s), {where}"
