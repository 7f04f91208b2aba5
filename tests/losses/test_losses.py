"""The losses: numbers worked out by hand, gradients, and what every registered method must do."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator import losses
from orchestrator.losses.base import Loss, LossTerms, Progress, Shapes, TeacherOutputs

LN2 = math.log(2)
LN3 = math.log(3)


NOWHERE = Progress(torch.tensor(1.0), 10)


class Student(NamedTuple):
    logits: Tensor
    pooled: Tensor = torch.zeros(0)
    maps: tuple[Tensor, ...] = ()


def tensor(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def numbers(terms: LossTerms) -> tuple[float | None, ...]:
    return tuple(None if term is None else term.item() for term in terms)


def approx(*values: float) -> Any:
    return pytest.approx(values, rel=1e-9)


# Softmax: (1/2, 1/2) and (3/4, 1/4); with labels 0 and 1 the cross-entropies are ln 2 and ln 4, their mean 1.0397….
LOGITS = tensor((0, 0), (LN3, 0))
LABELS = torch.tensor([0, 1])
CE = 1.0397207708399179


def test_base_by_hand() -> None:
    terms = losses.build("base")(Student(LOGITS), LABELS, TeacherOutputs(), NOWHERE)
    assert numbers(terms)[:2] == approx(CE, CE)
    assert terms.kd is None


@pytest.mark.parametrize(("ce_weight", "total"), [(1.0, CE + 1.25), (0.0, 1.25), (0.5, CE / 2 + 1.25)])
def test_logit_by_hand(ce_weight: float, total: float) -> None:
    # Differences −1, 0, 0, −2; the mean of their squares is 5/4.
    terms = losses.build("logit", ce_weight=ce_weight)(
        Student(LOGITS), LABELS, TeacherOutputs(logits=tensor((1, 0), (LN3, 2))), NOWHERE
    )
    assert numbers(terms) == approx(total, CE, 1.25)


def test_logit_on_pooled_by_hand() -> None:
    # Differences 1, 0, 3, 0, 0, 2; the mean of their squares is 14/6.
    student = Student(LOGITS, tensor((1, 2, 3), (4, 5, 6)))
    terms = losses.build("logit", match="pooled")(
        student, LABELS, TeacherOutputs(pooled=tensor((0, 2, 0), (4, 5, 4))), NOWHERE
    )
    assert numbers(terms) == approx(CE + 14 / 6, CE, 14 / 6)


def test_soft_target_by_hand() -> None:
    # At T = 2 the teacher predicts (3/4, 1/4) and the student (1/2, 1/2): KL = 3/4·ln(3/2) + 1/4·ln(1/2) = 0.1308…
    # for the first image, nothing for the second, where both agree. Mean 0.0654…, times T² = 0.2616….
    student = Student(tensor((0, 0), (0, 0)))
    terms = losses.build("st", temperature=2.0)(
        student, LABELS, TeacherOutputs(logits=tensor((2 * LN3, 0), (0, 0))), NOWHERE
    )
    assert numbers(terms) == approx(LN2 + 0.2616240717761818, LN2, 0.2616240717761818)


SHAPES = Shapes(4, 6, (3, 4, 5)), Shapes(4, 6, (2, 5, 7))  # of student and teacher
ALIKE = SHAPES[1], SHAPES[1]


# Losses that compare the images of a batch with each other: they are no mean over images.
RELATIONAL = ("mlkd", "rkd", "pkt", "cc", "sp")


def shapes_of(method: str) -> tuple[Shapes, Shapes]:
    """Student and teacher of other widths, where the method can compare them."""
    facts = losses.METHODS[method]
    return ALIKE if facts.mismatch(facts.defaults(), *SHAPES) else SHAPES


def random_batch(method: str = "base") -> tuple[Student, Tensor, TeacherOutputs]:
    """A student's outputs, labels, and every output a teacher can give, of shapes that the method can compare."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return 3 * torch.randn(5, *shape, generator=generator, dtype=torch.float64)

    logits, pooled, taught, taught_pooled = (draw(width) for width in (4, 6, 4, 6))
    labels = torch.randint(4, (5,), generator=generator)
    maps, taught_maps = (tuple(draw(width, 2, 2) for width in shapes.maps) for shapes in shapes_of(method))
    teacher = TeacherOutputs(index=torch.arange(5), logits=taught, pooled=taught_pooled, maps=taught_maps)
    return Student(logits, pooled, maps), labels, teacher


