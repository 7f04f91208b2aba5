"""What building a teacher's table costs beyond running the teacher: kdctl's build against a bare forward pass.

python bench/table.py [--dataset digits|cifar10] [--data DIR] [--teacher resnet_32_20] [--images N] [--repeats 5]

The build is everything that a study pays for: views, checks, rounding, files. The bare pass is the same teacher in
eval mode, on the same number of images, which are ready in memory: float32, normalised, channels last, 1,000 per
batch. The two alternate, each build into an empty storage; a first pair is the warm-up. A ratio is kdctl's figure
divided by that of the pass after it.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from shared.common import (
    as_a_trial,
    device_of,
    fresh,
    headline,
    pairs,
    parser_of,
    planned,
    positive,
    ratios,
    run,
    spread,
    synchronise,
)
from torch import Tensor

from orchestrator.data import tensors
from orchestrator.data.prepare import prepare_dataset
from orchestrator.data.registry import DATASETS
from orchestrator.data.tensors import Data
from orchestrator.storage.layout import Storage
from orchestrator.study.plan import PlannedTrial
from orchestrator.teachers.outputs import load_teacher, open_table, save_weights

IMAGES = {"cpu": 100, "cuda": 5000}
BATCH = 1000
READY = 4  # batches that are passed by turns: more than the caches of most processors hold


def taught(trial: PlannedTrial, place: str, device: torch.device) -> Storage:
    """A storage with the weights of the teacher, fresh ones: what they are does not change how long asking takes."""
    assert trial.config.teacher and trial.teacher_id
    storage = Storage.at(place)
    storage.prepare()
    save_weights(fresh(trial.config.teacher.student, trial.config.dataset, device), storage, trial.teacher_id)
    return storage


def built(trial: PlannedTrial, images: Data, device: torch.device) -> float:
    """Answers a second of kdctl's build."""
    assert trial.config.teacher and trial.table
    with tempfile.TemporaryDirectory() as place, as_a_trial(device):
        storage = taught(trial, place, device)
        synchronise(device)
        start = time.perf_counter()
        open_table(trial.table, trial.config.teacher, images, storage, device)
        synchronise(device)
        return answers(trial) / (time.perf_counter() - start)


def ready(images: Data) -> list[Tensor]:
    """Batches as a network wants them, of training images repeated as often as it takes."""
    count = len(images.train)
    numbers = torch.arange(READY * BATCH, device=images.train.labels.device) % count
    return [
        images.normalise(images.train.pixels[some]).contiguous(memory_format=torch.channels_last)
        for some in numbers.view(READY, BATCH)
    ]


def passed(trial: PlannedTrial, batches: Sequence[Tensor], device: torch.device) -> float:
    """Outputs per second of the bare forward pass, over as many images as the table has outputs, in whole batches."""
    assert trial.config.teacher
    with tempfile.TemporaryDirectory() as place, as_a_trial(device), torch.no_grad():
        model = load_teacher(trial.config.teacher, taught(trial, place, device), device).eval()
        rounds = max(1, answers(trial) // BATCH)
        synchronise(device)
        start = time.perf_counter()
        for number in range(rounds):
            model(batches[number % READY])
        synchronise(device)
        return rounds * BATCH / (time.perf_counter() - start)


def answers(trial: PlannedTrial) -> int:
    """How many outputs the table holds."""
    assert trial.table
    return trial.table.views * trial.table.images


def peak() -> float:
    """The most memory that this process has had so far, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def report(trial: PlannedTrial, images: Data, device: torch.device, repeats: int) -> None:
    """Measures, and prints the table."""
    assert trial.config.teacher and trial.table
    batches, before = ready(images), peak()
    build, bare = partial(built, trial, images, device), partial(passed, trial, batches, device)
    pairs(build, bare, 1)
    first, second = pairs(build, bare, repeats)
    name = f"{trial.config.teacher.student}, {trial.config.dataset}"
    print(
        "| teacher | answers | table answers/s, median [min–max] | bare answers/s, median [min–max] "
        "| ratio, median [min–max] | n | peak memory, MiB |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    columns = [name, f"{answers(trial):,}", spread(first), spread(second), spread(ratios(first, second), ".3f")]
    print(f"| {' | '.join([*columns, str(repeats), f'{peak():,.0f}'])} |")
    print(f"\nOf the memory {before:,.0f} MiB were there before the first table: libraries, images, ready batches.")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--dataset", choices=("digits", "cifar10"), default="digits", help="(default: %(default)s)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder of CIFAR-10")
    parser.add_argument("--teacher", default="resnet_32_20", help="(default: %(default)s)")
    defaults = f"{IMAGES['cpu']:,} on the CPU, {IMAGES['cuda']:,} on a GPU, at most all there are"
    parser.add_argument("--images", type=positive, help=f"of which the table holds the outputs (default: {defaults})")
    options = parser.parse_args(arguments)
    if options.dataset == "cifar10" and options.data is None:
        parser.error("--dataset cifar10 needs --data DIR")
    device = device_of(parser, options.device)
    count = options.images or min(IMAGES[device.type], DATASETS[options.dataset].train)
    trial = planned(options.dataset, "resnet_32_8", options.teacher, count)
    with tempfile.TemporaryDirectory() as place:
        storage = Storage.at(place)
        storage.prepare()
        prepare_dataset(options.dataset, options.data, storage)
        images = tensors.load(trial.config, storage, device)
    print(headline(device), end="\n\n")
    report(trial, images, device, options.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
