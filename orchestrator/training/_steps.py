"""A learning rate that falls at milestones, as in the published recipe (arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.records import TrialConfig


def build(config: TrialConfig) -> Callable[[int, int], float]:
    """A factor of gamma to the power of the number of milestones that have passed."""

    def compute_factor(step: int, steps_per_epoch: int) -> float:
        passed = step // steps_per_epoch
        return config.gamma ** sum(milestone <= passed for milestone in config.milestones)

    return compute_factor
