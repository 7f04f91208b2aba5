"""Losses on how the predictions for a batch relate to each other: DIST and MLKD."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.losses.base import Progress
from orchestrator.losses.logits import LogitsLoss


@dataclass(frozen=True, kw_only=True)
class DIST(LogitsLoss):
    """Distillation from a stronger teacher (Huang et al., arXiv 2205.10536).

    ce_weight · CE + weight · T² · [beta · (1 − mean ρ of images) + gamma · (1 − mean ρ of classes)], where ρ is the
    correlation of student and teacher: of an image's probabilities at temperature T, and of a class's over the batch.
    """

    weight: float = 2.0
    beta: float = 1.0
    gamma: float = 1.0
    temperature: float = 4.0

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor, progress: Progress) -> Tensor:
        """Both distances with their weights."""
        own, taught = (F.softmax(each / self.temperature, dim=1) for each in (student, teacher))
        images = self.beta * (1 - compute_correlations(own, taught, dim=1).mean())
        classes = self.gamma * (1 - compute_correlations(own, taught, dim=0).mean())
        return (images + classes) * (self.weight * self.temperature**2)


def compute_correlations(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along a dimension; 0 where one of the two is constant."""
    first, second = (each - each.mean(dim, keepdim=True) for each in (first, second))
    # Added as in the published code, so that a constant row divides by something.
    norms = torch.linalg.vector_norm(first, dim=dim) * torch.linalg.vector_norm(second, dim=dim)
    correlations: Tensor = (first * second).sum(dim) / (norms + 1e-8)
    return correlations


@dataclass(frozen=True, kw_only=True)
class MLKD(LogitsLoss):
    """Multi-level logit distillation (Jin et al., CVPR 2023), with one view of each image.

    ce_weight · CE + weight · Σ over T = 2, …, 6 of [T² · KL(Q ‖ P) + ‖PᵀP − QᵀQ‖² / C + ‖PPᵀ − QQᵀ‖² / B], where P and
    Q [B, C] are the softmax of student and teacher at temperature T.
    """

    weight: float = 0.9

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor, progress: Progress) -> Tensor:
        """The sum over temperatures and levels."""
        temperatures = torch.arange(2, 7, dtype=student.dtype, device=student.device)[:, None, None]
        log_own, log_taught = (F.log_softmax(each / temperatures, dim=2) for each in (student, teacher))
        divergences = F.kl_div(log_own, log_taught, reduction="none", log_target=True) * temperatures**2
        own, taught = log_own.exp(), log_taught.exp()
        images, classes = student.shape
        of_classes = (own.mT @ own - taught.mT @ taught).square().sum() / classes
        of_images = (own @ own.mT - taught @ taught.mT).square().sum() / images
        return self.weight * (divergences.sum() / images + of_classes + of_images)
