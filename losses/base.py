"""The types that losses take and return."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.nn import functional as F


class LossTerms(NamedTuple):
    """Scalars, each a mean over the batch. `total` is what is minimised; `kd` is None without a teacher."""

    total: Tensor
    ce: Tensor
    kd: Tensor | None


class StudentOutputs(Protocol):
    """A student's outputs for a batch of B images of C classes."""

    @property
    def logits(self) -> Tensor:
        """[B, C], before the softmax."""

    @property
    def pooled(self) -> Tensor:
        """[B, F], the average-pooled features."""

    @property
    def maps(self) -> tuple[Tensor, ...]:
        """The maps of the stem, then of each stage, [B, C_i, H_i, W_i]; in the dtype in which convolutions compute."""


class TeacherOutputs:
    """A teacher's outputs for the same batch: those that the method needs, with shapes as in `StudentOutputs`.

    Any other raises AttributeError. `index` [B] (int64) is there for every method with a teacher: the numbers of the
    batch's images among the training images.
    """

    __slots__ = ("index", "logits", "maps", "pooled")

    index: Tensor
    logits: Tensor
    pooled: Tensor
    maps: tuple[Tensor, ...]

    def __init__(self, **outputs: Tensor | tuple[Tensor, ...]) -> None:
        for name, value in outputs.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"teacher.{name} is not available; a loss gets the teacher outputs that its `needs` names")


class Progress(NamedTuple):
    """How far training is: `epoch` counts from 1 to `epochs`.

    `epoch` is a float32 scalar on the device, so that a step captured as a CUDA graph sees it change: compute with it,
    and do not read it.
    """

    epoch: Tensor
    epochs: int


class Shapes(NamedTuple):
    """The sizes of a model's outputs: classes, pooled features, and the channels of the stem's and each stage's map."""

    classes: int
    pooled: int
    maps: tuple[int, ...]


class Loss(Protocol):
    """Maps a batch's outputs of student and teacher, and its labels [B] (int64), to `LossTerms`.

    `ce` is the cross-entropy of the student's logits, `kd` the teacher's term with its weight, and `total` is
    ce_weight·ce + kd. A loss with parameters of its own is an `nn.Module`: they are trained with the student's and go
    into checkpoints.
    """

    @property
    def ce_weight(self) -> float:
        """The weight of the cross-entropy."""

    def __call__(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms: ...


def with_cross_entropy(student: StudentOutputs, labels: Tensor, kd: Tensor, ce_weight: float = 1.0) -> LossTerms:
    """The terms of a loss that is ce_weight · cross-entropy + `kd`."""
    ce = F.cross_entropy(student.logits, labels)
    return LossTerms(ce_weight * ce + kd if ce_weight != 1 else ce + kd, ce, kd)
