"""A learning rate that falls along a straight line, after a linear warm-up."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.records import TrialConfig


def build(config: TrialConfig, *, warmup: int) -> Callable[[int, int], float]:
    """A factor that rises to 1 in `warmup` epochs, then falls to 0, by the same amount each step."""

    def compute_factor(step: int, steps_per_epoch: int) -> float:
        rising, total = warmup * steps_per_epoch, config.epochs * steps_per_epoch
        return (step + 1) / rising if step < rising else (total - step) / (total - rising)

    return compute_factor
