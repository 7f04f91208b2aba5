"""MobileNetV2 of Sandler et al. 2018 (arXiv 1801.04381) at half width for 32×32 images, as in the field's code.

It differs from the paper in the strides (the map is halved in the stem and in three groups of blocks), and in the first
block, which has a 1×1 convolution though it expands nothing.
"""

from __future__ import annotations

from torch import Tensor, nn

from orchestrator.models.base import Chain, Classifier, Outputs, classify, conv3x3, initialise
from orchestrator.models.counts import MOBILENET_V2_GROUPS, MOBILENET_V2_POOLED
from orchestrator.models.family import Widths

_STEM = 16


class _InvertedResidual(nn.Module):
    """A 1×1 convolution to more channels, a 3×3 one for each channel, and a 1×1 one back, with no ReLU after it.

    Where the shape stays, the input is added.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.adds_input = stride == 1 and inputs == outputs
        inner = expansion * inputs
        self.conv = Chain(
            nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False), nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.adds_input else y


class MobileNetV2(Classifier):
    """A 3×3 stem with stride 2, seven groups of inverted residuals, a 1×1 convolution, one linear layer.

    Maps are the outputs of the stem and of the groups after which the field takes them: the second, third, fifth and
    seventh. Modules are named as in RepDistiller and mdistiller, so that weights files from there fit.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        groups, inputs = [], _STEM
        for expansion, outputs, blocks, stride in MOBILENET_V2_GROUPS:
            first = _InvertedResidual(inputs, outputs, stride, expansion)
            later = (_InvertedResidual(outputs, outputs, 1, expansion) for _ in range(blocks - 1))
            groups.append(nn.Sequential(first, *later))
            inputs = outputs
        channels = [outputs for _, outputs, _, _ in MOBILENET_V2_GROUPS]
        self.widths = Widths((_STEM, channels[1], channels[2], channels[4], channels[6]), MOBILENET_V2_POOLED)
        self.conv1 = Chain(conv3x3(3, _STEM, 2), nn.BatchNorm2d(_STEM), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList(groups)
        self.conv2 = Chain(
            nn.Conv2d(inputs, MOBILENET_V2_POOLED, 1, bias=False),
            nn.BatchNorm2d(MOBILENET_V2_POOLED),
            nn.ReLU(inplace=True),
        )
        linear = nn.Linear(MOBILENET_V2_POOLED, num_classes)
        self.classifier = nn.Sequential(linear)
        self.apply(initialise)
        nn.init.normal_(linear.weight, std=0.01)

    def embed(self, images: Tensor) -> Outputs:
        stem: Tensor = self.conv1(images)
        outputs = [stem]
        for group in self.blocks:
            outputs.append(group(outputs[-1]))
        maps = (stem, outputs[2], outputs[3], outputs[5], outputs[7])
        linear = self.classifier[0]
        assert isinstance(linear, nn.Linear)
        return classify(self.conv2(outputs[-1]), linear, maps)
