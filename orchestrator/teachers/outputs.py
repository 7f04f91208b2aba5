"""The ways to get a teacher's outputs for a batch, with one signature (`batches.Teacher`): live or from a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from orchestrator.losses.base import TeacherOutputs
from orchestrator.models.base import Classifier
from orchestrator.training.batches import Batch, EpochOrder


class _NoTeacher:
    ignores_images = True

    def __call__(self, batch: Batch) -> TeacherOutputs:
        return TeacherOutputs()


no_teacher = _NoTeacher()
"""The teacher of methods without a teacher."""


@dataclass(frozen=True)
class LiveTeacher:
    """Runs the teacher on every batch; it is in eval mode and has no gradient."""

    model: Classifier
    needs: tuple[str, ...]

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherOutputs:
        outputs = self.model.embed(batch.images)
        return TeacherOutputs(index=batch.index, **{name: getattr(outputs, name) for name in self.needs})


@dataclass(frozen=True)
class TableTeacher:
    """Looks up the outputs: `table` is float16 [V, N, C] and holds the outputs of one `kind`, `logits` or `pooled`."""

    table: Tensor
    kind: str
    ignores_images: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> TeacherOutputs:
        return TeacherOutputs(index=batch.index, **{self.kind: self.table[batch.view, batch.index].float()})


class HostTable:
    """A table [V, N, C] of float16 that stays on the host, for a device without room for it.

    An epoch uses one row of the table for each image. The rows are looked up while the device still works on the
    previous epoch, and are copied to it together: only [N, C] values of each trial are on the device.
    """

    ignores_images = True

    def __init__(self, table: Tensor, kind: str, device: torch.device) -> None:
        self.table = table
        self.kind = kind
        self._next = torch.empty(0)
        self._now = torch.empty(table.shape[1:], dtype=table.dtype, device=device)

    def prepare(self, order: EpochOrder) -> None:
        """Looks up the outputs of the next epoch."""
        self._next = self.table[order.views, order.order]

    def begin(self) -> None:
        """Copies them to the device."""
        self._now.copy_(self._next)

    def __call__(self, batch: Batch) -> TeacherOutputs:
        return TeacherOutputs(index=batch.index, **{self.kind: self._now[batch.position].float()})
