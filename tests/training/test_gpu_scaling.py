"""Training in float16: the scale of the loss, steps that are skipped, and what a GPU alone can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from orchestrator import losses, models
from orchestrator.data import tensors
from orchestrator.errors import DivergedError, ResourceError
from orchestrator.records import EpochRecord, TrialConfig
from orchestrator.storage.layout import Storage
from orchestrator.teachers.outputs import no_teacher
from orchestrator.training import loop
from orchestrator.training.batches import EpochBatches
from orchestrator.training.gpu.scaling import LossScaling
from orchestrator.training.seeds import build_seeded
from orchestrator.training.state import TrainingState, compute_dtype

CPU = torch.device("cpu")
MakeConfig = Callable[..., TrialConfig]


def start(config: TrialConfig, dtype: str = "float16") -> TrainingState:
    """A training as on a GPU; with a scale, whatever the dtype."""
    model = build_seeded(lambda: models.build(config.student, 10), config.seed, CPU)
    state = TrainingState.start(model, losses.build("base"), config)
    state.compute_dtype, state.scaling, state.rounds_together = dtype, LossScaling(state.optimizer, CPU), True
    return state


def train(state: TrainingState, config: TrialConfig, storage: Storage) -> list[EpochRecord]:
    return list(loop.train(state, tensors.load(config, storage, CPU), config, no_teacher))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_scale_changes_nothing_where_all_numbers_fit(
    digits_storage: Storage, make_config: MakeConfig, optimizer: str
) -> None:
    config = make_config(epochs=2, optimizer=optimizer, lr=1e-3, clip_norm=1.0)
    scaled, plain = start(config, "float32"), start(config, "float32")
    plain.scaling = plain.optimizer.found_inf = None  # type: ignore[attr-defined]
    train(scaled, config, digits_storage)
    train(plain, config, digits_storage)
    own, other = scaled.tensors(), plain.tensors()
    assert own.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in own.items())


def test_float16_differs_by_its_rounding_alone(digits_storage: Storage, make_config: MakeConfig) -> None:
    config = make_config(epochs=1, limit_train=96, lr=0.01)
    half, full = start(config), start(config, "float32")
    (one,), (other,) = (train(state, config, digits_storage) for state in (half, full))
    assert one.train_loss != other.train_loss
    assert one.train_loss == pytest.approx(other.train_loss, rel=0.01)
    assert {parameter.grad.dtype for parameter in half.model.parameters() if parameter.grad is not None} == {
        torch.float32
    }


def weights_of(state: TrainingState) -> list[Tensor]:
    states = [each["momentum_buffer"] for each in state.optimizer.state.values()]
    return [tensor.clone() for tensor in (*state.model.parameters(), *states)]


def test_a_step_whose_gradients_are_too_large_is_skipped(digits_storage: Storage, make_config: MakeConfig) -> None:
    config = make_config(epochs=1, limit_train=96)  # three steps
    state, before = start(config), []
    backward = state.compute_gradients

    def overflow(loss: Tensor) -> None:
        before.append(weights_of(state))
        backward(loss * 1e9 if len(before) < 3 else loss)

    state.compute_gradients = overflow  # type: ignore[method-assign]
    (record,) = train(state, config, digits_storage)
    first, second, third = before  # before the first step, which is the one that creates momenta, and the next two
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(first, third, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(first, weights_of(state), strict=True))
    assert all(weight.isfinite().all() for weight in weights_of(state)) and record.train_loss > 0


def test_an_epoch_without_a_step_is_an_error_with_a_fix(digits_storage: Storage, make_config: MakeConfig) -> None:
    config = make_config(epochs=2, limit_train=96)
    state = start(config)
    backward = state.compute_gradients
    state.compute_gradients = lambda loss: backward(loss * 1e9)  # type: ignore[method-assign]
    with pytest.raises(DivergedError, match="epoch 1: float16 cannot hold .* set precision: bfloat16 or float32"):
        train(state, config, digits_storage)


def test_float16_needs_a_gpu(make_config: MakeConfig) -> None:
    assert compute_dtype("float16", torch.device("cuda")) == "float16"
    with pytest.raises(ResourceError, match="float16 needs a GPU; set precision: auto or float32"):
        TrainingState.start(models.build("resnet_32_8", 10), losses.build("base"), make_config(precision="float16"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("changes", [{"flip": True}, {"padding": "zero", "crop_padding": 2}])
def test_stored_images_are_those_that_autocast_rounds(
    digits_storage: Storage, make_config: MakeConfig, dtype: torch.dtype, changes: dict[str, object]
) -> None:
    config = replace(make_config(batch_size=48), **changes)
    data = tensors.load(config, digits_storage, CPU)
    plain, rounded = EpochBatches(data, config), EpochBatches(data, config, dtype)
    for batches in (plain, rounded):
        batches.prepare(1)
        batches.begin()
    for size in plain.sizes():
        one, other = plain.take(size), rounded.take(size)
        assert torch.equal(one.images.to(dtype), other.images) and other.images.dtype == dtype
        assert one.images.is_contiguous(memory_format=torch.channels_last)
        assert other.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one.labels, other.labels) and torch.equal(one.position, other.position)
