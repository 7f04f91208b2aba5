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
    synchronise,
)
from torch import Tensor

from orchestrator.data import tensors
from orchestrator.data.prepare import prepare_dataset
from orchestrator.data.registry import DATASETS
from orchestrator.data.tensors import Data
from orchestrator.storage.layout import Storage
from orchestrator.study.plan import PlannedTrial
from orchestrator.teachers.tables import open_table
from orchestrator.teachers.weights import load_teacher, save_weights

IMAGES = {"cpu": 100, "cuda": 5000}
BATCH = 1000
READY = 4  # batches that are passed by turns: more than the caches of most processors hold


def store_teacher(trial: PlannedTrial, folder: str, device: torch.device) -> Storage:
    """Makes a storage with fresh weights of the teacher: their values do not change how long a forward pass takes."""
    assert trial.config.teacher and trial.teacher_id
    storage = Storage.at(folder)
    storage.prepare()
    save_weights(build_model(trial.config.teacher.student, trial.config.dataset, device), storage, trial.teacher_id)
    return storage


def measure_build(trial: PlannedTrial, images: Data, device: torch.device) -> float:
    """Measures kdctl's build, in outputs per second."""
    assert trial.config.teacher and trial.table
    with tempfile.TemporaryDirectory() as folder, as_a_trial(device):
        storage = store_teacher(trial, folder, device)
        synchronise(device)
        start = time.perf_counter()
        open_table(trial.table, trial.config.teacher, images, storage, device)
        synchronise(device)
        return count_outputs(trial) / (time.perf_counter() - start)


def make_batches(images: Data) -> list[Tensor]:
    """Makes batches in the form that a network expects, of training images that repeat if there are too few."""
    count = len(images.train)
    numbers = torch.arange(READY * BATCH, device=images.train.labels.device) % count
    return [
        images.normalise(images.train.pixels[some]).contiguous(memory_format=torch.channels_last)
        for some in numbers.view(READY, BATCH)
    ]


def measure_forward_pass(trial: PlannedTrial, batches: Sequence[Tensor], device: torch.device) -> float:
    """Measures the bare forward pass of as many images as the table has outputs, in outputs per second."""
    assert trial.config.teacher
    with tempfile.TemporaryDirectory() as folder, as_a_trial(device), torch.no_grad():
        model = load_teacher(trial.config.teacher, store_teacher(trial, folder, device), device).eval()
        rounds = max(1, count_outputs(trial) // BATCH)
        synchronise(device)
        start = time.perf_counter()
        for number in range(rounds):
            model(batches[number % READY])
        synchronise(device)
        return rounds * BATCH / (time.perf_counter() - start)


def count_outputs(trial: PlannedTrial) -> int:
    """Counts the outputs that the table holds."""
    assert trial.table
    return trial.table.views * trial.table.images


def read_peak_memory() -> float:
    """Reads the most memory that this process has had so far, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def report(trial: PlannedTrial, images: Data, device: torch.device, repeats: int) -> None:
    """Measures, and prints the table."""
    assert trial.config.teacher and trial.table
    batches, before = make_batches(images), read_peak_memory()
    build, bare = partial(measure_build, trial, images, device), partial(measure_forward_pass, trial, batches, device)
    measure_pairs(build, bare, 1)
    first, second = measure_pairs(build, bare, repeats)
    name = f"{trial.config.teacher.student}, {trial.config.dataset}"
    print(
        "| teacher | outputs | table outputs/s, median [min–max] | bare outputs/s, median [min–max] "
        "| ratio, median [min–max] | n | peak memory, MiB |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    columns = [
        name,
        f"{count_outputs(trial):,}",
        format_spread(first),
        format_spread(second),
        format_spread(compute_ratios(first, second), ".3f"),
    ]
    print(f"| {' | '.join([*columns, str(repeats), f'{read_peak_memory():,.0f}'])} |")
    print(f"\nOf the memory {before:,.0f} MiB were there before the first table: libraries, images, ready batches.")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--dataset", choices=("digits", "cifar10"), default="digits", help="(default: %(default)s)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder of CIFAR-10")
    parser.add_argument("--teacher", default="resnet_32_20", help="(default: %(default)s)")
    defaults = f"{IMAGES['cpu']:,} on the CPU, {IMAGES['cuda']:,} on a GPU, at most all there are"
    parser.add_argument(
        "--images", type=parse_positive, help=f"of which the table holds the outputs (default: {defaults})"
    )
    options = parser.parse_args(arguments)
    if options.dataset == "cifar10" and options.data is None:
        parser.error("--dataset cifar10 needs --data DIR")
    device = choose_device(parser, options.device)
    count = options.images or min(IMAGES[device.type], DATASETS[options.dataset].train)
    trial = plan_student(options.dataset, "resnet_32_8", options.teacher, count)
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage.at(folder)
        storage.prepare()
        prepare_dataset(options.dataset, options.data, storage)
        images = tensors.load(trial.config, storage, device)
    print(describe_setup(device), end="\n\n")
    report(trial, images, device, options.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
