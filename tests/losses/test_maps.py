"""AT, SP, NST, VID and FSP: numbers worked out by hand, plain loops in double precision, and what maps they take."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator import losses
from orchestrator.losses.base import Progress, Shapes, TeacherOutputs
from orchestrator.models.base import Outputs

START = Progress(torch.tensor(1.0), 10)
METHODS = ("at", "sp", "nst", "vid", "fsp")
Maps = tuple[Tensor, ...]
Array = np.ndarray[Any, np.dtype[np.float64]]


def build(method: str, student: Maps, teacher: Maps, **options: float) -> Any:
    torch.manual_seed(0)
    shapes = [Shapes(2, 1, tuple(each.shape[1] for each in maps)) for maps in (student, teacher)]
    loss: Any = losses.build(method, (shapes[0], shapes[1]), **options)
    return loss.double() if losses.METHODS[method].has_parameters else loss


def kd_of(loss: Any, student: Maps, teacher: Maps) -> Tensor:
    """The teacher's term for maps."""
    images = len(student[0])
    outputs = Outputs(torch.zeros(images, 2), torch.zeros(images, 1), student)
    kd = loss(outputs, torch.zeros(images, dtype=torch.int64), TeacherOutputs(maps=teacher), START).kd
    assert kd is not None
    return kd


