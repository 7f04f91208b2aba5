"""The models' names, and what the rest of kdctl relies on, for every family."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from orchestrator import models
from orchestrator.models.base import Classifier, Outputs
from orchestrator.models.family import Family, Number, Part

FROM_THE_FIELD = [name for name in models.FAMILIES if "torchvision" not in name]


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
        ("resnet56", "resnet_32_56"),
        ("resnet8x4", "resnet_8x4"),
        ("resnet_8x3", "resnet_8x2"),
        ("ResNet50", "resnet_50"),
        ("vgg", "vgg_13"),
        ("VGG16", "vgg_16"),
        ("vgg_12", "vgg_11"),
        ("wrn_40", "wrn_40_2"),
        ("WRN-40-1", "wrn_40_1"),
        ("MobileNetV2", "mobilenet_v2"),
        ("shufflenet", "shufflenet_v1"),
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
    ("name", "title"),
    [
        ("resnet_32_20", "ResNet20"), ("resnet_8x4", "ResNet-8×4"), ("wrn_16_2", "WRN-16-2"), ("vgg_13", "VGG-13"),
        ("resnet_50", "ResNet-50"), ("mobilenet_v2", "MobileNetV2"), ("shufflenet_v1", "ShuffleNetV1"),
        ("shufflenet_v2", "ShuffleNetV2"),
    ],
)  # fmt: skip
def test_titles_are_those_of_the_field(name: str, title: str) -> None:
    assert models.parse(name).title == title


def test_some_names_are_models_of_every_family() -> None:
    names = models.some_names()
    assert {models.parse(name).family for name in names} == set(FROM_THE_FIELD)
    assert {"vgg_8", "vgg_11", "vgg_13", "vgg_16", "vgg_19"} < set(names)
    assert {models.parse(name).family for name in models.some_names(but_not="wrn")} == set(FROM_THE_FIELD) - {"wrn"}


@pytest.mark.parametrize(
    ("name", "blocks", "other"),
    [
        ("resnet_32_20", 1, "resnet_32_26"), ("resnet_32_20", -2, "resnet_32_8"), ("wrn_40_2", -4, "wrn_16_2"),
        ("resnet_32_20", -3, None), ("resnet_32_20", 0, None), ("resnet_8x4", 4, "resnet_32x4"), ("vgg_8", 1, None),
        ("resnet_50", 1, None),
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
NAMES = ["resnet_32_8", "resnet_32_20", "resnet_8x4", "wrn_16_2", "vgg_8", "resnet_50", "mobilenet_v2"]
NAMES += ["shufflenet_v1", "shufflenet_v2", "torchvision/shufflenet_v2_x0_5", "torchvision/resnet18/3x3"]


def smallest(family: Family) -> str:
    """The name of the family's smallest model."""
    return family.fill(family.form, [number.values[0] for number in family.numbers])


def head(model: Classifier) -> nn.Linear:
    """The last linear layer."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def train_a_little(name: str, classes: int) -> Classifier:
    """A model whose batch norms are no longer close to the identity, as fresh ones are."""
    model = seeded(name, classes)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    model(torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1)))  # sets their means and variances
    return model


class LateWrites(TorchDispatchMode):
    """Notes the memory that an operation writes to after another has read it."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()
        self.pointers: set[int] = set()
        self.kept: list[object] = []  # so that no memory is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for argument, value in zip(func._schema.arguments, args, strict=False):
            for tensor in (each for each in tree_leaves(value) if isinstance(each, torch.Tensor)):
                pointer = tensor.untyped_storage().data_ptr()
                if argument.alias_info is None or not argument.alias_info.is_write:
                    self.read.add(pointer)
                elif pointer in self.read:
                    self.pointers.add(pointer)
        self.kept.append(func(*args, **(kwargs or {})))
        return self.kept[-1]


def test_late_writes_are_noticed() -> None:
    x = torch.randn(2)
    with LateWrites() as late:
        F.relu(F.relu(x) + 1, inplace=True)
        assert not late.pointers
        F.relu(x, inplace=True)
    assert late.pointers == {x.untyped_storage().data_ptr()}


