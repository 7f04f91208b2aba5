"""RKD, PKT and CC: numbers worked out by hand, plain loops in double precision, and gradients of their parameters."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator import losses
from orchestrator.losses.base import Progress, Shapes, TeacherOutputs
from orchestrator.models.base import Outputs

START = Progress(torch.tensor(1.0), 10)
Rows = list[list[float]]


def kd_of(loss: Any, student: Tensor, teacher: Tensor) -> Tensor:
    """The teacher's term for pooled features."""
    logits, labels = torch.zeros(len(student), 2, dtype=student.dtype), torch.zeros(len(student), dtype=torch.int64)
    kd = loss(Outputs(logits, student, ()), labels, TeacherOutputs(pooled=teacher), START).kd
    assert kd is not None
    return kd


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dot(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def minus(first: list[float], second: list[float]) -> list[float]:
    return [a - b for a, b in zip(first, second, strict=True)]


def huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def distances(rows: Rows) -> Rows:
    found = [[math.sqrt(dot(minus(a, b), minus(a, b))) for b in rows] for a in rows]
    positive = [distance for row in found for distance in row if distance > 0]
    return [[distance * len(positive) / sum(positive) for distance in row] for row in found]


def cosine_at(vertex: list[float], first: list[float], second: list[float]) -> float:
    a, b = minus(first, vertex), minus(second, vertex)
    lengths = math.sqrt(dot(a, a) * dot(b, b))
    return dot(a, b) / lengths if lengths else 0.0


@pytest.mark.parametrize(("distance_weight", "angle_weight"), [(25.0, 50.0), (1.0, 0.0), (0.0, 1.0)])
def test_rkd_against_loops(distance_weight: float, angle_weight: float) -> None:
    student, teacher = draw(5, 3), 4 * draw(5, 6, seed=1)
    own, taught = student.tolist(), teacher.tolist()
    pairs = [
        huber(a - b) for rows in zip(distances(own), distances(taught), strict=True) for a, b in zip(*rows, strict=True)
    ]
    triples = [
        huber(cosine_at(own[i], own[j], own[k]) - cosine_at(taught[i], taught[j], taught[k]))
        for i in range(5) for j in range(5) for k in range(5)
    ]  # fmt: skip
    wanted = 0.5 * (distance_weight * sum(pairs) / 25 + angle_weight * sum(triples) / 125)
    loss = losses.build("rkd", weight=0.5, distance_weight=distance_weight, angle_weight=angle_weight)
    assert kd_of(loss, student, teacher).item() == pytest.approx(wanted, rel=1e-9)


def test_rkd_by_hand() -> None:
    # The student's images are at 0, 1 and 2 of a line: distances 1, 1, 2, over their mean 3/4, 3/4, 3/2. The teacher's
    # are a triangle of equal sides: 1, 1, 1. Huber: 1/32, 1/32, 1/8, twice over, by 9 pairs: 1/24.
    student = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]], dtype=torch.float64)
    assert kd_of(losses.build("rkd", distance_weight=1, angle_weight=0), student, teacher).item() == pytest.approx(
        1 / 24
    )
    # Cosines at the ends of the line are 1, in the middle −1; the teacher's are 1/2. Huber 1/8, 1/8 and 1 (of 3/2),
    # twice over, by 27 triples.
    angles = kd_of(losses.build("rkd", distance_weight=0, angle_weight=1), student, teacher)
    assert angles.item() == pytest.approx(2 * (1 / 8 + 1 / 8 + 1) / 27)


def test_rkd_does_not_see_scale_shift_or_rotation() -> None:
    teacher = draw(6, 4)
    rotation = torch.linalg.qr(draw(4, 4, seed=1)).Q
    assert kd_of(losses.build("rkd"), 3 * teacher @ rotation + 7, teacher).item() == pytest.approx(0, abs=1e-12)


