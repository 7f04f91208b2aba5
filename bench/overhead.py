"""What kdctl adds to a trial: a study of trials so short that almost everything is overhead, against plain Ray Tune.

python bench/overhead.py [--trials 100] [--function-trials 8] [--repeats 3] [--places 2] [--images 64]

Three ways to do the same training, each in a process of its own, in alternating runs:

- `kdctl launch`: the whole command on Ray, with a lease, a row, the epochs and the weights of every trial on disk;
- `raw class`: a hand-written Tune class trainable with reused actors (`reuse_actors=True`), which keeps only metrics;
- `raw function`: a hand-written Tune function trainable, one process per trial, as in most scripts; with fewer trials.

The raw ones get their images ready-made, and Tune's files for every trial (CSV, JSON, TensorBoard) are switched off.
All train with the same functions, one epoch of `--images` images, tested once; kdctl tests a second time at the end.

`wall a trial` is the time of the whole command divided by the number of trials. `start-up` ends when the first trial
starts in its worker, after Python's imports. `end` begins when the last trial is done. The rest gives

    overhead a trial = (wall − start-up − work) / trials,

where work is the time of training alone: its median in a process with nothing running next to it, times the number of
trials, divided by the places they share. So what trials lose by competing for the cores with Ray, or with kdctl,
counts as overhead. `overhead without the end` also leaves out the end of the command, which does not grow with the
number of trials.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from shared.machine import describe_machine, format_spread

from orchestrator import codec, losses, models
from orchestrator.data import tensors
from orchestrator.data.prepare import prepare_dataset
from orchestrator.data.registry import DATASETS
from orchestrator.records import EpochRecord, TrialConfig
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.study.plan import make_plan
from orchestrator.study.reader import load_study
from orchestrator.teachers.outputs import no_teacher
from orchestrator.training.loop import train
from orchestrator.training.seeds import build_seeded
from orchestrator.training.state import TrainingState

STUDY = """
study: overhead
recipe: {{epochs: 1, batch_size: 32, crop_padding: 1, flip: false, limit_train: {images}, limit_test: {images}}}
experiments:
  - {{method: base, dataset: digits, student: resnet_32_8, seed: {seeds}}}
"""
CPU = torch.device("cpu")
RAY = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
ALONE = 20  # trainings in one process, of which the median is the work of a trial


@dataclass(frozen=True, slots=True)
class Times:
    """One run: its wall time, and when its first trial started and its last one was done, in seconds from its start."""

    wall: float
    first: float
    last: float
    trials: int

    def overhead(self, work: float, end: float) -> float:
        """Seconds a trial from the first one's start until `end`, without the work of a trial."""
        return (end - self.first) / self.trials - work


def train_plainly(config: TrialConfig, images: tensors.Data) -> EpochRecord:
    """Trains one trial as a script would."""
    model = build_seeded(lambda: models.build(config.student, DATASETS[config.dataset].classes), config.seed, CPU)
    state = TrainingState.start(model, losses.build(config.method), config)
    *_, last = train(state, images, config, no_teacher)
    return last


def write_study(folder: Path, trials: int, images: int) -> list[TrialConfig]:
    """Writes the study into a folder; returns its trials."""
    file = folder / "overhead.yaml"
    file.write_text(STUDY.format(images=images, seeds=list(range(trials))))
    return [trial.config for trial in make_plan(load_study(file)).trials]


def prepare_storage(folder: Path) -> Storage:
    """Prepares a storage in a folder, with the images."""
    storage = Storage.at(folder)
    storage.prepare()
    prepare_dataset("digits", None, storage)
    return storage


def run_tune(kind: str, trials: Sequence[TrialConfig], images: tensors.Data, places: int) -> list[dict[str, Any]]:
    """Runs the trials on Ray Tune, without kdctl; returns the report of each."""
    import ray
    from ray import tune

    def function(config: dict[str, Any], images: tensors.Data) -> None:
        began = time.time()
        torch.set_num_threads(1)
        record = train_plainly(codec.decode(TrialConfig, config["trial"]), images)
        tune.report({"acc": record.test_acc, "began": began, "ended": time.time()})

    class Reused(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any], images: tensors.Data) -> None:
            self.began, self.images = time.time(), images
            torch.set_num_threads(1)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.began = time.time()
            return True

        def step(self) -> dict[str, Any]:
            record = train_plainly(codec.decode(TrialConfig, self.config["trial"]), self.images)
            return {"acc": record.test_acc, "began": self.began, "ended": time.time(), "done": True}

    ray.init("local", num_cpus=places, **RAY)  # not a cluster that happens to run here
    is_class = kind == "class"
    trainable = tune.with_parameters(Reused if is_class else function, images=images)
    with tempfile.TemporaryDirectory() as folder:
        found = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space={"trial": tune.grid_search([codec.encode(config) for config in trials])},
            tune_config=tune.TuneConfig(reuse_actors=is_class, max_concurrent_trials=places),
            run_config=tune.RunConfig(
                name="raw",
                storage_path=folder,
                verbose=0,
                # A class without checkpoints has to say so; a function has none unless it reports one.
                **({"checkpoint_config": tune.CheckpointConfig(checkpoint_at_end=False)} if is_class else {}),
            ),
        ).fit()
        if found.errors:
            raise found.errors[0]
        return [result.metrics for result in found]


