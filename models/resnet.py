"""The CIFAR ResNet as in the field's code, and its wider variants.

The layers are those of He et al. 2015 (arXiv 1512.03385, section 4.2) except for the shortcuts. Where the shape
changes, ours are projections, a 1×1 convolution with batch norm (the paper's option B); section 4.2 uses option A,
which pads with zeros and has no parameters.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.models.base import Classifier, Foldable, Outputs, classify, conv3x3, fold_norm, initialise
from orchestrator.models.family import Widths


class BasicBlock(Foldable):
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
        # In place wherever the gradient does not need the overwritten values: maps take most of the memory.
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        y += self.downsample(x)
        return F.relu(y, inplace=True)

    def fold(self) -> None:
        self.conv1, self.bn1 = fold_norm(self.conv1, self.bn1)
        self.conv2, self.bn2 = fold_norm(self.conv2, self.bn2)
        if len(self.downsample):
            self.downsample = nn.Sequential(*fold_norm(*self.downsample))


class ResNet(Classifier):
    """Depth 6n+2: a 3×3 stem, three stages of n blocks, global average pooling, one linear layer.

    Modules are named as in torchvision, so that weights files from elsewhere fit.
    """

    def __init__(
        self, depth: int, num_classes: int, stem: int = 16, channels: tuple[int, int, int] = (16, 32, 64)
    ) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        first, second, third = channels
        self.widths = Widths((stem, *channels), third)
        self.conv1 = conv3x3(3, stem, 1)
        self.bn1: nn.Module = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, first, blocks, 1)
        self.layer2 = _stage(first, second, blocks, 2)
        self.layer3 = _stage(second, third, blocks, 2)
        self.fc = nn.Linear(third, num_classes)
        self.apply(initialise)

    def embed(self, images: Tensor) -> Outputs:
        stem = F.relu(self.bn1(self.conv1(images)), inplace=True)
        map1 = self.layer1(stem)
        map2 = self.layer2(map1)
        map3 = self.layer3(map2)
        return classify(map3, self.fc, (stem, map1, map2, map3))

    def fold(self) -> None:
        self.conv1, self.bn1 = fold_norm(self.conv1, self.bn1)


def build_wide(depth: int, width: int, num_classes: int) -> ResNet:
    """The variant whose stages have `width` times the channels, and whose stem has half those of the first stage."""
    return ResNet(depth, num_classes, 8 * width, (16 * width, 32 * width, 64 * width))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    later = (BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(inputs, outputs, stride), *later)
