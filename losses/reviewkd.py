"""ReviewKD (Chen et al., arXiv 2104.09044): from its last level to its first, a student reviews what it has learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.losses.base import LossTerms, Progress, Shapes, StudentOutputs, TeacherOutputs, with_cross_entropy


class ReviewKD(nn.Module):
    """Cross-entropy + weight · min(epoch / warmup, 1) · Σ over levels of HCL(student's map, teacher's map).

    The levels are the maps of the stages, and above them the pooled features as a map of one place. From the last level
    to the first, the student's map is fused with that of the level above (ABF, `Fusion`) and compared with the
    teacher's (HCL, `_compare`). Both models have as many stages, see `METHODS`.
    """

    ce_weight = 1.0

    def __init__(self, student: Shapes, teacher: Shapes, *, weight: float, warmup: float) -> None:
        super().__init__()
        self.weight = weight
        self.warmup = warmup
        inputs, outputs = ((*shapes.maps[1:], shapes.pooled) for shapes in (student, teacher))
        width, last = min(512, student.pooled), len(inputs) - 1
        self.fusions = nn.ModuleList(
            Fusion(*each, width, is_last=level == last) for level, each in enumerate(zip(inputs, outputs, strict=True))
        )

    def forward(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms:
        if len(labels) == 1:
            # At one place of one image there is nothing that a batch norm could normalise: a term of 0.
            return with_cross_entropy(student, labels, 0 * torch.stack([p.sum() for p in self.parameters()]).sum())
        models = (_levels(each.maps, each.pooled) for each in (student, teacher))
        levels = zip(*models, self.fusions, strict=True)
        above, terms = None, []
        for own, target, fusion in reversed(list(levels)):
            reviewed, above = fusion(own.to(target.dtype), above, target.shape[2:])
            terms.append(_compare(reviewed, target))
        kd = self.weight * (progress.epoch / self.warmup).clamp(max=1) * torch.stack(terms).sum()
        return with_cross_entropy(student, labels, kd)


def _levels(maps: tuple[Tensor, ...], pooled: Tensor) -> tuple[Tensor, ...]:
    return *maps[1:], pooled[..., None, None]


class Fusion(nn.Module):
    """Fuses the map of a level with that of the level above, at every place by a trained share of each.

    Returns the fused map with the teacher's channels and size, and the one to fuse with the level below.
    """

    def __init__(self, inputs: int, outputs: int, width: int, *, is_last: bool) -> None:
        super().__init__()
        enter = nn.Conv2d(inputs, width, 1, bias=False)
        leave = nn.Conv2d(width, outputs, 3, padding=1, bias=False)
        for convolution in (enter, leave):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.enter = nn.Sequential(enter, nn.BatchNorm2d(width))
        self.leave = nn.Sequential(leave, nn.BatchNorm2d(outputs))
        self.shares = None if is_last else nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid())

    def forward(self, maps: Tensor, above: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        fused = self.enter(maps)
        if self.shares is not None and above is not None:
            above = F.interpolate(above, fused.shape[2:])
            shares = self.shares(torch.cat([fused, above], 1))
            fused = fused * shares[:, :1] + above * shares[:, 1:]
        if fused.shape[2:] != size:
            fused = F.interpolate(fused, size)
        return self.leave(fused), fused


def _compare(maps: Tensor, taught: Tensor) -> Tensor:
    """The mean squared difference of two maps, and of both pooled to 4, 2 and 1 places a side where that is smaller.

    Each counts half as much as the one before; the weights sum to 1.
    """
    sides = [side for side in (4, 2, 1) if side < taught.shape[2]]
    pooled = ((F.adaptive_avg_pool2d(maps, side), F.adaptive_avg_pool2d(taught, side)) for side in sides)
    terms = [F.mse_loss(first, second) for first, second in ((maps, taught), *pooled)]
    weights = [0.5**place for place in range(len(terms))]
    return torch.stack([weight / sum(weights) * term for weight, term in zip(weights, terms, strict=True)]).sum()