def build(method: str, **options: Any) -> Loss:
    """A loss in float64, with the same parameters at every call."""
    torch.manual_seed(0)
    loss = losses.build(method, shapes_of(method), random_batch()[1], **options)
    return loss.double() if isinstance(loss, nn.Module) else loss


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_temperature_against_an_explicit_sum(temperature: float) -> None:
    student, labels, teacher = random_batch()

    def soft(row: list[float]) -> list[float]:
        powers = [math.exp(value / temperature) for value in row]
        return [power / sum(powers) for power in powers]

    divergences = [
        sum(p * math.log(p / q) for p, q in zip(soft(taught), soft(predicted), strict=True))
        for taught, predicted in zip(teacher.logits.tolist(), student.logits.tolist(), strict=True)
    ]
    terms = losses.build("st", temperature=temperature)(student, labels, teacher, NOWHERE)
    assert terms.kd is not None
    assert terms.kd.item() == pytest.approx(temperature**2 * sum(divergences) / len(divergences), rel=1e-9)


def test_gradient_at_high_temperature_is_that_of_matching_logits() -> None:
    # Section 2.1 of the paper: for logits of zero mean, (z_student − z_teacher) / C an image, whatever T.
    student, labels, teacher = random_batch()
    logits = (student.logits - student.logits.mean(1, keepdim=True)).requires_grad_()
    taught = teacher.logits - teacher.logits.mean(1, keepdim=True)
    terms = losses.build("st", temperature=1e5)(Student(logits), labels, TeacherOutputs(logits=taught), NOWHERE)
    assert terms.kd is not None
    (gradient,) = torch.autograd.grad(terms.kd, logits)
    torch.testing.assert_close(gradient, (logits - taught).detach() / 4 / 5, rtol=1e-3, atol=1e-5)


def variants() -> list[Any]:
    """Every method with its defaults, and with other values of each option in turn."""
    found = []
    for method, facts in losses.METHODS.items():
        found.append(pytest.param(method, {}, id=method))
        for name, option in facts.options.items():
            numbers = (
                (1, 2)
                if isinstance(option.default, int)
                else (option.least + option.exclusive / 2, min(2.5, option.most))
            )
            values = option.choices or ((False, True) if isinstance(option.default, bool) else numbers)
            found += [pytest.param(method, {name: value}, id=f"{method}-{name}={value}") for value in values]
    return found


class RecordingOutputs(TeacherOutputs):
    """A teacher's outputs that remember which were used."""

    def __init__(self, outputs: TeacherOutputs) -> None:
        super().__init__(**{name: getattr(outputs, name) for name in TeacherOutputs.__slots__})
        self.names: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        if name in TeacherOutputs.__slots__:
            self.names.add(name)
        return super().__getattribute__(name)


# Cross-entropies, comparisons with other than the teacher's own prediction, and one that adds 1e-8 to a denominator.
NEVER_ZERO = {"dist", "nkd", "rld", "ttm", "wsld", "wttm"}


