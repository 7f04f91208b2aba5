"""What a checkpoint costs: the time to write one, as a share of the 30 s of training (at least) between two of them.

python bench/checkpoints.py [--storage ADDRESS]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace

import torch

from orchestrator import losses, models
from orchestrator.records import EpochRecord, TrialConfig
from orchestrator.storage.layout import Storage
from orchestrator.study.values import Resources
from orchestrator.training.checkpoints import drop_checkpoints, save_checkpoint
from orchestrator.training.seeds import build_seeded
from orchestrator.training.state import TrainingState

CONFIG = TrialConfig(
    method="base", dataset="cifar100", student="resnet_32_20", seed=0, epochs=200, batch_size=128, lr=0.1,
    momentum=0.9, weight_decay=1e-4, milestones=(100, 150), gamma=0.1, crop_padding=4, flip=True, precision="auto",
    limit_train=None, limit_test=None, holdout=0,
)  # fmt: skip
EPOCHS = [
    EpochRecord(epoch, 0.1, 1 / 3, 1 / 3, None, 200 / 3, 1 / 3, 200 / 3, None, 1 / 3, 1e3) for epoch in range(1, 201)
]


def start_training(student: str) -> TrainingState:
    """Starts a training and takes a first step, so that there are momenta."""
    config = replace(CONFIG, student=student)
    model = build_seeded(lambda: models.build(student, 100), 0, torch.device("cpu"))
    started = TrainingState.start(model, losses.build("base"), config)
    model(torch.zeros(2, 3, 32, 32)).sum().backward()
    started.optimizer.step()
    started.epoch = 201
    return started


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", help="a folder or bucket (default: a temporary folder)")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    between = Resources().checkpoint_seconds
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage.at(options.storage or folder)
        storage.prepare()
        print(f"| model | ms a checkpoint, median of {options.repeats} | slowest | share of {between:g} s |")
        print("| --- | --- | --- | --- |")
        worst = 0.0
        for student in ("resnet_32_8", "resnet_32_20", "resnet_32_110"):
            state, seconds = start_training(student), []
            for repeat in range(options.repeats):
                state.images = repeat
                start = time.perf_counter()
                save_checkpoint(storage, "0" * 12, state, EPOCHS)
                seconds.append(time.perf_counter() - start)
            drop_checkpoints(storage, "0" * 12)
            median = statistics.median(seconds)
            worst = max(worst, median / between)
            print(
                f"| {student} | {1000 * median:.1f} | {1000 * max(seconds):.1f} | {median / between:.3%} |", flush=True
            )
    return int(worst > 0.02)


if __name__ == "__main__":
    sys.exit(main())
