"""Losses that treat the label's class and the others apart: DKD, NKD and RLD.

Probabilities are never rounded to 0 or 1 here. A softmax without some classes fills their logits with a number that no
logit reaches, and a class against the rest is a sigmoid of the margin between them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.losses.base import Progress
from orchestrator.losses.logits import LogitsLoss, compute_divergence

_NEVER = -1e9  # a logit whose probability is 0; an infinite one would make 0 · ∞ of p · log p


@dataclass(frozen=True, kw_only=True)
class DKD(LogitsLoss):
    """Decoupled knowledge distillation (Zhao et al., arXiv 2203.08679).

    ce_weight · CE + w · T² · [alpha · KL(b_v ‖ b_z) + beta · KL(n_v ‖ n_z)]: b is the label's class against the rest, n
    the softmax over the rest, both at temperature T, and w = min(epoch / warmup, 1).
    """

    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0
    warmup: int = 20

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor, progress: Progress) -> Tensor:
        """Both divergences with their weights."""
        is_label = mask_of(labels, student)
        own, taught = student / self.temperature, teacher / self.temperature
        target = compute_binary_divergence(compute_margin(own, is_label), compute_margin(taught, is_label))
        others = compute_divergence(own.masked_fill(is_label, _NEVER), taught.masked_fill(is_label, _NEVER))
        weighted = self.alpha * target + self.beta * others
        return weighted * (compute_warmup(progress, self.warmup) * self.temperature**2)


@dataclass(frozen=True, kw_only=True)
class NKD(LogitsLoss):
    """Normalised knowledge distillation (Yang et al., arXiv 2303.13005).

    ce_weight · CE − p_v(y) · log p_z(y) − gamma · T² · Σ n_v log n_z: p is the softmax over all classes, and n that
    over all but the label's at temperature T. The batch mean of cross-entropies, which are not 0 for equal models.
    """

    gamma: float = 1.5
    temperature: float = 1.0

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor, progress: Progress) -> Tensor:
        """The term of the label's class and that of the others."""
        is_label, label = mask_of(labels, student), labels[:, None]
        target = F.softmax(teacher, dim=1).gather(1, label) * F.log_softmax(student, dim=1).gather(1, label)
        own, taught = ((each / self.temperature).masked_fill(is_label, _NEVER) for each in (student, teacher))
        others = (F.softmax(taught, dim=1) * F.log_softmax(own, dim=1)).sum(1)
        return -target.mean() - (self.gamma * self.temperature**2) * others.mean()


@dataclass(frozen=True, kw_only=True)
class RLD(LogitsLoss):
    """Refined logit distillation (Sun et al., arXiv 2408.07703).

    ce_weight · CE + w · [alpha · A² · KL(m_v ‖ b_z) + beta · T² · KL(n_v ‖ n_z)]: m is the teacher's largest class
    against the rest and b the label's class against the rest, at temperature A; n is the softmax at temperature T over
    the classes to which the teacher gives less than to the label's; w = min(epoch / warmup, 1).
    """

    alpha: float = 1.0
    beta: float = 8.0
    alpha_temperature: float = 1.0
    temperature: float = 4.0
    warmup: int = 20

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor, progress: Progress) -> Tensor:
        """Both divergences with their weights."""
        margin = compute_margin(student / self.alpha_temperature, mask_of(labels, student))
        largest = compute_margin(teacher / self.alpha_temperature, mask_of(teacher.argmax(1), teacher))
        target = compute_binary_divergence(margin, largest) * self.alpha_temperature**2
        is_left_out = teacher >= teacher.gather(1, labels[:, None])
        # Where no class is left both are the same constant: no divergence, and no gradient.
        own, taught = ((each / self.temperature).masked_fill(is_left_out, _NEVER) for each in (student, teacher))
        others = compute_divergence(own, taught) * self.temperature**2
        return (self.alpha * target + self.beta * others) * compute_warmup(progress, self.warmup)


def mask_of(classes: Tensor, logits: Tensor) -> Tensor:
    """[B, C], true at one class of each image."""
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, classes[:, None], value=True)


def compute_margin(logits: Tensor, is_class: Tensor) -> Tensor:
    """m [B] such that sigmoid(m) is the probability of the marked class, and sigmoid(−m) that of the rest."""
    chosen = torch.where(is_class, logits, 0.0).sum(1)
    return chosen - logits.masked_fill(is_class, _NEVER).logsumexp(1)


def compute_binary_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL of (p, 1 − p), the mean over the batch, from margins."""
    of_class = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    of_rest = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return (of_class + of_rest).mean()


def compute_warmup(progress: Progress, epochs: int) -> Tensor:
    """min(epoch / epochs, 1)."""
    return (progress.epoch / epochs).clamp(max=1)