def run_raw(kind: str, trials: int, options: argparse.Namespace, storage: Storage) -> Times:
    """Runs `run_tune` in a process of its own, which prints when its trials were trained."""
    command = [sys.executable, __file__, "--raw", kind, "--storage", storage.backend.address, "--trials", str(trials)]
    command += ["--images", str(options.images), "--places", str(options.places)]
    environment = {**os.environ, "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    environment |= {"RAY_AIR_NEW_OUTPUT": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    began, start = time.time(), time.perf_counter()
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    wall = time.perf_counter() - start
    first, last, count = json.loads(output.splitlines()[-1])
    return Times(wall, first - began, last - began, count)


def run_kdctl(trials: int, options: argparse.Namespace) -> Times:
    """Runs `kdctl launch` for the study, with a storage of its own."""
    with tempfile.TemporaryDirectory() as folder:
        write_study(Path(folder), trials, options.images)
        storage = prepare_storage(Path(folder, "runs"))
        command = [sys.executable, "-m", "orchestrator.cli", "launch", str(Path(folder, "overhead.yaml"))]
        command += ["--storage", storage.backend.address, "--max-concurrent", str(options.places)]
        command += ["--set", "resources.gpus_per_trial=0"]
        began, start = time.time(), time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        wall = time.perf_counter() - start
        rows = store.read_trials(storage)
    first = min(row.start_time for row in rows).timestamp()
    last = max(row.end_time for row in rows if row.end_time).timestamp()
    return Times(wall, first - began, last - began, len(rows))


def measure_work(trials: Sequence[TrialConfig], images: tensors.Data) -> float:
    """Measures the training of a trial with nothing running next to it, in seconds."""
    torch.set_num_threads(1)
    seconds = []
    for number in range(ALONE):
        start = time.perf_counter()
        train_plainly(trials[number % len(trials)], images)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def table(runs: dict[str, list[Times]], share: float) -> None:
    """Prints the outcome of all runs; `share` is the wall time of a trial's work."""
    print("| way | trials | n | wall a trial, ms | start-up, s | end, s | overhead a trial, ms | without the end, ms |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for way, found in runs.items():
        columns = [
            format_spread([1000 * times.wall / times.trials for times in found]),
            format_spread([times.first for times in found]),
            format_spread([times.wall - times.last for times in found]),
            format_spread([1000 * times.overhead(share, times.wall) for times in found]),
            format_spread([1000 * times.overhead(share, times.last) for times in found]),
        ]
        print(f"| {way} | {found[0].trials} | {len(found)} | {' | '.join(columns)} |")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--function-trials", type=int, default=8, help="of the function trainable; 0 leaves it out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--places", type=int, default=2, help="how many trials are trained at a time")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--raw", choices=("class", "function"), help=argparse.SUPPRESS)  # for the child processes
    parser.add_argument("--storage", help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        storage = prepare_storage(Path(options.storage or folder))
        trials = write_study(Path(folder), options.trials, options.images)
        images = tensors.load(trials[0], storage, CPU)
        if options.raw:
            reports = run_tune(options.raw, trials, images, options.places)
            print(json.dumps([min(r["began"] for r in reports), max(r["ended"] for r in reports), len(reports)]))
            return 0
        alone = measure_work(trials, images)
        runs: dict[str, list[Times]] = {}
        for _ in range(options.repeats):
            runs.setdefault("kdctl launch", []).append(run_kdctl(options.trials, options))
            runs.setdefault("raw class, reused", []).append(run_raw("class", options.trials, options, storage))
        if options.function_trials:
            runs["raw function"] = [run_raw("function", options.function_trials, options, storage)]
        print(describe_machine(), end="\n\n")
        print(f"{options.places} trials at a time; the training of one takes {1000 * alone:.1f} ms alone.", end="\n\n")
        table(runs, alone / options.places)
    return 0


if __name__ == "__main__":
    sys.exit(main())
