"""The training loop: learning rates, batches, repeatability, comparison with a plain loop, resuming after a stop."""

from __future__ import annotations

import ast
import copy
import inspect
import math
import textwrap
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from epochs import batches_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional as F

from orchestrator import losses, models
from orchestrator.data import tensors
from orchestrator.data.tensors import Data
from orchestrator.data.views import Padded, ViewSpace
from orchestrator.errors import DivergedError, ResourceError
from orchestrator.losses.base import Loss, LossTerms, Shapes, TeacherOutputs
from orchestrator.models.base import Classifier, Outputs
from orchestrator.models.resnet import ResNet
from orchestrator.records import EpochRecord, TrialConfig, view_count
from orchestrator.storage.layout import Storage
from orchestrator.teachers.outputs import LiveTeacher, TableTeacher, no_teacher
from orchestrator.training import loop
from orchestrator.training import state as training_state
from orchestrator.training.batches import Batch, EpochBatches
from orchestrator.training.evaluation import evaluate
from orchestrator.training.gpu import casts, scaling
from orchestrator.training.seeds import LOSS, build_seeded
from orchestrator.training.state import TrainingState, compute_dtype, supports_bfloat16

CPU = torch.device("cpu")
MakeConfig = Callable[..., TrialConfig]


def load(config: TrialConfig, storage: Storage) -> Data:
    return tensors.load(config, storage, CPU)


def fresh(config: TrialConfig) -> Classifier:
    return build_seeded(lambda: models.build(config.student, 10), config.seed, CPU)


def started(config: TrialConfig) -> TrainingState:
    return TrainingState.start(fresh(config), loss_of(config), config)


def loss_of(config: TrialConfig) -> Loss:
    shapes, labels = Shapes(10, 64, (16, 16, 32, 64)), torch.arange(config.limit_train or 128) % 10
    build = partial(losses.build, config.method, (shapes, shapes), labels, **dict(config.options))
    return build_seeded(build, config.seed, CPU, LOSS)


def run(config: TrialConfig, storage: Storage) -> tuple[list[EpochRecord], Classifier]:
    state = started(config)
    records = list(loop.train(state, load(config, storage), config, no_teacher))
    return records, state.model


def epoch_of(config: TrialConfig, storage: Storage, epoch: int = 1) -> list[Batch]:
    return batches_of(load(config, storage), config, epoch)


def order(batches: list[Batch]) -> tuple[list[int], list[int]]:
    return torch.cat([batch.index for batch in batches]).tolist(), torch.cat([batch.view for batch in batches]).tolist()


@pytest.mark.parametrize(
    ("milestones", "expected"),
    [
        ((), [0.1, 0.1, 0.1, 0.1, 0.1]),
        ((2, 4), [0.1, 0.1, 0.01, 0.01, 0.001]),
        ((1,), [0.1, 0.01, 0.01, 0.01, 0.01]),
        ((5, 9), [0.1, 0.1, 0.1, 0.1, 0.1]),
    ],
)
def test_learning_rate_of_milestones(
    digits_storage: Storage, make_config: MakeConfig, milestones: tuple[int, ...], expected: list[float]
) -> None:
    config = make_config(lr=0.1, gamma=0.1, milestones=milestones, epochs=5, limit_train=20, limit_test=10)
    records, _ = run(config, digits_storage)
    assert [record.lr for record in records] == [0.1 * 0.1 ** round(-math.log10(lr / 0.1)) for lr in expected]


def test_learning_rate_is_the_one_that_the_steps_use(digits_storage: Storage, make_config: MakeConfig) -> None:
    config = make_config(epochs=2, milestones=(1,), gamma=0.0, momentum=0.0, limit_train=32)
    records, model = run(config, digits_storage)
    once, one = run(replace(config, epochs=1), digits_storage)
    assert [record.lr for record in records] == [0.05, 0.0]
    # With a learning rate of zero the second epoch changes nothing.
    assert all(torch.equal(first, second) for first, second in zip(model.parameters(), one.parameters(), strict=True))
    assert [record.epoch for record in once] == [1]


