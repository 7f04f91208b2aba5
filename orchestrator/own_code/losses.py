"""A user's loss as one of kdctl's: it may return its distillation term alone, and its mistakes are explained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.losses.base import (
    Loss,
    LossTerms,
    Progress,
    Shapes,
    StudentOutputs,
    TeacherOutputs,
    with_cross_entropy,
)
from orchestrator.own_code.loading import OwnCodeError, guard, load
from orchestrator.own_code.signature import LossSignature
from orchestrator.own_code.source import OwnCode


def build_loss(code: OwnCode, signature: LossSignature, shapes: Sequence[Shapes], /, **options: Any) -> Loss:
    """The loss with these options; `shapes` are those of student and teacher where it takes them.

    Raises OwnCodeError where the user's code raises.
    """
    found = load(code)
    if signature.is_function:
        return _OwnLoss(code, partial(found, **options))
    return _OwnLoss(code, guard(code, lambda: found(*shapes, **options)))


class _OwnLoss(nn.Module):
    """Calls a user's loss, which a checkpoint keeps if it is a module: it is registered then, as any attribute is."""

    def __init__(self, code: OwnCode, own: Any) -> None:
        super().__init__()
        self._code = code
        self.own = own
        self.ce_weight = float(getattr(own, "ce_weight", 1.0))

    def forward(
        self, student: StudentOutputs, labels: Tensor, teacher: TeacherOutputs, progress: Progress
    ) -> LossTerms:
        found = guard(self._code, lambda: self.own(student, labels, teacher, progress))
        return _read_terms(self._code, found, student, labels, self.ce_weight)


def _read_terms(code: OwnCode, found: Any, student: StudentOutputs, labels: Tensor, ce_weight: float) -> LossTerms:
    """What a loss returned: a scalar is the distillation term, to which the cross-entropy is added."""
    if isinstance(found, Tensor):
        _check_scalar(code, found)
        return with_cross_entropy(student, labels, found, ce_weight)
    if isinstance(found, tuple) and len(found) == 3 and all(isinstance(term, Tensor) for term in found):
        for term in found:
            _check_scalar(code, term)
        return LossTerms(*found)
    raise OwnCodeError(
        f"{code.file}: {code.attribute} returned {type(found).__name__}; expected its distillation term as a "
        "scalar tensor, or a tuple of three such tensors: total, cross-entropy, distillation term"
    )


def _check_scalar(code: OwnCode, term: Tensor) -> None:
    if term.dim() or not torch.is_floating_point(term):
        raise OwnCodeError(
            f"{code.file}: {code.attribute} returned a tensor of shape {list(term.shape)} and type "
            f"{str(term.dtype).removeprefix('torch.')}; expected one number: take the mean over the batch"
        )
