"""CRD (Tian et al., arXiv 1910.10699): tells an image's teacher features from those of images of other classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.losses.base import LossTerms, Progress, Shapes, StudentOutputs, TeacherOutputs, with_cross_entropy

_WIDTH = 128  # of the embeddings
_TINY = 1e-7
_MASK = 2**32 - 1


class ContrastiveRepresentation(nn.Module):
    """Cross-entropy + weight · (contrast of the student's with the teacher's memory + the reverse).

    Trained linear layers embed both pooled features in 128 dimensions, with norm 1. Two memories hold such an embedding
    of every training image, of student and of teacher. Each time an image is seen, its row moves towards the new one,
    and keeps a share of `memory_momentum`. An embedding is told apart (`_contrast`) from `negatives` rows of the other
    model's memory, of images of other classes.

    A memory's rows are in the order of their images' classes. The negatives of an image in an epoch are a function of
    the seed, the epoch and the image, so that a training that resumes draws the same.
    """

    ce_weight = 1.0
    seed: Tensor
    counters: Tensor
    rows: Tensor
    starts: Tensor
    counts: Tensor

    def __init__(
        self,
        student: Shapes,
        teacher: Shapes,
        labels: Tensor,
        *,
        weight: float,
        negatives: int,
        temperature: float,
        memory_momentum: float,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.temperature = temperature
        self.momentum = memory_momentum
        images, bound = len(labels), math.sqrt(3 / _WIDTH)
        self.noise = negatives / images  # how many negatives there are for a positive of the same image
        self.student = Embedding(student.pooled, images, bound)
        self.teacher = Embedding(teacher.pooled, images, bound)
        self.register_buffer("seed", torch.randint(2**32, ()))
        # The rest follows from the arguments, and so is not stored in checkpoints.
        self.register_buffer("counters", _hash(torch.arange(negatives)), persistent=False)
        self.register_buffer("rows", labels.argsort(stable=True).argsort(), persistent=False)
        counts = labels.bincount(minlength=student.classes)
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("starts", counts.cumsum(0) - counts, persistent=False)

    def forward(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms:
        rows = self.rows[teacher.index]
        drawn = self._draw(teacher.index, labels, progress.epoch).to(student.pooled.dtype)
        own, taught = self.student(student.pooled), self.teacher(teacher.pooled)
        terms = self._contrast(own, self.teacher, rows, drawn) + self._contrast(taught, self.student, rows, drawn)
        if self.training:
            self.student.remember(rows, own, self.momentum)
            self.teacher.remember(rows, taught, self.momentum)
        return with_cross_entropy(student, labels, self.weight * terms)

    def _draw(self, index: Tensor, labels: Tensor, epoch: Tensor) -> Tensor:
        """How often each row of a memory is drawn as a negative of each image; [B, N]."""
        keys = _hash(_hash(self.seed + epoch.long()) + index)
        numbers = _hash(self.counters ^ keys[:, None])
        starts, counts = self.starts[labels, None], self.counts[labels, None]
        images = len(self.rows)
        # A number below 2³² becomes a row of the images of other classes, which are before and after those of its own.
        rows = numbers * (images - counts) >> 32
        rows = torch.where(rows < starts, rows, rows + counts).clamp(max=images - 1)
        return torch.zeros(len(index), images, dtype=torch.int32, device=index.device).scatter_add_(
            1, rows, torch.ones_like(rows, dtype=torch.int32)
        )

    def _contrast(self, anchors: Tensor, other: Embedding, rows: Tensor, drawn: Tensor) -> Tensor:
        """The negative log-likelihood of the positive as data and of each negative as noise.

        Per image of the batch: −log(P/(P + c)) of its own row of the other memory, and −log(c/(P + c)) of each that is
        drawn, where P = exp(cosine/temperature)/Z, and c how many negatives there are for each training image. Z is a
        constant, the mean of the exponentials in the first batch times the number of images.
        """
        memory = other.memory.clone()  # which its update would change before the gradient is computed
        scores = anchors @ memory.mT / self.temperature
        positives = (anchors * memory[rows]).sum(1) / self.temperature
        with torch.no_grad():
            total = positives.exp().sum() + (drawn * scores.exp()).sum()
            mean = total / (len(anchors) * (len(self.counters) + 1))
            constant = torch.where(other.constant > 0, other.constant, mean * len(memory))
            if self.training:
                other.constant.copy_(constant)
        noise = self.noise + _TINY
        odds = constant.log() + math.log(noise)
        attraction = F.softplus(odds - positives).sum()
        repulsion = (drawn * (F.softplus(scores - odds) + math.log(noise / self.noise))).sum()
        return (attraction + repulsion) / len(anchors)


class Embedding(nn.Module):
    """Embeds pooled features, and remembers a row for every training image."""

    memory: Tensor
    constant: Tensor

    def __init__(self, inputs: int, images: int, bound: float) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, _WIDTH)
        self.register_buffer("memory", torch.empty(images, _WIDTH).uniform_(-bound, bound))
        self.register_buffer("constant", torch.zeros(()))  # 0 until the first batch sets it

    def forward(self, pooled: Tensor) -> Tensor:
        return F.normalize(self.linear(pooled))

    @torch.no_grad()
    def remember(self, rows: Tensor, embeddings: Tensor, momentum: float) -> None:
        """Moves the rows of a batch's images towards their embeddings."""
        moved = momentum * self.memory[rows] + (1 - momentum) * embeddings
        self.memory.index_copy_(0, rows, F.normalize(moved))


def _hash(numbers: Tensor) -> Tensor:
    """Mixes the bits of integers, taken modulo 2³², into others below 2³²; no product reaches 2⁶³."""
    numbers = numbers & _MASK
    numbers = (numbers ^ numbers >> 16) * 0x21F0AAAD & _MASK
    numbers = (numbers ^ numbers >> 15) * 0x735A2D97 & _MASK
    return numbers ^ numbers >> 15
