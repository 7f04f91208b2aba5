"""A learning rate that falls at milestones, as in the published recipe (arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.records import TrialConfig


def build(config: TrialConfig, *, warmup: int) -> Callable[[int, int], float]:
    """A factor that rises to 1 in `warmup` epochs; then gamma to the power of the number of milestones that passed."""

    def compute_factor(step: int, steps_per_epoch: int) -> float:
        passed = step // steps_per_epoch
        if passed < warmup:
            return (step + 1) / (warmup * steps_per_epoch)
        return config.gamma ** sum(milestone <= passed for milestone in config.milestones)

    return compute_factor
