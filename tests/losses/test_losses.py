"""The losses: numbers worked out by hand, gradients, and what every registered method must do."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator import losses
from orchestrator.losses.terms import LossTerms

LN2 = math.log(2)
LN3 = math.log(3)


class Student(NamedTuple):
    logits: Tensor
    pooled: Tensor = torch.zeros(0)


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
    terms = losses.build("base")(Student(LOGITS), LABELS, {})
    assert numbers(terms)[:2] == approx(CE, CE)
    assert terms.kd is None


@pytest.mark.parametrize(("ce_weight", "total"), [(1.0, CE + 1.25), (0.0, 1.25), (0.5, CE / 2 + 1.25)])
def test_logit_by_hand(ce_weight: float, total: float) -> None:
    # Differences −1, 0, 0, −2; the mean of their squares is 5/4.
    terms = losses.build("logit", ce_weight=ce_weight)(Student(LOGITS), LABELS, {"logits": tensor((1, 0), (LN3, 2))})
    assert numbers(terms) == approx(total, CE, 1.25)


def test_logit_on_pooled_by_hand() -> None:
    # Differences 1, 0, 3, 0, 0, 2; the mean of their squares is 14/6.
    student = Student(LOGITS, tensor((1, 2, 3), (4, 5, 6)))
    terms = losses.build("logit", match="pooled")(student, LABELS, {"pooled": tensor((0, 2, 0), (4, 5, 4))})
    assert numbers(terms) == approx(CE + 14 / 6, CE, 14 / 6)


def test_soft_target_by_hand() -> None:
    # At T = 2 the teacher says (3/4, 1/4) and the student (1/2, 1/2): KL = 3/4·ln(3/2) + 1/4·ln(1/2) = 0.1308…
    # for the first image, nothing for the second, where both say the same. Mean 0.0654…, times T² = 0.2616….
    student = Student(tensor((0, 0), (0, 0)))
    terms = losses.build("st", temperature=2.0)(student, LABELS, {"logits": tensor((2 * LN3, 0), (0, 0))})
    assert numbers(terms) == approx(LN2 + 0.2616240717761818, LN2, 0.2616240717761818)


def random_batch(seed: int = 0) -> tuple[Student, Tensor, dict[str, Tensor]]:
    """A student, labels and every answer a teacher can give."""
    generator = torch.Generator().manual_seed(seed)
    logits, pooled, taught, taught_pooled = (
        3 * torch.randn(5, width, generator=generator, dtype=torch.float64) for width in (4, 6, 4, 6)
    )
    labels = torch.randint(4, (5,), generator=generator)
    return Student(logits, pooled), labels, {"logits": taught, "pooled": taught_pooled}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_temperature_against_an_explicit_sum(temperature: float) -> None:
    student, labels, answers = random_batch()

    def soft(row: list[float]) -> list[float]:
        powers = [math.exp(value / temperature) for value in row]
        return [power / sum(powers) for power in powers]

    divergences = [
        sum(p * math.log(p / q) for p, q in zip(soft(taught), soft(said), strict=True))
        for taught, said in zip(answers["logits"].tolist(), student.logits.tolist(), strict=True)
    ]
    terms = losses.build("st", temperature=temperature)(student, labels, answers)
    assert terms.kd is not None
    assert terms.kd.item() == pytest.approx(temperature**2 * sum(divergences) / len(divergences), rel=1e-9)


def test_gradient_at_high_temperature_is_that_of_matching_logits() -> None:
    # Section 2.1 of the paper: for logits of zero mean, (z_student − z_teacher) / C an image, whatever T.
    student, labels, answers = random_batch()
    logits = (student.logits - student.logits.mean(1, keepdim=True)).requires_grad_()
    taught = answers["logits"] - answers["logits"].mean(1, keepdim=True)
    terms = losses.build("st", temperature=1e5)(Student(logits), labels, {"logits": taught})
    assert terms.kd is not None
    (gradient,) = torch.autograd.grad(terms.kd, logits)
    torch.testing.assert_close(gradient, (logits - taught).detach() / 4 / 5, rtol=1e-3, atol=1e-5)


def variants() -> list[Any]:
    """Every method with its defaults, and with other values of each option in turn."""
    found = []
    for method, facts in losses.METHODS.items():
        found.append(pytest.param(method, {}, id=method))
        for name, option in facts.options.items():
            values = option.choices or (option.least + (0.5 if option.exclusive else 0.0), 2.5)
            found += [pytest.param(method, {name: value}, id=f"{method}-{name}={value}") for value in values]
    return found


class Asked(dict[str, Tensor]):
    """Answers that remember what was asked for."""

    def __init__(self, answers: dict[str, Tensor]) -> None:
        super().__init__(answers)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.names.add(name)
        return super().__getitem__(name)


@pytest.mark.parametrize(("method", "options"), variants())
class TestContract:
    """What training relies on, for every method and option there is."""

    def test_asks_for_what_it_needs(self, method: str, options: dict[str, Any]) -> None:
        student, labels, answers = random_batch()
        asked = Asked(answers)
        losses.build(method, **options)(student, labels, asked)
        facts = losses.METHODS[method]
        assert asked.names == set(facts.needs({**facts.defaults(), **options}))
        assert facts.has_teacher == bool(asked.names)

    def test_total_is_the_stated_combination(self, method: str, options: dict[str, Any]) -> None:
        student, labels, answers = random_batch()
        total, ce, kd = losses.build(method, **options)(student, labels, answers)
        assert all(term.shape == () for term in (total, ce))
        torch.testing.assert_close(ce, F.cross_entropy(student.logits, labels))
        assert (kd is not None) == losses.METHODS[method].has_teacher
        torch.testing.assert_close(total, options.get("ce_weight", 1.0) * ce + (0.0 if kd is None else kd))

    def test_kd_is_zero_for_the_teacher_itself_and_else_above(self, method: str, options: dict[str, Any]) -> None:
        student, labels, answers = random_batch()
        loss = losses.build(method, **options)
        if losses.METHODS[method].has_teacher:
            itself = loss(Student(answers["logits"], answers["pooled"]), labels, answers).kd
            other = loss(student, labels, answers).kd
            assert itself is not None and abs(itself.item()) < 1e-12
            assert other is not None and other.item() > 1e-3

    def test_gradient(self, method: str, options: dict[str, Any]) -> None:
        student, labels, answers = random_batch()
        loss = losses.build(method, **options)

        def total(logits: Tensor, pooled: Tensor) -> Tensor:
            # The nought times both keeps each an input, whatever the method looks at.
            return loss(Student(logits, pooled), labels, answers).total + 0 * (logits.sum() + pooled.sum())

        assert torch.autograd.gradcheck(total, (student.logits.requires_grad_(), student.pooled.requires_grad_()))

    def test_mean_over_the_batch(self, method: str, options: dict[str, Any]) -> None:
        # The same batch twice over is the same loss: sums over an epoch weigh each image alike.
        student, labels, answers = random_batch()
        loss = losses.build(method, **options)
        once = loss(student, labels, answers)
        double = {name: torch.cat([answer, answer]) for name, answer in answers.items()}
        twice = loss(Student(*(torch.cat([each, each]) for each in student)), torch.cat([labels, labels]), double)
        torch.testing.assert_close(twice.total, once.total)

    def test_stays_finite_for_large_logits(self, method: str, options: dict[str, Any]) -> None:
        student, labels, answers = random_batch()
        terms = losses.build(method, **options)(Student(*(1e3 * each for each in student)), labels, answers)
        assert terms.total.isfinite()


def test_defaults_are_those_of_the_design() -> None:
    assert {name: facts.defaults() for name, facts in losses.METHODS.items()} == {
        "base": {},
        "logit": {"ce_weight": 1.0, "match": "logits"},
        "st": {"temperature": 4.0},
    }


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match="unknown method 'logits'; methods are base, logit, st"):
        losses.build("logits")


def test_unknown_option() -> None:
    with pytest.raises(ValueError, match="'st' has no option alpha, temp; it has temperature"):
        losses.build("st", temp=1.0, alpha=2.0, temperature=4.0)


def test_reading_the_registry_does_not_import_torch() -> None:
    code = (
        "import sys; from orchestrator import losses; losses.METHODS['st'].defaults(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
