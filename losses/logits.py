"""Losses that compare logits (or pooled features) by their values, which a table of teacher outputs can serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor
from torch.nn import functional as F

from orchestrator.losses.base import LossTerms, Progress, StudentOutputs, TeacherOutputs, with_cross_entropy


@dataclass(frozen=True)
class Base:
    """Cross-entropy with the labels."""

    ce_weight: ClassVar[float] = 1.0

    def __call__(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms:
        ce = F.cross_entropy(student.logits, labels)
        return LossTerms(ce, ce, None)


class Comparison(Protocol):
    """A way to compare the logits of student and teacher."""

    @property
    def ce_weight(self) -> float:
        """The weight of the cross-entropy."""

    @property
    def standardize(self) -> bool:
        """Whether standardised logits are compared (Sun et al., arXiv 2403.01427)."""

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor, progress: Progress) -> Tensor:
        """The teacher's term with its weight: a scalar, from the logits [B, C] of student and teacher."""


def compute_terms(
    comparison: Comparison, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
) -> LossTerms:
    """ce_weight · cross-entropy + what the comparison gives. The cross-entropy is always that of the raw logits."""
    own, taught = student.logits, teacher.logits
    if comparison.standardize:
        own, taught = standardized(own), standardized(taught)
    kd = comparison.compare(own, taught, labels, progress)
    return with_cross_entropy(student, labels, kd, comparison.ce_weight)


@dataclass(frozen=True, kw_only=True)
class LogitsLoss:
    """A loss without parameters that compares logits."""

    ce_weight: float = 1.0
    standardize: bool = False

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor, progress: Progress) -> Tensor:
        """As in `Comparison`."""
        raise NotImplementedError

    def __call__(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms:
        return compute_terms(self, student, labels, teacher, progress)


def standardized(logits: Tensor) -> Tensor:
    """Each image's logits with mean 0 and standard deviation 1 over the classes."""
    centred = logits - logits.mean(1, keepdim=True)
    return centred / (logits.std(1, keepdim=True) + 1e-7)


@dataclass(frozen=True, kw_only=True)
class Logit(LogitsLoss):
    """ce_weight · cross-entropy + mean((student − teacher)²) over images and entries (Ba & Caruana, arXiv 1312.6184).

    The logits are compared, or with `match="pooled"` the average-pooled features.
    """

    match: str = "logits"

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor, progress: Progress) -> Tensor:
        """The mean squared difference."""
        return F.mse_loss(student, teacher)

    def __call__(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms:
        if self.match == "logits":
            return super().__call__(student, labels, teacher, progress)
        kd = self.compare(student.pooled, teacher.pooled, labels, progress)
        return with_cross_entropy(student, labels, kd, self.ce_weight)


@dataclass(frozen=True, kw_only=True)
class SoftTarget(LogitsLoss):
    """ce_weight · cross-entropy + weight · T²·KL(teacher ‖ student) at temperature T (Hinton et al., arXiv 1503.02531).

    The divergence is a mean over the batch.
    """

    weight: float = 1.0
    temperature: float = 4.0

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor, progress: Progress) -> Tensor:
        """The weighted divergence."""
        divergence = compute_divergence(student / self.temperature, teacher / self.temperature)
        # T² keeps the gradient's size as T grows, section 2 of the paper.
        return divergence * (self.weight * self.temperature**2)


def compute_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) ‖ softmax(student)), the mean over the batch."""
    log_student, log_teacher = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
