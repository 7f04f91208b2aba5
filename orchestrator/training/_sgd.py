"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD


def build(
    parameters: Iterable[Parameter], *, lr: float | Tensor, weight_decay: float, momentum: float, nesterov: bool
) -> SGD:
    """Torch's SGD, in one kernel for all parameters; `nesterov` has no effect without momentum."""
    nesterov = nesterov and momentum > 0
    optimizer = SGD(parameters, lr=0.0, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=True)
    optimizer.param_groups[0]["lr"] = lr  # not given above, where its check would wait for a GPU
    return optimizer
