"""CRD: its negatives and its loss against plain loops, its memory, and training that resumes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator import losses
from orchestrator.losses.base import Progress, Shapes, TeacherOutputs
from orchestrator.models.base import Outputs

LABELS = torch.tensor([1, 0, 2, 1, 0, 1, 2, 2, 0, 1])  # of ten training images
INDEX = torch.tensor([3, 8, 6])  # of the batch
SHAPES = Shapes(3, 4, ()), Shapes(3, 6, ())
NEGATIVES = 7
MASK = 2**32 - 1


def build(**options: float) -> Any:
    torch.manual_seed(0)
    loss: Any = losses.build("crd", SHAPES, LABELS, **{"negatives": NEGATIVES, **options})
    return loss.double()


def draw(width: int, seed: int) -> Tensor:
    return torch.randn(len(INDEX), width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STUDENT, TEACHER = draw(4, 1), draw(6, 2)


def kd_of(loss: Any, student: Tensor = STUDENT, epoch: int = 1) -> Tensor:
    outputs = Outputs(torch.zeros(len(INDEX), 3, dtype=torch.float64), student, ())
    teacher = TeacherOutputs(index=INDEX, pooled=TEACHER)
    kd = loss(outputs, LABELS[INDEX], teacher, Progress(torch.tensor(float(epoch)), 10)).kd
    assert kd is not None
    return kd


def mixed(number: int) -> int:
    number &= MASK
    number = (number ^ (number >> 16)) * 0x21F0AAAD & MASK
    number = (number ^ (number >> 15)) * 0x735A2D97 & MASK
    return number ^ (number >> 15)


def negatives(seed: int, epoch: int, image: int) -> list[int]:
    """The images that one is contrasted with, as the docstring says: a function of seed, epoch and image."""
    classes = LABELS.tolist()
    others = sorted((each for each in range(10) if classes[each] != classes[image]), key=lambda each: classes[each])
    key = mixed(mixed(seed + epoch) + image)
    return [others[mixed(mixed(k) ^ key) * len(others) >> 32] for k in range(NEGATIVES)]


def unit(row: list[float]) -> list[float]:
    length = math.hypot(*row)
    return [value / length for value in row]


def embed(features: Tensor, linear: Any) -> list[list[float]]:
    rows = zip(linear.weight.tolist(), linear.bias.tolist(), strict=True)
    weights = [(row, bias) for row, bias in rows]
    return [
        unit([sum(w * x for w, x in zip(row, image, strict=True)) + bias for row, bias in weights])
        for image in features.tolist()
    ]


def rows_of(embedding: Any, loss: Any) -> list[list[float]]:
    """The memory's rows by image."""
    memory = embedding.memory.tolist()
    return [memory[row] for row in loss.rows.tolist()]


def contrast(anchors: list[list[float]], memory: list[list[float]], drawn: list[list[int]], constant: float) -> Any:
    """The loss of one side as in the paper's code, and the constant that a first batch would set."""
    powers = [
        [math.exp(sum(a * b for a, b in zip(anchor, memory[image], strict=True)) / 0.07) for image in images]
        for anchor, images in zip(anchors, drawn, strict=True)
    ]
    mean = sum(map(sum, powers)) / sum(map(len, powers))
    constant = constant or mean * 10
    noise = NEGATIVES / 10
    total = 0.0
    for positive, *rest in powers:
        total -= math.log(positive / constant / (positive / constant + noise + 1e-7))
        total -= sum(math.log(noise / (power / constant + noise + 1e-7)) for power in rest)
    return total / len(anchors), constant


