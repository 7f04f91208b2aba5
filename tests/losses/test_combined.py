"""Several methods as one: the cross-entropy once, the distillation terms added."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from orchestrator import losses
from orchestrator.losses.base import Progress, Shapes, TeacherOutputs
from orchestrator.models.base import Outputs

SHAPES = (Shapes(5, 4, (2, 2, 4, 4)), Shapes(5, 4, (2, 2, 4, 4)))
LABELS = torch.arange(12) % 5  # of the training images
TAUGHT = [name for name, facts in losses.METHODS.items() if facts.has_teacher]


def outputs(seed: int) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    maps = tuple(torch.randn(6, width, 4, 4, generator=generator) for width in (2, 2, 4, 4))
    return Outputs(torch.randn(6, 5, generator=generator), torch.randn(6, 4, generator=generator), maps)


def call(method: str, **options: float | str | bool) -> tuple[Tensor, Tensor, Tensor | None]:
    torch.manual_seed(0)
    loss = losses.build(method, SHAPES, LABELS, **options)
    student, teacher, labels = outputs(0), outputs(1), torch.arange(6) % 5
    given = TeacherOutputs(**teacher._asdict(), index=torch.arange(6))
    return loss(student, labels, given, Progress(torch.tensor(3.0), 10))


@pytest.mark.parametrize(("one", "two"), [("dkd", "rkd"), ("at", "st"), ("logit", "pkt"), ("dist", "sp")])
def test_a_combination_is_the_cross_entropy_and_both_terms(one: str, two: str) -> None:
    (_, ce, first), (_, _, second) = call(one), call(two)
    total, found_ce, kd = call(f"{one}+{two}")
    assert first is not None and second is not None and kd is not None
    torch.testing.assert_close(found_ce, ce)
    torch.testing.assert_close(kd, first + second)
    torch.testing.assert_close(total, ce + first + second)


def test_options_belong_to_their_part() -> None:
    (_, ce, st), (_, _, dkd) = call("st", temperature=2.0, ce_weight=0.1), call("dkd", temperature=8.0, ce_weight=0.1)
    assert st is not None and dkd is not None
    options = {"st.temperature": 2.0, "dkd.temperature": 8.0, "st.ce_weight": 0.1, "dkd.ce_weight": 0.1}
    torch.testing.assert_close(call("dkd+st", **options)[0], 0.1 * ce + st + dkd)


def test_methods_that_weight_the_cross_entropy_differently_do_not_combine() -> None:
    facts = losses.get("kd+st")
    message = losses.find_conflict(facts.defaults())
    assert message.startswith("the cross-entropy counts once, and the methods give it different weights (kd 0.1, ")
    with pytest.raises(ValueError, match="give each the same ce_weight"):
        losses.build("kd+st", SHAPES)
    assert not losses.find_conflict({**facts.defaults(), "st.ce_weight": 0.1})


def test_facts_of_a_combination_are_those_of_its_parts() -> None:
    facts = losses.get("dkd+rkd+vid")
    assert facts.needs(facts.defaults()) == ("logits", "pooled", "maps")
    assert facts.has_parameters and facts.has_teacher
    assert facts.options["dkd.beta"] == losses.METHODS["dkd"].options["beta"]
    wide, narrow = Shapes(5, 8, (2, 4, 8)), Shapes(5, 4, (2, 2, 4))
    options = {**losses.get("dkd+logit").defaults(), "logit.match": "pooled"}
    assert "pooled features" in losses.get("dkd+logit").mismatch(options, wide, narrow)


def test_parameters_of_each_part_are_trained() -> None:
    loss = losses.build("fitnet+vid", SHAPES)
    assert isinstance(loss, nn.Module)
    names = {name.split(".")[1] for name, _ in loss.named_parameters()}
    assert names == {"fitnet", "vid"}


@pytest.mark.parametrize("name", ["none", "st+none", "st+", "+"])
def test_an_unknown_name_is_unknown_in_a_combination_too(name: str) -> None:
    assert losses.find(name) is None
    with pytest.raises(ValueError, match="unknown method"):
        losses.build(name)


@pytest.mark.parametrize("pair", [" ".join(pair) for pair in combinations(TAUGHT, 2)])
def test_every_pair_can_be_built(pair: str) -> None:
    method = losses.JOIN.join(sorted(pair.split()))
    options = {name: 1.0 for name in losses.get(method).options if name.endswith("ce_weight")}
    total, ce, kd = call(method, **options)
    assert kd is not None and torch.isfinite(total)
    torch.testing.assert_close(total, ce + kd)
