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
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from shared.common import (
    build_model,
    choose_device,
    compute_ratios,
    describe_setup,
    format_spread,
    load_images,
    make_parser,
    make_table,
    measure_epoch,
    measure_pairs,
    parse_positive,
    plan_student,
    run,
)

from orchestrator import losses, models
from orchestrator.data.tensors import Data
from orchestrator.execution.attempt import describe_pair
from orchestrator.models.base import Classifier
from orchestrator.records import TrialConfig
from orchestrator.teachers.outputs import LiveTeacher, no_teacher
from orchestrator.training.batches import Teacher

IMAGES = {"cpu": 512, "cuda": 25_600}


def teacher_of(method: str, images: Data, config: TrialConfig, teacher: str, device: torch.device) -> Teacher:
    """The teacher as a trial of this method would have it, with random weights or outputs."""
    facts = losses.get(method)
    needs = facts.needs(facts.defaults())
    if not needs:
        return no_teacher
    kind = losses.find_table_output(needs)
    if kind is None:
        return LiveTeacher(_calibrate(build_model(teacher, config.dataset, device), images).folded(), needs)
    return make_table(images, config, device, kind, models.widths(teacher).pooled if kind == "pooled" else None)


@torch.no_grad()
def _calibrate(model: Classifier, images: Data) -> Classifier:
    """Gives batch norms the statistics of noise: with those of an untrained model, deep features overflow."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    side = images.facts.side
    model.train().embed(torch.randn(64, 3, side, side, device=images.train.labels.device))
    return model.eval()


def speed(method: str, images: Data, config: TrialConfig, teacher: str, device: torch.device) -> float:
    """Images a second of a method, with a fresh student and teacher."""
    loss = losses.build(method, describe_pair(config, images.facts.classes), images.train.labels.cpu())
    return measure_epoch(loss, images, config, teacher_of(method, images, config, teacher, device))


def describe_teacher(method: str) -> str:
    """Where its teacher outputs come from."""
    facts = losses.get(method)
    needs = facts.needs(facts.defaults())
    return "table" if losses.find_table_output(needs) else "live" if needs else "none"


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
    config = replace(config, lr=1e-4)  # arbitrary outputs of a teacher must not make the loss diverge
    images = load_images(options.data, config, device)
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
