"""How fast each method trains a student, relative to `base`, which has no teacher.

python bench/methods.py [--data DIR --dataset cifar100] [--device cpu|cuda] [--methods dkd at …] [--repeats 5]
                        [--student resnet_32_20] [--teacher resnet_32_56] [--images N] [--batch-size 64]

Each method is measured in turn with `base`, each from a fresh start: a whole epoch after a warm-up epoch, without the
test. Where a table of teacher outputs serves a method, it has one (of random outputs: their values change no time), and
else the live teacher. A ratio is the method's images a second divided by those of `base` measured just before it.
Without --data the images are those of scikit-learn's digits.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from shared.common import (
    as_a_trial,
    build_model,
    choose_device,
    compute_ratios,
    describe_setup,
    format_spread,
    make_parser,
    measure_pairs,
    parse_positive,
    plan_student,
    run,
)

from orchestrator import losses, models
from orchestrator.data import tensors
from orchestrator.data.prepare import prepare_dataset
from orchestrator.data.tensors import Data
from orchestrator.losses.base import Shapes
from orchestrator.records import TrialConfig, view_count
from orchestrator.storage.layout import Storage
from orchestrator.teachers.outputs import LiveTeacher, TableTeacher, no_teacher
from orchestrator.training.batches import Teacher
from orchestrator.training.loop import train
from orchestrator.training.state import TrainingState

IMAGES = {"cpu": 512, "cuda": 25_600}


def shapes_of(model: str, classes: int) -> Shapes:
    """What a loss with parameters is built with."""
    widths = models.widths(model)
    return Shapes(classes, widths.pooled, widths.maps)


def teacher_of(method: str, images: Data, config: TrialConfig, teacher: str, device: torch.device) -> Teacher:
    """The teacher as a trial of this method would have it, with random weights or outputs."""
    facts = losses.get(method)
    needs = facts.needs(facts.defaults())
    if not needs:
        return no_teacher
    if needs not in (("logits",), ("pooled",)):
        return LiveTeacher(build_model(teacher, config.dataset, device).folded(), needs)
    (kind,) = needs
    width = images.facts.classes if kind == "logits" else models.widths(teacher).pooled
    shape = (view_count(config.crop_padding, config.flip), len(images.train), width)
    return TableTeacher(torch.empty(shape, dtype=torch.float16, device=device).uniform_(-1, 1), kind)


def speed(method: str, images: Data, config: TrialConfig, teacher: str, device: torch.device) -> float:
    """Images a second in the second epoch; the first one is the warm-up."""
    classes = images.facts.classes
    shapes = shapes_of(config.student, classes), shapes_of(teacher, classes)
    loss = losses.build(method, shapes, images.train.labels.cpu())
    if isinstance(loss, torch.nn.Module):
        loss.to(device)
    with as_a_trial(device):
        outputs = teacher_of(method, images, config, teacher, device)
        state = TrainingState.start(build_model(config.student, config.dataset, device), loss, config)
        epochs = train(state, images, config, outputs)
        next(epochs)
        return next(epochs).images_per_second


def load(folder: Path | None, config: TrialConfig, device: torch.device) -> Data:
    """The images of the dataset. Raises DataError where a folder does not hold them all."""
    with tempfile.TemporaryDirectory() as scratch:
        storage = Storage.at(scratch)
        storage.prepare()
        prepare_dataset(config.dataset, folder, storage)
        return tensors.load(config, storage, device)


def describe_teacher(method: str) -> str:
    """Where its teacher outputs come from."""
    facts = losses.get(method)
    needs = facts.needs(facts.defaults())
    return "live" if len(needs) > 1 or "maps" in needs else "table" if needs else "none"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder of the dataset; digits need none")
    parser.add_argument("--dataset", default="digits", help="(default: %(default)s)")
    parser.add_argument("--methods", nargs="+", choices=tuple(losses.METHODS), default=tuple(losses.METHODS))
    parser.add_argument("--student", default="resnet_32_20", help="(default: %(default)s)")
    parser.add_argument("--teacher", default="resnet_32_56", help="(default: %(default)s)")
    parser.add_argument(
        "--images", type=parse_positive, help=f"of an epoch (default: {IMAGES['cpu']}, on a GPU 25,600)"
    )
    parser.add_argument("--batch-size", type=parse_positive, default=64, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    device = choose_device(parser, options.device)
    count = options.images or min(IMAGES[device.type], 1_297 if options.dataset == "digits" else 50_000)
    config = plan_student(options.dataset, options.student, options.teacher, count, options.batch_size).config
    images = load(options.data, config, device)
    print(describe_setup(device), end="\n\n")
    print(f"{options.student} ← {options.teacher}, {count:,} images an epoch in batches of {options.batch_size}.\n")
    print(
        "| method | teacher | base img/s, median [min–max] | method img/s, median [min–max] | ratio, median [min–max] |"
    )
    print("| --- | --- | --- | --- | --- |", flush=True)
    of_base = partial(speed, "base", images, config, options.teacher, device)
    slowest = 1.0
    for method in options.methods:
        if method != "base":
            base, own = measure_pairs(
                of_base, partial(speed, method, images, config, options.teacher, device), options.repeats
            )
            quotients = compute_ratios(own, base)
            columns = [
                method,
                describe_teacher(method),
                format_spread(base),
                format_spread(own),
                format_spread(quotients, ".3f"),
            ]
            print(f"| {' | '.join(columns)} |", flush=True)
            slowest = min(slowest, statistics.median(quotients))
    print(f"\nn = {options.repeats}. The slowest method trains at {slowest:.0%} of the speed of base.")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
