"""The wide residual networks of Zagoruyko & Komodakis 2016 (arXiv 1605.07146) for 32×32 images, as in the field's code.

Blocks are pre-activated: batch norm and ReLU come before each convolution. Where the number of channels changes, the
shortcut is a 1×1 convolution of the activated input. There is no dropout.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.models.base import Classifier, Foldable, Outputs, classify, conv3x3, fold_norm, initialise
from orchestrator.models.family import Widths


class _Block(Foldable):
    """Two 3×3 convolutions beside a shortcut: identity, or a 1×1 convolution where the number of channels changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2: nn.Module = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs, 1)
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x), inplace=True)
        y: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))
        y += x if self.convShortcut is None else self.convShortcut(activated)
        return y

    def fold(self) -> None:
        # The first batch norm stays: its input is a sum, not the output of a convolution.
        self.conv1, self.bn2 = fold_norm(self.conv1, self.bn2)


class _Stage(nn.Module):
    """Blocks of one width; the first has the stride."""

    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        later = (_Block(outputs, outputs, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(_Block(inputs, outputs, stride), *later)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


class WideResNet(Classifier):
    """Depth 6n+4 and width K: a 3×3 stem, three stages of n blocks with 16K, 32K and 64K channels, one linear layer.

    Batch norm, ReLU and global average pooling come before the linear layer; `maps` are the outputs of the stem and the
    stages, before these. Modules are named as in RepDistiller and mdistiller, so that weights files from there fit.
    """

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        first, second, third = 16 * width, 32 * width, 64 * width
        self.widths = Widths((16, first, second, third), third)
        self.conv1 = conv3x3(3, 16, 1)
        self.block1 = _Stage(blocks, 16, first, 1)
        self.block2 = _Stage(blocks, first, second, 2)
        self.block3 = _Stage(blocks, second, third, 2)
        self.bn1 = nn.BatchNorm2d(third)
        self.fc = nn.Linear(third, num_classes)
        self.apply(initialise)

    def embed(self, images: Tensor) -> Outputs:
        stem = self.conv1(images)
        map1 = self.block1(stem)
        map2 = self.block2(map1)
        map3 = self.block3(map2)
        return classify(F.relu(self.bn1(map3), inplace=True), self.fc, (stem, map1, map2, map3))
