"""A user's model as one of kdctl's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from orchestrator import models
from orchestrator.models.family import Widths
from orchestrator.own_code.loading import OwnCodeError
from orchestrator.own_code.models import build_model
from orchestrator.own_code.registry import register
from orchestrator.own_code.source import CodeKind, OwnCode

NET = """
from torch import nn

def build(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, num_classes),
    )
"""
WITH_MAPS = """
import torch
from torch import nn

class build(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem, self.stage = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, stride=2)
        self.head = nn.Linear(8, num_classes)

    def embed(self, images):
        stem = self.stem(images)
        stage = self.stage(torch.relu(stem))
        pooled = stage.mean((2, 3))
        return self.head(pooled), pooled, (stem, stage)

    def forward(self, images):
        return self.embed(images)[0]
"""


def code(text: str) -> OwnCode:
    return OwnCode(CodeKind.MODEL, "my_net.py", "build", (("my_net.py", text),))


def test_the_pooled_features_are_the_input_of_the_last_linear_layer() -> None:
    torch.manual_seed(0)
    model = build_model(code(NET), 5).eval()
    images = torch.randn(2, 3, 16, 16)
    outputs = model.embed(images)
    assert isinstance(model.own, nn.Sequential)
    torch.testing.assert_close(outputs.logits, model.own(images))
    torch.testing.assert_close(model.own[-1](outputs.pooled), outputs.logits)
    assert model.widths == Widths((), 6) and outputs.maps == ()


def test_a_model_with_embed_gives_its_maps() -> None:
    model = build_model(code(WITH_MAPS), 5)
    outputs = model.embed(torch.randn(2, 3, 16, 16))
    assert model.widths == Widths((4, 8), 8)
    assert [tuple(tensor.shape) for tensor in outputs.maps] == [(2, 4, 14, 14), (2, 8, 6, 6)]


def test_measuring_changes_no_statistics_and_draws_nothing() -> None:
    torch.manual_seed(0)
    model = build_model(code(NET), 5)
    after = torch.rand(1)
    torch.manual_seed(0)
    own = {}
    exec(NET, own)  # the user's own way to build it
    plain = own["build"](5)
    assert torch.equal(after, torch.rand(1)) and model.training
    for one, other in zip(model.own.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("text", [NET, WITH_MAPS])
def test_copies_give_the_same(text: str) -> None:
    model = build_model(code(text), 5).eval()
    images = torch.randn(2, 3, 16, 16)
    for copied in (copy.deepcopy(model), model.folded()):
        torch.testing.assert_close(copied(images), model(images))


def test_it_computes_in_bfloat16_and_answers_in_float32() -> None:
    model = build_model(code(NET), 5)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model.embed(torch.randn(2, 3, 16, 16))
    assert outputs.logits.dtype == outputs.pooled.dtype == torch.float32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def build(n): return None", "my_net.py: build returned NoneType; expected a torch.nn.Module"),
        ("def build(n): return 1 / 0", r"my_net.py, line 1, in build \(`def build.*`\): ZeroDivisionError"),
        (NET.replace("num_classes),", "3),"), r"gives logits of shape \[2, 3\] for 2 images; expected \[2, 5\]"),
        ("from torch import nn\ndef build(n): return nn.Flatten()", "ran no linear layer, whose input would be its"),
        (WITH_MAPS.replace("(stem, stage)", "(pooled,)"), r"gives maps that are not of shape \[B, C, H, W\]"),
        (
            WITH_MAPS.replace("self.head(pooled), pooled,", "self.head(pooled), stage,"),
            "gives pooled features of shape",
        ),
        (NET.replace("nn.Conv2d(3,", "nn.Conv2d(1,"), "my_net.py: RuntimeError: "),
    ],
)
def test_a_mistake_is_explained(text: str, message: str) -> None:
    with pytest.raises(OwnCodeError, match=message):
        build_model(code(text), 5)


def test_a_registered_model_is_one_of_the_models() -> None:
    own = code(WITH_MAPS)
    register([own])
    assert models.build(own.name, 7)(torch.zeros(1, 3, 8, 8)).shape == (1, 7)
    assert models.widths(own.name) == Widths((4, 8), 8)
    assert models.parse(own.name).title == "my_net:build"


def test_a_model_of_stored_rows_has_a_title_and_cannot_be_built() -> None:
    assert models.parse("gone:build").title == "gone:build"
    with pytest.raises(ValueError, match="the file of the model gone:build was not read; name it in the study file"):
        models.build("gone:build", 5)
    with pytest.raises(ValueError, match="not known"):
        models.multiply_adds("gone:build")
