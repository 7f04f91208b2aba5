"""What every model provides (`Classifier`), and the parts that families share."""

from __future__ import annotations

import copy
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from orchestrator.models.family import Widths


class Outputs(NamedTuple):
    """A model's outputs for a batch of B images of C classes."""

    logits: Tensor  # [B, C], before the softmax
    pooled: Tensor  # [B, widths.pooled], the input of the last linear layer
    maps: tuple[Tensor, ...]  # the output of the stem, then of each stage, [B, widths.maps[i], H_i, W_i]


class Foldable(nn.Module):
    """A module with batch norms that can be folded into its convolutions for inference."""

    def fold(self) -> None:
        """Folds the batch norms that it owns itself, for eval mode; those of its submodules are theirs to fold."""


class Classifier(Foldable):
    """A model that maps images to logits and also returns its features. All of kdctl uses models through this class.

    A subclass sets `widths` and implements `embed`; modules in it that own batch norms are `Foldable`.
    """

    widths: Widths

    def embed(self, images: Tensor) -> Outputs:
        """Logits and features of images [B, 3, H, W] in one forward pass."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C] of images [B, 3, H, W]."""
        return self.embed(images).logits

    def folded(self) -> Self:
        """A copy for inference whose outputs are the same in eval mode, but for rounding.

        Batch norms that follow a convolution are folded into it. The copy has no gradients.
        """
        copied = copy.deepcopy(self).eval().requires_grad_(False)
        for module in [module for module in copied.modules() if isinstance(module, Foldable)]:
            module.fold()
        return copied


class Chain(nn.Sequential, Foldable):
    """Layers one after the other. A batch norm that directly follows a convolution is folded into it."""

    def fold(self) -> None:
        for index in range(1, len(self)):
            if isinstance(self[index], nn.BatchNorm2d):
                self[index - 1], self[index] = fold_norm(self[index - 1], self[index])


def conv3x3(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    """A 3×3 convolution that keeps the map's size at stride 1 and halves it at stride 2."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def classify(features: Tensor, linear: nn.Linear, maps: tuple[Tensor, ...]) -> Outputs:
    """The outputs of a model whose `features` [B, F, H, W] are averaged over H and W and fed to a linear layer.

    Losses compare these numbers with a teacher's, so both steps run in the linear layer's dtype, not in autocast's.
    """
    with torch.autocast(features.device.type, enabled=False):
        pooled = features.mean(dim=(2, 3), dtype=linear.weight.dtype)
        return Outputs(linear(pooled), pooled, maps)


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """The same channels in another order: the first of each group, then the second of each, and so on."""
    last = x.permute(0, 2, 3, 1)  # models are in this memory layout, and it is kept
    shape = (*last.shape[:3], groups, -1)
    return last.reshape(shape).transpose(3, 4).flatten(3).permute(0, 3, 1, 2)


def fold_norm(convolution: nn.Module, norm: nn.Module) -> tuple[nn.Conv2d, nn.Identity]:
    """A convolution that includes the batch norm after it, and an identity that replaces the norm."""
    assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    return fuse_conv_bn_eval(convolution, norm), nn.Identity()


def initialise(module: nn.Module) -> None:
    """Draws a layer's weights: convolutions Kaiming normal (fan out), linear layers Xavier uniform; biases are zero."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
