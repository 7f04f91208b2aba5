"""The CIFAR ResNet: sizes, an independent forward pass, initialisation. The contract is in test_models."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator import models
from orchestrator.models.base import Classifier

# Of the paper's architecture, counted by hand.
PARAMETERS = {
    8: (78_042, 83_892),
    14: (175_258, 181_108),
    20: (272_474, 278_324),
    32: (466_906, 472_756),
    44: (661_338, 667_188),
    56: (855_770, 861_620),
    110: (1_730_714, 1_736_564),
}


def seeded(name: str, classes: int, seed: int = 0) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.build(name, classes)


@pytest.mark.parametrize("depth", PARAMETERS)
def test_parameter_counts(depth: int) -> None:
    counts = [
        sum(parameter.numel() for parameter in models.build(f"resnet_32_{depth}", classes).parameters())
        for classes in (10, 100)
    ]
    assert tuple(counts) == PARAMETERS[depth]


def test_shortcuts_are_projections() -> None:
    """Option B of the paper: 2,752 parameters more than its section 4.2, whose ResNet-20 has 269,722."""
    parameters = dict(models.build("resnet_32_20", 10).named_parameters())
    projections = {name: parameter for name, parameter in parameters.items() if "downsample" in name}
    assert {name.split(".downsample")[0] for name in projections} == {"layer2.0", "layer3.0"}
    assert PARAMETERS[20][0] - sum(map(torch.numel, projections.values())) == 269_722


def reference(state: dict[str, Tensor], images: Tensor, depth: int) -> Tensor:
    """The logits in eval mode with projection shortcuts (option B), computed from nothing but the state dict."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])

    x = norm(F.conv2d(images, state["conv1.weight"], padding=1), "bn1").relu()
    for stage in (1, 2, 3):
        for block in range((depth - 2) // 6):
            at = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = norm(F.conv2d(x, state[f"{at}.conv1.weight"], stride=stride, padding=1), f"{at}.bn1").relu()
            y = norm(F.conv2d(y, state[f"{at}.conv2.weight"], padding=1), f"{at}.bn2")
            if stride == 2:
                x = norm(F.conv2d(x, state[f"{at}.downsample.0.weight"], stride=2), f"{at}.downsample.1")
            x = (x + y).relu()
    return F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize("depth", [8, 20])
def test_forward_agrees_with_functional_ops(depth: int) -> None:
    model = seeded(f"resnet_32_{depth}", 10).eval().double()
    generator = torch.Generator().manual_seed(1)
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.ndim == 1:  # fresh batch norms change little, so that a forgotten one would not be noticed
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
    images = torch.randn(3, 3, 32, 32, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(model(images), reference(state, images, depth))


@pytest.mark.parametrize("side", [32, 8])
def test_shapes_of_embed(side: int) -> None:
    outputs = models.build("resnet_32_14", 7).embed(torch.randn(2, 3, side, side))
    assert outputs.logits.shape == (2, 7)
    assert outputs.pooled.shape == (2, 64)
    assert [tuple(each.shape) for each in outputs.maps] == [
        (2, 16, side, side),
        (2, 16, side, side),
        (2, 32, side // 2, side // 2),
        (2, 64, side // 4, side // 4),
    ]


def test_pooled_is_the_mean_of_the_last_map_and_feeds_the_linear_layer() -> None:
    model = models.build("resnet_32_8", 10)
    outputs = model.embed(torch.randn(2, 3, 8, 8))
    torch.testing.assert_close(outputs.pooled, outputs.maps[-1].flatten(2).mean(2))
    torch.testing.assert_close(outputs.logits, outputs.pooled @ model.fc.weight.T + model.fc.bias)


def test_convolutions_start_kaiming_fan_out() -> None:
    convolutions = [module for module in seeded("resnet_32_20", 10).modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 19 + 2  # and two projections
    for convolution in convolutions:
        weight = convolution.weight.detach()
        expected = math.sqrt(2 / (convolution.out_channels * weight[0, 0].numel()))
        # Five standard errors of a standard deviation over n normal draws, and of their mean.
        assert weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * weight.numel()))
        assert abs(weight.mean().item()) < 5 * expected / math.sqrt(weight.numel())
        assert convolution.bias is None


@pytest.mark.parametrize("classes", [10, 100])
def test_linear_layer_starts_xavier_uniform_without_bias(classes: int) -> None:
    linear = seeded("resnet_32_8", classes).fc
    bound = math.sqrt(6 / (64 + classes))
    assert 0.97 * bound < linear.weight.abs().max() <= bound
    assert linear.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert not linear.bias.any()


def test_batch_norms_start_as_identity() -> None:
    norms = [module for module in models.build("resnet_32_8", 10).modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 9
    assert all((norm.weight == 1).all() and not norm.bias.any() for norm in norms)


def test_a_folded_resnet_has_no_batch_norm() -> None:
    assert not any(isinstance(module, nn.BatchNorm2d) for module in seeded("resnet_32_20", 10).folded().modules())
