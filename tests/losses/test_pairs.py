"""Every method between models of different families: it trains the student, or the plan refuses it with its reason."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import torch

from orchestrator import losses, models
from orchestrator.errors import StudyError
from orchestrator.launch import plan_study
from orchestrator.losses.base import Progress, Shapes, TeacherOutputs
from orchestrator.models.base import Classifier, Outputs

PAIRS = [  # student and teacher: other widths; other sides, with a 4×4 against a 2×2 map; another number of stages
    ("wrn_16_2", "resnet_32x4"),
    ("mobilenet_v2", "vgg_13"),
    ("shufflenet_v2", "resnet_50"),
]
METHODS = [name for name, method in losses.METHODS.items() if method.has_teacher]
REFUSED = {
    "fsp": [*PAIRS],
    "reviewkd": [("shufflenet_v2", "resnet_50")],
}
CLASSES, IMAGES = 100, 4


def shapes_of(model: str) -> Shapes:
    widths = models.widths(model)
    return Shapes(CLASSES, widths.pooled, widths.maps)


@lru_cache
def student_of(name: str) -> Classifier:
    torch.manual_seed(0)
    return models.build(name, CLASSES).train()


@lru_cache
def outputs_of(name: str) -> Outputs:
    """A teacher's outputs for the batch."""
    torch.manual_seed(1)
    with torch.no_grad():
        return models.build(name, CLASSES).eval().embed(images())


def images() -> torch.Tensor:
    return torch.randn(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
@pytest.mark.parametrize("method", METHODS)
def test_a_step_trains_the_student_or_the_plan_refuses_it(
    method: str, student: str, teacher: str, tmp_path: Path
) -> None:
    facts = losses.METHODS[method]
    if (student, teacher) in REFUSED.get(method, ()):
        study = tmp_path / "study.yaml"
        study.write_text(
            f"study: s\nexperiments: [{{method: {method}, dataset: cifar100, student: {student}, teacher: {teacher}}}]"
        )
        with pytest.raises(StudyError) as caught:
            plan_study(study)
        (fault,) = caught.value.faults
        assert facts.mismatch(facts.defaults(), models.widths(student), models.widths(teacher)) in str(fault)
        return
    assert not facts.mismatch(facts.defaults(), models.widths(student), models.widths(teacher))
    shapes = shapes_of(student), shapes_of(teacher)
    torch.manual_seed(3)
    loss = losses.build(method, shapes, torch.arange(200) % CLASSES, **facts.defaults())
    model, taught = student_of(student), outputs_of(teacher)
    model.zero_grad()
    found = {name: getattr(taught, name) for name in facts.needs(facts.defaults())}
    index = torch.arange(IMAGES)
    terms = loss(
        model.embed(images()), index % CLASSES, TeacherOutputs(**found, index=index), Progress(torch.tensor(2.0), 240)
    )
    assert all(torch.isfinite(term) for term in terms if term is not None)
    assert terms.kd is not None
    terms.kd.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert next(model.parameters()).grad.norm() > 0, "the gradient reaches the student's first layer"
