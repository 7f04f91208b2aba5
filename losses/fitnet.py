"""FitNet's hints (Romero et al., arXiv 1412.6550), in one stage as in the field's code."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.losses.base import LossTerms, Progress, Shapes, StudentOutputs, TeacherOutputs, with_cross_entropy
from orchestrator.losses.maps import pool_to_smaller


class FitNet(nn.Module):
    """Cross-entropy + weight · mean((r(student's map) − teacher's map)²), both maps of the same stage.

    r is a trained 1×1 convolution with batch norm and ReLU, from the student's channels to the teacher's. The paper
    first trains the student on the hint alone; here both terms train together. `stage` counts from 1, and 0 is the
    stem; both models have it, see `METHODS`. Of two sizes, the larger map is pooled to the smaller, where the field's
    code has a convolution with a stride.
    """

    ce_weight = 1.0

    def __init__(self, student: Shapes, teacher: Shapes, *, weight: float, stage: int) -> None:
        super().__init__()
        self.weight = weight
        self.stage = stage
        inputs, outputs = student.maps[self.stage], teacher.maps[self.stage]
        self.regressor = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms:
        hint = teacher.maps[self.stage]
        own, hint = pool_to_smaller(student.maps[self.stage].to(hint.dtype), hint)
        kd = self.weight * F.mse_loss(self.regressor(own), hint)
        return with_cross_entropy(student, labels, kd)
