"""A dataset into the storage, decoded, checked and in canonical order, from which every worker loads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from orchestrator.data import folder as image_folder
from orchestrator.data.registry import DATASETS, FolderDataset
from orchestrator.dataset import Dataset
from orchestrator.errors import DataError
from orchestrator.records import TrialConfig
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import wait_for


def prepared_file(config: TrialConfig, storage: Storage) -> str:
    """The file in the storage that has the images of a trial."""
    return _file(config.dataset, config.folder, storage)


def _file(name: str, folder: Dataset | None, storage: Storage) -> str:
    if folder:  # equal images are one file, whatever their folders are called
        return storage.dataset("folder", folder.digest)
    return storage.dataset(name, DATASETS[name].digest)


def _file_of(dataset: str | FolderDataset, storage: Storage) -> str:
    return _file(dataset, None, storage) if isinstance(dataset, str) else _file("", dataset.facts, storage)


def is_prepared(dataset: str | FolderDataset, storage: Storage) -> bool:
    """Whether a dataset is in the storage, so that `prepare_dataset` has nothing to do."""
    return storage.backend.stat(_file_of(dataset, storage)) is not None


def prepare_dataset(
    dataset: str | FolderDataset,
    data: Path | None,
    storage: Storage,
    while_waiting: Callable[[], None] = lambda: None,
) -> None:
    """Puts a dataset into the storage unless it is there.

    `data` is the data folder, from which CIFAR is read, and into which it is downloaded where it is missing.
    `while_waiting` is called while another launch does so. Raises DataError that says which file is missing or damaged
    and how to get it.
    """
    target = _file_of(dataset, storage)
    if storage.backend.stat(target):
        return
    name = dataset if isinstance(dataset, str) else dataset.facts.digest
    with wait_for(storage, f"dataset-{name}", while_waiting):
        if storage.backend.stat(target):
            return
        if isinstance(dataset, FolderDataset):
            splits = image_folder.read(dataset)
        else:
            splits = DATASETS[dataset].load_reader().read(dataset, data)
        tensors: dict[str, NDArray[Any]] = {}
        for split, (pixels, labels) in splits.items():
            tensors[f"{split}.pixels"] = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
            tensors[f"{split}.labels"] = labels
        storage.backend.write(target, save(tensors))


def require_prepared(config: TrialConfig, storage: Storage) -> None:
    """Puts the images of a trial into the storage again where that needs nothing from the user. Raises DataError."""
    if config.folder is None:
        prepare_dataset(config.dataset, None, storage)
    elif storage.backend.stat(prepared_file(config, storage)) is None:
        raise DataError(
            f"the images of {config.dataset} are not in {storage.backend.describe('')}; launch a study that names "
            "their folder, which prepares them"
        )
