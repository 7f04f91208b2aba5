"""Whether a plan chooses the faster of table and live teacher: its choice compared with measured times.

python bench/decision.py [--dataset cifar10 --data DIR] [--images N] [--repeats N] [--threads N]
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from orchestrator import losses, models
from orchestrator.data import tensors
from orchestrator.data.prepare import prepare_dataset
from orchestrator.data.registry import DATASETS
from orchestrator.data.tensors import Data
from orchestrator.models.base import Classifier
from orchestrator.records import EpochRecord, view_count
from orchestrator.results.summary import Statistic
from orchestrator.storage.layout import Storage
from orchestrator.study.plan import PlannedTrial, make_plan
from orchestrator.study.reader import load_study
from orchestrator.teachers import outputs, tables, weights
from orchestrator.training.batches import Teacher
from orchestrator.training.loop import train
from orchestrator.training.seeds import build_seeded
from orchestrator.training.state import TrainingState

RUN = 10  # epochs that are really trained both ways
EPOCHS = (RUN, 100, 1000)
TEST_IMAGES = 100  # a test costs the same both ways
CHECKED = 1000  # views that a table is checked with, however many it holds
TOLERANCE = 0.10  # nobody notices a choice that is slower by less than this

STUDY = """\
study: decision
recipe: {{epochs: {epochs}, crop_padding: {padding}, flip: {flip}, limit_train: {images}, limit_test: {test}}}
experiments:
  - {{method: logit, dataset: {dataset}, student: {student}, teacher: {teacher}, teacher_cache: {cache}}}
"""

LEGEND = """\
Measured. `pays from` is the first number of epochs for which the table is the faster way: for the images that were
measured, and computed for the whole training set: every table is checked with 1,000 views, which weighs more for a
small one. `plan: from` is where the plan takes the table.
"""


@dataclass(frozen=True)
class Case:
    """A student with a teacher, on `images` images with a number of views each."""

    dataset: str
    images: int
    student: str
    teacher: str
    padding: int
    flip: bool

    def __str__(self) -> str:
        return f"{self.student} ← {self.teacher} | {view_count(self.padding, self.flip)}"

    def plan(self, epochs: int, cache: str = "auto") -> PlannedTrial:
        """Plans the student, for an empty storage."""
        values = {name: getattr(self, name) for name in ("dataset", "images", "student", "teacher", "padding")}
        text = STUDY.format(**values, flip=str(self.flip).lower(), epochs=epochs, cache=cache, test=TEST_IMAGES)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "study.yaml")
            file.write_text(text)
            (student,) = (trial for trial in make_plan(load_study(file)).trials if trial.role == "student")
        return student


@dataclass
class Way:
    """Seconds of one teacher mode: what comes before the first epoch, each epoch, and each run from start to end."""

    before: list[float] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    runs: list[float] = field(default_factory=list)

    def compute_seconds(self, epochs: int) -> float:
        """Computes the seconds of a run of `epochs` epochs, from the medians of its parts."""
        return statistics.median(self.before) + epochs * statistics.median(self.epochs)


class Run:
    """A run with one teacher mode, which can pause after each epoch. Its clock stops meanwhile."""

    def __init__(self, trial: PlannedTrial, images: Data, device: torch.device) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._trial = trial
        self._images = images
        self._device = device
        assert trial.config.teacher and trial.teacher_id
        storage = Storage.at(self._folder.name)
        storage.prepare()
        # A teacher's weights do not change how long a forward pass takes.
        model = _fresh(trial.config.teacher.student, trial, device)
        weights.save_weights(model, storage, trial.teacher_id)
        start = time.perf_counter()
        self._epochs = self._start(storage)
        self.before = time.perf_counter() - start
        self.epochs: list[float] = []

    def _start(self, storage: Storage) -> Iterator[EpochRecord]:
        config, taught_by = self._trial.config, self._trial.config.teacher
        assert taught_by
        teacher: Teacher
        if self._trial.table is not None:
            teacher = tables.open_table(self._trial.table, taught_by, self._images, storage, self._device)
        else:
            needs = losses.METHODS[config.method].needs(dict(config.options))
            teacher = outputs.LiveTeacher(weights.load_teacher(taught_by, storage, self._device), needs)
        loss = losses.build(config.method, **dict(config.options))
        state = TrainingState.start(_fresh(config.student, self._trial, self._device), loss, config)
        return train(state, self._images, config, teacher)

    def advance(self) -> None:
        """Trains one epoch."""
        start = time.perf_counter()
        next(self._epochs)
        self.epochs.append(time.perf_counter() - start)

    def end(self) -> None:
        """Removes its storage."""
        self._folder.cleanup()


def _fresh(model: str, trial: PlannedTrial, device: torch.device) -> Classifier:
    return build_seeded(partial(models.build, model, DATASETS[trial.config.dataset].classes), 0, device)


def measure(case: Case, images: Data, device: torch.device, repeats: int) -> dict[str, Way]:
    """Runs both ways from end to end, an epoch of one and an epoch of the other by turns."""
    ways = {"live": Way(), "table": Way()}
    warm = Run(case.plan(RUN, "live"), images, device)
    warm.advance()
    warm.end()
    for _ in range(repeats):
        runs = {name: Run(case.plan(RUN, name), images, device) for name in ways}
        for _ in range(RUN):
            for run in runs.values():
                run.advance()
        for name, run in runs.items():
            ways[name].before.append(run.before)
            ways[name].epochs += run.epochs
            ways[name].runs.append(run.before + sum(run.epochs))
            run.end()
    return ways


def format_measured(case: Case, ways: dict[str, Way]) -> str:
    """Formats a line of the table of measurements."""
    live, table = ways["live"], ways["table"]
    gain = statistics.median(live.epochs) - statistics.median(table.epochs)
    cost = statistics.median(table.before) - statistics.median(live.before)
    measured = [_format_seconds(live.epochs), _format_seconds(table.epochs), _format_seconds(table.before)]
    views, whole = view_count(case.padding, case.flip), DATASETS[case.dataset].train
    growth = (views * whole + CHECKED) / (views * case.images + CHECKED)  # of the number of outputs, with all images
    scaled = _format_break_even(cost * growth, gain * whole / case.images)
    ends = [_format_break_even(cost, gain), scaled, str(_find_plan_threshold(case))]
    return f"| {case} | {' | '.join([*measured, *ends])} |"


def _find_plan_threshold(case: Case) -> int:
    """Finds the first number of epochs for which the plan takes the table, for the images that were measured."""
    epochs = range(1, 10 * view_count(case.padding, case.flip))
    return epochs[bisect_left(epochs, True, key=lambda count: case.plan(count, "auto").teacher_cache == "table")]


def _format_break_even(cost: float, gain: float) -> str:
    """Formats the first number of epochs for which a table pays off, from its cost and its gain for each epoch."""
    return f"{math.floor(cost / gain) + 1:,}" if gain > 0 else "never"


def _format_seconds(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.median(values):.3f}{spread} (n={len(values)})"


def format_choice(case: Case, ways: dict[str, Way], epochs: int) -> tuple[str, float]:
    """Formats a line of the table of choices; also returns by what share the plan's choice is slower than the other."""
    is_run = epochs == RUN
    seconds = {
        name: statistics.median(way.runs) if is_run else way.compute_seconds(epochs) for name, way in ways.items()
    }
    choice = case.plan(epochs).teacher_cache
    assert choice
    faster = min(seconds, key=seconds.__getitem__)
    loss = seconds[choice] / seconds[faster] - 1
    cells = [_format_runs(ways[name]) if is_run else f"{seconds[name]:.1f}" for name in ("live", "table")]
    agrees = "yes" if choice == faster else f"no, {loss:.1%} slower"
    figures = "measured" if is_run else "computed"
    return f"| {case} | {epochs:,} | {' | '.join(cells)} | {faster} | {choice} | {agrees} | {figures} |", loss


