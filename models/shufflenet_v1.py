"""ShuffleNet of Zhang et al. 2017 (arXiv 1707.01083) with 3 groups for 32×32 images, as in the field's code.

It differs from the paper in the stem, a 1×1 convolution without pooling, and has a ReLU after the 3×3 convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.models.base import Classifier, Foldable, Outputs, classify, fold_norm, shuffle_channels
from orchestrator.models.counts import SHUFFLENET_V1_STAGES
from orchestrator.models.family import Widths

_STEM = 24
_GROUPS = 3


class _Block(Foldable):
    """A 1×1, a 3×3 and a 1×1 convolution, all in groups; channels are shuffled after the first.

    The input is added, or with stride 2 its average pooling is concatenated.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = outputs // 4
        self.stride = stride
        self.groups = 1 if inputs == _STEM else _GROUPS
        self.conv1 = nn.Conv2d(inputs, inner, 1, groups=self.groups, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False)
        self.bn2: nn.Module = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, groups=_GROUPS, bias=False)
        self.bn3: nn.Module = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(shuffle_channels(y, self.groups))), inplace=True)
        y = self.bn3(self.conv3(y))
        joined = y + x if self.stride == 1 else torch.cat([y, F.avg_pool2d(x, 3, stride=2, padding=1)], 1)
        return F.relu(joined, inplace=True)

    def fold(self) -> None:
        self.conv1, self.bn1 = fold_norm(self.conv1, self.bn1)
        self.conv2, self.bn2 = fold_norm(self.conv2, self.bn2)
        self.conv3, self.bn3 = fold_norm(self.conv3, self.bn3)


class ShuffleNetV1(Classifier):
    """A 1×1 stem, three stages whose first block halves the map, global average pooling, one linear layer.

    Weights start as PyTorch draws them. Modules are named as in RepDistiller and mdistiller, so that weights files from
    there fit.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        channels = tuple(width for width, _ in SHUFFLENET_V1_STAGES)
        self.widths = Widths((_STEM, *channels), channels[-1])
        self.conv1 = nn.Conv2d(3, _STEM, 1, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(_STEM)
        stages = zip((_STEM, *channels), SHUFFLENET_V1_STAGES, strict=False)
        self.layer1, self.layer2, self.layer3 = (_stage(inputs, *stage) for inputs, stage in stages)
        self.linear = nn.Linear(channels[-1], num_classes)

    def embed(self, images: Tensor) -> Outputs:
        stem = F.relu(self.bn1(self.conv1(images)), inplace=True)
        map1 = self.layer1(stem)
        map2 = self.layer2(map1)
        map3 = self.layer3(map2)
        return classify(map3, self.linear, (stem, map1, map2, map3))

    def fold(self) -> None:
        self.conv1, self.bn1 = fold_norm(self.conv1, self.bn1)


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    first = _Block(inputs, outputs - inputs, 2)
    return nn.Sequential(first, *(_Block(outputs, outputs, 1) for _ in range(blocks - 1)))