def test_pkt_against_loops() -> None:
    student, teacher = draw(5, 3), draw(5, 6, seed=1)

    def nearness(rows: Rows) -> Rows:
        lengths = [math.sqrt(dot(row, row)) + 1e-7 for row in rows]
        cosines = [[dot(a, b) / m / n for b, n in zip(rows, lengths, strict=True)]
                   for a, m in zip(rows, lengths, strict=True)]  # fmt: skip
        return [[(cosine + 1) / sum(each + 1 for each in row) for cosine in row] for row in cosines]

    wanted = sum(
        q * math.log((q + 1e-7) / (p + 1e-7))
        for rows in zip(nearness(student.tolist()), nearness(teacher.tolist()), strict=True)
        for p, q in zip(*rows, strict=True)
    )
    assert kd_of(losses.build("pkt"), student, teacher).item() == pytest.approx(30000 * wanted / 25, rel=1e-9)


def test_pkt_by_hand() -> None:
    # The student's two images are alike: rows (1/2, 1/2). The teacher's are at a right angle: (2/3, 1/3), (1/3, 2/3).
    student, teacher = torch.ones(2, 3, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    wanted = (2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)) / 2
    assert kd_of(losses.build("pkt", weight=1), student, teacher).item() == pytest.approx(wanted, rel=1e-5)


def correlation(student: int, teacher: int, **options: float) -> Any:
    torch.manual_seed(0)
    loss: Any = losses.build("cc", (Shapes(2, student, ()), Shapes(2, teacher, ())), **options)
    return loss.double()


def test_cc_against_loops() -> None:
    student, teacher = draw(5, 3), draw(5, 6, seed=1)
    loss = correlation(3, 6)

    def embed(rows: Rows, linear: Any) -> Rows:
        weights, biases = linear.weight.tolist(), linear.bias.tolist()
        assert len(weights) == 128
        return [[dot(row, each) + bias for each, bias in zip(weights, biases, strict=True)] for row in rows]

    pairs = zip(embed(student.tolist(), loss.student), embed(teacher.tolist(), loss.teacher), strict=True)
    deltas = [[abs(value) for value in minus(*pair)] for pair in pairs]
    wanted = sum(dot(deltas[i], deltas[i + 1]) for i in range(4)) / 4
    assert kd_of(loss, student, teacher).item() == pytest.approx(0.02 * wanted, rel=1e-9)


def test_cc_by_hand() -> None:
    # Embeddings: every entry is the feature itself. Differences 1, 2, −3: (1·2 + 2·3)/2 = 4, in 128 entries.
    loss = correlation(1, 1, weight=0.5)
    for linear in (loss.student, loss.teacher):
        torch.nn.init.ones_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    student, teacher = (torch.tensor(rows, dtype=torch.float64)[:, None] for rows in ((1, 2, 0), (0, 0, 3)))
    assert kd_of(loss, student, teacher).item() == pytest.approx(0.5 * 4 * 128)


def test_cc_gradient_of_its_parameters() -> None:
    loss, student, teacher = correlation(3, 2), draw(4, 3), draw(4, 2, seed=1)

    def kd(*parameters: Tensor) -> Tensor:
        named = dict(zip((name for name, _ in loss.named_parameters()), parameters, strict=True))
        return kd_of(lambda *batch: torch.func.functional_call(loss, named, batch), student, teacher)

    assert torch.autograd.gradcheck(kd, tuple(loss.parameters()), fast_mode=True)


@pytest.mark.parametrize("method", ["rkd", "pkt", "cc"])
def test_images_without_a_difference_have_a_gradient(method: str) -> None:
    # All features of a student can be 0 (dead units), and a batch can hold one image only.
    loss = correlation(3, 3).float() if method == "cc" else losses.build(method)
    for images in (1, 4):
        features = torch.zeros(images, 3, requires_grad=True)
        kd = kd_of(loss, features, draw(images, 3).float())
        (gradient,) = torch.autograd.grad(kd, features)
        assert kd.isfinite() and gradient.isfinite().all()
