"""Weights that are rounded together give bit for bit what autocast gives, forward and backward."""

from __future__ import annotations

import pytest
import torch

from orchestrator import models
from orchestrator.models.base import Classifier, Outputs
from orchestrator.training.gpu.casts import embed_rounded
from orchestrator.training.state import supports_bfloat16

CPU = torch.device("cpu")


def differentiate(model: Classifier, *, together: bool) -> tuple[Outputs, list[torch.Tensor | None]]:
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)).contiguous(
        memory_format=torch.channels_last
    )
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        outputs = embed_rounded(model, images, torch.bfloat16) if together else model.embed(images)
    (outputs.logits.square().mean() + outputs.maps[-1].float().mean()).backward()
    return outputs, [parameter.grad for parameter in model.parameters()]


@pytest.mark.skipif(not supports_bfloat16(CPU), reason="this CPU would take minutes")
@pytest.mark.parametrize("name", ["resnet_32_8", "wrn_10_1", "vgg_8", "mobilenet_v2", "shufflenet_v1", "resnet_50"])
def test_equal_to_autocast_to_the_last_bit(name: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, 10).to(memory_format=torch.channels_last).train()
    statistics = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    expected, gradients = differentiate(model, together=False)
    after = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.load_state_dict(statistics)
    found, others = differentiate(model, together=True)
    assert all(torch.equal(one, other) for one, other in zip(expected.maps, found.maps, strict=True))
    assert torch.equal(expected.logits, found.logits) and torch.equal(expected.pooled, found.pooled)
    for gradient, other, parameter in zip(gradients, others, model.parameters(), strict=True):
        assert gradient is not None and other is not None and torch.equal(gradient, other)
        assert other.dtype == torch.float32 and other.stride() == parameter.stride()
    assert all(torch.equal(tensor, after[key]) for key, tensor in model.state_dict().items())


def test_a_weight_that_is_not_used_has_no_gradient() -> None:
    model = models.build("resnet_32_8", 10)
    outputs = embed_rounded(model, torch.randn(2, 3, 32, 32), torch.float32)
    outputs.maps[0].mean().backward()
    assert model.conv1.weight.grad is not None and model.layer3[0].conv1.weight.grad is None
