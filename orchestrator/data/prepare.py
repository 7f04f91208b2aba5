"""Puts datasets into the storage, decoded, checked and in canonical order; every worker loads them from there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from orchestrator.data.registry import DATASETS, OwnDataset
from orchestrator.dataset import Dataset
from orchestrator.errors import DataError
from orchestrator.records import TrialConfig
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import wait_for


def prepared_file(config: TrialConfig, storage: Storage) -> str:
    """The file in the storage that contains the images of a trial."""
    return _name_file(config.dataset, config.folder, storage)


def _name_file(name: str, folder: Dataset | None, storage: Storage) -> str:
    if folder:  # equal images share one file, whatever they were read from
        return storage.dataset("folder", folder.digest)
    return storage.dataset(name, DATASETS[name].digest)


def _file_of(dataset: str | OwnDataset, storage: Storage) -> str:
    if isinstance(dataset, str):
        return _name_file(dataset, None, storage)
    return _name_file("", dataset.facts, storage)


def is_prepared(dataset: str | OwnDataset, storage: Storage) -> bool:
    """Whether a dataset is in the storage, so that `prepare_dataset` has nothing to do."""
    return storage.backend.stat(_file_of(dataset, storage)) is not None


def prepare_dataset(
    dataset: str | OwnDataset,
    data: Path | None,
    storage: Storage,
    while_waiting: Callable[[], None] = lambda: None,
) -> None:
    """Puts a dataset into the storage unless it is already there.

    `data` is the data folder: CIFAR is read from it, and downloaded into it if it is missing. `while_waiting` is called
    while another launch prepares the dataset. Raises DataError that states which file is missing or damaged, and how to
    get it.
    """
    target = _file_of(dataset, storage)
    if storage.backend.stat(target):
        return
    name = dataset if isinstance(dataset, str) else dataset.facts.digest
    with wait_for(storage, f"dataset-{name}", while_waiting):
        if storage.backend.stat(target):
            return
        if isinstance(dataset, OwnDataset):
            splits = dataset.read()
        else:
            splits = DATASETS[dataset].load_reader().read(dataset, data)
        tensors: dict[str, NDArray[Any]] = {}
        for split, (pixels, labels) in splits.items():
            tensors[f"{split}.pixels"] = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
            tensors[f"{split}.labels"] = labels
        storage.backend.write(target, save(tensors))


def require_prepared(config: TrialConfig, storage: Storage) -> None:
    """Puts the images of a trial into the storage if they are missing and this needs nothing from the user.

    Raises DataError otherwise.
    """
    if config.folder is None:
        prepare_dataset(config.dataset, None, storage)
    elif storage.backend.stat(prepared_file(config, storage)) is None:
        raise DataError(
            f"the images of {config.dataset} are not in {storage.backend.describe('')}; launch a study that names "
            "their folder or file, which prepares them"
        )
