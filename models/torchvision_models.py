"""Classifiers of torchvision by name, with their outputs as every model of kdctl has them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from orchestrator.models.base import Classifier, Outputs, fold_norm
from orchestrator.models.family import Widths
from orchestrator.models.torchvision_facts import FACTS, FACTS_3X3, Facts


class _Head(nn.Linear):
    """The last linear layer, which keeps its dtype under autocast: losses compare its inputs and outputs."""

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.to(self.weight.dtype), self.weight, self.bias)


class Torchvision(Classifier):
    """What a network of torchvision becomes: its class is this one and its own.

    Modules keep their names, so that weights files of torchvision fit. Dropout and stochastic depth are left out: a
    trial that resumes after a stop would draw other numbers.
    """

    plain_forward: Callable[[Tensor], Tensor]  # torchvision's, which calls the modules one after the other
    facts: Facts
    head_name: str

    def embed(self, images: Tensor) -> Outputs:
        found: dict[str, Tensor] = {}
        handles = [
            self.get_submodule(path).register_forward_hook(partial(_keep_output, found, path))
            for path in self.facts.paths
        ]
        handles.append(self.get_submodule(self.head_name).register_forward_pre_hook(partial(_keep_input, found)))
        try:
            logits = self.plain_forward(images)
        finally:
            for handle in handles:
                handle.remove()
        return Outputs(logits, found["pooled"], tuple(found[path] for path in self.facts.paths))

    def fold(self) -> None:
        for module in self.modules():
            children = list(module.named_children())
            for (name, child), (norm_name, norm) in itertools.pairwise(children):
                if isinstance(child, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    for each, layer in zip((name, norm_name), fold_norm(child, norm), strict=True):
                        setattr(module, each, layer)


def _keep_output(found: dict[str, Tensor], path: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
    found[path] = output


def _keep_input(found: dict[str, Tensor], head: nn.Linear, inputs: tuple[Tensor]) -> tuple[Tensor]:
    found["pooled"] = inputs[0].to(head.weight.dtype)
    return (found["pooled"],)


def build(name: str, num_classes: int) -> Classifier:
    """A network as torchvision builds it, with fresh weights."""
    return _adapt(build_plain(name, num_classes), FACTS[name])


def build_3x3(name: str, num_classes: int) -> Classifier:
    """The same with a stem for small images: see `replace_stem`."""
    network = build_plain(name, num_classes)
    replace_stem(network)
    return _adapt(network, FACTS_3X3[name])


def build_plain(name: str, num_classes: int) -> nn.Module:
    """A network of torchvision without the classifiers that some have beside the last."""
    options = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    device = torch.get_default_device()
    with torch.device("cpu"):  # some read numbers while they are built, and the meta device has none
        network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    return network.to(device)


def replace_stem(network: nn.Module) -> None:
    """Makes the first convolution 3×3 with stride 1, and leaves out the max pooling that follows in the stem."""
    name, first = next((name, each) for name, each in network.named_modules() if isinstance(each, nn.Conv2d))
    small = nn.Conv2d(first.in_channels, first.out_channels, 3, padding=1, bias=first.bias is not None)
    nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
    if small.bias is not None:
        nn.init.zeros_(small.bias)
    network.set_submodule(name, small)
    for pool in ("maxpool", "maxpool1", "features.pool0"):
        if any(each == pool for each, _ in network.named_modules()):
            network.set_submodule(pool, nn.Identity())


def find_head(network: nn.Module) -> str:
    """The name of the last linear layer; empty where there is none."""
    return next((name for name, each in reversed(list(network.named_modules())) if isinstance(each, nn.Linear)), "")


def _adapt(network: nn.Module, facts: Facts) -> Torchvision:
    for name, module in list(network.named_modules()):
        if isinstance(module, (nn.Dropout, StochasticDepth)):
            network.set_submodule(name, nn.Identity())
        elif hasattr(module, "inplace"):
            module.inplace = False  # a map must stay as it is
    own = type(network)
    network.__class__ = type(own.__name__, (Torchvision, own), {"plain_forward": own.forward})
    assert isinstance(network, Torchvision)
    network.facts, network.head_name = facts, find_head(network)
    network.widths = Widths(facts.widths, facts.pooled)
    network.get_submodule(network.head_name).__class__ = _Head
    return network
