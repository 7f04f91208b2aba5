"""A fixed scale for the loss of a training in float16, whose smallest number is too large for many gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

_SCALE = 1024.0  # gradients of up to 64 fit; those of a mean over a batch are a thousandth of that


class LossScaling:
    """Gradients are computed of the loss times `scale`, and divided by it before they are used.

    The optimizer skips a step whose gradients are not finite, which `found` says then. The scale is a power of two, so
    that multiplying by it rounds nothing.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self.scale = torch.full((), _SCALE, device=device)
        self._inverse = 1 / self.scale
        self.found = torch.zeros((), device=device)  # 1 where a gradient of the last step was not finite
        optimizer.found_inf = self.found  # type: ignore[attr-defined]  # what PyTorch's fused optimizers look for
        for group in optimizer.param_groups:
            if group.get("momentum"):  # SGD's first step would leave its buffers unset if it is skipped
                for parameter in group["params"]:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def unscale(self, gradients: Iterable[Tensor | None]) -> None:
        """Divides the gradients by the scale and finds out whether all are finite; does not wait for the device."""
        self.found.zero_()
        scaled = [gradient for gradient in gradients if gradient is not None]
        torch._amp_foreach_non_finite_check_and_unscale_(scaled, self.found, self._inverse)