@pytest.mark.parametrize("epoch", [1, 7])
def test_against_loops_for_two_batches(epoch: int) -> None:
    loss = build(weight=0.5)
    drawn = [[image, *negatives(int(loss.seed), epoch, image)] for image in INDEX.tolist()]
    own, taught = embed(STUDENT, loss.student.linear), embed(TEACHER, loss.teacher.linear)
    constants = [0.0, 0.0]
    for _ in range(2):  # the second uses the constants of the first
        memories = rows_of(loss.student, loss), rows_of(loss.teacher, loss)
        first, constants[0] = contrast(own, memories[1], drawn, constants[0])
        second, constants[1] = contrast(taught, memories[0], drawn, constants[1])
        assert kd_of(loss, epoch=epoch).item() == pytest.approx(0.5 * (first + second), rel=1e-9)
        for embedding, before, new in ((loss.student, memories[0], own), (loss.teacher, memories[1], taught)):
            for image, row in zip(INDEX.tolist(), new, strict=True):
                before[image] = unit([(a + b) / 2 for a, b in zip(before[image], row, strict=True)])
            torch.testing.assert_close(torch.tensor(rows_of(embedding, loss)), torch.tensor(before))


def test_by_hand() -> None:
    # All embeddings and all rows are alike, so each exponential is the mean: P = 1/10 of every image, c = 7/10.
    loss = build(weight=1)
    for embedding in (loss.student, loss.teacher):
        torch.nn.init.zeros_(embedding.linear.weight)
        torch.nn.init.ones_(embedding.linear.bias)
        embedding.memory.fill_(128**-0.5)
    one_side = math.log(8) + NEGATIVES * math.log(8 / 7)
    assert kd_of(loss).item() == pytest.approx(2 * one_side, rel=1e-6)


def test_negatives_are_of_other_classes_and_differ_by_epoch_image_and_seed() -> None:
    torch.manual_seed(0)
    labels = torch.arange(1000) % 10
    shapes = Shapes(10, 4, ())
    loss: Any = losses.build("crd", (shapes, shapes), labels, negatives=5000)
    index = torch.tensor([5, 15, 999])
    drawn = loss._draw(index, labels[index], torch.tensor(1.0))
    by_image = drawn[:, loss.rows]
    assert (by_image.sum(1) == 5000).all()
    for image, row in zip(index.tolist(), by_image, strict=True):
        assert not row[labels == labels[image]].any()
        counts = row[labels != labels[image]].double()  # 900 images, drawn 5.6 times each: about Poisson
        assert counts.min() >= 0 and counts.max() < 20 and 0.8 < counts.var() / counts.mean() < 1.2
    assert not torch.equal(by_image[0], by_image[1])
    assert torch.equal(drawn, loss._draw(index, labels[index], torch.tensor(1.0)))
    assert not torch.equal(drawn, loss._draw(index, labels[index], torch.tensor(2.0)))
    loss.seed += 1
    assert not torch.equal(drawn, loss._draw(index, labels[index], torch.tensor(1.0)))


def test_gradient_of_features_and_parameters() -> None:
    loss = build(temperature=0.5)
    kd_of(loss)  # sets the constants, through which no gradient goes
    names = [name for name, _ in loss.named_parameters()]

    def kd(student: Tensor, *parameters: Tensor) -> Tensor:
        again = copy.deepcopy(loss)  # as it remembers what it has seen
        named = dict(zip(names, parameters, strict=True))
        return kd_of(lambda *batch: torch.func.functional_call(again, named, batch), student)

    inputs = STUDENT.clone().requires_grad_(), *loss.parameters()
    assert torch.autograd.gradcheck(kd, inputs, fast_mode=True)


def test_only_training_changes_the_memory() -> None:
    loss = build()
    before = copy.deepcopy(loss.state_dict())
    kd_of(loss.eval())
    assert all(torch.equal(tensor, before[name]) for name, tensor in loss.state_dict().items())


def test_checkpoints_hold_the_memory_and_not_what_follows_from_the_data() -> None:
    parameters = {f"{model}.linear.{name}" for model in ("student", "teacher") for name in ("weight", "bias")}
    buffers = {f"{model}.{name}" for model in ("student", "teacher") for name in ("memory", "constant")}
    assert set(build().state_dict()) == parameters | buffers | {"seed"}


def test_images_of_one_class_alone() -> None:
    torch.manual_seed(0)
    loss: Any = losses.build("crd", SHAPES, torch.zeros(10, dtype=torch.int64))
    assert kd_of(loss.double()).isfinite()


def test_it_needs_the_labels() -> None:
    with pytest.raises(ValueError, match="'crd' has a memory; build it with the labels of the training images"):
        losses.build("crd", SHAPES)
