"""Adam with decoupled weight decay (arXiv 1711.05101)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW


def build(
    parameters: Iterable[Parameter],
    *,
    lr: float | Tensor,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> AdamW:
    """Torch's AdamW, in one kernel for all parameters; on a GPU its step count is in GPU memory too."""
    capturable = isinstance(lr, Tensor)
    optimizer = AdamW(
        parameters,
        lr=0.0,
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=weight_decay,
        fused=True,
        capturable=capturable,
    )
    optimizer.param_groups[0]["lr"] = lr  # not given above, where its check would wait for a GPU
    return optimizer
