"""Losses with other soft labels, or other weights of them: TTM, WTTM and WSLD."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.losses.base import Progress
from orchestrator.losses.logits import LogitsLoss


@dataclass(frozen=True, kw_only=True)
class TTM(LogitsLoss):
    """Transformed teacher matching (Zheng & Yang, arXiv 2402.11148).

    ce_weight · CE + weight · mean(u · KL(q ‖ softmax(z))), where q is softmax(v)^gamma, normalised. With `is_weighted`
    u is the sum of softmax(v)^gamma, which is larger the less sure the teacher is; else u = 1.
    """

    weight: float = 45.0
    gamma: float = 0.1
    is_weighted: bool = False

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor, progress: Progress) -> Tensor:
        """The mean divergence."""
        powers = self.gamma * F.log_softmax(teacher, dim=1)
        log_target, log_student = F.log_softmax(powers, dim=1), F.log_softmax(student, dim=1)
        divergence = F.kl_div(log_student, log_target, reduction="none", log_target=True).sum(1)
        if self.is_weighted:
            divergence = powers.logsumexp(1).exp() * divergence
        return self.weight * divergence.mean()


@dataclass(frozen=True, kw_only=True)
class WTTM(TTM):
    """`TTM` with weights."""

    is_weighted: bool = True


@dataclass(frozen=True, kw_only=True)
class WSLD(LogitsLoss):
    """Weighted soft labels (Zhou et al., arXiv 2102.00650).

    ce_weight · CE + alpha · T² · mean(w · CE(softmax(v / T), softmax(z / T))). An image's weight is w = 1 − exp(−CE of
    the student / CE of the teacher), both with its label and without a temperature; it has no gradient.
    """

    alpha: float = 2.25
    temperature: float = 4.0

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor, progress: Progress) -> Tensor:
        """The weighted cross-entropy with the soft labels."""
        own, taught = (F.cross_entropy(each, labels, reduction="none") for each in (student.detach(), teacher))
        weights = -torch.expm1(-own / (taught + 1e-7))
        log_student = F.log_softmax(student / self.temperature, dim=1)
        soft = -(F.softmax(teacher / self.temperature, dim=1) * log_student).sum(1)
        return (weights * soft).mean() * (self.alpha * self.temperature**2)
