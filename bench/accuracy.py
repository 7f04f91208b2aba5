"""Whether speed costs accuracy: compares every fast path with a plain float32 recipe, on the same seeds and images.

python bench/accuracy.py --data DIR [--device cpu|cuda] [--seeds 5] [--epochs 10] [--images 4000] [--test 2000]

The plain recipe is written out here: float32, PyTorch's default memory layout, its plain SGD, a live teacher, and the
images and views that kdctl draws for the same seed. It is compared with two runs of kdctl from the same initial
weights: in float32 with the table of the same teacher, and in bfloat16 with that table. If the device does not
multiply in bfloat16, float32 values are rounded to bfloat16 instead (`Rounded`: inputs, weights, results and gradients
of every convolution, norm and addition). This is what bfloat16 devices compute, except for the order of sums; the row
then says "rounded as".

The first columns of figures are the largest relative difference of the loss from that of the plain recipe, in the
first step and in the first five steps, in which a learning rate of 0.1 makes any rounding grow. The last is the paired
difference of the final accuracies with its 95 % interval, which should contain 0.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from shared.common import as_a_trial, choose_device, describe_setup, make_parser, parse_positive, plan_student, run
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator import losses, models
from orchestrator.data import tensors
from orchestrator.data.prepare import prepare_dataset
from orchestrator.data.tensors import Data
from orchestrator.losses.base import Progress
from orchestrator.models.base import Classifier, Outputs
from orchestrator.models.resnet import BasicBlock
from orchestrator.records import TrialConfig
from orchestrator.storage.layout import Storage
from orchestrator.study.plan import PlannedTrial
from orchestrator.teachers.outputs import no_teacher
from orchestrator.teachers.tables import open_table
from orchestrator.teachers.weights import load_teacher, save_weights
from orchestrator.training import schedules
from orchestrator.training.batches import EpochBatches, Teacher
from orchestrator.training.evaluation import evaluate, unchecked
from orchestrator.training.loop import StepRunner, step, train
from orchestrator.training.seeds import build_seeded
from orchestrator.training.state import TrainingState, supports_bfloat16

STEPS = 5  # whose losses are compared one by one
STUDENT_T = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # 95 %, by n


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.bfloat16().float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].bfloat16().float()


def round_to_bfloat16(x: Tensor) -> Tensor:
    """Rounds a tensor to bfloat16, and its gradient too."""
    return _Round.apply(x)  # type: ignore[no-untyped-call,no-any-return]


class Rounded(nn.Module):
    """A network that computes in float32 what a device with bfloat16 computes."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def embed(self, x: Tensor) -> Outputs:
        """Computes the same outputs as the model, without its maps."""
        model = self.model
        x = F.relu(self._normalise(round_to_bfloat16(x), model.conv1, model.bn1))
        for block in (module for module in model.modules() if isinstance(module, BasicBlock)):
            y = F.relu(self._normalise(x, block.conv1, block.bn1))
            y = self._normalise(y, block.conv2, block.bn2)
            short = self._normalise(x, *block.downsample) if len(block.downsample) else x
            x = F.relu(round_to_bfloat16(y + short))
        pooled = x.mean(dim=(2, 3))
        return Outputs(model.fc(pooled), pooled, ())

    @staticmethod
    def _normalise(x: Tensor, convolution: nn.Module, norm: nn.Module) -> Tensor:
        assert isinstance(convolution, nn.Conv2d)
        weight = round_to_bfloat16(convolution.weight)
        y = round_to_bfloat16(F.conv2d(x, weight, stride=convolution.stride, padding=convolution.padding))
        return round_to_bfloat16(norm(y))


@dataclass(frozen=True)
class Outcome:
    """The losses of the first steps, and the final accuracy in percent."""

    losses: tuple[float, ...]
    acc: float


def build_model(config: TrialConfig, images: Data) -> Classifier:
    """Builds the model with the initial weights that kdctl draws."""
    build = partial(models.build, config.student, images.facts.classes)
    return build_seeded(build, config.seed, images.train.labels.device)


Recipe = Callable[[TrialConfig], Outcome]


