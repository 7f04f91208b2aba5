"""Wide residual networks: sizes as published, names and an independent forward pass. The contract is in test_models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator import models

# For 100 classes, as counted from RepDistiller's code: parameters, entries of the state dict, million multiply-adds.
SIZES = {
    "wrn_16_1": (180_916, 82, 26.7),
    "wrn_16_2": (703_284, 83, 101),
    "wrn_40_1": (569_780, 226, 83),
    "wrn_40_2": (2_255_156, 227, 328),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_fields_code(name: str) -> None:
    with torch.device("meta"):
        model = models.build(name, 100)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert (parameters, len(model.state_dict())) == SIZES[name][:2]
    assert models.multiply_adds(name, 100) / 1e6 == pytest.approx(SIZES[name][2], abs=0.5)


def reference(state: dict[str, Tensor], images: Tensor, blocks: int) -> Tensor:
    """The logits in eval mode, computed from nothing but the state dict."""

    def activate(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"]).relu()

    x = F.conv2d(images, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for block in range(blocks):
            at = f"block{stage}.layer.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            activated = activate(x, f"{at}.bn1")
            y = F.conv2d(activated, state[f"{at}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(activate(y, f"{at}.bn2"), state[f"{at}.conv2.weight"], padding=1)
            if f"{at}.convShortcut.weight" in state:
                x = F.conv2d(activated, state[f"{at}.convShortcut.weight"], stride=stride)
            x = x + y
    return F.linear(activate(x, "bn1").mean((2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize(("name", "blocks"), [("wrn_10_1", 1), ("wrn_16_2", 2)])
def test_forward_agrees_with_functional_ops(name: str, blocks: int) -> None:
    model = models.build(name, 10).eval().double()
    generator = torch.Generator().manual_seed(1)
    state = model.state_dict()
    for tensor in state.values():
        if tensor.ndim == 1:  # fresh batch norms change little, so that a forgotten one would not be noticed
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
    images = torch.randn(3, 3, 16, 16, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(model(images), reference(state, images, blocks))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrn_41_2", r"depth must be 6n\+4, from 10 to 1000 \(did you mean wrn_40_2\?\)"),
        ("wrn_38_33", r"depth must be .*; width must be from 1 to 32 \(did you mean wrn_40_32\?\)"),
        ("wrn_40", r"models are .*wrn_D_K \(D = 6n\+4\), .*; write a name like wrn_40_2"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.parse(name)