@pytest.mark.parametrize(("method", "options"), variants())
class TestContract:
    """What training relies on, for every method and option."""

    def test_uses_what_it_needs(self, method: str, options: dict[str, Any]) -> None:
        student, labels, teacher = random_batch(method)
        recording = RecordingOutputs(teacher)
        build(method, **options)(student, labels, recording, NOWHERE)
        facts = losses.METHODS[method]
        assert recording.names - {"index"} == set(facts.needs({**facts.defaults(), **options}))
        assert facts.has_teacher == bool(recording.names)
        assert facts.has_memory == ("index" in recording.names)

    def test_total_is_the_stated_combination(self, method: str, options: dict[str, Any]) -> None:
        student, labels, teacher = random_batch(method)
        loss = build(method, **options)
        total, ce, kd = loss(student, labels, teacher, NOWHERE)
        assert loss.ce_weight == {**losses.METHODS[method].defaults(), **options}.get("ce_weight", 1.0)
        assert all(term.shape == () for term in (total, ce))
        torch.testing.assert_close(ce, F.cross_entropy(student.logits, labels))
        assert (kd is not None) == losses.METHODS[method].has_teacher
        torch.testing.assert_close(total, loss.ce_weight * ce + (0.0 if kd is None else kd))

    def test_kd_is_zero_for_the_teacher_itself_and_positive_otherwise(
        self, method: str, options: dict[str, Any]
    ) -> None:
        student, labels, teacher = random_batch(method)
        loss, facts = build(method, **options), losses.METHODS[method]
        if facts.has_teacher and not facts.has_parameters and method not in NEVER_ZERO:
            itself = loss(Student(teacher.logits, teacher.pooled, teacher.maps), labels, teacher, NOWHERE).kd
            other = loss(student, labels, teacher, NOWHERE).kd
            assert itself is not None and abs(itself.item()) < 1e-12
            assert other is not None and (other.item() > 1e-3 or options.get("weight") == 0)

    def test_gradient(self, method: str, options: dict[str, Any]) -> None:
        if method == "wsld":
            return  # its weights have no gradient, see test_logits.py
        student, labels, teacher = random_batch(method)
        loss = build(method, **options)
        loss(student, labels, teacher, NOWHERE)  # a first batch may set constants, through which no gradient goes
        inputs = (student.logits, student.pooled, *student.maps)

        def total(logits: Tensor, pooled: Tensor, *maps: Tensor) -> Tensor:
            # Adding zero times everything keeps each an input, whatever the method uses.
            unused = 0 * sum(each.sum() for each in (logits, pooled, *maps))
            again = copy.deepcopy(loss)  # which may remember what it has seen
            return again(Student(logits, pooled, maps), labels, teacher, NOWHERE).total + unused

        assert torch.autograd.gradcheck(total, tuple(each.requires_grad_() for each in inputs), fast_mode=True)

    def test_parameters_exist_where_the_table_states_them_and_learn(self, method: str, options: dict[str, Any]) -> None:
        student, labels, teacher = random_batch(method)
        loss = build(method, **options)
        assert isinstance(loss, nn.Module) == losses.METHODS[method].has_parameters
        if isinstance(loss, nn.Module):
            loss(student, labels, teacher, NOWHERE).total.backward()
            parameters = list(loss.parameters())
            assert parameters and (options.get("weight") == 0 or all(each.grad is not None for each in parameters))

    def test_mean_over_the_batch(self, method: str, options: dict[str, Any]) -> None:
        # A batch repeated twice has the same loss: sums over an epoch weight all images equally.
        student, labels, teacher = random_batch(method)
        loss = build(method, **options)
        once = loss(student, labels, teacher, NOWHERE)
        twice = build(method, **options)(
            Student(*map(repeat, student)), torch.cat([labels, labels]),
            TeacherOutputs(**{name: repeat(getattr(teacher, name)) for name in TeacherOutputs.__slots__}), NOWHERE,
        )  # fmt: skip
        torch.testing.assert_close(twice.ce, once.ce)
        if method not in RELATIONAL:
            torch.testing.assert_close(twice.total, once.total, rtol=1e-4, atol=1e-6)  # for the 1e-8 of dist

    def test_no_value_decides_what_is_computed(self, method: str, options: dict[str, Any]) -> None:
        # Tensors of the meta device have no values: reading one, a branch on one and a shape that depends on one fail.
        # All of these would break the capture of a step as a CUDA graph, or wait for the device.
        student, labels, teacher = (to_meta(each) for each in random_batch(method))
        loss = build(method, **options)
        if isinstance(loss, nn.Module):
            loss.to("meta")
        student = Student(student.logits.requires_grad_(), student.pooled, student.maps)
        total = loss(student, labels, teacher, Progress(torch.tensor(1.0, device="meta"), 10)).total
        total.backward()
        assert total.is_meta and student.logits.grad is not None

    def test_stays_finite_for_large_logits(self, method: str, options: dict[str, Any]) -> None:
        student, labels, teacher = random_batch(method)
        large = Student(1e3 * student.logits, 1e3 * student.pooled, tuple(1e3 * each for each in student.maps))
        assert build(method, **options)(large, labels, teacher, NOWHERE).total.isfinite()