def test_batches_contain_every_image_once(digits_storage: Storage, make_config: MakeConfig) -> None:
    config = make_config(batch_size=50, flip=True)
    found = epoch_of(config, digits_storage)
    index, view = order(found)
    assert [len(batch.labels) for batch in found] == [50, 50, 28]
    assert sorted(index) == list(range(128))
    assert set(view) == set(range(18))  # 128 draws of 18 miss one with probability 1 %, and the seed is fixed


def test_trials_on_the_same_images_share_what_is_padded(digits_storage: Storage, make_config: MakeConfig) -> None:
    config = make_config()
    data = load(config, digits_storage)
    one, other = EpochBatches(data, config), EpochBatches(data, replace(config, seed=1))
    assert one._padded is other._padded
    for change in ({"crop_padding": 2}, {"flip": True}, {"padding": "zero"}, {"limit_train": 64}, {"holdout": 8}):
        changed = replace(config, **change)
        assert EpochBatches(load(changed, digits_storage), changed)._padded is not one._padded


def test_batches_are_the_images_they_name(digits_storage: Storage, make_config: MakeConfig) -> None:
    config = make_config(flip=True)
    images = load(config, digits_storage)
    padded = ViewSpace(1, True).pad(images.train.pixels)
    for batch in epoch_of(config, digits_storage):
        assert torch.equal(batch.labels, images.train.labels[batch.index])
        assert torch.equal(batch.images, images.normalise(padded.take(batch.index, batch.view)))


def test_batches_depend_on_seed_and_epoch_alone(digits_storage: Storage, make_config: MakeConfig) -> None:
    config = make_config(seed=1)
    expected = order(epoch_of(config, digits_storage, 2))
    torch.manual_seed(7)
    other = replace(config, lr=1.0, batch_size=7, student="resnet_32_14", method="logit", epochs=9)
    assert order(epoch_of(other, digits_storage, 2)) == expected
    for seed, epoch in ((1, 1), (1, 3), (0, 2), (2, 1), (0, 3), (3, 0)):
        index, view = order(epoch_of(replace(config, seed=seed), digits_storage, epoch))
        assert index != expected[0] and view != expected[1]


def timeless(records: list[EpochRecord]) -> list[EpochRecord]:
    return [replace(record, seconds=0.0, images_per_second=0.0) for record in records]


def test_training_twice_is_the_same(digits_storage: Storage, make_config: MakeConfig) -> None:
    config = make_config(epochs=2, holdout=28, flip=True)
    first, model = run(config, digits_storage)
    torch.rand(3)  # the global generator has no effect
    second, again = run(config, digits_storage)
    assert timeless(first) == timeless(second)
    assert all(record.seconds > 0 and record.images_per_second > 0 for record in first)
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert timeless(run(replace(config, seed=1), digits_storage)[0]) != timeless(first)


def test_first_epoch_does_not_depend_on_how_many_follow(digits_storage: Storage, make_config: MakeConfig) -> None:
    short, long = (timeless(run(make_config(epochs=epochs), digits_storage)[0]) for epochs in (1, 2))
    assert short == long[:1]


def test_it_learns(digits_storage: Storage, make_config: MakeConfig) -> None:
    records, _ = run(make_config(epochs=6, limit_train=500), digits_storage)
    assert records[-1].train_loss < records[0].train_loss / 2
    assert records[-1].test_acc > 60  # of ten classes


def test_records_without_teacher_or_holdout(digits_storage: Storage, make_config: MakeConfig) -> None:
    (record,), _ = run(make_config(), digits_storage)
    assert (record.epoch, record.kd_loss, record.val_acc) == (1, None, None)
    assert record.train_loss == record.ce_loss


