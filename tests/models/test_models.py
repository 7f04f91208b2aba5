"""The models' names, and what the rest of kdctl relies on, for every family."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from orchestrator import models
from orchestrator.models.base import Classifier, Outputs
from orchestrator.models.family import Family


def seeded(name: str, classes: int, seed: int = 0) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.build(name, classes)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet_32_21", "resnet_32_20"),
        ("resnet_32_24", "resnet_32_26"),
        ("resnet_32_1", "resnet_32_8"),
        ("resnet_32_2", "resnet_32_8"),
        ("resnet_32_1208", "resnet_32_1202"),
        ("resnet_32_999999999", "resnet_32_1202"),
        ("resnet_20", "resnet_32_20"),
        ("vgg", "resnet_32_20"),
        ("resnet_32_", "resnet_32_20"),
        ("resnet_32_020", "resnet_32_20"),
        ("resnet_32_20\n", "resnet_32_20"),
        ("", "resnet_32_20"),
    ],
)
def test_unknown_name_raises_with_the_nearest(name: str, nearest: str) -> None:
    for attempt in (lambda: models.parse(name), lambda: models.build(name, 10)):
        with pytest.raises(ValueError, match=rf"unknown model .*\b{nearest}\b"):
            attempt()


def test_a_name_is_read_by_its_family() -> None:
    name = models.parse("resnet_32_110")
    assert name == models.ModelName("resnet_32", (110,))
    assert (name.title, name.variant) == ("ResNet110", "110")


@pytest.mark.parametrize(
    ("name", "blocks", "other"),
    [
        ("resnet_32_20", 1, "resnet_32_26"), ("resnet_32_20", -2, "resnet_32_8"), ("wrn_40_2", -4, "wrn_16_2"),
        ("resnet_32_20", -3, None), ("resnet_32_20", 0, None),
    ],
)  # fmt: skip
def test_the_model_with_more_blocks(name: str, blocks: int, other: str | None) -> None:
    assert models.deeper(name, blocks) == other


@pytest.mark.parametrize("classes", [-1, 0, 1])
def test_too_few_classes(classes: int) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        models.build("resnet_32_8", classes)


# What the rest of kdctl relies on, for every family.

FAMILIES = pytest.mark.parametrize("family", models.FAMILIES.values(), ids=models.FAMILIES)
NAMES = sorted({family.example for family in models.FAMILIES.values()} | {"resnet_32_8"})


def smallest(family: Family) -> str:
    """The name of the family's smallest model."""
    return family.fill(family.form, [number.least for number in family.numbers])


def train_a_little(name: str, classes: int) -> Classifier:
    """A model whose batch norms are no longer close to the identity, as fresh ones are."""
    model = seeded(name, classes)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    model(torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1)))  # sets their means and variances
    return model


@FAMILIES
class TestNames:
    """How a family reads the names of its models."""

    def test_limits_are_names_of_the_family(self, family: Family) -> None:
        key = models.parse(family.example).family
        assert models.FAMILIES[key] is family
        smallest = tuple(number.least for number in family.numbers)
        second = tuple(number.least + number.step for number in family.numbers)
        largest = tuple(number.most for number in family.numbers)
        for numbers in (smallest, second, largest):
            assert models.parse(family.fill(family.form, numbers)) == models.ModelName(key, numbers)

    def test_a_number_outside_the_limits_is_refused_with_the_nearest_name(self, family: Family) -> None:
        least = [number.least for number in family.numbers]
        for index, number in enumerate(family.numbers):
            wrong = {number.least - 1: number.least, number.most + number.step: number.most}
            wrong |= {number.least + 1: number.least} if number.step > 2 else {}
            for value, nearest in wrong.items():
                name, fix = (
                    family.fill(family.form, [*least[:index], n, *least[index + 1 :]]) for n in (value, nearest)
                )
                if value > 0:
                    with pytest.raises(ValueError, match=rf"{number.word} must be .*did you mean {fix}\?"):
                        models.parse(name)

    def test_names_match_the_pattern_of_the_schema(self, family: Family) -> None:
        assert re.search(models.pattern(), family.example)
        assert not re.search(models.pattern(), f"{family.example}_")
        assert family.describe() in models.describe()

    def test_titles_differ_between_models(self, family: Family) -> None:
        first, other = models.parse(smallest(family)), models.parse(family.example)
        assert other.variant in other.title
        assert first.title != other.title and first.variant != other.variant