def to_meta(outputs: Any) -> Any:
    """A batch's outputs without their values."""
    if isinstance(outputs, TeacherOutputs):
        return TeacherOutputs(**{name: to_meta(getattr(outputs, name)) for name in TeacherOutputs.__slots__})
    if isinstance(outputs, Student):
        return Student(*map(to_meta, outputs))
    return tuple(map(to_meta, outputs)) if isinstance(outputs, tuple) else outputs.to("meta")


def repeat(outputs: Any) -> Any:
    """The outputs of a batch, repeated twice."""
    return tuple(map(repeat, outputs)) if isinstance(outputs, tuple) else torch.cat([outputs, outputs])


def test_fitnet_by_hand() -> None:
    # The projection 2x of maps 1, 2, 3, 4, without its norm: 2, 4, 6, 8 against 1: squares 1, 9, 25, 49, mean 21.
    shapes, nothing = Shapes(2, 1, (5, 3, 1)), (torch.zeros(0), torch.zeros(0))
    loss: Any = losses.build("fitnet", (shapes, shapes), weight=0.5, stage=2)
    loss.regressor[0].weight.data.fill_(2.0)
    loss.regressor[1] = nn.Identity()
    maps = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]).expand(2, 1, 2, 2)
    teacher = TeacherOutputs(maps=(*nothing, torch.ones(2, 1, 2, 2)))
    terms = loss(Student(LOGITS.float(), maps=(*nothing, maps)), LABELS, teacher, NOWHERE)
    assert [None if term is None else term.item() for term in terms] == pytest.approx([CE + 10.5, CE, 10.5], rel=1e-6)


def test_fitnet_counts_stages_from_1_after_the_stem() -> None:
    for stage, widths in enumerate(zip(SHAPES[0].maps, SHAPES[1].maps, strict=True)):
        loss: Any = losses.build("fitnet", SHAPES, stage=stage)
        assert (loss.regressor[0].in_channels, loss.regressor[0].out_channels) == widths


