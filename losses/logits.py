"""Losses on logits and pooled features, which a table of teacher outputs can serve."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from orchestrator.losses.base import LossTerms, Progress, StudentOutputs, TeacherOutputs


@dataclass(frozen=True)
class Base:
    """Cross-entropy with the labels."""

    def __call__(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms:
        ce = F.cross_entropy(student.logits, labels)
        return LossTerms(ce, ce, None)


@dataclass(frozen=True)
class Logit:
    """ce_weight · cross-entropy + mean((student − teacher)²) over images and entries (Ba & Caruana, arXiv 1312.6184).

    The logits are compared, or with `match="pooled"` the average-pooled features.
    """

    ce_weight: float = 1.0
    match: str = "logits"

    def __call__(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms:
        ce = F.cross_entropy(student.logits, labels)
        kd = F.mse_loss(getattr(student, self.match), getattr(teacher, self.match))
        return LossTerms(self.ce_weight * ce + kd, ce, kd)


@dataclass(frozen=True)
class SoftTarget:
    """Cross-entropy + T²·KL(teacher ‖ student) at temperature T, batch mean (Hinton et al., arXiv 1503.02531)."""

    temperature: float = 4.0

    def __call__(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms:
        ce = F.cross_entropy(student.logits, labels)
        log_student = F.log_softmax(student.logits / self.temperature, dim=1)
        log_teacher = F.log_softmax(teacher.logits / self.temperature, dim=1)
        # T² keeps the gradient's size as T grows, section 2 of the paper.
        kd = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * self.temperature**2
        return LossTerms(ce + kd, ce, kd)
