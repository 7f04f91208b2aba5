"""A learning rate that falls along half a cosine (arXiv 1608.03983, without restarts), after a linear warm-up."""

from __future__ import annotations

import math
from collections.abc import Callable

from orchestrator.records import TrialConfig


def build(config: TrialConfig, *, warmup: int, floor: float) -> Callable[[int, int], float]:
    """A factor that rises to 1 in `warmup` epochs, by the same amount each step, then falls to `floor`."""

    def compute_factor(step: int, steps_per_epoch: int) -> float:
        rising, total = warmup * steps_per_epoch, config.epochs * steps_per_epoch
        if step < rising:
            return (step + 1) / rising
        share = (step - rising) / (total - rising)
        return floor + (1 - floor) * (1 + math.cos(math.pi * share)) / 2

    return compute_factor