def _format_runs(way: Way) -> str:
    spread = statistics.stdev(way.runs) if len(way.runs) > 1 else None
    return str(Statistic(statistics.median(way.runs), spread, len(way.runs)))


def main() -> int:
    """The command line. Exits with 1 if the plan's choice is slower by more than TOLERANCE."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=DATASETS, default="digits")
    parser.add_argument("--data", type=Path, help="the folder of CIFAR-10 and CIFAR-100")
    parser.add_argument("--images", type=int, default=1000, help="training images (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs each way (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = [
        Case(options.dataset, options.images, "resnet_32_8", teacher, padding, flip)
        for teacher in ("resnet_32_8", "resnet_32_20")
        for padding, flip in ((4, True), (1, False))
    ]
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage.at(folder)
        storage.prepare()
        prepare_dataset(options.dataset, options.data, storage)
        images = tensors.load(cases[0].plan(RUN).config, storage, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {options.threads} threads"
    print(f"{options.images:,} images of {options.dataset}, {name}, torch {torch.__version__}; medians ± std.\n")
    return _report({case: measure(case, images, device, options.repeats) for case in cases})


def _report(measured: dict[Case, dict[str, Way]]) -> int:
    print(LEGEND)
    header = "s an epoch, live | s an epoch, table | s to build | pays from | of all images | plan: from"
    print(f"| student ← teacher | views | {header} |")
    print("|" + " --- |" * 8)
    print("\n".join(format_measured(case, ways) for case, ways in measured.items()))
    print(f"\n{RUN} epochs were run from end to end both ways; the rest is computed from the medians above.\n")
    print("| student ← teacher | views | epochs | live s | table s | faster | plan says | agrees | figures |")
    print("|" + " --- |" * 9)
    lines = [format_choice(case, ways, epochs) for case, ways in measured.items() for epochs in EPOCHS]
    print("\n".join(line for line, _ in lines))
    return int(max(loss for _, loss in lines) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
