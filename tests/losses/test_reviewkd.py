"""ReviewKD: a plain reference of its fusion and its comparison, its warm-up, and the models that it takes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orchestrator import losses
from orchestrator.losses.base import Progress, Shapes, TeacherOutputs
from orchestrator.models.base import Outputs

Array = np.ndarray[Any, np.dtype[np.float64]]
STUDENT = Shapes(2, 3, (2, 3, 4))
TEACHER = Shapes(2, 5, (2, 4, 2))
SIDES = (8, 4), (8, 2)  # of the stages' maps of student and teacher


def build(**options: float) -> Any:
    torch.manual_seed(0)
    loss: Any = losses.build("reviewkd", (STUDENT, TEACHER), **options)
    for parameter in loss.parameters():  # or batch norms would have weights of 1 and biases of 0
        nn.init.normal_(parameter)
    return loss.double()


def draw(shapes: Shapes, sides: tuple[int, ...], seed: int, images: int = 3) -> Outputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(images, *shape, generator=generator, dtype=torch.float64)

    maps = tuple(normal(width, side, side) for width, side in zip(shapes.maps, (sides[0], *sides), strict=True))
    return Outputs(normal(2), normal(shapes.pooled), maps)


def kd_of(loss: Any, student: Outputs, teacher: Outputs, epoch: float = 100.0) -> Tensor:
    labels = torch.zeros(len(student.logits), dtype=torch.int64)
    outputs = TeacherOutputs(maps=teacher.maps, pooled=teacher.pooled)
    kd = loss(student, labels, outputs, Progress(torch.tensor(epoch), 240)).kd
    assert kd is not None
    return kd


def convolve(maps: Array, layer: Any) -> Array:
    weight = layer.weight.detach().numpy()
    outputs, _, side, _ = weight.shape
    edge = side // 2
    padded = np.pad(maps, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
    height, width = maps.shape[2:]
    found = np.zeros((len(maps), outputs, height, width))
    for y in range(height):
        for x in range(width):
            window = padded[:, :, y : y + side, x : x + side]
            found[:, :, y, x] = [[(image * kernel).sum() for kernel in weight] for image in window]
    return found + (0 if layer.bias is None else layer.bias.detach().numpy()[:, None, None])


def normalise(maps: Array, layer: Any) -> Array:
    mean, variance = (each(axis=(0, 2, 3), keepdims=True) for each in (maps.mean, maps.var))
    weight, bias = (each.detach().numpy()[:, None, None] for each in (layer.weight, layer.bias))
    return (maps - mean) / np.sqrt(variance + 1e-5) * weight + bias


def resize(maps: Array, side: int) -> Array:
    """The nearest place of a map, for each of a map with so many places a side."""
    places = [math.floor(place * maps.shape[2] / side) for place in range(side)]
    return maps[:, :, places][:, :, :, places]


def hcl(maps: Array, taught: Array) -> float:
    total, weights = float(((maps - taught) ** 2).mean()), 1.0
    weight = 1.0
    for side in (4, 2, 1):
        if side < maps.shape[2]:
            cell = maps.shape[2] // side
            weight /= 2
            squares = [
                (block.mean(axis=(2, 3)) ** 2).mean()
                for y in range(side)
                for x in range(side)
                for block in [(maps - taught)[:, :, y * cell : (y + 1) * cell, x * cell : (x + 1) * cell]]
            ]
            total += weight * sum(squares) / len(squares)
            weights += weight
    return total / weights


def reference(loss: Any, student: Outputs, teacher: Outputs) -> float:
    own, taught = (
        [each.detach().numpy() for each in (*model.maps[1:], model.pooled[..., None, None])]
        for model in (student, teacher)
    )
    above, total = None, 0.0
    for maps, target, fusion in zip(own[::-1], taught[::-1], list(loss.fusions)[::-1], strict=True):
        fused = normalise(convolve(maps, fusion.enter[0]), fusion.enter[1])
        if above is not None:
            above = resize(above, maps.shape[2])
            shares = 1 / (1 + np.exp(-convolve(np.concatenate([fused, above], 1), fusion.shares[0])))
            fused = fused * shares[:, :1] + above * shares[:, 1:]
        above = resize(fused, target.shape[2])
        total += hcl(normalise(convolve(above, fusion.leave[0]), fusion.leave[1]), target)
    return total


def test_against_a_plain_reference() -> None:
    loss, student, teacher = build(weight=0.5), draw(STUDENT, SIDES[0], 1), draw(TEACHER, SIDES[1], 2)
    kd = kd_of(loss, student, teacher)
    assert kd.item() == pytest.approx(0.5 * reference(loss, student, teacher), rel=1e-9)


def test_by_hand() -> None:
    # Batch norms without weight make every map of the student 0. The teacher's pooled features are 3, its maps 2.
    loss = build()
    for module in loss.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    teacher = draw(TEACHER, SIDES[1], 2)
    teacher = Outputs(teacher.logits, torch.full_like(teacher.pooled, 3), tuple(0 * each + 2 for each in teacher.maps))
    assert kd_of(loss, draw(STUDENT, SIDES[0], 1), teacher).item() == pytest.approx(3**2 + 2 * 2**2)


@pytest.mark.parametrize(("epoch", "share"), [(1, 0.05), (10, 0.5), (20, 1.0), (21, 1.0), (240, 1.0)])
def test_warmup(epoch: int, share: float) -> None:
    loss, student, teacher = build(), draw(STUDENT, SIDES[0], 1), draw(TEACHER, SIDES[1], 2)
    kd = kd_of(loss, student, teacher, epoch)
    assert kd.item() == pytest.approx(share * kd_of(loss, student, teacher).item(), rel=1e-6)


def test_gradient_of_its_parameters_and_of_other_sizes() -> None:
    loss, teacher = build(), draw(TEACHER, (2, 1), 2)
    student = draw(STUDENT, (4, 2), 1)
    names = [name for name, _ in loss.named_parameters()]

    def kd(pooled: Tensor, first: Tensor, last: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(names, parameters, strict=True))
        outputs = Outputs(student.logits, pooled, (student.maps[0], first, last))
        return kd_of(lambda *batch: torch.func.functional_call(loss, named, batch), outputs, teacher)

    inputs = (student.pooled, *student.maps[1:])
    assert torch.autograd.gradcheck(
        kd, (*(each.requires_grad_() for each in inputs), *loss.parameters()), fast_mode=True
    )


def test_widths_are_those_of_the_published_code() -> None:
    # resnet_32x4 teaches resnet_8x4.
    shapes = Shapes(100, 256, (32, 64, 128, 256))
    loss: Any = losses.build("reviewkd", (shapes, shapes))
    wanted = 0
    for level, width in enumerate((64, 128, 256, 256)):
        wanted += width * 256 + 2 * 256 + 9 * 256 * width + 2 * width + (2 * 512 + 2 if level < 3 else 0)
    assert sum(parameter.numel() for parameter in loss.parameters()) == wanted


def test_a_batch_of_one_image_has_no_term() -> None:
    loss = build()
    kd = kd_of(loss, draw(STUDENT, SIDES[0], 1, images=1), draw(TEACHER, SIDES[1], 2, images=1))
    assert kd.item() == 0
    # Each parameter has a gradient all the same: an optimizer must have a state for each at every step.
    assert all(not each.any() for each in torch.autograd.grad(kd, tuple(loss.parameters())))


def test_both_need_as_many_stages() -> None:
    mismatch = losses.METHODS["reviewkd"].mismatch
    assert mismatch({}, STUDENT, TEACHER) == ""
    deeper = Shapes(2, 5, (2, 4, 2, 2))
    assert "the student has 2 stages, the teacher 3; use a teacher with 2" in mismatch({}, STUDENT, deeper)
