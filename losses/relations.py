"""Losses on how the images of a batch relate to each other in pooled features, which a table can serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.losses.base import LossTerms, Progress, Shapes, StudentOutputs, TeacherOutputs, with_cross_entropy


@dataclass(frozen=True)
class RelationalKD:
    """Cross-entropy + weight · (distance_weight · D + angle_weight · A) on pooled features (arXiv 1904.05068).

    D is the mean Huber loss between student and teacher over all pairs (i, j) of images, of the distance between them
    divided by its mean over the batch. A is that over all triples (i, j, k), of the cosine of the angle at i. Pairs and
    triples in which an image is there twice count with 0, as in the field's code.
    """

    weight: float = 1.0
    distance_weight: float = 25.0
    angle_weight: float = 50.0
    ce_weight: ClassVar[float] = 1.0

    def __call__(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms:
        pairs = zip(_distances_and_cosines(student.pooled), _distances_and_cosines(teacher.pooled), strict=True)
        distance, angle = (F.smooth_l1_loss(own, taught) for own, taught in pairs)
        kd = self.weight * (self.distance_weight * distance + self.angle_weight * angle)
        return with_cross_entropy(student, labels, kd)


def _distances_and_cosines(features: Tensor) -> tuple[Tensor, Tensor]:
    """Distances [B, B] between images over their mean, and cosines [B, B, B] of the angle at the first of three."""
    images = len(features)
    differences = features[None] - features[:, None]
    squares = differences.square().sum(2)
    # An image is at no distance from itself, where a square root has no gradient.
    are_apart = squares > 1e-12
    lengths = torch.where(are_apart, squares, 1).sqrt()
    distances = torch.where(are_apart, lengths, 0)
    mean = distances.sum() / max(images * (images - 1), 1)
    directions = differences / lengths[..., None]
    return distances / mean.clamp(min=1e-6), directions @ directions.mT


@dataclass(frozen=True)
class ProbabilisticKT:
    """Cross-entropy + weight · mean(q log(q / p)) over all pairs of images, on pooled features (arXiv 1803.10837).

    Row i of p is how near the student puts the others to image i: (1 + cosine)/2, over the sum of the row. q is the
    teacher's.
    """

    weight: float = 30000.0
    ce_weight: ClassVar[float] = 1.0

    def __call__(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms:
        p, q = _nearness(student.pooled), _nearness(teacher.pooled)
        kd = self.weight * (q * torch.log((q + _TINY) / (p + _TINY))).mean()
        return with_cross_entropy(student, labels, kd)


_TINY = 1e-7  # as in the paper's code


def _nearness(features: Tensor) -> Tensor:
    directions = features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + _TINY)
    nearness: Tensor = (directions @ directions.mT + 1) / 2
    return nearness / nearness.sum(1, keepdim=True)


class CorrelationCongruence(nn.Module):
    """Cross-entropy + weight · mean over i of Σ |δ_i|·|δ_i+1| (arXiv 1904.01802, as in the field's code).

    δ_i is the difference of student and teacher for image i of the batch, between trained linear embeddings of both
    pooled features in 128 dimensions; image i + 1 is the next of the batch. The paper compares matrices of a kernel
    between all images instead, and draws batches with several images of a class.
    """

    ce_weight = 1.0

    def __init__(self, student: Shapes, teacher: Shapes, *, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.student = nn.Linear(student.pooled, 128)
        self.teacher = nn.Linear(teacher.pooled, 128)

    def forward(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms:
        difference = (self.student(student.pooled) - self.teacher(teacher.pooled)).abs()
        # A batch of one image has no neighbours, and no term.
        kd = self.weight * (difference[:-1] * difference[1:]).sum() / max(len(labels) - 1, 1)
        return with_cross_entropy(student, labels, kd)
