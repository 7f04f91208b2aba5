"""The models of the field's CIFAR code beside ResNet and WRN: sizes, an independent forward pass, initialisation.

The contract is in test_models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator import models


class Sizes(NamedTuple):
    """What was counted from RepDistiller's code for 100 classes at 32×32."""

    parameters: int
    entries: int  # of the state dict
    maps: tuple[tuple[int, int], ...]  # channels and side
    pooled: int
    multiply_adds: float  # in millions


_VGG = ((64, 32), (128, 16), (256, 8), (512, 4), (512, 4))
_WIDE = ((32, 32), (64, 32), (128, 16), (256, 8))
SIZES = {
    "resnet_8x4": Sizes(1_233_540, 62, _WIDE, 256, 177),
    "resnet_32x4": Sizes(7_433_860, 206, _WIDE, 256, 1083),
    "vgg_8": Sizes(3_965_028, 37, _VGG, 512, 96),
    "vgg_11": Sizes(9_277_284, 58, _VGG, 512, 209),
    "vgg_13": Sizes(9_462_180, 72, _VGG, 512, 285),
    "vgg_16": Sizes(14_774_436, 93, _VGG, 512, 398),
    "vgg_19": Sizes(20_086_692, 114, _VGG, 512, 511.5),
    "resnet_50": Sizes(23_705_252, 320, ((64, 32), (256, 32), (512, 16), (1024, 8), (2048, 4)), 2048, 1298),
    "mobilenet_v2": Sizes(812_836, 320, ((16, 16), (12, 16), (16, 8), (48, 4), (160, 2)), 1280, 6.5),
    "shufflenet_v1": Sizes(949_258, 296, ((24, 32), (240, 16), (480, 8), (960, 4)), 960, 38.7),
    "shufflenet_v2": Sizes(1_355_528, 338, ((24, 32), (116, 16), (232, 8), (464, 4)), 1024, 44.5),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_fields_code(name: str) -> None:
    sizes = SIZES[name]
    with torch.device("meta"):
        model = models.build(name, 100)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert (parameters, len(model.state_dict())) == (sizes.parameters, sizes.entries)
    assert (*zip(model.widths.maps, models.sides(name, 32), strict=True),) == sizes.maps
    assert model.widths.pooled == sizes.pooled
    tolerance = 0.05 if sizes.multiply_adds < 50 else 0.5
    assert models.multiply_adds(name, 100) / 1e6 == pytest.approx(sizes.multiply_adds, abs=tolerance)


@pytest.mark.parametrize(("side", "last"), [(7, 0), (8, 1), (32, 4), (63, 7), (64, 4), (96, 6)])
def test_vgg_pools_once_more_from_64_pixels(side: int, last: int) -> None:
    assert models.sides("vgg_8", side)[-1] == last


class Reference:
    """Logits in eval mode computed from nothing but a state dict."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def convolve(self, x: Tensor, name: str, norm: str, stride: int = 1) -> Tensor:
        """A convolution with its batch norm. Its padding and groups follow from the shape of its weight."""
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, bias, stride, weight.shape[2] // 2, groups=groups)
        own = (self.state[f"{norm}.{each}"] for each in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *own)

    def numbers(self, prefix: str) -> list[int]:
        """The numbers that directly follow a prefix in names, in order."""
        found = (name.removeprefix(prefix).split(".")[0] for name in self.state if name.startswith(prefix))
        return sorted({int(number) for number in found})

    def classify(self, x: Tensor, name: str) -> Tensor:
        return x.flatten(2).mean(2) @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def vgg(self, x: Tensor) -> Tensor:
        for block in range(5):
            x = F.max_pool2d(x, 2) if 1 <= block <= 3 else x
            for layer in self.numbers(f"block{block}.")[::2]:
                x = self.convolve(x, f"block{block}.{layer}", f"block{block}.{layer + 1}").relu()
        return self.classify(x, "classifier")

    def resnet_50(self, x: Tensor) -> Tensor:
        x = self.convolve(x, "conv1", "bn1").relu()
        for stage in (1, 2, 3, 4):
            for block in self.numbers(f"layer{stage}."):
                at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
                y = self.convolve(x, f"{at}.conv1", f"{at}.bn1").relu()
                y = self.convolve(y, f"{at}.conv2", f"{at}.bn2", stride).relu()
                y = self.convolve(y, f"{at}.conv3", f"{at}.bn3")
                if block == 0:
                    x = self.convolve(x, f"{at}.shortcut.0", f"{at}.shortcut.1", stride)
                x = (x + y).relu()
        return self.classify(x, "linear")

    def mobilenet_v2(self, x: Tensor) -> Tensor:
        x = self.convolve(x, "conv1.0", "conv1.1", 2).relu()
        for group in self.numbers("blocks."):
            for block in self.numbers(f"blocks.{group}."):
                at = f"blocks.{group}.{block}.conv"
                y = self.convolve(x, f"{at}.0", f"{at}.1").relu()
                y = self.convolve(y, f"{at}.3", f"{at}.4", 2 if group in (2, 3, 5) and block == 0 else 1).relu()
                y = self.convolve(y, f"{at}.6", f"{at}.7")
                x = x + y if block else y  # no group starts with as many channels as it has, and stride 1
        return self.classify(self.convolve(x, "conv2.0", "conv2.1").relu(), "classifier.0")

    def shuffle(self, x: Tensor, groups: int) -> Tensor:
        each = x.shape[1] // groups
        order = [group * each + channel for channel in range(each) for group in range(groups)]
        return x[:, order]

    def shufflenet_v1(self, x: Tensor) -> Tensor:
        x = self.convolve(x, "conv1", "bn1").relu()
        for stage in (1, 2, 3):
            for block in self.numbers(f"layer{stage}."):
                at = f"layer{stage}.{block}"
                y = self.convolve(x, f"{at}.conv1", f"{at}.bn1").relu()
                y = self.shuffle(y, 1 if x.shape[1] == 24 else 3)
                y = self.convolve(y, f"{at}.conv2", f"{at}.bn2", 1 if block else 2).relu()
                y = self.convolve(y, f"{at}.conv3", f"{at}.bn3")
                x = (x + y if block else torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1)).relu()
        return self.classify(x, "linear")

    def shufflenet_v2(self, x: Tensor) -> Tensor:
        x = self.convolve(x, "conv1", "bn1").relu()
        for stage in (1, 2, 3):
            for block in self.numbers(f"layer{stage}."):
                at, half = f"layer{stage}.{block}", x.shape[1] // 2
                if block:
                    y = self.convolve(x[:, half:], f"{at}.conv1", f"{at}.bn1").relu()
                    y = self.convolve(y, f"{at}.conv2", f"{at}.bn2")
                    x = torch.cat([x[:, :half], self.convolve(y, f"{at}.conv3", f"{at}.bn3").relu()], 1)
                else:
                    left = self.convolve(x, f"{at}.conv1", f"{at}.bn1", 2)
                    left = self.convolve(left, f"{at}.conv2", f"{at}.bn2").relu()
                    right = self.convolve(x, f"{at}.conv3", f"{at}.bn3").relu()
                    right = self.convolve(right, f"{at}.conv4", f"{at}.bn4", 2)
                    x = torch.cat([left, self.convolve(right, f"{at}.conv5", f"{at}.bn5").relu()], 1)
                x = self.shuffle(x, 2)
        return self.classify(self.convolve(x, "conv2", "bn2").relu(), "linear")


REFERENCES: dict[str, Callable[[Reference, Tensor], Tensor]] = {
    "vgg_8": Reference.vgg,
    "vgg_16": Reference.vgg,
    "resnet_50": Reference.resnet_50,
    "mobilenet_v2": Reference.mobilenet_v2,
    "shufflenet_v1": Reference.shufflenet_v1,
    "shufflenet_v2": Reference.shufflenet_v2,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_forward_agrees_with_functional_ops(name: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, 10).eval().double()
    state = model.state_dict()
    for tensor in state.values():
        if tensor.ndim == 1:  # fresh batch norms change little, so that a forgotten one would not be seen
            nn.init.uniform_(tensor, 0.5, 1.5)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model(images), REFERENCES[name](Reference(state), images))


@pytest.mark.parametrize("name", ["vgg_8", "mobilenet_v2", "resnet_50"])
def test_convolutions_start_kaiming_fan_out(name: str) -> None:
    torch.manual_seed(0)
    for convolution in (each for each in models.build(name, 10).modules() if isinstance(each, nn.Conv2d)):
        weight = convolution.weight.detach()
        expected = math.sqrt(2 / (convolution.out_channels * weight[0, 0].numel()))
        # Six standard errors of a standard deviation over n normal draws.
        assert weight.std().item() == pytest.approx(expected, rel=6 / math.sqrt(2 * weight.numel()))
        assert convolution.bias is None or not convolution.bias.any()


def test_the_last_layer_of_vgg_and_mobilenet_starts_small() -> None:
    for name in ("vgg_8", "mobilenet_v2"):
        *_, weight, bias = models.build(name, 100).parameters()
        assert weight.std().item() == pytest.approx(0.01, rel=0.05) and not bias.any()
