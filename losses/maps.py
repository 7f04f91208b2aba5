"""Losses on the feature maps of every stage (AT, SP, NST, VID, FSP).

Stages are compared in pairs from the first on; where one model has more of them, the others are left out, as in the
field's code. Of two sizes, the larger map is pooled to the smaller.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.losses.base import LossTerms, Progress, Shapes, StudentOutputs, TeacherOutputs, with_cross_entropy


def _pair_stages(student: StudentOutputs, teacher: TeacherOutputs) -> Iterator[tuple[Tensor, Tensor]]:
    """The maps of each stage of student and teacher, in the teacher's dtype and of one size."""
    for own, taught in zip(student.maps[1:], teacher.maps[1:], strict=False):
        yield pool_to_smaller(own.to(taught.dtype), taught)


def pool_to_smaller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps, of which the larger is average-pooled to the size of the smaller."""
    size = min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])
    first, second = (each if each.shape[2:] == size else F.adaptive_avg_pool2d(each, size) for each in (first, second))
    return first, second


@dataclass(frozen=True)
class AttentionTransfer:
    """Cross-entropy + weight · Σ over stages of mean((a(student's map) − a(teacher's map))²) (arXiv 1612.03928).

    a is the attention: the mean of the squares over channels, at each place of the map, divided by its Euclidean norm
    over all places.
    """

    weight: float = 1000.0
    ce_weight: ClassVar[float] = 1.0

    def __call__(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms:
        stages = [F.mse_loss(_attention(own), _attention(taught)) for own, taught in _pair_stages(student, teacher)]
        kd = self.weight * torch.stack(stages).sum()
        return with_cross_entropy(student, labels, kd)


def _attention(maps: Tensor) -> Tensor:
    return F.normalize(maps.square().mean(1).flatten(1))


@dataclass(frozen=True)
class SimilarityPreserving:
    """Cross-entropy + weight · mean((S − T)²) over all pairs of images (arXiv 1907.09682).

    Row i of S holds the inner products of the student's last map of image i with those of the batch, divided by the
    row's Euclidean norm; T is the teacher's.
    """

    weight: float = 3000.0
    ce_weight: ClassVar[float] = 1.0

    def __call__(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms:
        taught = teacher.maps[-1]
        kd = self.weight * F.mse_loss(_similarities(student.maps[-1].to(taught.dtype)), _similarities(taught))
        return with_cross_entropy(student, labels, kd)


def _similarities(maps: Tensor) -> Tensor:
    flat = maps.flatten(1)
    return F.normalize(flat @ flat.mT)


@dataclass(frozen=True)
class NeuronSelectivity:
    """Cross-entropy + weight · Σ over stages of mean k(s, s) + mean k(t, t) − 2 · mean k(s, t) (arXiv 1707.01219).

    s and t are the channels of the student's and of the teacher's map of an image, each divided by its Euclidean norm;
    the means are over all pairs of channels and over images. k is the polynomial kernel k(x, y) = (x·y)².
    """

    weight: float = 50.0
    ce_weight: ClassVar[float] = 1.0

    def __call__(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms:
        stages = []
        for pair in _pair_stages(student, teacher):
            own, taught = (F.normalize(maps.flatten(2), dim=2) for maps in pair)
            stages.append(_mean_kernel(own, own) + _mean_kernel(taught, taught) - 2 * _mean_kernel(own, taught))
        kd = self.weight * torch.stack(stages).sum()
        return with_cross_entropy(student, labels, kd)


def _mean_kernel(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.mT).square().mean()


class VariationalInformation(nn.Module):
    """Cross-entropy + weight · Σ over stages of mean((r(student's map) − teacher's map)² / v + log v) / 2 (CVPR 2019).

    That is how improbable the teacher's map is under a normal distribution, without its constant: it can be below 0.
    The mean r is three trained 1×1 convolutions of the student's map, as wide as the teacher's, with ReLU between them.
    The variance v = 1e-5 + log(1 + exp(s)) is trained for each of the teacher's channels and starts at 5.
    """

    ce_weight = 1.0

    def __init__(self, student: Shapes, teacher: Shapes, *, weight: float) -> None:
        super().__init__()
        self.weight = weight
        widths = list(zip(student.maps[1:], teacher.maps[1:], strict=False))
        self.regressors = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, bias=False), nn.ReLU(),
                nn.Conv2d(outputs, outputs, 1, bias=False), nn.ReLU(),
                nn.Conv2d(outputs, outputs, 1, bias=False),
            )
            for inputs, outputs in widths
        )  # fmt: skip
        start = math.log(math.expm1(5.0 - _LEAST_VARIANCE))
        self.log_scales = nn.ParameterList(torch.full((outputs, 1, 1), start) for _, outputs in widths)

    def forward(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms:
        stages = []
        pairs = _pair_stages(student, teacher)
        for (own, taught), regressor, scale in zip(pairs, self.regressors, self.log_scales, strict=True):
            variance = F.softplus(scale) + _LEAST_VARIANCE
            stages.append(((regressor(own) - taught).square() / variance + variance.log()).mean() / 2)
        kd = self.weight * torch.stack(stages).sum()
        return with_cross_entropy(student, labels, kd)


_LEAST_VARIANCE = 1e-5


@dataclass(frozen=True)
class SolutionFlow:
    """Cross-entropy + weight · Σ over pairs of neighbouring maps of mean((G − G_teacher)²) (FSP, CVPR 2017).

    G of a map and the next, from the stem on, is the matrix of inner products between their channels, divided by the
    number of places; the larger map is pooled to the smaller. The paper first trains the student on this term alone;
    here both terms train together. Both models have the same widths, see `METHODS`.
    """

    weight: float = 50.0
    ce_weight: ClassVar[float] = 1.0

    def __call__(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms:
        own = [maps.to(teacher.maps[0].dtype) for maps in student.maps]
        pairs = zip(_flows(own), _flows(teacher.maps), strict=True)
        kd = self.weight * torch.stack([F.mse_loss(*pair) for pair in pairs]).sum()
        return with_cross_entropy(student, labels, kd)


def _flows(maps: Sequence[Tensor]) -> Iterator[Tensor]:
    for each in itertools.pairwise(maps):
        lower, upper = (pooled.flatten(2) for pooled in pool_to_smaller(*each))
        yield upper @ lower.mT / lower.shape[2]
