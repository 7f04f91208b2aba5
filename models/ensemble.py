"""An ensemble: a model whose logits are the mean of those of its members."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from orchestrator.models.base import Classifier, Outputs
from orchestrator.models.family import Widths


class Ensemble(Classifier):
    """The mean of the logits of some models. It has no features: those of its members cannot be compared."""

    widths = Widths((), 0)

    def __init__(self, members: Iterable[Classifier]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def embed(self, images: Tensor) -> Outputs:
        logits = self.embed_members(images).mean(0)
        return Outputs(logits, logits.new_empty(len(logits), 0), ())

    def embed_members(self, images: Tensor) -> Tensor:
        """The logits [M, B, C] of M members."""
        return torch.stack([member(images) for member in self.members])
