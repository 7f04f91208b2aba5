"""All weights of a model in a compute dtype, rounded in one kernel; autocast takes a kernel for each weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def embed_rounded(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Any:
    """What `model.embed` returns under autocast, with equal gradients.

    Every convolution of the model has to run under autocast, as it gets weights that are rounded already. Where two
    share a weight, its gradients are added before they are float32 again.
    """
    weights = {
        f"model.{module_name}.{name}": parameter
        for module_name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        for name, parameter in module.named_parameters(recurse=False)
    }
    rounded = _Rounded.apply(dtype, *weights.values())
    return functional_call(_Embedding(model), dict(zip(weights, rounded, strict=True)), (images,))


class _Embedding(nn.Module):
    """A module whose call is `embed`, the only method of a model that `functional_call` can call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        return self.model.embed(images)  # type: ignore[operator]


class _Rounded(torch.autograd.Function):
    """Tensors in another dtype; gradients come back in that of the tensors."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Rounds them."""
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        ctx.set_materialize_grads(False)  # a weight without gradient stays without
        return tuple(_copy(tensors, [dtype] * len(tensors)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Converts the gradients."""
        given = [
            (gradient, dtype) for gradient, dtype in zip(gradients, ctx.dtypes, strict=True) if gradient is not None
        ]
        copies = iter(_copy([gradient for gradient, _ in given], [dtype for _, dtype in given]))
        return None, *(None if gradient is None else next(copies) for gradient in gradients)


def _copy(tensors: Any, dtypes: list[torch.dtype]) -> list[Tensor]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies
