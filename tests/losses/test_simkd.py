"""SimKD's feature term: a number worked out by hand, plain loops in double precision, and what its projector is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator import losses
from orchestrator.losses.base import Progress, Shapes, TeacherOutputs
from orchestrator.models.base import Outputs

START = Progress(torch.tensor(1.0), 10)
EPSILON = 1e-5  # of batch norm


def build(student: int, teacher: int, **options: float) -> Any:
    torch.manual_seed(0)
    shapes = Shapes(2, student, ()), Shapes(2, teacher, ())
    loss: Any = losses.build("simkd", shapes, **options)
    return loss.double()


def terms_of(loss: Any, student: Tensor, teacher: Tensor) -> Any:
    logits = torch.zeros(len(student), 2, dtype=torch.float64)
    labels = torch.zeros(len(student), dtype=torch.int64)
    return loss(Outputs(logits, student, ()), labels, TeacherOutputs(pooled=teacher), START)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def through(layer: nn.Linear, rows: list[list[float]]) -> list[list[float]]:
    """A linear layer, batch norm with the batch's own mean and variance, and ReLU, by loops."""
    weights = layer.weight.tolist()
    found = [[sum(w * x for w, x in zip(own, row, strict=True)) for own in weights] for row in rows]
    normed = []
    for column in zip(*found, strict=True):
        mean = sum(column) / len(column)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in column) / len(column) + EPSILON)
        normed.append([max((x - mean) / deviation, 0.0) for x in column])
    return [list(row) for row in zip(*normed, strict=True)]


def test_against_loops() -> None:
    loss = build(3, 4, weight=0.5)
    student, teacher = draw(5, 3), draw(5, 4, seed=1)
    rows = student.tolist()
    for layer in (part for part in loss.projector if isinstance(part, nn.Linear)):
        rows = through(layer, rows)
    squares = [
        (own - taught) ** 2
        for pair in zip(rows, teacher.tolist(), strict=True)
        for own, taught in zip(*pair, strict=True)
    ]
    found = terms_of(loss, student, teacher)
    assert found.kd.item() == pytest.approx(0.5 * sum(squares) / 20, rel=1e-9)
    assert found.total.item() == pytest.approx(math.log(2) + found.kd.item(), rel=1e-9)


def test_by_hand() -> None:
    # Two images with features 1 and −1 and weights 1: every batch norm gives ±1/√(1 + 1e-5) of a layer's ±1, the ReLU
    # leaves 1 and 0. The next layer sees (1, 0): mean 1/2, so ±1/2 again, and its ReLU the same.
    loss = build(1, 2)
    for layer in (part for part in loss.projector if isinstance(part, nn.Linear)):
        nn.init.constant_(layer.weight, 1.0)
    student = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    teacher = torch.zeros(2, 2, dtype=torch.float64)
    assert terms_of(loss, student, teacher).kd.item() == pytest.approx(0.5, rel=1e-3)


def test_its_projector_ends_at_the_teachers_width_through_half_of_it() -> None:
    widths = [part.weight.shape for part in build(64, 256).projector if isinstance(part, nn.Linear)]
    assert widths == [(128, 64), (128, 128), (256, 128)]
    assert terms_of(build(3, 1), draw(4, 3), draw(4, 1)).kd.isfinite(), "a teacher of width 1"


def test_gradients_reach_the_projector_and_the_student() -> None:
    loss = build(3, 4)
    student = draw(6, 3).requires_grad_()
    terms_of(loss, student, draw(6, 4, seed=1)).kd.backward()
    assert student.grad is not None and student.grad.any()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in loss.parameters())


def test_numerical_gradient() -> None:
    loss, teacher = build(3, 4), draw(6, 4, seed=1)
    student = draw(6, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: terms_of(loss, rows, teacher).kd, (student,))


def test_a_last_batch_of_one_image_is_normalised_with_what_was_seen_before() -> None:
    loss = build(3, 4)
    terms_of(loss, draw(6, 3), draw(6, 4, seed=1))
    seen = [module for module in loss.projector if isinstance(module, nn.BatchNorm1d)]
    expected = draw(1, 3, seed=2)
    single = terms_of(loss, expected, draw(1, 4, seed=3)).kd
    own = loss.projector[0](expected)
    own = (own - seen[0].running_mean) / (seen[0].running_var + EPSILON).sqrt()
    torch.testing.assert_close(seen[0](loss.projector[0](expected)), own)
    assert single.isfinite()
