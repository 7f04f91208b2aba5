"""What the benchmarks of training and of tables share: options, plans, clocks, and how figures are printed."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from shared.machine import describe_machine

from orchestrator import models
from orchestrator.data import tensors
from orchestrator.data.prepare import prepare_dataset
from orchestrator.data.registry import DATASETS
from orchestrator.data.shared import wait
from orchestrator.data.tensors import Data
from orchestrator.errors import EXIT_INTERRUPTED, EXIT_TRIALS, EXIT_USAGE, KdctlError
from orchestrator.losses.base import Loss
from orchestrator.machine import limits
from orchestrator.models.base import Classifier
from orchestrator.records import TrialConfig, view_count
from orchestrator.storage.layout import Storage
from orchestrator.study.plan import PlannedTrial, make_plan
from orchestrator.study.reader import load_study
from orchestrator.teachers.outputs import TableTeacher
from orchestrator.text import masked
from orchestrator.training.batches import Teacher
from orchestrator.training.graphs import own_stream
from orchestrator.training.loop import train
from orchestrator.training.seeds import build_seeded
from orchestrator.training.state import TrainingState, cpu_facts, use_threads

TEST_IMAGES = 100  # no measurement contains a test
_PATIENCE = 300.0  # seconds for what is measured together to get ready

STUDY = """\
study: bench
recipe: {{batch_size: {batch_size}, limit_train: {images}, limit_test: {test}}}
experiments:
  - {{method: logit, dataset: {dataset}, student: {student}, teacher: {teacher}, teacher_cache: table}}
"""


class BenchmarkError(KdctlError):
    """A measurement that says nothing about what it is meant to measure."""

    exit_code = EXIT_TRIALS


def check_captured(state: TrainingState) -> None:
    """Raises BenchmarkError for a training that should have run as a CUDA graph and did not."""
    if state.uncaptured:
        raise BenchmarkError(f"the step was not captured as a CUDA graph: {state.uncaptured}")


def plan_student(dataset: str, student: str, teacher: str, images: int, batch_size: int = 128) -> PlannedTrial:
    """Plans a student with a table, with everything else at its default. Raises StudyError, as planning does."""
    values = {"dataset": dataset, "student": student, "teacher": teacher, "images": images, "batch_size": batch_size}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "bench.yaml")
        file.write_text(STUDY.format(**values, test=TEST_IMAGES))
        (trial,) = (trial for trial in make_plan(load_study(file)).trials if trial.role == "student")
    return trial


def build_model(name: str, dataset: str, device: torch.device, seed: int = 0) -> Classifier:
    """Builds a model with the weights of a seed, in the memory layout that kdctl uses."""
    return build_seeded(partial(models.build, name, DATASETS[dataset].classes), seed, device)


def synchronise(device: torch.device) -> None:
    """Waits until a GPU has finished its work, so that a clock measures it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def as_a_trial(device: torch.device, is_alone: bool = True) -> Iterator[None]:
    """Sets on a GPU what a trial sets before it starts, and resets it: other code here keeps torch's defaults.

    `is_alone` says whether the trial has the GPU to itself.
    """
    if device.type == "cpu":
        yield
        return
    wait(device)  # for this thread's work alone: waiting for the device would break the captures of other threads
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, is_alone
    try:
        with own_stream(device):
            yield
            wait(device)
    finally:
        torch.backends.cudnn.benchmark = before


def describe_setup(device: torch.device) -> str:
    """Describes the hardware, what torch uses of it, and the versions, in one line."""
    facts = cpu_facts()
    capabilities = [torch.backends.cpu.get_cpu_capability().lower()]
    capabilities += [name for name in ("avx512_bf16", "amx_bf16") if facts.get(name)]
    line = f"{describe_machine()}; torch uses {', '.join(capabilities)}, {torch.get_num_threads()} threads"
    gpu = f"; {torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}" if device.type == "cuda" else ""
    return f"{line}; on {device.type}{gpu}"


