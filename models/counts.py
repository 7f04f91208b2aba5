"""How many operations the models need, and how large their maps are, computed without torch.

Operations are the multiply-accumulate operations of convolutions and linear layers in one forward pass of one image.
"""

from __future__ import annotations

from collections.abc import Sequence

VGG_WIDTHS = (64, 128, 256, 512, 512)  # the channels of each block
VGG_BLOCKS = {  # the convolutions of each block, by depth
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
VGG_LARGE = 64  # from this side on, the map is also halved before the last block
RESNET_50_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # the inner channels of each, and its blocks
MOBILENET_V2_GROUPS = (  # the expansion of each, its channels at half width, its blocks, its stride
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)
MOBILENET_V2_POOLED = 1280
SHUFFLENET_V1_STAGES = ((240, 4), (480, 8), (960, 4))  # the channels of each, and its blocks
SHUFFLENET_V2_STAGES = ((116, 4), (232, 8), (464, 4))
SHUFFLENET_V2_POOLED = 1024


def halve(side: int, times: int = 1) -> int:
    """The side of a map after convolutions with stride 2, which round up."""
    return -(-side // (1 << times))


def vgg_sides(side: int) -> tuple[int, ...]:
    """The sides of the maps of a VGG: pooling rounds down."""
    last = side // 16 if side >= VGG_LARGE else side // 8
    return (side, side // 2, side // 4, side // 8, last)


def _convolve(inputs: int, outputs: int, kernel: int, side: int, groups: int = 1) -> int:
    return kernel**2 * inputs * outputs // groups * side**2


def count_basic_blocks(blocks: int, stem: int, widths: Sequence[int], num_classes: int, side: int) -> int:
    """The operations of the CIFAR layout with basic blocks.

    The layout: a 3×3 convolution from 3 to `stem` channels; a stage of `blocks` blocks per width, which halves the map
    from the second stage on; a linear layer. A block is two 3×3 convolutions, and a 1×1 convolution beside them where
    the number of channels changes.
    """
    total = _convolve(3, stem, 3, side)
    inputs = stem
    for stage, width in enumerate(widths):
        side = halve(side) if stage else side
        total += _convolve(inputs, width, 3, side) + (2 * blocks - 1) * _convolve(width, width, 3, side)
        total += _convolve(inputs, width, 1, side) if inputs != width else 0
        inputs = width
    return total + inputs * num_classes


def count_vgg(depth: int, num_classes: int, side: int) -> int:
    """The operations of a VGG with one linear layer."""
    total, inputs = 0, 3
    for width, convolutions, own in zip(VGG_WIDTHS, VGG_BLOCKS[depth], vgg_sides(side), strict=True):
        total += _convolve(inputs, width, 3, own) + (convolutions - 1) * _convolve(width, width, 3, own)
        inputs = width
    return total + inputs * num_classes


def count_resnet_50(num_classes: int, side: int) -> int:
    """The operations of the ResNet with 50 layers and a 3×3 stem."""
    total, inputs = _convolve(3, 64, 3, side), 64
    for stage, (width, blocks) in enumerate(RESNET_50_STAGES):
        before, side = side, halve(side) if stage else side
        outputs = 4 * width
        total += _convolve(inputs, width, 1, before) + _convolve(inputs, outputs, 1, side)
        total += (blocks - 1) * _convolve(outputs, width, 1, side)
        total += blocks * (_convolve(width, width, 3, side) + _convolve(width, outputs, 1, side))
        inputs = outputs
    return total + inputs * num_classes


def count_mobilenet_v2(num_classes: int, side: int) -> int:
    """The operations of the half-width MobileNetV2 with expansion 6."""
    side, inputs = halve(side), 16
    total = _convolve(3, inputs, 3, side)
    for expansion, outputs, blocks, stride in MOBILENET_V2_GROUPS:
        for block in range(blocks):
            inner, before = expansion * inputs, side
            side = halve(side) if stride == 2 and block == 0 else side
            total += _convolve(inputs, inner, 1, before) + _convolve(inner, inner, 3, side, inner)
            total += _convolve(inner, outputs, 1, side)
            inputs = outputs
    return total + _convolve(inputs, MOBILENET_V2_POOLED, 1, side) + MOBILENET_V2_POOLED * num_classes


def count_shufflenet_v1(num_classes: int, side: int) -> int:
    """The operations of ShuffleNetV1 with 3 groups."""
    total, inputs = _convolve(3, 24, 1, side), 24
    for width, blocks in SHUFFLENET_V1_STAGES:
        for block in range(blocks):
            # A first block adds its input, pooled, as further channels.
            outputs, before = (width, side) if block else (width - inputs, side)
            side = side if block else halve(side)
            inner = outputs // 4
            total += _convolve(inputs, inner, 1, before, 1 if inputs == 24 else 3)
            total += _convolve(inner, inner, 3, side, inner) + _convolve(inner, outputs, 1, side, 3)
            inputs = width
    return total + inputs * num_classes


def count_shufflenet_v2(num_classes: int, side: int) -> int:
    """The operations of ShuffleNetV2 of width 1."""
    total, inputs = _convolve(3, 24, 1, side), 24
    for width, blocks in SHUFFLENET_V2_STAGES:
        before, side, half = side, halve(side), width // 2
        total += _convolve(inputs, inputs, 3, side, inputs) + _convolve(inputs, half, 1, side)
        total += _convolve(inputs, half, 1, before)
        # What a first block's second branch and every later block have in common.
        total += blocks * (_convolve(half, half, 3, side, half) + _convolve(half, half, 1, side))
        total += (blocks - 1) * _convolve(half, half, 1, side)
        inputs = width
    return total + _convolve(inputs, SHUFFLENET_V2_POOLED, 1, side) + SHUFFLENET_V2_POOLED * num_classes