def test_no_epochs(digits_storage: Storage, make_config: MakeConfig) -> None:
    assert run(make_config(epochs=0), digits_storage)[0] == []


def test_fresh_model_leaves_the_global_generator_alone(make_config: MakeConfig) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = fresh(make_config())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    again, other = fresh(make_config()), fresh(make_config(seed=1))
    assert torch.equal(first.fc.weight, again.fc.weight)
    assert not torch.equal(first.fc.weight, other.fc.weight)


def test_divergence_names_the_epoch(digits_storage: Storage, make_config: MakeConfig) -> None:
    config = make_config(lr=1e6, weight_decay=0.1, epochs=20)
    records = []
    with pytest.raises(DivergedError, match="try a smaller lr than 1e\\+06") as caught:
        for record in loop.train(started(config), load(config, digits_storage), config, no_teacher):
            records.append(record)
    assert str(caught.value).startswith(f"epoch {len(records) + 1}: the mean training loss is ")


def test_evaluate_against_a_slow_loop(digits_storage: Storage, make_config: MakeConfig) -> None:
    images = load(make_config(limit_train=530), digits_storage)  # one full batch of evaluation and a short one
    _, model = run(make_config(), digits_storage)
    model.train()  # evaluation must change this itself
    score = evaluate(model, images.train, images)
    model.eval()
    loss, right, among5, predictions = 0.0, 0, 0, []
    with torch.no_grad():
        for pixels, label in zip(images.train.pixels, images.train.labels.tolist(), strict=True):
            logits = model(images.normalise(pixels[None]))[0]
            ranks = sorted(range(10), key=lambda entry: -logits[entry].item())
            loss -= F.log_softmax(logits, 0)[label].item()
            right += ranks[0] == label
            among5 += label in ranks[:5]
            predictions.append(ranks[0])
    assert score.loss == pytest.approx(loss / 530, rel=1e-4)
    assert score.acc == 100 * right / 530
    assert score.top5 == 100 * among5 / 530
    assert score.predictions.tolist() == predictions
    assert 0 < right < among5 < 530  # otherwise the test would prove little


def test_another_cross_entropy_leaves_the_teachers_term_as_it_is() -> None:
    terms = LossTerms(torch.tensor(6.0), torch.tensor(2.0), torch.tensor(5.0))
    assert loop.with_another_cross_entropy(terms, 0.5, torch.tensor(4.0)) == (7.0, 4.0, 5.0)
    assert loop.with_another_cross_entropy(terms._replace(kd=None), 0.5, torch.tensor(4.0)) == (2.0, 4.0, None)


