"""Datasets as tensors on the training device: the training, validation and test images of a trial."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from orchestrator.data.order import SPLITS
from orchestrator.data.prepare import prepared_file
from orchestrator.data.registry import facts_of_trial
from orchestrator.data.shared import wait
from orchestrator.dataset import Dataset
from orchestrator.errors import DataError
from orchestrator.records import TrialConfig
from orchestrator.storage.layout import Storage


@dataclass(frozen=True)
class Images:
    """One split on one device: uint8 images [N, 3, S, S] and int64 labels [N]."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """The images that a trial is trained on, selects its epoch with (`val`, None without holdout) and is tested on."""

    train: Images
    val: Images | None
    test: Images
    facts: Dataset

    def normalise(self, pixels: Tensor) -> Tensor:
        """Converts uint8 images [B, 3, S, S] to float: zero mean and unit variance per channel on the training set."""
        mean, std = _make_statistics(self.facts, pixels.device)
        return (pixels - mean) / std


@lru_cache
def _make_statistics(facts: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    shape = (1, 3, 1, 1)
    mean, std = (torch.tensor(values, device=device).mul(255).view(shape) for values in (facts.mean, facts.std))
    wait(device)
    return mean, std


def load(config: TrialConfig, storage: Storage, device: torch.device) -> Data:
    """Loads the images of a trial from the file that `prepare_dataset` wrote into the storage.

    The first images of the canonical order are taken: classes stay balanced, and a smaller limit is a subset of a
    larger one. The held-out images are the last of those. Raises DataError where `prepare_dataset` was not called.
    """
    with _loading:
        splits = _cache_of(device)(config.dataset, prepared_file(config, storage), storage, device)
    train = _take(splits["train"], config.limit_train)
    kept = len(train) - config.holdout
    val = Images(train.pixels[kept:], train.labels[kept:]) if config.holdout else None
    return Data(_take(train, kept), val, _take(splits["test"], config.limit_test), facts_of_trial(config))


def _take(images: Images, count: int | None) -> Images:
    return Images(images.pixels[:count], images.labels[:count])


_loading = threading.Lock()  # trials of one process that start side by side load the images once


@lru_cache
def _cache_of(device: torch.device) -> Callable[[str, str, Storage, torch.device], dict[str, Images]]:
    """Loads images, and keeps the last ones on the device: a worker trains one trial after another."""
    return lru_cache(maxsize=2)(_load_all)


def _load_all(name: str, file: str, storage: Storage, device: torch.device) -> dict[str, Images]:
    path = storage.backend.describe(file)
    try:
        tensors = load_file(storage.backend.local_path(file), device=str(device))
        wait(device)
        return {split: Images(tensors[f"{split}.pixels"], tensors[f"{split}.labels"]) for split in SPLITS}
    except FileNotFoundError:
        raise DataError(f"{path} is missing; launch the study again, which prepares {name} again") from None
    except (OSError, SafetensorError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({error}); remove it and launch the study, which prepares {name} again"
        ) from None