@pytest.mark.parametrize("name", NAMES)
class TestClassifier:
    """What a model computes, and what its family states about it without torch."""

    @pytest.mark.parametrize("side", [8, 32])
    def test_outputs_have_the_stated_widths(self, name: str, side: int) -> None:
        model = seeded(name, 5).eval()
        images = torch.randn(2, 3, side, side)
        outputs = model.embed(images)
        assert isinstance(model, Classifier) and isinstance(outputs, Outputs)
        assert model.widths == models.widths(name)
        assert outputs.logits.shape == (2, 5)
        assert outputs.pooled.shape == (2, model.widths.pooled)
        assert tuple(each.shape[:2] for each in outputs.maps) == tuple((2, width) for width in model.widths.maps)
        assert outputs.logits.isfinite().all()
        assert torch.equal(model(images), outputs.logits)

    @pytest.mark.parametrize(("classes", "side"), [(10, 32), (100, 32), (7, 8)])
    def test_operations_are_those_that_torch_counts(self, name: str, classes: int, side: int) -> None:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            models.build(name, classes)(torch.ones(1, 3, side, side))
        assert models.multiply_adds(name, classes, side) == counter.get_total_flops() / 2

    def test_every_parameter_is_trained(self, name: str) -> None:
        model = seeded(name, 5)
        F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.tensor([0, 1, 2, 3])).backward()
        assert [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()] == []

    def test_maps_are_not_overwritten_later_in_the_pass(self, name: str) -> None:
        model, outputs = train_a_little(name, 5).eval(), []
        for module in model.modules():
            module.register_forward_hook(lambda module, args, output: outputs.append((output, output.clone())))
        maps = model.embed(torch.randn(2, 3, 8, 8)).maps
        copies = {id(output): copy for output, copy in outputs}
        assert all(torch.equal(each, copies[id(each)]) for each in maps)

    def test_weights_depend_on_the_generator_alone(self, name: str) -> None:
        first, same, other = (seeded(name, 5, seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(first[key], same[key]) for key in first)
        assert any(not torch.equal(first[key], other[key]) for key in first)

    def test_images_of_a_batch_do_not_mix_in_eval_mode(self, name: str) -> None:
        model = seeded(name, 5).eval()
        images = torch.randn(3, 3, 8, 8)
        torch.testing.assert_close(model(images)[1:2], model(images[1:2]))

    def test_a_folded_copy_has_the_same_outputs(self, name: str) -> None:
        model = train_a_little(name, 10)
        images = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(2))
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        folded = model.folded()
        norms, left = (sum(isinstance(each, nn.BatchNorm2d) for each in m.modules()) for m in (model, folded))
        assert left < norms
        assert not any(parameter.requires_grad for parameter in folded.parameters())
        assert model.training and all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        with torch.no_grad():
            expected, found = model.eval().embed(images), folded.embed(images)
        for ours, theirs in zip((*found[:2], *found.maps), (*expected[:2], *expected.maps), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found.logits, seeded(name, 10).eval()(images), atol=0.1)

    def test_logits_and_pooled_features_keep_float32_under_autocast(self, name: str) -> None:
        model = seeded(name, 10)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model.embed(torch.randn(4, 3, 8, 8))
        assert {map_.dtype for map_ in outputs.maps} == {torch.bfloat16}
        assert outputs.pooled.dtype == outputs.logits.dtype == torch.float32
        assert torch.equal(outputs.logits, F.linear(outputs.pooled, model.fc.weight, model.fc.bias))


def test_planning_with_models_does_not_import_torch() -> None:
    code = (
        "import sys; from orchestrator import models; name = 'resnet_32_20'; models.parse(name), models.widths(name), "
        "models.multiply_adds(name), models.pattern(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
