"""VGG of Simonyan & Zisserman 2014 (arXiv 1409.1556) for 32×32 images, as in the field's code: with batch norm.

One linear layer stands in place of the paper's three, after global average pooling.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.models.base import Chain, Classifier, Outputs, classify, initialise
from orchestrator.models.counts import VGG_BLOCKS, VGG_LARGE, VGG_WIDTHS
from orchestrator.models.family import Widths


class VGG(Classifier):
    """Five blocks of 3×3 convolutions, each followed by batch norm and ReLU, with max pooling between the blocks.

    There is no pooling before the last block where images have less than 64 pixels a side. Each block's output is a
    map; the first block counts as the stem. Modules are named as in RepDistiller and mdistiller, so that weights files
    from there fit.
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        self.widths = Widths(VGG_WIDTHS, VGG_WIDTHS[-1])
        inputs = (3, *VGG_WIDTHS)
        blocks = [_block(*each) for each in zip(inputs, VGG_WIDTHS, VGG_BLOCKS[depth], strict=False)]
        self.block0, self.block1, self.block2, self.block3, self.block4 = blocks
        self.classifier = nn.Linear(VGG_WIDTHS[-1], num_classes)
        self.apply(initialise)
        nn.init.normal_(self.classifier.weight, std=0.01)

    def embed(self, images: Tensor) -> Outputs:
        map0 = F.relu(self.block0(images), inplace=True)
        map1 = F.relu(self.block1(F.max_pool2d(map0, 2)), inplace=True)
        map2 = F.relu(self.block2(F.max_pool2d(map1, 2)), inplace=True)
        map3 = F.relu(self.block3(F.max_pool2d(map2, 2)), inplace=True)
        last = F.max_pool2d(map3, 2) if images.shape[2] >= VGG_LARGE else map3
        map4 = F.relu(self.block4(last), inplace=True)
        return classify(map4, self.classifier, (map0, map1, map2, map3, map4))


def _block(inputs: int, outputs: int, convolutions: int) -> Chain:
    """Convolutions with batch norm, and ReLU between them: the last ReLU is the model's."""
    layers: list[nn.Module] = []
    for index in range(convolutions):
        layers += [nn.Conv2d(outputs if index else inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU(inplace=True)] if index < convolutions - 1 else []
    return Chain(*layers)
