"""ShuffleNetV2 of Ma et al. 2018 (arXiv 1807.11164) at width 1 for 32×32 images, as in the field's code.

It differs from the paper in the stem, a 1×1 convolution without pooling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.models.base import Classifier, Foldable, Outputs, classify, fold_norm, shuffle_channels
from orchestrator.models.counts import SHUFFLENET_V2_POOLED, SHUFFLENET_V2_STAGES
from orchestrator.models.family import Widths

_STEM = 24


class _Block(Foldable):
    """Convolves one half of the channels, concatenates the other, and shuffles both."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2: nn.Module = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3: nn.Module = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        kept, y = x.chunk(2, 1)
        y = F.relu(self.bn1(self.conv1(y)), inplace=True)
        y = self.bn2(self.conv2(y))
        y = F.relu(self.bn3(self.conv3(y)), inplace=True)
        return shuffle_channels(torch.cat([kept, y], 1), 2)

    def fold(self) -> None:
        self.conv1, self.bn1 = fold_norm(self.conv1, self.bn1)
        self.conv2, self.bn2 = fold_norm(self.conv2, self.bn2)
        self.conv3, self.bn3 = fold_norm(self.conv3, self.bn3)


class _FirstBlock(Foldable):
    """Halves the map: two branches of half the output's channels, both of the whole input, shuffled."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = nn.Conv2d(inputs, inputs, 3, stride=2, padding=1, groups=inputs, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn2: nn.Module = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn3: nn.Module = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
        self.bn4: nn.Module = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5: nn.Module = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))), inplace=True)
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = F.relu(self.bn5(self.conv5(self.bn4(self.conv4(right)))), inplace=True)
        return shuffle_channels(torch.cat([left, right], 1), 2)

    def fold(self) -> None:
        self.conv1, self.bn1 = fold_norm(self.conv1, self.bn1)
        self.conv2, self.bn2 = fold_norm(self.conv2, self.bn2)
        self.conv3, self.bn3 = fold_norm(self.conv3, self.bn3)
        self.conv4, self.bn4 = fold_norm(self.conv4, self.bn4)
        self.conv5, self.bn5 = fold_norm(self.conv5, self.bn5)


class ShuffleNetV2(Classifier):
    """A 1×1 stem, three stages whose first block halves the map, a 1×1 convolution, one linear layer.

    Weights start as PyTorch draws them. Modules are named as in RepDistiller and mdistiller, so that weights files from
    there fit.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        channels = tuple(width for width, _ in SHUFFLENET_V2_STAGES)
        self.widths = Widths((_STEM, *channels), SHUFFLENET_V2_POOLED)
        self.conv1 = nn.Conv2d(3, _STEM, 1, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(_STEM)
        stages = zip((_STEM, *channels), SHUFFLENET_V2_STAGES, strict=False)
        self.layer1, self.layer2, self.layer3 = (_stage(inputs, *stage) for inputs, stage in stages)
        self.conv2 = nn.Conv2d(channels[-1], SHUFFLENET_V2_POOLED, 1, bias=False)
        self.bn2: nn.Module = nn.BatchNorm2d(SHUFFLENET_V2_POOLED)
        self.linear = nn.Linear(SHUFFLENET_V2_POOLED, num_classes)

    def embed(self, images: Tensor) -> Outputs:
        stem = F.relu(self.bn1(self.conv1(images)), inplace=True)
        map1 = self.layer1(stem)
        map2 = self.layer2(map1)
        map3 = self.layer3(map2)
        features = F.relu(self.bn2(self.conv2(map3)), inplace=True)
        return classify(features, self.linear, (stem, map1, map2, map3))

    def fold(self) -> None:
        self.conv1, self.bn1 = fold_norm(self.conv1, self.bn1)
        self.conv2, self.bn2 = fold_norm(self.conv2, self.bn2)


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(_FirstBlock(inputs, outputs), *(_Block(outputs) for _ in range(blocks - 1)))
