"""The CIFAR ResNet as in the field's code.

The layers are those of He et al. 2015 (arXiv 1512.03385, section 4.2) except for the shortcuts. Where the shape
changes, ours are projections, a 1×1 convolution with batch norm (the paper's option B); section 4.2 uses option A,
which pads with zeros and has no parameters.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

WIDTHS = (16, 32, 64)


class Outputs(NamedTuple):
    """What a model says of a batch of B images of C classes."""

    logits: Tensor  # [B, C], before the softmax
    pooled: Tensor  # [B, 64], the average-pooled maps of the last stage
    maps: tuple[Tensor, ...]  # one [B, width, h, w] a stage


def conv3x3(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    """A 3×3 convolution that keeps the map's size at stride 1 and halves it at stride 2."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut: identity, or a projection (option B) where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1: nn.Module = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs, 1)
        self.bn2: nn.Module = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        # In place wherever the gradient does not need what was there before: maps are what memory is spent on.
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        y += self.downsample(x)
        return F.relu(y, inplace=True)

    def fold(self) -> None:
        """Folds its batch norms into its convolutions, for eval mode."""
        self.conv1, self.bn1 = _fold(self.conv1, self.bn1)
        self.conv2, self.bn2 = _fold(self.conv2, self.bn2)
        if len(self.downsample):
            self.downsample = nn.Sequential(*_fold(*self.downsample))


class ResNet(nn.Module):
    """Depth 6n+2: a 3×3 stem, three stages of n blocks, global average pooling, one linear layer.

    Modules are named as in torchvision, so that weights files from elsewhere fit.
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = conv3x3(3, WIDTHS[0], 1)
        self.bn1: nn.Module = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], blocks)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], blocks)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], blocks)
        self.fc = nn.Linear(WIDTHS[-1], num_classes)
        self.apply(_initialise)

    def embed(self, x: Tensor) -> Outputs:
        """Logits and features of images [B, 3, H, W] in one pass."""
        map1 = self.layer1(F.relu(self.bn1(self.conv1(x)), inplace=True))
        map2 = self.layer2(map1)
        map3 = self.layer3(map2)
        # What is compared with a teacher is a number, so it is reckoned in full wherever the maps are not.
        with torch.autocast(x.device.type, enabled=False):
            pooled = map3.mean(dim=(2, 3), dtype=self.fc.weight.dtype)
            return Outputs(self.fc(pooled), pooled, (map1, map2, map3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of images [B, 3, H, W]."""
        return self.embed(x).logits

    def folded(self) -> ResNet:
        """A copy that says the same in eval mode, but for rounding: its batch norms are folded into convolutions."""
        copied = copy.deepcopy(self).eval().requires_grad_(False)
        copied.conv1, copied.bn1 = _fold(copied.conv1, copied.bn1)
        for block in copied.modules():
            if isinstance(block, BasicBlock):
                block.fold()
        return copied


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride=1 if inputs == outputs else 2)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def _fold(convolution: nn.Module, norm: nn.Module) -> tuple[nn.Conv2d, nn.Identity]:
    """Both as one convolution, and what stands in the norm's place."""
    assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    return fuse_conv_bn_eval(convolution, norm), nn.Identity()


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
