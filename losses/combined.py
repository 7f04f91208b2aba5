"""Several losses as one."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from orchestrator.losses.base import Loss, LossTerms, Progress, StudentOutputs, TeacherOutputs


class Combined(nn.Module):
    """The cross-entropy once, with the weight `ce_weight`, and the sum of the distillation terms of all parts."""

    def __init__(self, parts: Mapping[str, Loss], ce_weight: float) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.parts = nn.ModuleDict({name: part for name, part in parts.items() if isinstance(part, nn.Module)})
        self._calls = tuple(parts.values())

    def forward(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms:
        terms = [part(student, labels, teacher, progress) for part in self._calls]
        ce = terms[0].ce
        kd = sum((term.kd for term in terms if term.kd is not None), start=ce.new_zeros(()))
        return LossTerms(self.ce_weight * ce + kd, ce, kd)
