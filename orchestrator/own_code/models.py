"""A user's model as one of kdctl's: any module that maps images to logits through a last linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.models.base import Classifier, Outputs
from orchestrator.models.family import Widths
from orchestrator.own_code.loading import OwnCodeError, guard, load
from orchestrator.own_code.source import OwnCode

_SIDE = 32  # pixels of the images that a model's widths are measured with


def build_model(code: OwnCode, num_classes: int) -> Classifier:
    """The user's model for so many classes. Raises OwnCodeError where the user's code raises or returns no module."""
    built = guard(code, lambda: load(code)(num_classes))
    if not isinstance(built, nn.Module):
        raise OwnCodeError(f"{code.file}: {code.attribute} returned {type(built).__name__}; expected a torch.nn.Module")
    return _OwnClassifier(code, built, num_classes)


class _OwnClassifier(Classifier):
    """`own` may have a method `embed` that returns logits, pooled features and a tuple of maps, stem first.

    Of another module the pooled features are the input of the linear layer that runs last, and there are no maps.
    """

    def __init__(self, code: OwnCode, own: nn.Module, num_classes: int) -> None:
        super().__init__()
        self._code = code
        self._classes = num_classes
        self.own = own
        self.widths = self._measure()

    def embed(self, images: Tensor) -> Outputs:
        return guard(self._code, lambda: self._embed(images))  # type: ignore[no-any-return]

    def _embed(self, images: Tensor) -> Outputs:
        embed: Any = getattr(self.own, "embed", None)
        if embed is not None:
            logits, pooled, maps = embed(images)
            return Outputs(logits.float(), pooled.float(), tuple(maps))
        inputs: list[Tensor] = []
        linear = [module for module in self.own.modules() if isinstance(module, nn.Linear)]
        handles = [module.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for module in linear]
        try:
            logits = self.own(images)
        finally:
            for handle in handles:
                handle.remove()
        if not inputs:
            raise self._error("ran no linear layer, whose input would be its pooled features; give it a method `embed`")
        # In float32, as losses compare them with a teacher's.
        return Outputs(logits.float(), inputs[-1].float(), ())

    @torch.no_grad()
    def _measure(self) -> Widths:
        was_training = self.own.training
        outputs = self.eval().embed(torch.zeros(2, 3, _SIDE, _SIDE))
        self.train(was_training)
        logits, pooled = outputs.logits.shape, outputs.pooled.shape
        if logits != (2, self._classes):
            raise self._error(f"gives logits of shape {list(logits)} for 2 images; expected [2, {self._classes}]")
        if len(pooled) != 2:
            raise self._error(f"gives pooled features of shape {list(pooled)} for 2 images; expected [2, F]")
        if any(tensor.dim() != 4 for tensor in outputs.maps):
            raise self._error("gives maps that are not of shape [B, C, H, W]")
        return Widths(tuple(tensor.shape[1] for tensor in outputs.maps), pooled[1])

    def _error(self, message: str) -> OwnCodeError:
        return OwnCodeError(f"{self._code.file}: the model of {self._code.attribute} {message}")