def draw(*shapes: tuple[int, int], seed: int, images: int = 3) -> Maps:
    """Maps of so many channels and places a side."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(images, c, side, side, generator=generator, dtype=torch.float64) for c, side in shapes)


STUDENT = draw((3, 8), (4, 8), (5, 4), seed=1)
TEACHER = draw((2, 8), (6, 4), (3, 4), seed=2)
ALIKE = draw((3, 8), (4, 4), (5, 4), seed=3)  # of the student's widths


def arrays(maps: Maps) -> list[Array]:
    return [each.numpy() for each in maps]


def halved(maps: Array) -> Array:
    """The means of squares of 2×2 places."""
    halves = [[maps[:, :, row::2, column::2] for column in (0, 1)] for row in (0, 1)]
    return (halves[0][0] + halves[0][1] + halves[1][0] + halves[1][1]) / 4


def stages() -> list[tuple[Array, Array]]:
    """The stages of both, the student's first one at the teacher's size."""
    own, taught = arrays(STUDENT), arrays(TEACHER)
    return [(halved(own[1]), taught[1]), (own[2], taught[2])]


def attention(image: Array) -> Array:
    channels, height, width = image.shape
    means = np.array([
        sum(image[c, y, x] ** 2 for c in range(channels)) / channels for y in range(height) for x in range(width)
    ])  # fmt: skip
    return means / math.sqrt(sum(means**2))


def at_by_loops() -> float:
    return 1000 * sum(
        np.mean([(attention(a) - attention(b)) ** 2 for a, b in zip(own, taught, strict=True)])
        for own, taught in stages()
    )


def sp_by_loops() -> float:
    def similarities(maps: Array) -> list[list[float]]:
        rows = [[float((a * b).sum()) for b in maps] for a in maps]
        return [[value / math.sqrt(sum(each**2 for each in row)) for value in row] for row in rows]

    own, taught = (similarities(arrays(maps)[-1]) for maps in (STUDENT, TEACHER))
    return 3000 * sum((own[i][j] - taught[i][j]) ** 2 for i in range(3) for j in range(3)) / 9


def nst_by_loops() -> float:
    def kernel(first: Array, second: Array) -> float:
        pairs = itertools.product(first, second)
        norms = [(float((a * b).sum()), float((a * a).sum() * (b * b).sum())) for a, b in pairs]
        return sum(product**2 / norm for product, norm in norms) / len(norms)

    return 50 * sum(
        (kernel(own, own) + kernel(taught, taught) - 2 * kernel(own, taught)) / 3
        for pair in stages()
        for own, taught in zip(*pair, strict=True)
    )


def fsp_by_loops() -> float:
    def flow(lower: Array, upper: Array) -> Array:
        return np.array([[float((a * b).mean()) for b in lower] for a in upper])

    own, taught = arrays(STUDENT), arrays(ALIKE)
    pairs = [(own[0], own[1], halved(taught[0]), taught[1]), (halved(own[1]), own[2], taught[1], taught[2])]
    return 50 * sum(
        np.mean([(flow(a, b) - flow(c, d)) ** 2 for a, b, c, d in zip(*pair, strict=True)]) for pair in pairs
    )


def vid_by_loops(loss: Any) -> float:
    total = 0.0
    for (own, taught), regressor, scales in zip(stages(), loss.regressors, loss.log_scales, strict=True):
        weights = [layer.weight.detach().numpy()[:, :, 0, 0] for layer in regressor if hasattr(layer, "weight")]
        terms = []
        for image, y, x in itertools.product(range(3), range(4), range(4)):
            hidden = own[image, :, y, x]
            for weight in weights[:-1]:
                hidden = np.maximum(weight @ hidden, 0)
            for mean, target, scale in zip(
                weights[-1] @ hidden, taught[image, :, y, x], scales.flatten().tolist(), strict=True
            ):
                variance = math.log(1 + math.exp(scale)) + 1e-5
                terms.append(((mean - target) ** 2 / variance + math.log(variance)) / 2)
        total += sum(terms) / len(terms)
    return total


@pytest.mark.parametrize(
    ("method", "teacher", "by_loops"),
    [
        ("at", TEACHER, at_by_loops),
        ("sp", TEACHER, sp_by_loops),
        ("nst", TEACHER, nst_by_loops),
        ("fsp", ALIKE, fsp_by_loops),
    ],
)
def test_against_loops(method: str, teacher: Maps, by_loops: Callable[[], float]) -> None:
    assert kd_of(losses.build(method), STUDENT, teacher).item() == pytest.approx(by_loops(), rel=1e-9)


def test_vid_against_loops() -> None:
    loss = build("vid", STUDENT, TEACHER)
    assert kd_of(loss, STUDENT, TEACHER).item() == pytest.approx(vid_by_loops(loss), rel=1e-9)


def one(*rows: tuple[tuple[float, ...], ...]) -> Tensor:
    """A map of an image: for each channel its places, in one row."""
    return torch.tensor(rows, dtype=torch.float64)[:, :, None, :]


NOTHING = torch.zeros(1, 1, 1, 2, dtype=torch.float64)  # a stem that no method but FSP sees


def test_at_by_hand() -> None:
    # Squares 16 and 9, 0 and 9 in two channels: means 8 and 9. The teacher's one channel: 0 and 1.
    student, teacher = (NOTHING, one(((4, 3), (0, 3)))), (NOTHING, one(((0, 5),)))
    length = math.hypot(8, 9)
    wanted = ((8 / length) ** 2 + (9 / length - 1) ** 2) / 2
    assert kd_of(losses.build("at", weight=1), student, teacher).item() == pytest.approx(wanted)


def test_sp_by_hand() -> None:
    # Two images at a right angle: rows (1, 0), (0, 1). The teacher's are alike: all entries 1/√2.
    student = (NOTHING, one(((2, 0),), ((0, 3),)))
    teacher = (NOTHING, one(((1, 1),), ((1, 1),)))
    wanted = ((1 - math.sqrt(0.5)) ** 2 + 0.5) / 2
    assert kd_of(losses.build("sp", weight=1), student, teacher).item() == pytest.approx(wanted)


def test_nst_by_hand() -> None:
    # The student's two channels are (1, 0) and (0, 1), the teacher's one is (0.6, 0.8): 1/2 + 1 − (0.36 + 0.64).
    student, teacher = (NOTHING, one(((2, 0), (0, 7)))), (NOTHING, one(((3, 4),)))
    assert kd_of(losses.build("nst", weight=1), student, teacher).item() == pytest.approx(0.5)


def test_vid_by_hand() -> None:
    # The variance starts at 5. With weights 1, ReLU makes means 3 and 0 of 3 and −2; the teacher has 1 and 1.
    maps = (NOTHING, one(((3, -2),)))
    loss = build("vid", maps, maps, weight=0.5)
    for name, parameter in loss.named_parameters():
        if "regressors" in name:
            torch.nn.init.ones_(parameter)
    wanted = ((4 + 1) / 2 / 5 + math.log(5)) / 2
    kd = kd_of(loss, maps, (NOTHING, one(((1, 1),))))
    assert kd.item() == pytest.approx(0.5 * wanted, rel=1e-6)


def test_fsp_by_hand() -> None:
    # Inner products over 2 places: (1·3 + 2·4)/2 and (1·0 + 2·2)/2, less the teacher's nought.
    student = one(((1, 2),)), one(((3, 4), (0, 2)))
    teacher = one(((0, 0),)), one(((1, 1), (1, 1)))
    assert kd_of(losses.build("fsp", weight=1), student, teacher).item() == pytest.approx((5.5**2 + 2**2) / 2)


def test_vid_gradient_of_its_parameters() -> None:
    student, teacher = draw((1, 2), (2, 4), seed=1), draw((1, 2), (3, 2), seed=2)
    loss = build("vid", student, teacher)
    for scale in loss.log_scales:
        torch.nn.init.zeros_(scale)

    def kd(*parameters: Tensor) -> Tensor:
        named = dict(zip((name for name, _ in loss.named_parameters()), parameters, strict=True))
        return kd_of(lambda *batch: torch.func.functional_call(loss, named, batch), student, teacher)

    assert torch.autograd.gradcheck(kd, tuple(loss.parameters()), fast_mode=True)


@pytest.mark.parametrize("method", [*METHODS, "fitnet"])
def test_gradient_of_maps_of_other_sizes(method: str) -> None:
    student, teacher = (draw((2, 3), (2, 4), (3, 2), seed=seed, images=2) for seed in (1, 2))
    teacher = tuple(each[..., :2, :2] for each in teacher)
    loss = build(method, student, teacher)
    # The nought times all keeps each an input, whatever the method looks at.
    assert torch.autograd.gradcheck(
        lambda *maps: kd_of(loss, maps, teacher) + 0 * sum(each.sum() for each in maps),
        tuple(each.requires_grad_() for each in student),
        fast_mode=True,
    )


@pytest.mark.parametrize("method", METHODS)
def test_maps_of_bfloat16_are_compared_in_float32(method: str) -> None:
    student, teacher = (tuple(each.bfloat16() for each in maps) for maps in (STUDENT, ALIKE))
    wide = [tuple(each.float() for each in maps) for maps in (student, teacher)]
    loss = build(method, *wide)
    loss = loss.float() if losses.METHODS[method].has_parameters else loss
    kd = kd_of(loss, student, wide[1])
    assert kd.dtype == torch.float32
    assert torch.equal(kd, kd_of(loss, *wide))


@pytest.mark.parametrize("method", ["at", "nst", "vid"])
def test_stages_are_paired_from_the_first(method: str) -> None:
    student, teacher = draw((3, 4), (4, 4), (5, 2), seed=1), draw((3, 4), (4, 4), (5, 2), (6, 2), seed=2)
    kd = kd_of(build(method, student, teacher), student, teacher)
    torch.testing.assert_close(kd, kd_of(build(method, student, teacher[:3]), student, teacher[:3]))


@pytest.mark.parametrize("method", METHODS)
def test_units_that_are_dead_have_a_gradient(method: str) -> None:
    student = tuple(torch.zeros_like(each, requires_grad=True) for each in STUDENT)
    kd = kd_of(build(method, student, ALIKE), student, ALIKE)
    gradients = torch.autograd.grad(kd, student, materialize_grads=True)
    assert kd.isfinite() and all(each.isfinite().all() for each in gradients)


def test_fsp_needs_maps_of_the_same_widths() -> None:
    mismatch = losses.METHODS["fsp"].mismatch
    narrow, wide = Shapes(2, 8, (2, 4, 8)), Shapes(2, 16, (2, 8, 16))
    assert mismatch({}, narrow, narrow) == ""
    assert "the student's maps have 2, 4, 8 channels, the teacher's 2, 8, 16" in mismatch({}, narrow, wide)
