"""Batch norms count their batches, which no result depends on: a kernel of each in every step on a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def keep_on_host(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Moves the counters of all batch norms to the host, where the step adds to them as before; returns them.

    One that a batch norm computes with stays: that of a cumulative average.
    """
    counters = []
    for module in modules:
        for norm in module.modules():
            if isinstance(norm, _BatchNorm) and norm.num_batches_tracked is not None and norm.momentum is not None:
                norm.num_batches_tracked = norm.num_batches_tracked.cpu()
                counters.append(norm.num_batches_tracked)
    return counters


class ReplayCounts:
    """What replays of a graph would have added to counters on the host, which a graph does not know."""

    def __init__(self, counters: Sequence[Tensor]) -> None:
        self._counters = counters
        self._added = [0] * len(counters)  # by each replay
        self._before: list[int] = []
        self._replays = 0

    def begin_capture(self) -> None:
        """Remembers the counts before a capture."""
        self._before = [int(counter) for counter in self._counters]

    def end_capture(self) -> None:
        """Takes back what the capture counted, as it only records the step: each replay adds it."""
        self._added = [int(counter) - before for counter, before in zip(self._counters, self._before, strict=True)]
        for counter, before in zip(self._counters, self._before, strict=True):
            counter.fill_(before)

    def note_replay(self) -> None:
        """Notes that the graph was replayed."""
        self._replays += 1

    @torch.no_grad()
    def settle(self) -> None:
        """Adds what the replays since the last call would have added."""
        for counter, added in zip(self._counters, self._added, strict=True):
            counter += added * self._replays
        self._replays = 0
