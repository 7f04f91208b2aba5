"""The optimizers of the table: what each of them must do, and AdamW's step computed by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from orchestrator.records import TrialConfig
from orchestrator.training import optimizers
from orchestrator.training.loop import set_learning_rate
from orchestrator.training.optimizers import OPTIMIZERS

MakeConfig = Callable[..., TrialConfig]


def config_of(make_config: MakeConfig, name: str) -> TrialConfig:
    facts = OPTIMIZERS[name]
    momentum = 0.9 if facts.has_momentum else None
    return make_config(optimizer=name, lr=facts.lr, weight_decay=facts.weight_decay, momentum=momentum)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_descends_and_stops_at_a_learning_rate_of_zero(make_config: MakeConfig, name: str) -> None:
    weight = nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = optimizers.build(config_of(make_config, name), [weight], 0.01)
    values = []
    for lr in (0.01, 0.01, 0.0):
        set_learning_rate(optimizer, lr)
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        values.append(loss.item())
    assert values[0] > values[1] > values[2] == (weight**2).sum().item()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_its_state_is_tensors_of_the_shape_of_the_parameter_or_scalars(make_config: MakeConfig, name: str) -> None:
    # What `TrainingState.restore` relies on, for the same keys of all parameters.
    weights = [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4))]
    optimizer = optimizers.build(config_of(make_config, name), weights, 0.1)
    sum(weight.sum() for weight in weights).backward()  # type: ignore[union-attr]
    optimizer.step()
    states = [optimizer.state[weight] for weight in weights]
    assert states[0].keys() == states[1].keys() != set()
    for weight, state in zip(weights, states, strict=True):
        assert all(value.shape in (weight.shape, ()) and value.dtype == torch.float32 for value in state.values())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_option_reaches_it(make_config: MakeConfig, name: str) -> None:
    def train(**options: float | str | bool) -> torch.Tensor:
        config = make_config(optimizer=name, momentum=0.5, optimizer_options=tuple(options.items()))
        weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        optimizer = optimizers.build(config, [weight], 0.1)
        for scale in (1.0, 3.0, 0.1):
            optimizer.zero_grad()
            (scale * weight**2).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return weight.detach()

    for option, facts in OPTIMIZERS[name].options.items():
        assert not torch.equal(train(**{option: type(facts.default)(0.5)}), train())


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_nesterov_equals_that_of_torch_to_the_last_bit(make_config: MakeConfig, momentum: float) -> None:
    def train(build: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        weight = nn.Parameter(torch.randn(50, generator=generator))
        optimizer = build([weight])
        for scale in torch.rand(5, 50, generator=generator):
            optimizer.zero_grad()
            (scale * weight**2).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return weight.detach()

    config = make_config(momentum=momentum, weight_decay=5e-4, optimizer_options=(("nesterov", True),))
    settings = {"lr": 0.1, "momentum": momentum, "weight_decay": 5e-4}
    found = train(lambda weights: optimizers.build(config, weights, 0.1))
    assert torch.equal(
        found, train(lambda weights: torch.optim.SGD(weights, **settings, nesterov=momentum > 0, fused=True))
    )
    # Torch's plain loop rounds in another order.
    plain = train(lambda weights: torch.optim.SGD(weights, **settings, nesterov=momentum > 0, foreach=False))
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-7)


def test_nesterov_by_hand(make_config: MakeConfig) -> None:
    # v ← momentum · v + g, then w ← w − lr · (g + momentum · v), with the gradient 3 in both steps.
    weight = nn.Parameter(torch.tensor([2.0]))
    config = make_config(weight_decay=0.0, momentum=0.5, optimizer_options=(("nesterov", True),))
    optimizer = optimizers.build(config, [weight], 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (3 * weight).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert weight.item() == pytest.approx(2 - 0.1 * (3 + 0.5 * 3) - 0.1 * (3 + 0.5 * 4.5))


def test_adamw_by_hand(make_config: MakeConfig) -> None:
    # The first step of algorithm 2 of the paper: both means are bias-corrected to the gradient and its square.
    weight = nn.Parameter(torch.tensor([2.0]))
    config = make_config(optimizer="adamw", weight_decay=0.5, momentum=None, optimizer_options=(("eps", 1.0),))
    optimizer = optimizers.build(config, [weight], 0.1)
    (3 * weight).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert weight.item() == pytest.approx(2 * (1 - 0.1 * 0.5) - 0.1 * 3 / (3 + 1))


def test_reading_the_tables_does_not_import_torch() -> None:
    code = "import sys; from orchestrator.training import optimizers, schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
