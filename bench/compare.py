"""How fast kdctl trains against a plain research script, on the same images, with the same models.

python bench/compare.py --data DIR [--device cpu|cuda] [--repeats 5] [--images N] [--batch-size 128] [--deep]

The plain script is bench/shared/plain.py, with a live teacher. kdctl's student uses a table of teacher outputs, or no
teacher where a row says so. The two are measured in turn, each from a fresh start and after a warm-up: for kdctl one
whole epoch, without the epoch before it and without the test. A ratio is kdctl's figure divided by the plain figure
measured just before it. Building the table is not included: it happens once for all students of a teacher
(bench/table.py).

Exits with 1 if a student with a table is more than 2 % slower than one without a teacher.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from shared import plain
from shared.common import (
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
from orchestrator.records import TrialConfig
from orchestrator.teachers.outputs import no_teacher
from orchestrator.training.batches import Teacher

DATASET = "cifar10"
SMALL, DEEP = "resnet_32_20", "resnet_32_110"
FREE_CASE = "kdctl 20, no teacher (in plain's place); kdctl 20, table"
IMAGES = {"cpu": 2560, "cuda": 25_600}
FREE = 0.02  # how much slower a table may make a student


@dataclass(frozen=True)
class Case:
    """Two ways to train a student; the second one is kdctl with a table."""

    name: str
    first: Callable[[], float]  # images a second
    second: Callable[[], float]


def measure_plain(student: str, teacher: str, images: Data, config: TrialConfig, device: torch.device) -> float:
    """Measures the plain script, in images a second."""
    # Fresh weights throughout: what a model has learned does not change how long it takes.
    built = [models.build(name, images.facts.classes) for name in (student, teacher)]
    return plain.measure_speed(built[0], built[1], images, len(images.train), config.batch_size, device)


def measure_kdctl(method: str, student: str, images: Data, config: TrialConfig, outputs: Teacher) -> float:
    """Measures kdctl with another student, in images a second."""
    return measure_epoch(losses.build(method), images, replace(config, student=student), outputs)


def list_cases(images: Data, config: TrialConfig, device: torch.device, is_deep: bool) -> Iterator[Case]:
    """Lists what is compared."""
    table = make_table(images, config, device)

    def by_script(student: str, teacher: str) -> Callable[[], float]:
        return partial(measure_plain, student, teacher, images, config, device)

    def by_table(student: str) -> Callable[[], float]:
        return partial(measure_kdctl, "logit", student, images, config, table)

    alone = partial(measure_kdctl, "base", SMALL, images, config, no_teacher)
    yield Case("plain 20 ← 20 live; kdctl 20, table", by_script(SMALL, SMALL), by_table(SMALL))
    yield Case("plain 20 ← 110 live; kdctl 20, table", by_script(SMALL, DEEP), by_table(SMALL))
    yield Case(FREE_CASE, alone, by_table(SMALL))
    if is_deep:
        yield Case("plain 110 ← 110 live; kdctl 110, table", by_script(DEEP, DEEP), by_table(DEEP))


def compare(chosen: Iterable[Case], repeats: int) -> dict[str, float]:
    """Measures all cases and prints a line for each; gives their median ratios by name."""
    print("| case | plain img/s, median [min–max] | kdctl img/s, median [min–max] | ratio, median [min–max] | n |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    medians = {}
    for case in chosen:
        first, second = measure_pairs(case.first, case.second, repeats)
        quotients = compute_ratios(second, first)
        columns = [
            case.name,
            format_spread(first),
            format_spread(second),
            format_spread(quotients, ".3f"),
            str(repeats),
        ]
        print(f"| {' | '.join(columns)} |", flush=True)
        medians[case.name] = statistics.median(quotients)
    return medians


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exits with 1 if a table makes a student slower than allowed."""
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of CIFAR-10")
    parser.add_argument(
        "--images",
        type=parse_positive,
        help=f"of an epoch (default: {IMAGES['cpu']:,} on the CPU, {IMAGES['cuda']:,} on a GPU)",
    )
    parser.add_argument("--batch-size", type=parse_positive, default=128, help="(default: %(default)s)")
    parser.add_argument("--deep", action="store_true", help="also a ResNet-110 with a ResNet-110 as its teacher")
    options = parser.parse_args(arguments)
    device = choose_device(parser, options.device)
    count = options.images or IMAGES[device.type]
    config = plan_student(DATASET, SMALL, SMALL, count, options.batch_size).config
    images = load_images(options.data, config, device)
    print(describe_setup(device), end="\n\n")
    print(f"{count:,} images an epoch, in batches of {options.batch_size}.", end="\n\n")
    medians = compare(list_cases(images, config, device, options.deep), options.repeats)
    is_free = medians[FREE_CASE] >= 1 - FREE
    print(f"\nA table costs a student {1 - medians[FREE_CASE]:.1%}; the goal is at most {FREE:.0%}.")
    return int(not is_free)


if __name__ == "__main__":
    sys.exit(run(main))
