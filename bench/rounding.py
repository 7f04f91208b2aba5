"""How far a teacher's table is from the teacher itself: every view of every image, not a sample.

python bench/rounding.py FILE STORAGE

FILE is a study that was launched with `teacher_cache: table`, STORAGE is where its results are. The live teacher is
the one that a student without a table gets: in eval mode, with its batch norms as they are. A table is built from a
copy whose batch norms are folded into its convolutions, and stores float16, which rounds a value by at most 2⁻¹¹ of
itself (4.9e-4).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from shared.common import choose_device, describe_setup, run
from torch import Tensor

from orchestrator.data import tensors
from orchestrator.data.views import ViewSpace
from orchestrator.launch import plan_study
from orchestrator.records import TableKey, TrialConfig
from orchestrator.storage.layout import Storage
from orchestrator.teachers.outputs import LiveTeacher
from orchestrator.teachers.weights import load_teacher
from orchestrator.training.batches import Batch

BATCH = 500


@torch.inference_mode()
def measure_errors(
    key: TableKey, teacher: TrialConfig, storage: Storage, device: torch.device
) -> tuple[float, float, float]:
    """The largest difference, the largest one relative to its own output, and the largest output of the live teacher.

    A relative difference counts where the output is at least a hundredth of the largest one.
    """
    images = tensors.load(replace(teacher, limit_train=key.images, limit_test=None, holdout=0), storage, device)
    live = LiveTeacher(load_teacher(teacher, storage, device), (key.outputs,))
    stored = torch.from_numpy(np.load(storage.backend.local_path(storage.table(key)), mmap_mode="c"))
    padded = ViewSpace(key.crop_padding, key.flip, key.padding).pad(images.train.pixels)
    differences, outputs = [], []
    for view in range(key.views):
        for index in torch.arange(key.images, device=device).split(BATCH):
            views = torch.full_like(index, view)
            batch = Batch(images.normalise(padded.take(index, views)), images.train.labels[index], index, views, index)
            outputs.append(getattr(live(batch), key.outputs).cpu())
            differences.append((outputs[-1] - stored[view, index.cpu()].float()).abs())
    return summarize(torch.cat(differences), torch.cat(outputs).abs())


def summarize(difference: Tensor, output: Tensor) -> tuple[float, float, float]:
    """The largest difference, the largest relative one, and the largest output."""
    counted = output >= output.max() / 100
    return float(difference.max()), float((difference / output)[counted].max()), float(output.max())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="the study file")
    parser.add_argument("storage", help="the folder or bucket with its results")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as it was launched with")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="(default: a GPU if there is one)")
    options = parser.parse_args(arguments)
    device = choose_device(parser, options.device)
    trials = plan_study(options.file, options.storage, options.set).trials
    tables = {t.table: t.config.teacher for t in trials if t.table and t.config.teacher}
    print(describe_setup(device), end="\n\n")
    print("| teacher | values | largest output | largest difference | of the largest output | of its own output |")
    print("| --- | --- | --- | --- | --- | --- |")
    storage = Storage.at(options.storage)
    for key, teacher in tables.items():
        absolute, relative, largest = measure_errors(key, teacher, storage, device)
        name = f"{teacher.student}, {teacher.dataset}, {key.images:,} images × {key.views} views"
        values = np.load(storage.backend.local_path(storage.table(key)), mmap_mode="r").size
        print(f"| {name} | {values:,} | {largest:.1f} | {absolute:.1e} | {absolute / largest:.1e} | {relative:.1e} |")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