@FAMILIES
class TestNames:
    """How a family reads the names of its models."""

    def test_limits_are_names_of_the_family(self, family: Family) -> None:
        key = models.parse(family.example).family
        assert models.FAMILIES[key] is family
        for index in (0, 1, -1):  # smallest, second, largest
            numbers: tuple[Part, ...] = tuple(number.values[index] for number in family.numbers)
            assert models.parse(family.fill(family.form, numbers)) == models.ModelName(key, numbers)

    def test_a_number_outside_the_limits_is_refused_with_the_nearest_name(self, family: Family) -> None:
        least = [number.values[0] for number in family.numbers]
        for index, number in enumerate(each for each in family.numbers if isinstance(each, Number)):
            first, second, last = (number.values[index] for index in (0, 1, -1))
            wrong = {first - 1: first, last + 5: last} | ({first + 1: first} if second - first > 2 else {})
            for value, nearest in wrong.items():
                name, fix = (
                    family.fill(family.form, [*least[:index], n, *least[index + 1 :]]) for n in (value, nearest)
                )
                if value > 0:
                    with pytest.raises(ValueError, match=rf"{number.word} must be .*did you mean {fix}\?"):
                        models.parse(name)

    def test_names_match_the_pattern_of_the_schema(self, family: Family) -> None:
        assert re.search(models.pattern(), family.example)
        assert not re.search(models.pattern(), f"{family.example}-")
        assert family.describe() in models.describe()

    def test_titles_differ_between_models(self, family: Family) -> None:
        first, other = models.parse(smallest(family)), models.parse(family.example)
        assert other.variant in other.title
        if first != other:
            assert first.title != other.title and first.variant != other.variant


def test_every_family_is_tested() -> None:
    assert {models.parse(name).family for name in NAMES} == set(models.FAMILIES)


def test_titles_of_all_families_differ() -> None:
    titles = [models.parse(name).title for name in models.some_names()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", NAMES)
class TestClassifier:
    """What a model computes, and what its family states about it without torch."""

    @pytest.mark.parametrize("side", [8, 37, 64])
    def test_outputs_have_the_stated_widths(self, name: str, side: int) -> None:
        model = seeded(name, 5).eval()
        images = torch.randn(2, 3, side, side)
        outputs = model.embed(images)
        assert isinstance(model, Classifier) and isinstance(outputs, Outputs)
        assert model.widths == models.widths(name)
        assert outputs.logits.shape == (2, 5)
        assert outputs.pooled.shape == (2, model.widths.pooled)
        sides = models.sides(name, side)
        expected = [(2, width, own, own) for width, own in zip(model.widths.maps, sides, strict=True)]
        assert [tuple(each.shape) for each in outputs.maps] == expected
        assert outputs.logits.isfinite().all()
        assert torch.equal(model(images), outputs.logits)

    @pytest.mark.parametrize(("classes", "side"), [(10, 32), (100, 32), (7, 9), (5, 64)])
    def test_operations_are_those_that_torch_counts(self, name: str, classes: int, side: int) -> None:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            models.build(name, classes).eval()(torch.ones(1, 3, side, side))
        if "torchvision" not in name or side % 32 == 0:  # as its table says
            assert models.multiply_adds(name, classes, side) == counter.get_total_flops() / 2

    def test_every_parameter_is_trained(self, name: str) -> None:
        model = seeded(name, 5)
        F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.tensor([0, 1, 2, 3])).backward()
        assert [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()] == []

    def test_maps_are_not_overwritten_later_in_the_pass(self, name: str) -> None:
        model = seeded(name, 5).eval()
        with torch.no_grad(), LateWrites() as late:
            maps = model.embed(torch.randn(2, 3, 8, 8)).maps
        assert not late.pointers & {each.untyped_storage().data_ptr() for each in maps}

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
        images = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(2))
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
        assert not torch.allclose(found.logits, seeded(name, 10).eval()(images), atol=1e-2)

    def test_logits_and_pooled_features_keep_float32_under_autocast(self, name: str) -> None:
        model = seeded(name, 10)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model.embed(torch.randn(4, 3, 8, 8))
        assert {map_.dtype for map_ in outputs.maps} == {torch.bfloat16}
        assert outputs.pooled.dtype == outputs.logits.dtype == torch.float32
        assert torch.equal(outputs.logits, F.linear(outputs.pooled, head(model).weight, head(model).bias))

    def test_the_memory_layout_of_training_changes_nothing(self, name: str) -> None:
        model = seeded(name, 5).eval()
        images = torch.randn(2, 3, 8, 8)
        expected = model.embed(images)
        found = model.to(memory_format=torch.channels_last).embed(images.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(found.logits, expected.logits)
        assert all(each.is_contiguous(memory_format=torch.channels_last) for each in found.maps)


def test_planning_with_models_does_not_import_torch() -> None:
    code = (
        "import sys; from orchestrator import models; name = 'resnet_32_20'; models.parse(name), models.widths(name), "
        "models.multiply_adds(name), models.pattern(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
