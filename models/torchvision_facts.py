"""What kdctl must know of torchvision's classifiers without torch; docs/torchvision_facts.py writes the tables."""

# fmt: off
# ruff: noqa: E501

from __future__ import annotations

from typing import NamedTuple


class Facts(NamedTuple):
    """One network: the modules whose outputs are its maps, their widths, the pooled width, the strides of the maps.

    Its operations for images of side s are `fixed` + `unit`·(s/32)², without the last linear layer; exact where 32
    divides s. It takes images from `least` pixels on; maps of other sizes are rounded down if `rounds_down`.
    """

    paths: tuple[str, ...]
    widths: tuple[int, ...]
    pooled: int
    strides: tuple[int, ...]
    fixed: int
    unit: int
    least: int
    rounds_down: bool

    def multiply_adds(self, num_classes: int, side: int) -> int:
        """The operations of one forward pass of one image."""
        return self.fixed + self.unit * side**2 // 32**2 + self.pooled * num_classes

    def sides(self, side: int) -> tuple[int, ...]:
        """The sides of the maps; 0 for images that are too small."""
        if side < self.least:
            return (0,) * len(self.strides)
        return tuple(max(1, side // stride) if self.rounds_down else -(-side // stride) for stride in self.strides)


FACTS: dict[str, Facts] = {
    "convnext_base": Facts(("features.1", "features.3", "features.5", "features.7"), (128, 256, 512, 1024), 1024, (4, 8, 16, 32), 0, 313340928, 32, True),
    "convnext_large": Facts(("features.1", "features.3", "features.5", "features.7"), (192, 384, 768, 1536), 1536, (4, 8, 16, 32), 0, 701222400, 32, True),
    "convnext_small": Facts(("features.1", "features.3", "features.5", "features.7"), (96, 192, 384, 768), 768, (4, 8, 16, 32), 0, 177202944, 32, True),
    "convnext_tiny": Facts(("features.1", "features.3", "features.5", "features.7"), (96, 192, 384, 768), 768, (4, 8, 16, 32), 0, 90913536, 32, True),
    "densenet121": Facts(("features.relu0", "features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5"), (64, 256, 512, 1024, 1024), 1024, (2, 4, 8, 16, 32), 0, 57819136, 32, True),
    "densenet161": Facts(("features.relu0", "features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5"), (96, 384, 768, 2112, 2208), 2208, (2, 4, 8, 16, 32), 0, 157667328, 32, True),
    "densenet169": Facts(("features.relu0", "features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5"), (64, 256, 512, 1280, 1664), 1664, (2, 4, 8, 16, 32), 0, 68534272, 32, True),
    "densenet201": Facts(("features.relu0", "features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5"), (64, 256, 512, 1792, 1920), 1920, (2, 4, 8, 16, 32), 0, 87539712, 32, True),
    "efficientnet_b0": Facts(("features.1", "features.2", "features.3", "features.5", "features.8"), (16, 24, 40, 112, 1280), 1280, (2, 4, 8, 16, 32), 627200, 7834848, 1, False),
    "efficientnet_b1": Facts(("features.1", "features.2", "features.3", "features.5", "features.8"), (16, 24, 40, 112, 1280), 1280, (2, 4, 8, 16, 32), 1108480, 11576800, 1, False),
    "efficientnet_b2": Facts(("features.1", "features.2", "features.3", "features.5", "features.8"), (16, 24, 48, 120, 1408), 1408, (2, 4, 8, 16, 32), 1313728, 13392688, 1, False),
    "efficientnet_b3": Facts(("features.1", "features.2", "features.3", "features.5", "features.8"), (24, 32, 48, 136, 1536), 1536, (2, 4, 8, 16, 32), 1859648, 19577808, 1, False),
    "efficientnet_b4": Facts(("features.1", "features.2", "features.3", "features.5", "features.8"), (24, 32, 56, 160, 1792), 1792, (2, 4, 8, 16, 32), 3117408, 30587776, 1, False),
    "efficientnet_b5": Facts(("features.1", "features.2", "features.3", "features.5", "features.8"), (24, 40, 64, 176, 2048), 2048, (2, 4, 8, 16, 32), 5151552, 47944768, 1, False),
    "efficientnet_b6": Facts(("features.1", "features.2", "features.3", "features.5", "features.8"), (32, 40, 72, 200, 2304), 2304, (2, 4, 8, 16, 32), 7481184, 68375136, 1, False),
    "efficientnet_b7": Facts(("features.1", "features.2", "features.3", "features.5", "features.8"), (32, 48, 80, 224, 2560), 2560, (2, 4, 8, 16, 32), 11899904, 105212352, 1, False),
    "efficientnet_v2_l": Facts(("features.1", "features.2", "features.3", "features.5", "features.8"), (32, 64, 96, 224, 1280), 1280, (2, 4, 8, 16, 32), 22084608, 249139264, 1, False),
    "efficientnet_v2_m": Facts(("features.1", "features.2", "features.3", "features.5", "features.8"), (24, 48, 80, 176, 1280), 1280, (2, 4, 8, 16, 32), 9833984, 109205984, 1, False),
    "efficientnet_v2_s": Facts(("features.1", "features.2", "features.3", "features.5", "features.7"), (24, 48, 64, 160, 1280), 1280, (2, 4, 8, 16, 32), 3664896, 58060224, 1, False),
    "googlenet": Facts(("conv1", "conv3", "inception3b", "inception4e", "inception5b"), (64, 192, 480, 832, 1024), 1024, (2, 4, 8, 16, 32), 0, 30558208, 16, True),
    "mnasnet0_5": Facts(("layers.7", "layers.8", "layers.9", "layers.11", "layers.16"), (8, 16, 24, 48, 1280), 1280, (2, 4, 8, 16, 32), 0, 2105632, 1, False),
    "mnasnet0_75": Facts(("layers.7", "layers.8", "layers.9", "layers.11", "layers.16"), (16, 24, 32, 72, 1280), 1280, (2, 4, 8, 16, 32), 0, 4371696, 1, False),
    "mnasnet1_0": Facts(("layers.7", "layers.8", "layers.9", "layers.11", "layers.16"), (16, 24, 40, 96, 1280), 1280, (2, 4, 8, 16, 32), 0, 6390528, 1, False),
    "mnasnet1_3": Facts(("layers.7", "layers.8", "layers.9", "layers.11", "layers.16"), (24, 32, 56, 128, 1280), 1280, (2, 4, 8, 16, 32), 0, 10715968, 1, False),
    "mobilenet_v2": Facts(("features.1", "features.3", "features.6", "features.13", "features.18"), (16, 24, 32, 96, 1280), 1280, (2, 4, 8, 16, 32), 0, 6112128, 1, False),
    "mobilenet_v3_large": Facts(("features.1", "features.3", "features.6", "features.12", "features.16"), (16, 24, 40, 112, 960), 1280, (2, 4, 8, 16, 32), 2736000, 4338240, 1, False),
    "mobilenet_v3_small": Facts(("features.0", "features.1", "features.3", "features.8", "features.12"), (16, 16, 24, 48, 576), 1024, (2, 4, 8, 16, 32), 1048576, 1110976, 1, False),
    "regnet_x_16gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 256, 512, 896, 2048), 2048, (2, 4, 8, 16, 32), 0, 325279744, 1, False),
    "regnet_x_1_6gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 72, 168, 408, 912), 912, (2, 4, 8, 16, 32), 0, 32692608, 1, False),
    "regnet_x_32gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 336, 672, 1344, 2520), 2520, (2, 4, 8, 16, 32), 0, 647620608, 1, False),
    "regnet_x_3_2gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 96, 192, 432, 1008), 1008, (2, 4, 8, 16, 32), 0, 64808448, 1, False),
    "regnet_x_400mf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 32, 64, 160, 400), 400, (2, 4, 8, 16, 32), 0, 8436992, 1, False),
    "regnet_x_800mf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 64, 128, 288, 672), 672, (2, 4, 8, 16, 32), 0, 16306688, 1, False),
    "regnet_x_8gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 80, 240, 720, 1920), 1920, (2, 4, 8, 16, 32), 0, 163126784, 1, False),
    "regnet_y_128gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 528, 1056, 2904, 7392), 7392, (2, 4, 8, 16, 32), 83504256, 2600549376, 1, False),
    "regnet_y_16gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 224, 448, 1232, 3024), 3024, (2, 4, 8, 16, 32), 10107776, 324456704, 1, False),
    "regnet_y_1_6gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 48, 120, 336, 888), 888, (2, 4, 8, 16, 32), 1507584, 32850624, 1, False),
    "regnet_y_32gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 232, 696, 1392, 3712), 3712, (2, 4, 8, 16, 32), 14805312, 658388480, 1, False),
    "regnet_y_3_2gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 72, 216, 576, 1512), 1512, (2, 4, 8, 16, 32), 2593152, 64742400, 1, False),
    "regnet_y_400mf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 48, 104, 208, 440), 440, (2, 4, 8, 16, 32), 662816, 8178368, 1, False),
    "regnet_y_800mf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 64, 144, 320, 784), 784, (2, 4, 8, 16, 32), 840576, 16984320, 1, False),
    "regnet_y_8gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 224, 448, 896, 2016), 2016, (2, 4, 8, 16, 32), 5096448, 172774656, 1, False),
    "resnet101": Facts(("relu", "layer1", "layer2", "layer3", "layer4"), (64, 256, 512, 1024, 2048), 2048, (2, 4, 8, 16, 32), 0, 159170560, 1, False),
    "resnet152": Facts(("relu", "layer1", "layer2", "layer3", "layer4"), (64, 256, 512, 1024, 2048), 2048, (2, 4, 8, 16, 32), 0, 234930176, 1, False),
    "resnet18": Facts(("relu", "layer1", "layer2", "layer3", "layer4"), (64, 64, 128, 256, 512), 512, (2, 4, 8, 16, 32), 0, 37011456, 1, False),
    "resnet34": Facts(("relu", "layer1", "layer2", "layer3", "layer4"), (64, 64, 128, 256, 512), 512, (2, 4, 8, 16, 32), 0, 74760192, 1, False),
    "resnet50": Facts(("relu", "layer1", "layer2", "layer3", "layer4"), (64, 256, 512, 1024, 2048), 2048, (2, 4, 8, 16, 32), 0, 83410944, 1, False),
    "resnext101_32x8d": Facts(("relu", "layer1", "layer2", "layer3", "layer4"), (64, 256, 512, 1024, 2048), 2048, (2, 4, 8, 16, 32), 0, 334938112, 1, False),
    "resnext101_64x4d": Facts(("relu", "layer1", "layer2", "layer3", "layer4"), (64, 256, 512, 1024, 2048), 2048, (2, 4, 8, 16, 32), 0, 315473920, 1, False),
    "resnext50_32x4d": Facts(("relu", "layer1", "layer2", "layer3", "layer4"), (64, 256, 512, 1024, 2048), 2048, (2, 4, 8, 16, 32), 0, 86294528, 1, False),
    "shufflenet_v2_x0_5": Facts(("conv1", "stage2", "stage3", "conv5"), (24, 48, 96, 1024), 1024, (2, 8, 16, 32), 0, 805152, 1, False),
    "shufflenet_v2_x1_0": Facts(("conv1", "stage2", "stage3", "conv5"), (24, 116, 232, 1024), 1024, (2, 8, 16, 32), 0, 2936408, 1, False),
    "shufflenet_v2_x1_5": Facts(("conv1", "stage2", "stage3", "conv5"), (24, 176, 352, 1024), 1024, (2, 8, 16, 32), 0, 6015008, 1, False),
    "shufflenet_v2_x2_0": Facts(("conv1", "stage2", "stage3", "conv5"), (24, 244, 488, 2048), 2048, (2, 8, 16, 32), 0, 11861336, 1, False),
    "vgg11": Facts(("features.1", "features.4", "features.9", "features.14", "features.19"), (64, 128, 256, 512, 512), 4096, (1, 2, 4, 8, 16), 119537664, 152764416, 32, True),
    "vgg11_bn": Facts(("features.2", "features.6", "features.13", "features.20", "features.27"), (64, 128, 256, 512, 512), 4096, (1, 2, 4, 8, 16), 119537664, 152764416, 32, True),
    "vgg13": Facts(("features.3", "features.8", "features.13", "features.18", "features.23"), (64, 128, 256, 512, 512), 4096, (1, 2, 4, 8, 16), 119537664, 228261888, 32, True),
    "vgg13_bn": Facts(("features.5", "features.12", "features.19", "features.26", "features.33"), (64, 128, 256, 512, 512), 4096, (1, 2, 4, 8, 16), 119537664, 228261888, 32, True),
    "vgg16": Facts(("features.3", "features.8", "features.15", "features.22", "features.29"), (64, 128, 256, 512, 512), 4096, (1, 2, 4, 8, 16), 119537664, 313196544, 32, True),
    "vgg16_bn": Facts(("features.5", "features.12", "features.22", "features.32", "features.42"), (64, 128, 256, 512, 512), 4096, (1, 2, 4, 8, 16), 119537664, 313196544, 32, True),
    "vgg19": Facts(("features.3", "features.8", "features.17", "features.26", "features.35"), (64, 128, 256, 512, 512), 4096, (1, 2, 4, 8, 16), 119537664, 398131200, 32, True),
    "vgg19_bn": Facts(("features.5", "features.12", "features.25", "features.38", "features.51"), (64, 128, 256, 512, 512), 4096, (1, 2, 4, 8, 16), 119537664, 398131200, 32, True),
    "wide_resnet50_2": Facts(("relu", "layer1", "layer2", "layer3", "layer4"), (64, 256, 512, 1024, 2048), 2048, (2, 4, 8, 16, 32), 0, 232570880, 1, False),
    "wide_resnet101_2": Facts(("relu", "layer1", "layer2", "layer3", "layer4"), (64, 256, 512, 1024, 2048), 2048, (2, 4, 8, 16, 32), 0, 464306176, 1, False),
}
FACTS_3X3: dict[str, Facts] = {
    "convnext_base": Facts(("features.1", "features.3", "features.5", "features.7"), (128, 256, 512, 1024), 1024, (1, 2, 4, 8), 0, 5010702336, 8, True),
    "convnext_large": Facts(("features.1", "features.3", "features.5", "features.7"), (192, 384, 768, 1536), 1536, (1, 2, 4, 8), 0, 11215429632, 8, True),
    "convnext_small": Facts(("features.1", "features.3", "features.5", "features.7"), (96, 192, 384, 768), 768, (1, 2, 4, 8), 0, 2833182720, 8, True),
    "convnext_tiny": Facts(("features.1", "features.3", "features.5", "features.7"), (96, 192, 384, 768), 768, (1, 2, 4, 8), 0, 1452552192, 8, True),
    "densenet121": Facts(("features.relu0", "features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5"), (64, 256, 512, 1024, 1024), 1024, (1, 1, 2, 4, 8), 0, 888340480, 8, True),
    "densenet161": Facts(("features.relu0", "features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5"), (96, 384, 768, 2112, 2208), 2208, (1, 1, 2, 4, 8), 0, 2467528704, 8, True),
    "densenet169": Facts(("features.relu0", "features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5"), (64, 256, 512, 1280, 1664), 1664, (1, 1, 2, 4, 8), 0, 1059782656, 8, True),
    "densenet201": Facts(("features.relu0", "features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5"), (64, 256, 512, 1792, 1920), 1920, (1, 1, 2, 4, 8), 0, 1363869696, 8, True),
    "efficientnet_b0": Facts(("features.1", "features.2", "features.3", "features.5", "features.8"), (16, 24, 40, 112, 1280), 1280, (1, 2, 4, 8, 16), 627200, 31339392, 1, False),
    "efficientnet_b1": Facts(("features.1", "features.2", "features.3", "features.5", "features.8"), (16, 24, 40, 112, 1280), 1280, (1, 2, 4, 8, 16), 1108480, 46307200, 1, False),
    "efficientnet_b2": Facts(("features.1", "features.2", "features.3", "features.5", "features.8"), (16, 24, 48, 120, 1408), 1408, (1, 2, 4, 8, 16), 1313728, 53570752, 1, False),
    "efficientnet_b3": Facts(("features.1", "features.2", "features.3", "features.5", "features.8"), (24, 32, 48, 136, 1536), 1536, (1, 2, 4, 8, 16), 1859648, 78311232, 1, False),
    "efficientnet_b4": Facts(("features.1", "features.2", "features.3", "features.5", "features.8"), (24, 32, 56, 160, 1792), 1792, (1, 2, 4, 8, 16), 3117408, 122351104, 1, False),
    "efficientnet_b5": Facts(("features.1", "features.2", "features.3", "features.5", "features.8"), (24, 40, 64, 176, 2048), 2048, (1, 2, 4, 8, 16), 5151552, 191779072, 1, False),
    "efficientnet_b6": Facts(("features.1", "features.2", "features.3", "features.5", "features.8"), (32, 40, 72, 200, 2304), 2304, (1, 2, 4, 8, 16), 7481184, 273500544, 1, False),
    "efficientnet_b7": Facts(("features.1", "features.2", "features.3", "features.5", "features.8"), (32, 48, 80, 224, 2560), 2560, (1, 2, 4, 8, 16), 11899904, 420849408, 1, False),
    "efficientnet_v2_l": Facts(("features.1", "features.2", "features.3", "features.5", "features.8"), (32, 64, 96, 224, 1280), 1280, (1, 2, 4, 8, 16), 22084608, 996557056, 1, False),
    "efficientnet_v2_m": Facts(("features.1", "features.2", "features.3", "features.5", "features.8"), (24, 48, 80, 176, 1280), 1280, (1, 2, 4, 8, 16), 9833984, 436823936, 1, False),
    "efficientnet_v2_s": Facts(("features.1", "features.2", "features.3", "features.5", "features.7"), (24, 48, 64, 160, 1280), 1280, (1, 2, 4, 8, 16), 3664896, 232240896, 1, False),
    "googlenet": Facts(("conv1", "conv3", "inception3b", "inception4e", "inception5b"), (64, 192, 480, 832, 1024), 1024, (1, 1, 2, 4, 8), 0, 452165632, 4, True),
    "mnasnet0_5": Facts(("layers.7", "layers.8", "layers.9", "layers.11", "layers.16"), (8, 16, 24, 48, 1280), 1280, (1, 2, 4, 8, 16), 0, 8422528, 1, False),
    "mnasnet0_75": Facts(("layers.7", "layers.8", "layers.9", "layers.11", "layers.16"), (16, 24, 32, 72, 1280), 1280, (1, 2, 4, 8, 16), 0, 17486784, 1, False),
    "mnasnet1_0": Facts(("layers.7", "layers.8", "layers.9", "layers.11", "layers.16"), (16, 24, 40, 96, 1280), 1280, (1, 2, 4, 8, 16), 0, 25562112, 1, False),
    "mnasnet1_3": Facts(("layers.7", "layers.8", "layers.9", "layers.11", "layers.16"), (24, 32, 56, 128, 1280), 1280, (1, 2, 4, 8, 16), 0, 42863872, 1, False),
    "mobilenet_v2": Facts(("features.1", "features.3", "features.6", "features.13", "features.18"), (16, 24, 32, 96, 1280), 1280, (1, 2, 4, 8, 16), 0, 24448512, 1, False),
    "mobilenet_v3_large": Facts(("features.1", "features.3", "features.6", "features.12", "features.16"), (16, 24, 40, 112, 960), 1280, (1, 2, 4, 8, 16), 2736000, 17352960, 1, False),
    "mobilenet_v3_small": Facts(("features.0", "features.1", "features.3", "features.8", "features.12"), (16, 16, 24, 48, 576), 1024, (1, 2, 4, 8, 16), 1048576, 4443904, 1, False),
    "regnet_x_16gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 256, 512, 896, 2048), 2048, (1, 2, 4, 8, 16), 0, 1301118976, 1, False),
    "regnet_x_1_6gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 72, 168, 408, 912), 912, (1, 2, 4, 8, 16), 0, 130770432, 1, False),
    "regnet_x_32gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 336, 672, 1344, 2520), 2520, (1, 2, 4, 8, 16), 0, 2590482432, 1, False),
    "regnet_x_3_2gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 96, 192, 432, 1008), 1008, (1, 2, 4, 8, 16), 0, 259233792, 1, False),
    "regnet_x_400mf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 32, 64, 160, 400), 400, (1, 2, 4, 8, 16), 0, 33747968, 1, False),
    "regnet_x_800mf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 64, 128, 288, 672), 672, (1, 2, 4, 8, 16), 0, 65226752, 1, False),
    "regnet_x_8gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 80, 240, 720, 1920), 1920, (1, 2, 4, 8, 16), 0, 652507136, 1, False),
    "regnet_y_128gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 528, 1056, 2904, 7392), 7392, (1, 2, 4, 8, 16), 83504256, 10402197504, 1, False),
    "regnet_y_16gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 224, 448, 1232, 3024), 3024, (1, 2, 4, 8, 16), 10107776, 1297826816, 1, False),
    "regnet_y_1_6gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 48, 120, 336, 888), 888, (1, 2, 4, 8, 16), 1507584, 131402496, 1, False),
    "regnet_y_32gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 232, 696, 1392, 3712), 3712, (1, 2, 4, 8, 16), 14805312, 2633553920, 1, False),
    "regnet_y_3_2gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 72, 216, 576, 1512), 1512, (1, 2, 4, 8, 16), 2593152, 258969600, 1, False),
    "regnet_y_400mf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 48, 104, 208, 440), 440, (1, 2, 4, 8, 16), 662816, 32713472, 1, False),
    "regnet_y_800mf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 64, 144, 320, 784), 784, (1, 2, 4, 8, 16), 840576, 67937280, 1, False),
    "regnet_y_8gf": Facts(("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"), (32, 224, 448, 896, 2016), 2016, (1, 2, 4, 8, 16), 5096448, 691098624, 1, False),
    "resnet101": Facts(("relu", "layer1", "layer2", "layer3", "layer4"), (64, 256, 512, 1024, 2048), 2048, (1, 1, 2, 4, 8), 0, 2509963264, 1, False),
    "resnet152": Facts(("relu", "layer1", "layer2", "layer3", "layer4"), (64, 256, 512, 1024, 2048), 2048, (1, 1, 2, 4, 8), 0, 3722117120, 1, False),
    "resnet18": Facts(("relu", "layer1", "layer2", "layer3", "layer4"), (64, 64, 128, 256, 512), 512, (1, 1, 2, 4, 8), 0, 555417600, 1, False),
    "resnet34": Facts(("relu", "layer1", "layer2", "layer3", "layer4"), (64, 64, 128, 256, 512), 512, (1, 1, 2, 4, 8), 0, 1159397376, 1, False),
    "resnet50": Facts(("relu", "layer1", "layer2", "layer3", "layer4"), (64, 256, 512, 1024, 2048), 2048, (1, 1, 2, 4, 8), 0, 1297809408, 1, False),
    "resnext101_32x8d": Facts(("relu", "layer1", "layer2", "layer3", "layer4"), (64, 256, 512, 1024, 2048), 2048, (1, 1, 2, 4, 8), 0, 5322244096, 1, False),
    "resnext101_64x4d": Facts(("relu", "layer1", "layer2", "layer3", "layer4"), (64, 256, 512, 1024, 2048), 2048, (1, 1, 2, 4, 8), 0, 5010817024, 1, False),
    "resnext50_32x4d": Facts(("relu", "layer1", "layer2", "layer3", "layer4"), (64, 256, 512, 1024, 2048), 2048, (1, 1, 2, 4, 8), 0, 1343946752, 1, False),
    "shufflenet_v2_x0_5": Facts(("conv1", "stage2", "stage3", "conv5"), (24, 48, 96, 1024), 1024, (1, 2, 4, 8), 0, 10891776, 1, False),
    "shufflenet_v2_x1_0": Facts(("conv1", "stage2", "stage3", "conv5"), (24, 116, 232, 1024), 1024, (1, 2, 4, 8), 0, 44991872, 1, False),
    "shufflenet_v2_x1_5": Facts(("conv1", "stage2", "stage3", "conv5"), (24, 176, 352, 1024), 1024, (1, 2, 4, 8), 0, 94249472, 1, False),
    "shufflenet_v2_x2_0": Facts(("conv1", "stage2", "stage3", "conv5"), (24, 244, 488, 2048), 2048, (1, 2, 4, 8), 0, 187790720, 1, False),
    "wide_resnet50_2": Facts(("relu", "layer1", "layer2", "layer3", "layer4"), (64, 256, 512, 1024, 2048), 2048, (1, 1, 2, 4, 8), 0, 3684368384, 1, False),
    "wide_resnet101_2": Facts(("relu", "layer1", "layer2", "layer3", "layer4"), (64, 256, 512, 1024, 2048), 2048, (1, 1, 2, 4, 8), 0, 7392133120, 1, False),
}
# They have no linear layer at their end, no maps [B, C, H, W], images of one size, or maps that are
# not proportional to the images.
UNUSABLE = ("alexnet", "inception_v3", "maxvit_t", "squeezenet1_0", "squeezenet1_1", "swin_b", "swin_s", "swin_t", "swin_v2_b", "swin_v2_s", "swin_v2_t", "vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32")