def make_plain_recipe(trial: PlannedTrial, images: Data, teacher: Classifier) -> Recipe:
    """The plain recipe, as a research script has it."""

    def run_recipe(config: TrialConfig) -> Outcome:
        model = _contiguous(build_model(config, images))
        live = _contiguous(teacher)
        optimizer = torch.optim.SGD(
            model.parameters(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        batches, schedule = EpochBatches(images, config), schedules.build(config)
        step_losses: list[float] = []
        for epoch in range(1, config.epochs + 1):
            optimizer.param_groups[0]["lr"] = config.lr * schedule(epoch - 1, 1)
            batches.prepare(epoch)
            batches.begin()
            model.train()
            for size in batches.sizes():
                batch = batches.take(size)
                logits = model(batch.images.contiguous())
                with torch.no_grad():
                    targets = live(batch.images.contiguous())
                loss = F.cross_entropy(logits, batch.labels) + F.mse_loss(logits, targets)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                if epoch == 1 and len(step_losses) < STEPS:
                    step_losses.append(loss.item())
        return Outcome(tuple(step_losses), evaluate(model, images.test, images).acc)

    return run_recipe


def _contiguous(model: Classifier) -> Classifier:
    return model.to(memory_format=torch.contiguous_format)


def make_kdctl_recipe(trial: PlannedTrial, images: Data, outputs: Teacher, dtype: str) -> Recipe:
    """kdctl's own steps."""
    device = images.train.labels.device
    is_rounded = dtype == "bfloat16" and not supports_bfloat16(device)

    def start(config: TrialConfig) -> TrainingState:
        state = TrainingState.start(
            build_model(config, images), losses.build("logit"), replace(config, precision="float32")
        )
        state.compute_dtype = "float32" if is_rounded else dtype
        if is_rounded:
            wrapped: Any = Rounded(state.model)
            state.model = wrapped
        return state

    def run_recipe(config: TrialConfig) -> Outcome:
        state, batches = start(config), EpochBatches(images, config)
        step_losses: list[float] = []
        batches.prepare(1)
        batches.begin()
        state.model.train()
        progress = Progress(torch.ones((), device=device), config.epochs)
        for size in list(batches.sizes())[:STEPS]:
            batch = batches.take(size)
            step(state, batch, outputs(batch), progress)
            step_losses.append(state.sums[0].item() / size)
            state.totals.zero_()
        state = start(config)
        model: Any = state.model
        inner = model.model if is_rounded else model
        for _ in _epochs(state, config, images, outputs):
            pass
        return Outcome(tuple(step_losses), evaluate(inner, images.test, images).acc)

    return run_recipe


def _epochs(state: TrainingState, config: TrialConfig, images: Data, outputs: Teacher) -> Iterator[None]:
    """Trains without the tests between epochs, which a `Rounded` model does not support."""
    steps = StepRunner(state, images, config, outputs)
    for _ in range(config.epochs):
        steps.run(unchecked)
        state.epoch, state.images = state.epoch + 1, 0
        yield


def train_teacher(trial: PlannedTrial, images: Data, storage: Storage) -> Classifier:
    """Trains the teacher as kdctl trains every teacher, and stores its weights."""
    config = trial.config.teacher
    assert config
    state = TrainingState.start(build_model(config, images), losses.build("base"), config)
    for record in train(state, images, config, no_teacher):
        accuracy = record.test_acc
    save_weights(state.model, storage, config.trial_id())
    print(f"The teacher, {config.student}, has {accuracy:.2f} %.", end="\n\n", flush=True)
    return load_teacher(config, storage, images.train.labels.device)


def report(paths: dict[str, Recipe], config: TrialConfig, seeds: int) -> None:
    """Trains on every seed in every way, and prints how the results compare with those of the first way."""
    found: dict[str, list[Outcome]] = {name: [] for name in paths}
    for seed in range(seeds):
        for name, path in paths.items():
            found[name].append(path(replace(config, seed=seed)))
            print(f"seed {seed}, {name}: {found[name][-1].acc:.2f} %", file=sys.stderr, flush=True)
    base = next(iter(found.values()))
    print(f"| path | loss of step 1 | of {STEPS} steps | final accuracy, mean ± std | difference | n |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, outcomes in found.items():
        differences = [
            [abs(a / b - 1) for a, b in zip(outcome.losses, plain_.losses, strict=True)]
            for outcome, plain_ in zip(outcomes, base, strict=True)
        ]
        first, all_ = max(steps[0] for steps in differences), max(max(steps) for steps in differences)
        accuracies = [outcome.acc for outcome in outcomes]
        spread = f" ± {statistics.stdev(accuracies):.2f}" if seeds > 1 else ""
        pairs = [outcome.acc - plain_.acc for outcome, plain_ in zip(outcomes, base, strict=True)]
        mean = f"{statistics.mean(accuracies):.2f}{spread}"
        print(f"| {name} | {first:.1e} | {all_:.1e} | {mean} | {_format_interval(pairs)} | {seeds} |")


def _format_interval(pairs: Sequence[float]) -> str:
    if not any(pairs):
        return "0"
    mean = f"{statistics.mean(pairs):+.2f}"
    if len(pairs) not in STUDENT_T:
        return mean
    return f"{mean} ± {STUDENT_T[len(pairs)] * statistics.stdev(pairs) / math.sqrt(len(pairs)):.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder of CIFAR-10 (default: train on digits)")
    parser.add_argument("--seeds", type=parse_positive, default=5)
    parser.add_argument("--epochs", type=parse_positive, default=10)
    parser.add_argument("--images", type=parse_positive, default=4000)
    parser.add_argument("--test", type=parse_positive, default=2000)
    parser.add_argument("--student", default="resnet_32_8")
    parser.add_argument("--teacher", default="resnet_32_14")
    options = parser.parse_args(arguments)
    device = choose_device(parser, options.device)
    trial = plan_student("cifar10" if options.data else "digits", options.student, options.teacher, options.images)
    teacher_config = trial.config.teacher
    table_key = trial.table
    assert teacher_config and table_key
    shorter = {"epochs": options.epochs, "milestones": (options.epochs * 3 // 4,), "limit_test": options.test}
    teacher_config = replace(teacher_config, **shorter, crop_padding=1)
    config = replace(trial.config, **shorter, crop_padding=1, teacher=teacher_config)
    trial = replace(trial, config=config, teacher_id=teacher_config.trial_id())
    key = replace(table_key, teacher_id=teacher_config.trial_id(), crop_padding=1)  # 18 views: a small table
    print(describe_setup(device), end="\n\n")
    with tempfile.TemporaryDirectory() as folder, as_a_trial(device):
        storage = Storage.at(folder)
        storage.prepare()
        prepare_dataset(config.dataset, options.data, storage)
        images = tensors.load(config, storage, device)
        teacher = train_teacher(trial, images, storage)
        table = open_table(key, teacher_config, images, storage, device)
        half = "bfloat16" if supports_bfloat16(device) else "rounded as bfloat16"
        paths = {
            "plain float32, live teacher": make_plain_recipe(trial, images, teacher),
            "kdctl, float32, table": make_kdctl_recipe(trial, images, table, "float32"),
            f"kdctl, {half}, table": make_kdctl_recipe(trial, images, table, "bfloat16"),
        }
        report(paths, config, options.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
