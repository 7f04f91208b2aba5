"""A user's loss as one of kdctl's."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from orchestrator.losses.base import Progress, Shapes, TeacherOutputs
from orchestrator.own_code.loading import OwnCodeError
from orchestrator.own_code.losses import build_loss
from orchestrator.own_code.signature import read_loss
from orchestrator.own_code.source import CodeKind, OwnCode

FUNCTION = "def f(student, labels, teacher, progress, *, weight=1.0):\n  return "
SHAPES = (Shapes(3, 4, (1, 2)), Shapes(3, 8, (2, 4)))


class Student(NamedTuple):
    logits: Tensor
    pooled: Tensor
    maps: tuple[Tensor, ...] = ()


def call(text: str, **options: float) -> tuple[float, float, float]:
    code = OwnCode(CodeKind.LOSS, "my_loss.py", "f", (("my_loss.py", text),))
    torch.manual_seed(0)
    loss = build_loss(code, read_loss(code), (), **options)
    student = Student(torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 4))
    progress = Progress(torch.tensor(1.0), 10)
    terms = loss(student, torch.tensor([0, 1]), TeacherOutputs(logits=torch.full((2, 3), 2.0)), progress)
    assert terms.kd is not None
    return tuple(round(float(term.detach()), 6) for term in terms)  # type: ignore[return-value]


CE = 1.098612  # log 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{FUNCTION}weight * ((student.logits - teacher.logits) ** 2).mean()", (CE + 8, CE, 8)),
        (f"{FUNCTION}(teacher.logits.mean(), student.logits.mean(), student.logits.sum())", (2, 0, 0)),
        (
            "class f:\n  ce_weight = 0.5\n  def __init__(self, *, weight): self.w = weight\n"
            "  def __call__(self, student, labels, teacher, progress): return self.w * progress.epoch",
            None,
        ),
    ],
)
def test_a_scalar_is_the_distillation_term(text: str, expected: tuple[float, ...] | None) -> None:
    if expected is None:
        text, expected = text.replace("*, weight", "*, weight=1.0"), (0.549306 + 2, CE, 2)
    found = call(text, weight=2.0)
    assert found == pytest.approx(expected, abs=2e-6)


MODULE = """
from torch import nn
class f(nn.Module):
    def __init__(self, student, teacher):
        super().__init__()
        self.project = nn.Linear(student.pooled, teacher.pooled)
    def forward(self, student, labels, teacher, progress):
        return self.project(student.pooled).square().mean()
"""


def test_a_module_has_parameters_of_the_shapes() -> None:
    code = OwnCode(CodeKind.LOSS, "my_loss.py", "f", (("my_loss.py", MODULE),))
    loss = build_loss(code, read_loss(code), SHAPES)
    assert isinstance(loss, nn.Module)
    assert {name: tuple(p.shape) for name, p in loss.named_parameters()} == {
        "own.project.weight": (8, 4),
        "own.project.bias": (8,),
    }


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("None", "my_loss.py: f returned NoneType; expected its distillation term as a scalar tensor"),
        ("student.logits", r"f returned a tensor of shape \[2, 3\] and type float32; expected one number"),
        ("labels.sum()", r"f returned a tensor of shape \[\] and type int64"),
        ("(student.logits.mean(), student.logits, student.logits.mean())", r"of shape \[2, 3\]"),
        ("teacher.maps", r"my_loss.py, line 2, in f \(`return teacher.maps`\): AttributeError"),
        ("student.logits @ student.logits", "line 2, in f .*: RuntimeError: .*mat1 and mat2"),
    ],
)
def test_a_mistake_is_explained_with_the_authors_line(result: str, message: str) -> None:
    with pytest.raises(OwnCodeError, match=message):
        call(f"{FUNCTION}{result}")
