"""The counters of batch norms on the host: right after captures, failures and replays, whoever counts."""

from __future__ import annotations

import torch
from torch import nn

from orchestrator import models
from orchestrator.training.gpu.counters import ReplayCounts, keep_on_host


def test_the_counters_of_all_norms_are_found() -> None:
    model, loss = models.build("resnet_32_8", 10), nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm2d(3, momentum=None))
    counters = keep_on_host([model, loss])
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    # A cumulative average computes with its own; without statistics there is none.
    assert len(counters) == len(norms) + 1
    model.train()(torch.randn(2, 3, 8, 8))
    assert [int(counter) for counter in counters] == [1] * len(norms) + [0]
    assert keep_on_host([nn.BatchNorm2d(3, track_running_stats=False), nn.Linear(1, 1)]) == []


def test_the_layout_of_the_state_stays() -> None:
    model, other = models.build("resnet_32_8", 10), models.build("resnet_32_8", 10)
    keep_on_host([model])
    names = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    assert names == {name: (tensor.shape, tensor.dtype) for name, tensor in other.state_dict().items()}
    model.load_state_dict(other.state_dict())


def test_each_replay_counts_what_the_capture_counted() -> None:
    counters = [torch.tensor(5), torch.tensor(7)]
    counts = ReplayCounts(counters)
    counts.begin_capture()
    counters[0] += 1
    counters[1] += 2  # a norm that is used twice in a step
    counts.end_capture()
    assert [int(counter) for counter in counters] == [5, 7]  # nothing was computed
    for _ in range(3):
        counts.note_replay()
    counts.settle()
    counts.settle()
    assert [int(counter) for counter in counters] == [8, 13]
