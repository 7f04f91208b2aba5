"""Classifiers of torchvision: the facts that are stated without torch, and their names. The contract is in test_models.

The large ones are not built here; docs/torchvision_facts.py measures all of them.
"""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from orchestrator import models
from orchestrator.models.torchvision_facts import FACTS, FACTS_3X3, UNUSABLE
from orchestrator.models.torchvision_models import Torchvision

# One of each architecture.
NAMES = [
    "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "mnasnet0_5", "mobilenet_v2",
    "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "resnet50", "shufflenet_v2_x0_5",
]  # fmt: skip


def test_the_tables_have_every_name_of_the_installed_torchvision() -> None:
    """docs/torchvision_facts.py brings them up to date."""
    assert sorted([*FACTS, *UNUSABLE]) == torchvision.models.list_models(module=torchvision.models)
    assert set(FACTS_3X3) <= set(FACTS) and len(FACTS_3X3) > 40


@pytest.mark.parametrize("name", (*NAMES, *(f"{each}/3x3" for each in NAMES)))
def test_facts_are_those_of_the_network(name: str) -> None:
    full = f"torchvision/{name}"
    facts = (FACTS_3X3 if name.endswith("/3x3") else FACTS)[name.removesuffix("/3x3")]
    model = models.build(full, 7).eval()
    assert isinstance(model, Torchvision) and model.facts == facts
    with torch.no_grad():
        outputs = model.embed(torch.randn(2, 3, 64, 64))
        expected = [(2, width, side, side) for width, side in zip(facts.widths, models.sides(full, 64), strict=True)]
        assert [tuple(each.shape) for each in outputs.maps] == expected
        linear = model.get_submodule(model.head_name)
        assert outputs.pooled.shape == (2, facts.pooled) and models.widths(full) == model.widths
        torch.testing.assert_close(outputs.logits, linear(outputs.pooled))
        images = torch.ones(1, 3, 64, 64)
        torch.testing.assert_close(model.folded()(images), model(images), rtol=1e-4, atol=1e-4)
        least = model.embed(torch.ones(1, 3, facts.least, facts.least))
        assert least.logits.isfinite().all() and 0 not in models.sides(full, facts.least)
    if facts.least > 1:
        assert models.sides(full, facts.least - 1) == (0,) * len(facts.strides)


def test_a_network_is_torchvisions_own() -> None:
    torch.manual_seed(0)
    ours = models.build("torchvision/resnet18", 10).eval()
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=10).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))


def test_a_small_stem_keeps_the_map_of_the_image() -> None:
    model = models.build("torchvision/resnet18/3x3", 10)
    assert [tuple(each.shape) for each in model.embed(torch.randn(2, 3, 32, 32)).maps] == [
        (2, 64, 32, 32), (2, 64, 32, 32), (2, 128, 16, 16), (2, 256, 8, 8), (2, 512, 4, 4),
    ]  # fmt: skip
    assert sum(each.numel() for each in model.parameters()) == 11_173_962


def test_a_network_without_memory() -> None:
    with torch.device("meta"):
        model = models.build("torchvision/regnet_y_400mf/3x3", 10)
    assert {each.device.type for each in model.parameters()} == {"meta"}


def test_nothing_is_drawn_while_a_network_trains() -> None:
    model = models.build("torchvision/efficientnet_b0", 10)
    assert not any(isinstance(each, (nn.Dropout, torchvision.ops.StochasticDepth)) for each in model.modules())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision/resnet19", r"NAME must be a classifier of torchvision .*did you mean torchvision/resnet1[0-9]*8"),
        ("torchvision/vit_b_16", "that ends in a linear layer and has square feature maps"),
        ("torchvision/vgg11/3x3", "did you mean torchvision/.*/3x3"),
        ("resnet18", "write a name like torchvision/resnet18"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.parse(name)
