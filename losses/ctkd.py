"""Curriculum temperature (Li et al., arXiv 2211.16231): the temperature is learned, against the student."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from orchestrator.losses.base import LossTerms, Progress, Shapes, StudentOutputs, TeacherOutputs
from orchestrator.losses.logits import compute_divergence, compute_terms


class CTKD(nn.Module):
    """ce_weight · cross-entropy + weight · T²·KL(teacher ‖ student) at T = lowest + span · sigmoid(θ).

    θ is one parameter for all images and starts at 1. It is trained by the student's optimizer with its gradient
    multiplied by λ, so that it makes the task harder: λ goes from 0 to −1 over the first `warmup` epochs, on a cosine.
    """

    def __init__(
        self, student: Shapes, teacher: Shapes, *,
        ce_weight: float, weight: float, lowest: float, span: float, warmup: int, standardize: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.ce_weight = ce_weight
        self.weight = weight
        self.lowest = lowest
        self.span = span
        self.warmup = warmup
        self.standardize = standardize
        self.theta = nn.Parameter(torch.ones(()))

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor, progress: Progress) -> Tensor:
        """The weighted divergence at today's temperature."""
        part = (progress.epoch / self.warmup).clamp(max=1)
        reversal = ((part * math.pi).cos() - 1) / 2
        fixed = self.theta.detach()
        theta = fixed + reversal * (self.theta - fixed)  # θ itself, with λ times its gradient
        temperature = self.lowest + self.span * theta.sigmoid()
        return compute_divergence(student / temperature, teacher / temperature) * (self.weight * temperature**2)

    def forward(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms:
        return compute_terms(self, student, labels, teacher, progress)
