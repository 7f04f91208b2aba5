"""The methods from teacher logits: by hand, against plain sums, at extreme logits, and what has no plain gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from orchestrator import losses
from orchestrator.losses.base import Loss, Progress, Shapes, TeacherOutputs

Row = list[float]
Reference = Callable[[list[Row], list[Row], list[int], int, Any], float]

LN2, LN3 = math.log(2), math.log(3)
METHODS = ("kd", "dkd", "dist", "nkd", "ttm", "wttm", "wsld", "rld", "ctkd", "mlkd")


class Student(NamedTuple):
    logits: Tensor
    pooled: Tensor = torch.zeros(0)
    maps: tuple[Tensor, ...] = ()


def build(method: str, classes: int = 3, **options: Any) -> Loss:
    shapes = Shapes(classes, 4, (2,))
    return losses.build(method, (shapes, shapes), **options)


def kd_of(loss: Loss, student: Tensor, labels: list[int], teacher: Tensor, epoch: int = 1) -> Tensor:
    terms = loss(
        Student(student), torch.tensor(labels), TeacherOutputs(logits=teacher), Progress(torch.tensor(float(epoch)), 50)
    )
    assert terms.kd is not None
    return terms.kd


def rows(*values: Row) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# By hand.


def test_the_parts_of_dkd_are_those_of_kd() -> None:
    # The identity of the paper: KL = KL of the label against the rest + (1 − p_v(y)) · KL among the rest.
    teacher, student = rows([1.0, 2.0, -1.0]), rows([0.5, -1.0, 2.0])
    rest = 1 - (teacher / 2).softmax(1)[0, 1].item()
    dkd = build("dkd", alpha=1.0, beta=rest, temperature=2.0, warmup=1)
    kd = build("kd", weight=1.0, temperature=2.0)
    assert kd_of(dkd, student, [1], teacher).item() == pytest.approx(kd_of(kd, student, [1], teacher).item(), rel=1e-9)


@pytest.mark.parametrize("method", ["dkd", "rld"])
def test_a_warm_up_grows_by_as_much_in_each_epoch(method: str) -> None:
    values = [kd_of(build(method), rows([0, 1, 2]), [2], rows([1, 0, 3]), epoch).item() for epoch in (1, 10, 20, 50)]
    assert values == pytest.approx([values[-1] * share for share in (0.05, 0.5, 1, 1)], rel=1e-6)


def test_dist_by_hand() -> None:
    # Opposite predictions have correlation −1, of images and of classes: each distance is 2, and T² · weight is 32.
    one, other = rows([1, 0], [0, 1]), rows([0, 1], [1, 0])
    assert kd_of(build("dist", 2), one, [0, 1], other).item() == pytest.approx(128, rel=1e-6)
    assert kd_of(build("dist", 2, beta=0), one, [0, 1], other).item() == pytest.approx(64, rel=1e-6)
    assert kd_of(build("dist", 2), one, [0, 1], one).item() == pytest.approx(0, abs=1e-4)  # for its 1e-8


def test_nkd_by_hand() -> None:
    # Of three alike classes the label has 1/3, and each of the others half of the rest.
    found = kd_of(build("nkd", gamma=1.5, temperature=2.0), rows([0, 0, 0]), [1], rows([0, 0, 0]))
    assert found.item() == pytest.approx(LN3 / 3 + 1.5 * 4 * LN2, rel=1e-9)


@pytest.mark.parametrize(("method", "u"), [("ttm", 1.0), ("wttm", 4 / 10**0.5)])
def test_transformed_teachers_by_hand(method: str, u: float) -> None:
    # (9/10, 1/10) to the power 1/2 is (3, 1) / √10: q = (3/4, 1/4), u = 4/√10. Against (1/2, 1/2): KL = 0.1308….
    found = kd_of(build(method, 2, gamma=0.5), rows([0, 0]), [0], rows([2 * LN3, 0]))
    assert found.item() == pytest.approx(45 * u * (0.75 * math.log(1.5) - 0.25 * LN2), rel=1e-9)


def test_wsld_by_hand() -> None:
    # Both say (1/2, 1/2): the weight is 1 − e⁻¹, but for the 1e-7, and the cross-entropy ln 2.
    found = kd_of(build("wsld", 2), rows([0, 0]), [0], rows([0, 0]))
    assert found.item() == pytest.approx(2.25 * 16 * (1 - math.exp(-1)) * LN2, rel=1e-6)


def test_rld_by_hand() -> None:
    # The teacher's largest class has 3/4, the student's label 1/2. No class is below the label: no second term.
    found = kd_of(build("rld", 2, warmup=1), rows([0, 0]), [0], rows([0, LN3]))
    assert found.item() == pytest.approx(0.75 * math.log(1.5) - 0.25 * LN2, rel=1e-9)
    # With label 1 the second term is over class 0 alone, and so again 0; of the ties none is below.
    assert kd_of(build("rld", 2, warmup=1), rows([0, LN3]), [1], rows([0, LN3])).item() == pytest.approx(0, abs=1e-12)
    assert kd_of(build("rld", alpha=0, warmup=1), rows([0, 1, 2]), [0], rows([3, 3, 3])).item() == 0


def test_mlkd_by_hand() -> None:
    # The teacher says (1, 0), the student (1/2, 1/2), at every temperature; Σ T² = 90. The products of classes differ
    # by 3/4 and three times 1/4, whose squares have the sum 3/4, over C = 2; that of the image by 1/2.
    found = kd_of(build("mlkd", 2), rows([0, 0]), [0], rows([1e5, 0]))
    assert found.item() == pytest.approx(0.9 * (90 * LN2 + 5 * (3 / 8 + 1 / 4)), rel=1e-9)


def test_ctkd_is_kd_at_its_temperature() -> None:
    temperature = 1 + 20 / (1 + math.exp(-1))
    student, teacher = rows([0, 1, 5]), rows([2, 0, 3])
    kd = build("kd", temperature=temperature)
    for epoch in (1, 7, 30):
        found = kd_of(build("ctkd"), student, [2], teacher, epoch).item()
        assert found == pytest.approx(kd_of(kd, student, [2], teacher).item(), rel=1e-6)


@pytest.mark.parametrize(("epoch", "reversal"), [(5, -0.5), (10, -1.0), (40, -1.0)])
def test_ctkd_reverses_the_gradient_of_its_temperature(epoch: int, reversal: float) -> None:
    student, teacher, step = rows([0, 1, 5]), rows([2, 0, 3]), 1e-5
    loss: Any = build("ctkd")
    loss.double()
    kd_of(loss, student, [2], teacher, epoch).backward()
    sides = []
    for theta in (1 - step, 1 + step):
        other: Any = build("ctkd").double()  # type: ignore[attr-defined]
        other.theta.data.fill_(theta)
        sides.append(kd_of(other, student, [2], teacher, epoch).item())
    assert loss.theta.grad.item() == pytest.approx(reversal * (sides[1] - sides[0]) / (2 * step), rel=1e-5)


def test_the_weights_of_wsld_have_no_gradient() -> None:
    student, teacher = rows([0, 1, 5], [2, 2, 0]).requires_grad_(), rows([2, 0, 3], [0, 1, 2])
    (found,) = torch.autograd.grad(kd_of(build("wsld"), student, [2, 1], teacher), student)
    own, taught = ((each / 4).softmax(1) for each in (student.detach(), teacher))
    for image, label in enumerate([2, 1]):
        entropies = [-each.detach()[image].log_softmax(0)[label].item() for each in (student, teacher)]
        weight = 1 - math.exp(-entropies[0] / (entropies[1] + 1e-7))
        expected = weight * 2.25 * 4 / 2 * (own - taught)[image]  # T²·α/B, and 1/T from the softmax
        torch.testing.assert_close(found[image], expected)


# Against plain sums.


def soft(row: Row, temperature: float = 1.0, without: int | None = None) -> Row:
    """The softmax, with 0 for a class that is left out."""
    powers = [0.0 if c == without else math.exp(value / temperature) for c, value in enumerate(row)]
    return [power / sum(powers) for power in powers]


def kl(p: Row, q: Row) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


def correlation(a: Row, b: Row) -> float:
    a, b = ([value - fmean(each) for value in each] for each in (a, b))
    return sum(map(math.prod, zip(a, b, strict=True))) / (math.hypot(*a) * math.hypot(*b) + 1e-8)


def plain_kd(z: list[Row], v: list[Row], y: list[int], epoch: int, o: Any) -> float:
    t = o["temperature"]
    return float(o["weight"] * t**2 * fmean(kl(soft(b, t), soft(a, t)) for a, b in zip(z, v, strict=True)))


def plain_dkd(z: list[Row], v: list[Row], y: list[int], epoch: int, o: Any) -> float:
    t, found = o["temperature"], []
    for own, taught, label in zip(z, v, y, strict=True):
        p, q = soft(taught, t)[label], soft(own, t)[label]
        others = kl(soft(taught, t, label), soft(own, t, label))
        found.append(o["alpha"] * kl([p, 1 - p], [q, 1 - q]) + o["beta"] * others)
    return float(min(epoch / o["warmup"], 1) * t**2 * fmean(found))


def plain_dist(z: list[Row], v: list[Row], y: list[int], epoch: int, o: Any) -> float:
    t = o["temperature"]
    own, taught = ([soft(row, t) for row in each] for each in (z, v))
    images = 1 - fmean(map(correlation, own, taught))
    classes = 1 - fmean(map(correlation, map(list, zip(*own, strict=True)), map(list, zip(*taught, strict=True))))
    return float(o["weight"] * t**2 * (o["beta"] * images + o["gamma"] * classes))


def plain_nkd(z: list[Row], v: list[Row], y: list[int], epoch: int, o: Any) -> float:
    t, found = o["temperature"], []
    for own, taught, label in zip(z, v, y, strict=True):
        pairs = list(zip(soft(taught, t, label), soft(own, t, label), strict=True))
        others = sum(p * math.log(q) for p, q in pairs if q)
        found.append(-soft(taught)[label] * math.log(soft(own)[label]) - o["gamma"] * t**2 * others)
    return float(fmean(found))


def plain_ttm(z: list[Row], v: list[Row], y: list[int], epoch: int, o: Any, is_weighted: bool = False) -> float:
    found = []
    for own, taught in zip(z, v, strict=True):
        powers = [p ** o["gamma"] for p in soft(taught)]
        u = sum(powers)
        found.append((u if is_weighted else 1) * kl([power / u for power in powers], soft(own)))
    return float(o["weight"] * fmean(found))


def plain_wttm(z: list[Row], v: list[Row], y: list[int], epoch: int, o: Any) -> float:
    return plain_ttm(z, v, y, epoch, o, is_weighted=True)


def plain_wsld(z: list[Row], v: list[Row], y: list[int], epoch: int, o: Any) -> float:
    t, found = o["temperature"], []
    for own, taught, label in zip(z, v, y, strict=True):
        ratio = math.log(soft(own)[label]) / (math.log(soft(taught)[label]) - 1e-7)
        pairs = zip(soft(taught, t), soft(own, t), strict=True)
        found.append((1 - math.exp(-ratio)) * -sum(p * math.log(q) for p, q in pairs))
    return float(o["alpha"] * t**2 * fmean(found))


def plain_rld(z: list[Row], v: list[Row], y: list[int], epoch: int, o: Any) -> float:
    t, a, found = o["temperature"], o["alpha_temperature"], []
    for own, taught, label in zip(z, v, y, strict=True):
        p, q = max(soft(taught, a)), soft(own, a)[label]
        below = [c for c, value in enumerate(taught) if value < taught[label]]
        others = kl(*(soft([each[c] for c in below], t) for each in (taught, own))) if below else 0.0
        found.append(o["alpha"] * a**2 * kl([p, 1 - p], [q, 1 - q]) + o["beta"] * t**2 * others)
    return float(min(epoch / o["warmup"], 1) * fmean(found))


def plain_ctkd(z: list[Row], v: list[Row], y: list[int], epoch: int, o: Any) -> float:
    temperature = o["lowest"] + o["span"] / (1 + math.exp(-1))
    return plain_kd(z, v, y, epoch, {"weight": o["weight"], "temperature": temperature})


def plain_mlkd(z: list[Row], v: list[Row], y: list[int], epoch: int, o: Any) -> float:
    total = 0.0
    for t in (2, 3, 4, 5, 6):
        p, q = ([soft(row, t) for row in each] for each in (z, v))
        total += t**2 * fmean(map(kl, q, p))
        columns = ([list(column) for column in zip(*each, strict=True)] for each in (p, q))
        for own, taught in ((p, q), tuple(columns)):  # the products of rows: over classes, then over images
            for i in range(len(own)):
                for j in range(len(own)):
                    products = (sum(map(math.prod, zip(each[i], each[j], strict=True))) for each in (own, taught))
                    total += (next(products) - next(products)) ** 2 / len(own)
    return float(o["weight"] * total)


CHANGES: dict[str, dict[str, Any]] = {
    "kd": {"weight": 2.5, "temperature": 1.5},
    "dkd": {"alpha": 2.0, "beta": 0.5, "temperature": 1.5, "warmup": 2},
    "dist": {"weight": 0.5, "beta": 0.3, "gamma": 2.0, "temperature": 1.5},
    "nkd": {"gamma": 0.7, "temperature": 2.0},
    "ttm": {"weight": 3.0, "gamma": 0.6},
    "wttm": {"weight": 3.0, "gamma": 0.6},
    "wsld": {"alpha": 0.4, "temperature": 1.5},
    "rld": {"alpha": 2.0, "beta": 0.5, "alpha_temperature": 2.0, "temperature": 1.5, "warmup": 2},
    "ctkd": {"weight": 2.5, "lowest": 0.5, "span": 3.0, "warmup": 4},
    "mlkd": {"weight": 2.0},
}


def draw(images: int, classes: int, seed: int) -> tuple[Tensor, Tensor, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, images, classes, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(classes, (images,), generator=generator).tolist()


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_against_plain_sums(method: str, standardize: bool) -> None:
    for seed, (options, epoch) in enumerate([({}, 1), ({}, 30), (CHANGES[method], 3)]):
        student, teacher, labels = draw(6, 5, seed)
        given = {**losses.METHODS[method].defaults(), **options, "standardize": standardize}
        z, v = student.tolist(), teacher.tolist()
        if standardize:
            z, v = ([plain_standardized(row) for row in each] for each in (z, v))
        expected = globals()[f"plain_{method}"](z, v, labels, epoch, given)
        loss = build(method, 5, **given)
        if isinstance(loss, torch.nn.Module):
            loss.double()
        assert kd_of(loss, student, labels, teacher, epoch).item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def plain_standardized(row: Row) -> Row:
    mean = fmean(row)
    deviation = (sum((value - mean) ** 2 for value in row) / (len(row) - 1)) ** 0.5
    return [(value - mean) / (1e-7 + deviation) for value in row]


# At extreme logits, in float32.


@pytest.mark.parametrize("kind", ["random", "sure and wrong", "sure and right", "undecided", "one image"])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_extreme_logits(method: str, standardize: bool, kind: str) -> None:
    student, teacher, labels = draw(1 if kind == "one image" else 8, 10, 0)
    student, teacher = (50 * each.sign() if kind == "random" else 0 * each for each in (student, teacher))
    if kind in ("sure and wrong", "sure and right", "one image"):
        place = torch.tensor(labels)[:, None]
        student, teacher = student - 50, teacher - 50
        student.scatter_(1, place if kind == "sure and right" else (place + 1) % 10, 50.0)
        teacher.scatter_(1, place, 50.0)
    exact = build(method, 10, standardize=standardize)
    if isinstance(exact, torch.nn.Module):
        exact.double()
    expected = kd_of(exact, student, labels, teacher, 20)
    logits = student.float().requires_grad_()
    found = kd_of(build(method, 10, standardize=standardize), logits, labels, teacher.float(), 20)
    found.backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
