"""The losses themselves: each maps what student and teacher say of a batch to the terms that are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor
from torch.nn import functional as F


class LossTerms(NamedTuple):
    """Scalars, each a mean over the batch. `total` is what is minimised; `kd` is None without a teacher."""

    total: Tensor
    ce: Tensor
    kd: Tensor | None


class StudentOutputs(Protocol):
    """What a student says of a batch of B images."""

    @property
    def logits(self) -> Tensor:
        """[B, C], before the softmax."""

    @property
    def pooled(self) -> Tensor:
        """[B, 64], the average-pooled features."""


class Loss(Protocol):
    """Maps the student's outputs, the labels [B] (int64) and the teacher's answers to `LossTerms`.

    `answers` holds just what the method needs: `{"logits": [B, C]}`, `{"pooled": [B, 64]}`, or nothing.
    """

    def __call__(self, student: StudentOutputs, labels: Tensor, answers: dict[str, Tensor]) -> LossTerms: ...


@dataclass(frozen=True)
class Base:
    """Cross-entropy with the labels."""

    def __call__(self, student: StudentOutputs, labels: Tensor, answers: dict[str, Tensor]) -> LossTerms:
        ce = F.cross_entropy(student.logits, labels)
        return LossTerms(ce, ce, None)


@dataclass(frozen=True)
class Logit:
    """ce_weight · cross-entropy + mean((student − teacher)²) over images and entries (Ba & Caruana, arXiv 1312.6184).

    What is compared are the logits, or with `match="pooled"` the average-pooled features.
    """

    ce_weight: float = 1.0
    match: str = "logits"

    def __call__(self, student: StudentOutputs, labels: Tensor, answers: dict[str, Tensor]) -> LossTerms:
        ce = F.cross_entropy(student.logits, labels)
        kd = F.mse_loss(getattr(student, self.match), answers[self.match])
        return LossTerms(self.ce_weight * ce + kd, ce, kd)


@dataclass(frozen=True)
class SoftTarget:
    """Cross-entropy + T²·KL(teacher ‖ student) at temperature T, batch mean (Hinton et al., arXiv 1503.02531)."""

    temperature: float = 4.0

    def __call__(self, student: StudentOutputs, labels: Tensor, answers: dict[str, Tensor]) -> LossTerms:
        ce = F.cross_entropy(student.logits, labels)
        log_student = F.log_softmax(student.logits / self.temperature, dim=1)
        log_teacher = F.log_softmax(answers["logits"] / self.temperature, dim=1)
        # T² keeps the gradient's size as T grows, section 2 of the paper.
        kd = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * self.temperature**2
        return LossTerms(ce + kd, ce, kd)