def test_evaluation_changes_no_weights(digits_storage: Storage, make_config: MakeConfig) -> None:
    images = load(make_config(), digits_storage)
    model = fresh(make_config())
    before = copy.deepcopy(model.state_dict())
    evaluate(model, images.test, images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_accuracies_are_whole_numbers_of_images(digits_storage: Storage, make_config: MakeConfig) -> None:
    (record,), _ = run(make_config(limit_train=91, limit_test=70, holdout=13), digits_storage)
    assert record.val_acc is not None
    for acc, images in ((record.train_acc, 78), (record.test_acc, 70), (record.val_acc, 13)):
        right = acc * images / 100
        assert right == pytest.approx(round(right), abs=1e-9)


class Double(ResNet):
    """Computes in float64, where the order of a sum has no visible effect after a few steps."""

    def embed(self, x: Tensor) -> Outputs:
        return super().embed(x.double())


CHANGES = [{}, {"label_smoothing": 0.1}, {"clip_norm": 1.0}, {"ema": 0.7}]
CHANGES.append({name: value for change in CHANGES for name, value in change.items()})


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("method", ["base", "logit"])
def test_epoch_against_a_plain_loop(
    digits_storage: Storage, make_config: MakeConfig, method: str, changes: dict[str, float]
) -> None:
    # The last batch is short: it must have less weight in the means.
    config = make_config(batch_size=50, method=method, **changes)
    images = load(config, digits_storage)
    model = build_seeded(lambda: Double(8, 10).double(), config.seed, CPU)
    plain = models.build(config.student, 10).double()
    plain.load_state_dict(model.state_dict())
    targets = torch.randn(128, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def teacher(batch: Batch) -> TeacherOutputs:
        return TeacherOutputs(logits=targets[batch.index]) if method == "logit" else TeacherOutputs()

    state = TrainingState.start(model, losses.build(method), config)
    (record,) = loop.train(state, images, config, teacher)

    averages = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    norms = []
    velocities = [torch.zeros_like(parameter) for parameter in plain.parameters()]
    total, ce_sum, kd_sum, right = 0.0, 0.0, 0.0, 0
    for batch in epoch_of(config, digits_storage):
        logits = plain(batch.images.contiguous().double())
        logs, smoothing = F.log_softmax(logits, 1), config.label_smoothing
        ce = -(1 - smoothing) * logs[range(len(batch.labels)), batch.labels].mean() - smoothing * logs.mean()
        kd = ((logits - targets[batch.index]) ** 2).mean() if method == "logit" else torch.zeros(())
        parameters = list(plain.parameters())
        gradients = torch.autograd.grad(ce + kd, parameters)
        norms.append(math.sqrt(sum((gradient**2).sum().item() for gradient in gradients)))
        scale = min(1, config.clip_norm / norms[-1]) if config.clip_norm else 1
        with torch.no_grad():
            for parameter, gradient, velocity in zip(parameters, gradients, velocities, strict=True):
                velocity.mul_(config.momentum).add_(scale * gradient + config.weight_decay * parameter)
                parameter.sub_(config.lr * velocity)
        for name, tensor in plain.state_dict().items():
            decay = config.ema if tensor.is_floating_point() else 0  # a counter is copied
            averages[name] = (decay * averages[name] + (1 - decay) * tensor).to(tensor.dtype)
        total += (ce + kd).item() * len(batch.labels)
        ce_sum += ce.item() * len(batch.labels)
        kd_sum += kd.item() * len(batch.labels)
        right += int((logits.argmax(1) == batch.labels).sum())

    rel = 1e-5 if config.clip_norm else 1e-9
    assert record.train_loss == pytest.approx(total / 128, rel=rel)
    assert record.ce_loss == pytest.approx(ce_sum / 128, rel=rel)
    assert record.kd_loss == (pytest.approx(kd_sum / 128, rel=rel) if method == "logit" else None)
    assert record.train_acc == pytest.approx(100 * right / 128)
    # Torch adds 1e-6 to the norm before it divides.
    close = partial(torch.testing.assert_close, **({"rtol": 1e-4, "atol": 1e-6} if config.clip_norm else {}))
    assert min(norms) > 1.5, "too small to be clipped"
    for trained, expected in zip(model.parameters(), plain.parameters(), strict=True):
        close(trained, expected)
    for name, tensor in state.result.state_dict().items():
        close(tensor, averages[name])
    assert record.test_loss == evaluate(state.result, images.test, images).loss
    assert (state.result is model) == (not config.ema)


@pytest.mark.parametrize("method", losses.METHODS)
def test_every_method_trains(digits_storage: Storage, make_config: MakeConfig, method: str) -> None:
    # The teacher is wider than the student where the method allows it, and the last batch has one image.
    facts, options = losses.METHODS[method], losses.METHODS[method].defaults()
    config = make_config(method=method, options=tuple(sorted(options.items())), lr=1e-3, limit_train=49, batch_size=16)
    student = models.widths(config.student)
    name = next(name for name in ("wrn_10_2", "wrn_10_1") if not facts.mismatch(options, student, models.widths(name)))
    widths = models.widths(name)
    shapes = Shapes(10, student.pooled, student.maps), Shapes(10, widths.pooled, widths.maps)
    loss = build_seeded(
        partial(losses.build, method, shapes, load(config, digits_storage).train.labels, **options),
        config.seed,
        CPU,
        LOSS,
    )
    taught = build_seeded(lambda: models.build(name, 10), 1, CPU).eval()
    state = TrainingState.start(fresh(config), loss, config)
    before = {
        name: parameter.clone() for module in state.modules.values() for name, parameter in module.named_parameters()
    }
    teacher = LiveTeacher(taught, facts.needs(options)) if facts.has_teacher else no_teacher
    (record,) = loop.train(state, load(config, digits_storage), config, teacher)
    assert math.isfinite(record.train_loss)
    assert (record.kd_loss is not None) == facts.has_teacher
    after = {name: parameter for module in state.modules.values() for name, parameter in module.named_parameters()}
    assert [name for name, parameter in after.items() if torch.equal(parameter, before[name])] == []


TABLE_METHODS = [
    name for name, facts in losses.METHODS.items() if facts.needs(facts.defaults()) in (("logits",), ("pooled",))
]


@pytest.mark.parametrize("method", TABLE_METHODS)
def test_methods_of_logits_or_pooled_features_train_from_a_table(
    digits_storage: Storage, make_config: MakeConfig, method: str
) -> None:
    facts = losses.METHODS[method]
    (kind,) = facts.needs(facts.defaults())
    config = make_config(method=method, epochs=2, batch_size=16, lr=1e-3, limit_train=48, flip=True)
    sizes = view_count(config.crop_padding, config.flip), 48, 10 if kind == "logits" else 64
    table = torch.randn(sizes, generator=torch.Generator().manual_seed(0)).half()

    def trained(table: Tensor) -> list[EpochRecord]:
        state, data = started(config), load(config, digits_storage)
        return timeless(list(loop.train(state, data, config, TableTeacher(table, kind))))

    records = trained(table)
    assert all(math.isfinite(record.train_loss) and record.kd_loss for record in records)
    assert trained(table) == records
    assert trained(table.roll(1, 0))[0].kd_loss != records[0].kd_loss  # outputs of other views


# Stopping and resuming.


class Stop(Exception):
    """The exception of a check."""


class After:
    """A check that stops at a given call, counted from 0; `calls` is the number of calls so far."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.calls = stop, 0

    def __call__(self) -> None:
        if self.calls == self.stop:
            raise Stop
        self.calls += 1


class Training:
    """One way to train, which can start any number of times."""

    def __init__(self, config: TrialConfig, storage: Storage) -> None:
        self.config, self.data = config, load(config, storage)
        generator = torch.Generator().manual_seed(3)
        targets = torch.randn(len(self.data.train), 10, generator=generator)
        pooled = torch.randn(len(self.data.train), 64, generator=generator)
        sizes = ((16, 8), (16, 8), (32, 4), (64, 2))
        maps = [torch.randn(width, side, side, generator=generator) for width, side in sizes]

        def teacher(batch: Batch) -> TeacherOutputs:
            shift = batch.view[:, None]
            return TeacherOutputs(
                index=batch.index,
                logits=targets[batch.index] + shift,
                pooled=pooled[batch.index],
                maps=tuple(each * (1 + shift[..., None, None]) for each in maps),
            )

        self.teacher = no_teacher if config.method == "base" else teacher

    def resume(self, state: TrainingState, check: Callable[[], None]) -> tuple[list[EpochRecord], bool]:
        """Trains on from the position of a state; returns the new records, and whether it reached the end."""
        records: list[EpochRecord] = []
        try:
            for record in loop.train(state, self.data, self.config, self.teacher, check):
                records.append(record)
        except Stop:
            return records, False
        return records, True

    def run(self) -> tuple[list[EpochRecord], TrainingState, int]:
        """Trains without a stop; returns the records, the final state, and how often it could have been stopped."""
        state, check = started(self.config), After()
        records, is_done = self.resume(state, check)
        assert is_done
        return records, state, check.calls

    def run_with_stops(self, *stops: int) -> tuple[list[EpochRecord], TrainingState]:
        """Trains with stops; after each of them a fresh state resumes from the saved tensors."""
        state, records = started(self.config), []
        for stop in stops:
            new, is_done = self.resume(state, After(stop))
            records += new
            if is_done:
                return records, state
            state = restore(state, self.config)
        new, is_done = self.resume(state, After())
        assert is_done
        return records + new, state


def restore(state: TrainingState, config: TrialConfig) -> TrainingState:
    """A fresh state with the tensors and the position of another, whose own tensors are zeroed."""
    saved = {name: tensor.detach().clone().contiguous() for name, tensor in state.tensors().items()}
    again = started(replace(config, seed=config.seed + 1))  # its own weights, which must all be overwritten
    again.restore(saved)
    again.move_to(state.position)
    with torch.no_grad():
        for tensor in state.tensors().values():
            tensor.zero_()
    return again


def assert_same_state(one: TrainingState, other: TrainingState) -> None:
    first, second = one.tensors(), other.tensors()
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert (one.epoch, one.images, one.with_teacher) == (other.epoch, other.images, other.with_teacher)


# Batch sizes: one step per epoch, a short last batch, a last batch of a single image, equal batches.
WAYS: dict[str, dict[str, object]] = {
    "short last batch": {"batch_size": 24},
    "last batch of one, no momentum": {"batch_size": 21, "momentum": 0.0},
    "one batch, with a teacher": {"batch_size": 64, "method": "logit"},
    "even batches, held-out images": {"batch_size": 16, "holdout": 16},
    "a loss with parameters": {"batch_size": 24, "method": "fitnet", "options": (("stage", 3), ("weight", 1.0))},
    "a learned temperature": {"batch_size": 24, "method": "ctkd"},
    "a loss with parameters of many kinds": {"batch_size": 24, "method": "vid", "options": (("weight", 1.0),)},
    "a loss with a memory": {"batch_size": 24, "method": "crd", "options": (("negatives", 100),)},
    "Nesterov's momentum": {"batch_size": 24, "optimizer_options": (("nesterov", True),)},
    "AdamW": {"batch_size": 24, "method": "logit", "optimizer": "adamw", "momentum": None, "lr": 0.01},
    "a rate for every step": {"batch_size": 16, "schedule": "cosine", "schedule_options": (("warmup", 1),)},
    "an average of the weights": {"batch_size": 24, "ema": 0.9, "holdout": 10},
    "smoothed labels, clipped gradients, an average, and a loss with parameters": {
        "batch_size": 24,
        "method": "fitnet",
        "options": (("stage", 3), ("weight", 1.0)),
        "label_smoothing": 0.1,
        "clip_norm": 0.5,
        "ema": 0.99,
        "padding": "zero",
    },
    "all of it, and more": {
        "batch_size": 20,
        "method": "fitnet",
        "options": (("stage", 1), ("weight", 1.0)),
        "optimizer": "adamw",
        "momentum": None,
        "lr": 0.01,
        "schedule": "cosine",
        "holdout": 10,
    },
    "all of it": {"batch_size": 20, "method": "st", "holdout": 10, "flip": True, "milestones": (1,), "momentum": 0.5},
}


@pytest.mark.parametrize("way", WAYS)
def test_stopped_anywhere_it_resumes_as_if_it_was_not(
    digits_storage: Storage, make_config: MakeConfig, way: str
) -> None:
    config = make_config(**{"epochs": 2, "limit_train": 64, "limit_test": 30, **WAYS[way]})
    trained = Training(config, digits_storage)
    records, state, calls = trained.run()
    steps = -(-len(trained.data.train) // config.batch_size)
    evaluations = 1 + bool(config.holdout)
    assert calls == 2 * (steps + evaluations)
    for stop in range(calls):
        found, again = trained.run_with_stops(stop)
        assert timeless(found) == timeless(records), stop
        assert_same_state(again, state)


@settings(max_examples=15)
@given(
    stops=st.lists(st.integers(0, 14), min_size=2, max_size=6),
    batch_size=st.integers(10, 70),
    momentum=st.sampled_from([0.0, 0.9]),
    method=st.sampled_from(["base", "logit", "st"]),
    holdout=st.sampled_from([0, 9]),
)
def test_stopped_many_times_it_resumes_as_if_it_was_not(
    digits_storage: Storage,
    make_config: MakeConfig,
    stops: list[int],
    batch_size: int,
    momentum: float,
    method: str,
    holdout: int,
) -> None:
    config = make_config(epochs=2, limit_train=64, limit_test=20, batch_size=batch_size, method=method)
    trained = Training(replace(config, momentum=momentum, holdout=holdout), digits_storage)
    records, state, _ = trained.run()
    found, again = trained.run_with_stops(*stops)
    assert timeless(found) == timeless(records)
    assert_same_state(again, state)


def test_a_stop_in_an_evaluation_keeps_the_epoch(digits_storage: Storage, make_config: MakeConfig) -> None:
    config = make_config(epochs=1, limit_train=64, batch_size=32, limit_test=None)
    trained = Training(config, digits_storage)
    state = started(config)
    assert trained.resume(state, After(2)) == ([], False)
    assert (state.epoch, state.images) == (1, 64), "trained, and not yet evaluated"
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    assert trained.resume(state, After(0)) == ([], False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())
    (record,), is_done = trained.resume(state, After())
    assert is_done and timeless([record]) == timeless(trained.run()[0])
    assert (state.epoch, state.images, state.seconds, state.totals.tolist()) == (2, 0, 0.0, [0.0] * 5)
    assert trained.resume(state, After(0)) == ([], True), "there is nothing left to check for"


def test_the_time_of_an_epoch_includes_the_time_before_a_stop(digits_storage: Storage, make_config: MakeConfig) -> None:
    config = make_config(epochs=1, limit_train=64, batch_size=32)
    trained = Training(config, digits_storage)
    state = started(config)
    state.seconds = 1000.0  # as if it had been stopped after this time
    (record,), _ = trained.resume(state, After())
    assert record.seconds > 1000
    assert record.images_per_second < 0.064


def test_a_teacher_before_the_stop_is_a_teacher_after_it(digits_storage: Storage, make_config: MakeConfig) -> None:
    config = make_config(epochs=1, limit_train=64, batch_size=32, method="logit")
    trained = Training(config, digits_storage)
    ((record,), state), ((again,), _) = trained.run_with_stops(2), trained.run_with_stops()
    assert state.with_teacher and record.kd_loss == again.kd_loss is not None


WRONG: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "no sums": lambda tensors: tensors.pop("sums"),
    "no weight": lambda tensors: tensors.pop("model.fc.bias"),
    "no buffer": lambda tensors: tensors.pop("model.bn1.running_var"),
    "one momentum alone": lambda tensors: tensors.update({"momentum.fc.bias": torch.zeros(10)}),
    "another name": lambda tensors: tensors.update({"model.fc2.bias": torch.zeros(10)}),
    "another shape": lambda tensors: tensors.update({"model.fc.bias": torch.zeros(11)}),
    "a shape that would be broadcast": lambda tensors: tensors.update({"model.fc.bias": torch.zeros(1)}),
    "another kind": lambda tensors: tensors.update({"model.fc.bias": torch.zeros(10, dtype=torch.float64)}),
    "sums of another kind": lambda tensors: tensors.update(sums=torch.zeros(4)),
    "nothing": lambda tensors: tensors.clear(),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_tensors_that_do_not_fit_change_nothing(digits_storage: Storage, make_config: MakeConfig, wrong: str) -> None:
    other, state = started(make_config(seed=1)), started(make_config())
    tensors = dict(other.tensors())
    WRONG[wrong](tensors)
    with pytest.raises(ValueError, match=r"^\S+ is missing, unknown or of another shape$"):
        state.restore(tensors)
    assert_same_state(state, started(make_config()))
    assert state.optimizer.state == {}


def test_momenta_have_the_memory_layout_of_their_parameters(digits_storage: Storage, make_config: MakeConfig) -> None:
    config = make_config(epochs=1, limit_train=32)
    _, state = Training(config, digits_storage).run_with_stops()
    again = restore(state, config)
    for parameter in again.model.parameters():
        assert again.optimizer.state[parameter]["momentum_buffer"].stride() == parameter.stride()


@pytest.mark.parametrize(
    "function",
    [
        loop.step,
        loop._add_to_sums,
        EpochBatches.take,
        Padded.gather,
        TrainingState.embed,
        casts,
        scaling,
        loop.StepRunner._work,
        TrainingState.clip_gradients,
        training_state.AveragedModel.update,
    ],
)
def test_no_step_waits_for_the_device(function: Callable[..., object]) -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"item", "cpu", "tolist", "numpy", "synchronize"}
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not calls & {"float", "int", "bool"}


def test_clipping_a_gradient_reads_nothing_from_a_gpu(make_config: MakeConfig) -> None:
    state = started(make_config(clip_norm=1.0))
    with FakeTensorMode(), torch.device("cuda"):  # whose tensors have no values
        state.model = models.build("resnet_32_8", 10)
        for parameter in state.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        state.clip_gradients()
        with pytest.raises(DataDependentOutputException):
            torch.ones(()).item()


# The compute dtype of convolutions.


@pytest.mark.parametrize(
    ("precision", "is_supported", "expected"),
    [
        ("auto", True, "bfloat16"),
        ("auto", False, "float32"),
        ("float32", True, "float32"),
        ("bfloat16", True, "bfloat16"),
    ],
)
def test_precision_is_the_requested_one_or_the_best_of_the_device(
    monkeypatch: pytest.MonkeyPatch, precision: str, is_supported: bool, expected: str
) -> None:
    monkeypatch.setattr(training_state, "supports_bfloat16", lambda device: is_supported)
    assert compute_dtype(precision, CPU) == expected


def test_a_precision_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch, make_config: MakeConfig) -> None:
    monkeypatch.setattr(training_state, "supports_bfloat16", lambda device: False)
    with pytest.raises(ResourceError, match="set precision: auto or float32"):
        started(make_config(precision="bfloat16"))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [({}, False), ({"avx512_f": True}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": 1}, True)],
)
def test_bfloat16_of_a_cpu(monkeypatch: pytest.MonkeyPatch, facts: dict[str, bool], expected: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: facts, raising=False)
    assert supports_bfloat16(CPU) is expected


def test_an_old_pytorch_does_not_report_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert supports_bfloat16(CPU) is False


def test_bfloat16_differs_by_its_rounding_alone(digits_storage: Storage, make_config: MakeConfig) -> None:
    config = make_config(epochs=1, limit_train=96, method="logit", lr=0.01)
    trained = Training(config, digits_storage)
    records = {}
    for dtype in ("float32", "bfloat16"):
        state = started(config)
        state.compute_dtype = dtype
        ((record,), _) = trained.resume(state, After())
        records[dtype] = record
        assert {parameter.dtype for parameter in state.model.parameters()} == {torch.float32}
        assert {parameter.grad.dtype for parameter in state.model.parameters() if parameter.grad is not None} == {
            torch.float32
        }
    full, half = records["float32"], records["bfloat16"]
    assert half.train_loss != full.train_loss, "nothing was rounded"
    assert half.train_loss == pytest.approx(full.train_loss, rel=0.01)
    assert half.kd_loss == pytest.approx(full.kd_loss, rel=0.01)