def test_standardized_logits_by_hand() -> None:
    # Both have mean 0 and deviation 1 over the classes: (−1, 0, 1) and (1, 0, −1), whatever their size and mean were.
    # The differences are −2, 0, 2, the mean of their squares 8/3; the cross-entropy is that of the raw (0, 9, 18).
    logits, taught = tensor((0, 9, 18)), tensor((7, 5, 3))
    terms = losses.build("logit", standardize=True)(
        Student(logits), torch.tensor([2]), TeacherOutputs(logits=taught), NOWHERE
    )
    ce = math.log1p(math.exp(-9) + math.exp(-18))
    assert numbers(terms) == pytest.approx((ce + 8 / 3, ce, 8 / 3), rel=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
def test_standardized_logits_of_any_size_are_finite(scale: float) -> None:
    student, labels, teacher = random_batch()
    logits = (scale * student.logits).float().requires_grad_()
    total = losses.build("st", standardize=True)(Student(logits), labels, teacher, NOWHERE).total
    total.backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and total.isfinite()


def test_pooled_features_cannot_be_standardized() -> None:
    mismatch = losses.METHODS["logit"].mismatch
    assert "remove one of the two" in mismatch({"match": "pooled", "standardize": True}, *SHAPES)
    assert mismatch({"match": "logits", "standardize": True}, *SHAPES) == ""


def test_weights_of_both_terms() -> None:
    student, labels, teacher = random_batch()
    plain = losses.build("st")(student, labels, teacher, NOWHERE)
    weighted = losses.build("st", ce_weight=0.1, weight=0.9)(student, labels, teacher, NOWHERE)
    assert plain.kd is not None
    assert numbers(weighted)[1:] == approx(plain.ce.item(), 0.9 * plain.kd.item())
    assert weighted.total.item() == pytest.approx(0.1 * plain.ce.item() + 0.9 * plain.kd.item(), rel=1e-9)


def test_the_docs_can_say_where_each_method_comes_from() -> None:
    for name, facts in losses.METHODS.items():
        assert facts.formula and facts.source, name
        assert all(option in facts.formula for option in facts.options if option.endswith("weight")), name


def test_fitnet_needs_its_stage_in_both_models() -> None:
    mismatch = losses.METHODS["fitnet"].mismatch
    assert mismatch({"stage": 2}, *SHAPES) == ""
    assert "both have the stages 1 to 2; use one of these" in mismatch({"stage": 3}, *SHAPES)


def test_parameters_need_the_shapes_of_both_models() -> None:
    with pytest.raises(ValueError, match="'fitnet' has parameters; build it with the shapes of student and teacher"):
        losses.build("fitnet")


def test_an_output_that_is_not_needed_does_not_exist() -> None:
    with pytest.raises(AttributeError):
        TeacherOutputs(logits=LOGITS).pooled  # noqa: B018 - reading it is the test


def test_defaults_are_the_published_ones() -> None:
    plain = {"standardize": False}
    assert {name: facts.defaults() for name, facts in losses.METHODS.items()} == {
        "kd": {"ce_weight": 0.1, "weight": 0.9, "temperature": 4.0, **plain},
        "dkd": {"alpha": 1.0, "beta": 8.0, "temperature": 4.0, "warmup": 20, "ce_weight": 1.0, **plain},
        "dist": {"weight": 2.0, "beta": 1.0, "gamma": 1.0, "temperature": 4.0, "ce_weight": 1.0, **plain},
        "nkd": {"gamma": 1.5, "temperature": 1.0, "ce_weight": 1.0, **plain},
        "ttm": {"weight": 45.0, "gamma": 0.1, "ce_weight": 1.0, **plain},
        "wttm": {"weight": 45.0, "gamma": 0.1, "ce_weight": 1.0, **plain},
        "wsld": {"alpha": 2.25, "temperature": 4.0, "ce_weight": 1.0, **plain},
        "rld": {
            "alpha": 1.0,
            "beta": 8.0,
            "alpha_temperature": 1.0,
            "temperature": 4.0,
            "warmup": 20,
            "ce_weight": 1.0,
            **plain,
        },
        "ctkd": {"ce_weight": 0.1, "weight": 0.9, "lowest": 1.0, "span": 20.0, "warmup": 10, **plain},
        "mlkd": {"ce_weight": 0.1, "weight": 0.9, **plain},
        "base": {},
        "logit": {"ce_weight": 1.0, "match": "logits", "standardize": False},
        "st": {"temperature": 4.0, "ce_weight": 1.0, "weight": 1.0, "standardize": False},
        "fitnet": {"weight": 100.0, "stage": 2},
        "rkd": {"weight": 1.0, "distance_weight": 25.0, "angle_weight": 50.0},
        "pkt": {"weight": 30000.0},
        "cc": {"weight": 0.02},
        "simkd": {"weight": 1.0},
        "crd": {"weight": 0.8, "negatives": 16384, "temperature": 0.07, "memory_momentum": 0.5},
        "at": {"weight": 1000.0},
        "sp": {"weight": 3000.0},
        "nst": {"weight": 50.0},
        "vid": {"weight": 1.0},
        "fsp": {"weight": 50.0},
        "reviewkd": {"weight": 1.0, "warmup": 20},
    }


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match="unknown method 'logits'; methods are base, logit, st, kd, "):
        losses.build("logits")


def test_unknown_option() -> None:
    with pytest.raises(ValueError, match="'st' has no option alpha, temp; it has temperature, ce_weight"):
        losses.build("st", temp=1.0, alpha=2.0, temperature=4.0)


def test_reading_the_registry_does_not_import_torch() -> None:
    code = (
        "import sys; from orchestrator import losses; losses.METHODS['st'].defaults(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
