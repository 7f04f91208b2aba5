"""The ResNet with 50 layers of He et al. 2015 (arXiv 1512.03385, section 4.1) for 32×32 images, as in the field's code.

It differs from the paper in the stem, a 3×3 convolution without pooling, and halves the map in the 3×3 convolution of a
stage's first block.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.models.base import Chain, Classifier, Foldable, Outputs, classify, conv3x3, fold_norm, initialise
from orchestrator.models.counts import RESNET_50_STAGES
from orchestrator.models.family import Widths

_STEM = 64
_EXPANSION = 4


class _Bottleneck(Foldable):
    """A 1×1 convolution to `inner` channels, a 3×3 one, and a 1×1 one to four times as many, beside a shortcut."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = _EXPANSION * inner
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, inner, stride)
        self.bn2: nn.Module = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3: nn.Module = nn.BatchNorm2d(outputs)
        self.shortcut = Chain()
        if stride != 1 or inputs != outputs:
            self.shortcut = Chain(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y += self.shortcut(x)
        return F.relu(y, inplace=True)

    def fold(self) -> None:
        self.conv1, self.bn1 = fold_norm(self.conv1, self.bn1)
        self.conv2, self.bn2 = fold_norm(self.conv2, self.bn2)
        self.conv3, self.bn3 = fold_norm(self.conv3, self.bn3)


class ResNet50(Classifier):
    """A 3×3 stem, four stages of 3, 4, 6 and 3 bottlenecks, global average pooling, one linear layer.

    Modules are named as in RepDistiller and mdistiller, so that weights files from there fit.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        channels = tuple(_EXPANSION * inner for inner, _ in RESNET_50_STAGES)
        self.widths = Widths((_STEM, *channels), channels[-1])
        self.conv1 = conv3x3(3, _STEM, 1)
        self.bn1: nn.Module = nn.BatchNorm2d(_STEM)
        stages = zip((_STEM, *channels), RESNET_50_STAGES, (1, 2, 2, 2), strict=False)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(inputs, *stage, stride) for inputs, stage, stride in stages
        )
        self.linear = nn.Linear(channels[-1], num_classes)
        self.apply(initialise)

    def embed(self, images: Tensor) -> Outputs:
        stem = F.relu(self.bn1(self.conv1(images)), inplace=True)
        map1 = self.layer1(stem)
        map2 = self.layer2(map1)
        map3 = self.layer3(map2)
        map4 = self.layer4(map3)
        return classify(map4, self.linear, (stem, map1, map2, map3, map4))

    def fold(self) -> None:
        self.conv1, self.bn1 = fold_norm(self.conv1, self.bn1)


def _stage(inputs: int, inner: int, blocks: int, stride: int) -> nn.Sequential:
    later = (_Bottleneck(_EXPANSION * inner, inner, 1) for _ in range(blocks - 1))
    return nn.Sequential(_Bottleneck(inputs, inner, stride), *later)