def load_images(folder: Path | None, config: TrialConfig, device: torch.device) -> Data:
    """The images of a trial, from a data folder if they are not built in. Raises DataError if they are incomplete."""
    with tempfile.TemporaryDirectory() as temporary:
        storage = Storage.at(temporary)
        storage.prepare()
        prepare_dataset(config.dataset, folder, storage)
        return tensors.load(config, storage, device)


def make_table(
    images: Data, config: TrialConfig, device: torch.device, kind: str = "logits", width: int | None = None
) -> TableTeacher:
    """Makes a table of arbitrary outputs, as wide as there are classes: their values change no lookup's time."""
    views = view_count(config.crop_padding, config.flip)
    shape = (views, len(images.train), width or images.facts.classes)
    # Random and not zero: memory of zeros may be a single page, which is always in the cache.
    return TableTeacher(torch.empty(shape, dtype=torch.float16, device=device).uniform_(-1, 1), kind)


def measure_epoch(loss: Loss, images: Data, config: TrialConfig, outputs: Teacher) -> float:
    """Measures kdctl's second epoch with a loss, in images a second; the first one is the warm-up."""
    device = images.train.labels.device
    if isinstance(loss, torch.nn.Module):
        loss.to(device)
    with as_a_trial(device):
        state = TrainingState.start(build_model(config.student, config.dataset, device), loss, config)
        # There are more epochs, so that the second one contains the preparation of the third.
        epochs = train(state, images, config, outputs)
        next(epochs)
        speed = next(epochs).images_per_second
        check_captured(state)
        return speed


def measure_students(
    build_loss: Callable[[], Loss], images: Data, config: TrialConfig, outputs: Teacher, count: int
) -> float:
    """Measures that epoch of as many students at a time, in images a second in all.

    Each has a thread, as in a launch without Ray, and its share of the cores.
    """
    start = threading.Barrier(count)

    def measure(_: int) -> float:
        use_threads(max(1, limits.cores() // count))
        start.wait(_PATIENCE)
        return measure_epoch(build_loss(), images, config, outputs)

    with ThreadPoolExecutor(count) as pool:
        return sum(pool.map(measure, range(count)))


def format_spread(values: Sequence[float], form: str = ",.0f") -> str:
    """Formats the median and, in brackets, the minimum and the maximum."""
    median, least, most = (format(value, form) for value in (statistics.median(values), min(values), max(values)))
    return f"{median} [{least}–{most}]"


def compute_ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Divides each figure by the one that was measured together with it."""
    return [one / other for one, other in zip(above, below, strict=True)]


def measure_pairs(
    left: Callable[[], float], right: Callable[[], float], repeats: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measures both figures alternately, so that a machine that becomes slower affects both."""
    one, other = measure_in_turn([left, right], repeats)
    return one, other


def measure_in_turn(measures: Sequence[Callable[[], float]], repeats: int) -> list[tuple[float, ...]]:
    """Measures each figure in every round, so that a machine that becomes slower affects all of them."""
    rounds = [[measure() for measure in measures] for _ in range(repeats)]
    return list(zip(*rounds, strict=True))


def parse_positive(text: str) -> int:
    """Parses a whole number of at least 1, for argparse."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def make_parser(doc: str | None, repeats: int = 5) -> argparse.ArgumentParser:
    """Makes a parser with the options that all these benchmarks have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="(default: a GPU if there is one)")
    parser.add_argument("--repeats", type=parse_positive, default=repeats, help="(default: %(default)s)")
    return parser


def choose_device(parser: argparse.ArgumentParser, name: str | None) -> torch.device:
    """Chooses the device with this name, or the default one; torch uses every core from now on."""
    if name == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; leave out --device, or use --device cpu")
    torch.set_num_threads(os.cpu_count() or 1)
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def run(main: Callable[[], int]) -> int:
    """Runs a command line; an error that a person can fix becomes a message and an exit code, without a traceback."""
    try:
        return main()
    except KdctlError as error:
        print(masked(str(error)), file=sys.stderr)
        return error.exit_code
    except torch.OutOfMemoryError:
        print("the GPU has too little memory for this; give fewer --images", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
