"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD


def build(parameters: Iterable[Parameter], *, lr: float | Tensor, weight_decay: float, momentum: float) -> SGD:
    """Torch's SGD, in one kernel for all parameters."""
    return SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)
