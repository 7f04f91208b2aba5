"""The feature term of SimKD (Chen et al., arXiv 2203.14001), on pooled features, which a table can serve."""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.losses.base import LossTerms, Progress, Shapes, StudentOutputs, TeacherOutputs, with_cross_entropy


class _BatchNorm(nn.BatchNorm1d):
    """Batch norm; a single image, which has no variance, is normalised with the running statistics."""

    def forward(self, features: Tensor) -> Tensor:
        if len(features) > 1:
            return super().forward(features)
        return F.batch_norm(features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class SimKD(nn.Module):
    """Cross-entropy + weight · mean((P(student's pooled features) − teacher's pooled features)²).

    P is the paper's trained projector: three layers, each with batch norm and ReLU, to half the teacher's width and
    then to all of it. On pooled features its convolutions are linear layers.
    """

    ce_weight = 1.0

    def __init__(self, student: Shapes, teacher: Shapes, *, weight: float) -> None:
        super().__init__()
        self.weight = weight
        half = max(teacher.pooled // 2, 1)
        widths = (student.pooled, half, half, teacher.pooled)
        layers = itertools.pairwise(widths)
        self.projector = nn.Sequential(
            *(
                part
                for inputs, outputs in layers
                for part in (nn.Linear(inputs, outputs, bias=False), _BatchNorm(outputs), nn.ReLU())
            )
        )

    def forward(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms:
        kd = self.weight * F.mse_loss(self.projector(student.pooled), teacher.pooled)
        return with_cross_entropy(student, labels, kd)
