"""How fast a study trains against plain research scripts, on the same images, with the same models.

python bench/compare.py --data DIR [--device cpu|cuda] [--repeats 5] [--images N] [--batch-size 128] [--students N]
[--deep]

The plain script is bench/shared/plain.py, with a live teacher. On a CPU it is run in both ways in which people run it:
one script with all threads and two loader workers, and one script per core with one thread each, which loads its images
itself (with workers of its own it is not faster). kdctl trains as many students at a time as there are cores (on a GPU
one, or as many as --students says), as a launch does, with a table of teacher outputs, or with no teacher where a row
says so. All are measured in every round, each from a fresh start and after a warm-up: for kdctl one whole epoch,
without the epoch before it and without the test. A ratio is kdctl's figure divided by the better plain figure of the
same round. Building the table is not included: it happens once for all students of a teacher (bench/table.py).

Exits with 1 if students with a table are more than 2 % slower than students without a teacher.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    measure_in_turn,
    measure_students,
    parse_positive,
    plan_student,
    run,
)

from orchestrator import losses, models
from orchestrator.data.tensors import Data
from orchestrator.machine import limits
from orchestrator.records import TrialConfig
from orchestrator.teachers.outputs import no_teacher
from orchestrator.training.batches import Teacher

DATASET = "cifar10"
SMALL, DEEP = "resnet_32_20", "resnet_32_110"
FREE_CASE = "20, what the table costs"
IMAGES = {"cpu": 2560, "cuda": 25_600}
FREE = 0.02  # how much slower a table may make a student


@dataclass(frozen=True)
class Case:
    """Ways to train a student in images a second, by the column that shows each; the last one is kdctl with a table."""

    name: str
    ways: Mapping[str, Callable[[], float]]


def measure_plain(student: str, teacher: str, images: Data, config: TrialConfig, device: torch.device) -> float:
    """Measures one plain script with all threads, in images a second."""
    # Fresh weights throughout: what a model has learned does not change how long it takes.
    built = [models.build(name, images.facts.classes) for name in (student, teacher)]
    return plain.measure_speed(built[0], built[1], images, len(images.train), config.batch_size, device)


def measure_kdctl(
    method: str, student: str, images: Data, config: TrialConfig, outputs: Teacher, students: int
) -> float:
    """Measures kdctl with another student, in images a second in all."""
    return measure_students(partial(losses.build, method), images, replace(config, student=student), outputs, students)


def list_cases(images: Data, config: TrialConfig, device: torch.device, students: int, is_deep: bool) -> Iterator[Case]:
    """Lists what is compared."""
    table = make_table(images, config, device)
    names = [(SMALL, SMALL), (SMALL, DEEP), *([(DEEP, DEEP)] if is_deep else [])]
    for student, teacher in names:
        ways = {"plain, one script": partial(measure_plain, student, teacher, images, config, device)}
        if device.type == "cpu":
            ways["plain, one per core"] = partial(
                plain.measure_one_per_core,
                *(student, teacher, images, len(images.train), config.batch_size),
                count=limits.cores(),
            )
        ways["kdctl"] = partial(measure_kdctl, "logit", student, images, config, table, students)
        yield Case(f"{_depth(student)} ← {_depth(teacher)}", ways)
    yield Case(
        FREE_CASE,
        {
            "kdctl, no teacher": partial(measure_kdctl, "base", SMALL, images, config, no_teacher, students),
            "kdctl": partial(measure_kdctl, "logit", SMALL, images, config, table, students),
        },
    )


def _depth(model: str) -> str:
    return model.rpartition("_")[2]


def compare(chosen: Iterable[Case], repeats: int) -> dict[str, float]:
    """Measures all cases and prints a line for each; gives their median ratios by name."""
    header: list[str] = []
    medians = {}
    for case in chosen:
        if header != [*case.ways]:
            header = [*case.ways]
            columns = [f"{name} img/s, median [min–max]" for name in header]
            print(f"\n| case | {' | '.join(columns)} | ratio, median [min–max] | n |")
            print(f"| {' | '.join(['---'] * (len(columns) + 3))} |", flush=True)
        *others, own = measure_in_turn(list(case.ways.values()), repeats)
        quotients = compute_ratios(own, [max(figures) for figures in zip(*others, strict=True)])
        cells = [*map(format_spread, (*others, own)), format_spread(quotients, ".2f"), str(repeats)]
        print(f"| {case.name} | {' | '.join(cells)} |", flush=True)
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
    parser.add_argument(
        "--students",
        type=parse_positive,
        help="that kdctl trains at a time (default: one per core on the CPU, one on a GPU)",
    )
    parser.add_argument("--deep", action="store_true", help="also a ResNet-110 with a ResNet-110 as its teacher")
    options = parser.parse_args(arguments)
    device = choose_device(parser, options.device)
    count = options.images or IMAGES[device.type]
    config = plan_student(DATASET, SMALL, SMALL, count, options.batch_size).config
    images = load_images(options.data, config, device)
    print(describe_setup(device), end="\n\n")
    students = options.students or (limits.cores() if device.type == "cpu" else 1)
    print(f"{count:,} images an epoch, in batches of {options.batch_size}; kdctl trains {students} at a time.")
    medians = compare(list_cases(images, config, device, students, options.deep), options.repeats)
    is_free = medians[FREE_CASE] >= 1 - FREE
    print(f"\nA table costs a student {1 - medians[FREE_CASE]:.1%}; the goal is at most {FREE:.0%}.")
    return int(not is_free)


if __name__ == "__main__":
    sys.exit(run(main))
