"""What the trials of a launch train with: which resources one needs, and its share of the cores or GPUs there are."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from orchestrator.errors import ResourceError
from orchestrator.execution.job import Job
from orchestrator.study.values import Resources

_IMAGES_PER_THREAD = 8  # of a batch: with fewer, threads wait for each other longer than they work


def gpus_per_trial(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> float:
    """The GPUs of one trial. Raises ResourceError if no node has the resources that a trial needs."""
    most_gpus = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    gpus, cpus = resources.gpus_per_trial, resources.cpus_per_trial or 1
    if gpus is None:
        gpus = 1.0 if most_gpus >= 1 else 0.0
    if not any(node.get("GPU", 0.0) >= gpus and node.get("CPU", 0.0) >= cpus for node in nodes):
        most_cpus = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
        raise ResourceError(
            f"a trial needs {gpus:g} GPUs and {cpus} CPU cores, but no machine here has more than {most_gpus:g} GPUs "
            f"and {most_cpus:g} cores; lower them, for example with --set resources.gpus_per_trial=0 --set "
            "resources.cpus_per_trial=1"
        )
    return gpus


def describe_resources(gpus: float, resources: Resources, where: str) -> str:
    """What one trial trains on, as a sentence."""
    if gpus:
        return f"each trial trains on {gpus:g} GPU, {where}"
    if resources.cpus_per_trial is None:
        return f"no GPU is used: trials share the CPU cores, {where}"
    return f"no GPU is used: each trial trains on {resources.cpus_per_trial} CPU core(s), {where}"


class Shares:
    """The share of each running trial.

    `rooms` are the CPU cores of each machine, or for trials on GPUs how many fit on each of them. A trial gets
    `per_trial` of a room. Where this is None, it gets cores by the study and the number of cores alone, not by what
    else runs when it starts: sums are rounded by the number of threads, and the same launch gives the same numbers.
    """

    def __init__(self, rooms: Sequence[int], per_trial: int | None, at_most: int | None = None) -> None:
        self._rooms = rooms
        self._per_trial = per_trial
        fitting = sum(room // (per_trial or 1) for room in rooms)
        self.most = max(1, min(at_most or fitting, fitting))  # trials at a time
        self._taken: dict[str, tuple[int, int]] = {}  # trial id → the number of its room, and how much of it

    def release_others(self, running: Container[str]) -> None:
        """Frees the shares of all trials but these."""
        self._taken = {trial_id: share for trial_id, share in self._taken.items() if trial_id in running}

    @property
    def has_room(self) -> bool:
        """Whether another trial may start."""
        return len(self._taken) < self.most and max(self._list_free()) >= (self._per_trial or 1)

    def assign(self, job: Job) -> Job:
        """Gives a trial its share, as the number of its threads or of its GPU."""
        free = self._list_free()
        room = free.index(max(free))
        threads = self._per_trial or self._divide_cores(job)
        # It may get more threads than cores are free now, for a while: waiting would leave these idle.
        self._taken[job.trial.trial_id] = room, min(threads, free[room])
        return replace(job, gpu=room) if job.gpus else replace(job, threads=threads)

    def _divide_cores(self, job: Job) -> int:
        """Divides all cores among the trials that can run beside it."""
        together = max(1, min(job.peers, self.most))
        useful = job.trial.config.batch_size // _IMAGES_PER_THREAD
        return max(1, min(sum(self._rooms) // together, max(self._rooms), useful))

    def _list_free(self) -> list[int]:
        free = list(self._rooms)
        for room, amount in self._taken.values():
            free[room] -= amount
        return free
