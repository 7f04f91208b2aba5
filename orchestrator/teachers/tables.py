"""The table of a teacher's outputs for every view of every training image: built once, checked, memory-mapped."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orchestrator import models
from orchestrator.data.registry import facts_of_trial
from orchestrator.data.shared import SharedValues
from orchestrator.data.tensors import Data
from orchestrator.data.views import ViewSpace
from orchestrator.errors import LeaseLost, StorageError, TeacherError
from orchestrator.models.base import Classifier
from orchestrator.models.ensemble import Ensemble
from orchestrator.records import TableKey, TrialConfig
from orchestrator.storage.layout import Storage, encode_key, read_json, write_json
from orchestrator.storage.leases import Lease, table_resource, wait_for
from orchestrator.teachers._chunks import Chunks, Compute
from orchestrator.teachers.outputs import HostTable, LiveTeacher, TableTeacher
from orchestrator.teachers.weights import load_teacher
from orchestrator.training.batches import Batch
from orchestrator.training.evaluation import Check, unchecked

TABLE_FORMAT = 2  # raise it when the same key would give other bytes
# Small enough for the caches of a CPU, large enough to keep a GPU busy.
_BUILD_BATCHES = {"cpu": 100, "cuda": 5000}  # as for `evaluate`
# The tolerance of a stored output, as a share of the largest one: for rounding to float16 and sums in another order. A
# GPU multiplies float32 as TF32, of ten bits, and its rounding errors add up over a hundred layers.
_ROUNDING = {"cpu": 2.0**-11, "cuda": 2.0**-7}
_SHARE = 1 / 8  # of the free memory of a GPU that one table may take
_SAMPLE = 1000  # random (view, image) pairs that a check compares


def open_table(
    key: TableKey,
    config: TrialConfig,
    data: Data,
    storage: Storage,
    device: torch.device,
    check: Check = unchecked,
) -> TableTeacher | HostTable:
    """Opens the table of a teacher (`config`) over the training images of `data`; builds it first if it is missing.

    All workers that need it build it together; `check` is called meanwhile. That of an ensemble is the mean of the
    tables of its members. On the CPU, and if a GPU has too little free memory, the table stays in the file,
    memory-mapped: one copy for all workers of a machine. On a GPU it is there once for all trials of this process.
    Raises TeacherError where the table does not hold the teacher's outputs.
    """
    table = _ensure(key, config, data, storage, device, check)
    if device.type == "cpu":
        return TableTeacher(table, key.outputs)
    try:
        return _on_gpus.get((key, storage.backend.address, device), lambda: _move(table, key.outputs, device), device)
    except _NoRoom:
        return HostTable(table, key.outputs, device)


_on_gpus: SharedValues[TableTeacher] = SharedValues()


class _NoRoom(Exception):
    """A table would take too much of the memory of a GPU."""


def _move(table: Tensor, outputs: str, device: torch.device) -> TableTeacher:
    if table.nbytes > torch.cuda.mem_get_info(device)[0] * _SHARE:
        raise _NoRoom
    return TableTeacher(table.to(device), outputs)


def _ensure(
    key: TableKey, config: TrialConfig, data: Data, storage: Storage, device: torch.device, check: Check
) -> Tensor:
    """The table of a teacher, memory-mapped, once it is built."""
    expected = _make_facts(key, config, storage)
    if not _is_complete(key, expected, storage):
        members = [
            _ensure(replace(key, teacher_id=member.trial_id()), member, data, storage, device, check)
            for member in config.members
        ]
        model = load_teacher(config, storage, device)
        outputs = _ChunkMeans(members, check) if members else _ChunkOutputs(key, model, data, check)
        _build(key, model, outputs.compute, data, expected, storage, check)
    return _map(key, expected["shape"], storage)


def has_table(key: TableKey, storage: Storage) -> bool:
    """Whether the files of a table exist; their content is not read."""
    return None not in storage.backend.read_sizes([storage.table(key), storage.table_facts(key)])


def _make_facts(key: TableKey, config: TrialConfig, storage: Storage) -> dict[str, Any]:
    """Everything that can change a byte of a table."""
    facts = facts_of_trial(config)
    width = facts.classes if key.outputs == "logits" else models.widths(config.student).pooled
    return {
        "format": TABLE_FORMAT,
        "dtype": "float16",
        "shape": [key.views, key.images, width],
        "key": encode_key(key),
        "model": config.student,
        "weights": _digest_weights(key.teacher_id, storage),
        "dataset": config.dataset,
        "dataset_digest": facts.digest,
        "mean": list(facts.mean),
        "std": list(facts.std),
    }


def _digest_weights(teacher_id: str, storage: Storage) -> str:
    name = storage.weights(teacher_id)
    try:
        return hashlib.sha256(storage.backend.read(name)).hexdigest()
    except FileNotFoundError:
        path = storage.backend.describe(name)
        raise TeacherError(f"{path} is missing; launch the study again, which trains it") from None


def _is_complete(key: TableKey, expected: dict[str, Any], storage: Storage) -> bool:
    facts = read_json(storage, storage.table_facts(key))
    return (
        isinstance(facts, dict)
        and facts.get("made_from") == expected
        and storage.backend.read_sizes([storage.table(key)]) == [facts.get("bytes")]
    )


def _build(
    key: TableKey,
    model: Classifier,
    compute: Compute,
    data: Data,
    expected: dict[str, Any],
    storage: Storage,
    check: Check,
) -> None:
    """Builds the missing chunks, together with other workers, and joins them unless another worker has."""
    device = data.train.labels.device.type
    chunks = Chunks(storage, key, {**expected, "device": device}, 2 * expected["shape"][-1])
    try:
        while not _is_complete(key, expected, storage):
            check()
            chunks.build(compute, check, lambda: _is_complete(key, expected, storage))
            # A worker that was suspended, or whose chunks another removed as wrong, starts again with existing files.
            with suppress(LeaseLost), wait_for(storage, table_resource(key), check) as lease:
                if not _is_complete(key, expected, storage) and not chunks.missing():
                    _join(chunks, expected, model, data, lease)
                    chunks.delete()
    except TeacherError:
        chunks.delete()  # wrong ones must not be used again
        raise


def _join(chunks: Chunks, expected: dict[str, Any], model: Classifier, data: Data, lease: Lease) -> None:
    key, storage = chunks.key, chunks.storage
    rounding = _ROUNDING[data.train.labels.device.type]
    with storage.backend.stage(storage.table(key)) as part:
        with part.open("wb") as file:  # not memory-mapped: a full disk would then kill the process
            shape = tuple(expected["shape"])
            np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
            chunks.join(file)
        error = compare(torch.from_numpy(np.load(part, mmap_mode="c")), key, model, data, rounding)
        size = part.stat().st_size
        lease.check()
    lease.check()
    facts = {"made_from": expected, "key": encode_key(key), "bytes": size}
    write_json(storage, storage.table_facts(key), {**facts, "rounding": rounding, "largest_difference": error})


class _ChunkOutputs:
    """Computes the teacher's outputs for every view of every image, in the order of the table."""

    def __init__(self, key: TableKey, model: Classifier, data: Data, check: Check) -> None:
        self._key = key
        self._model = model.folded()
        self._data = data
        self._padded = ViewSpace(key.crop_padding, key.flip, key.padding).pad(data.train.pixels)
        self._check = check

    @torch.inference_mode()
    def compute(self, start: int, end: int) -> bytes:
        """The outputs numbered from `start` up to `end`, as the table holds them, batch by batch.

        Raises TeacherError for one that is too large for float16.
        """
        numbers = torch.arange(start, end, device=self._data.train.labels.device)
        batches = []
        for batch in torch.split(numbers, _BUILD_BATCHES[numbers.device.type]):
            self._check()
            images = self._padded.take(batch % self._key.images, batch // self._key.images)
            batches.append(getattr(self._model.embed(self._data.normalise(images)), self._key.outputs).half())
        stored = torch.cat(batches)
        if not torch.isfinite(stored).all():
            message = f"teacher {self._key.teacher_id} has an output that is larger than float16 holds (65,504)"
            raise TeacherError(f"{message}; use another teacher, or set teacher_cache: live")
        return stored.cpu().numpy().tobytes()


class _ChunkMeans:
    """Computes an ensemble's outputs from the tables [V, N, C] of its members."""

    def __init__(self, tables: Sequence[Tensor], check: Check) -> None:
        self._tables = [table.flatten(0, 1) for table in tables]
        self._check = check

    def compute(self, start: int, end: int) -> bytes:
        """The outputs numbered from `start` up to `end`, as the table holds them."""
        self._check()
        total = self._tables[0][start:end].float()
        for table in self._tables[1:]:
            total += table[start:end].float()
        return (total / len(self._tables)).half().numpy().tobytes()


@torch.no_grad()
def compare(table: Tensor, key: TableKey, model: Classifier, data: Data, rounding: float = _ROUNDING["cpu"]) -> float:
    """Compares the table with the live teacher on random views of random images; returns the largest difference.

    Raises TeacherError where a difference is larger than the rounding to float16, half a unit in its last place (2⁻¹¹
    of the value), plus `rounding` times the largest output, for products and sums in another order. In a mean, as much
    is allowed for each member.
    """
    device = data.train.labels.device
    generator = torch.Generator().manual_seed(secrets.randbits(63))  # different pairs in every check
    index = torch.randint(key.images, (_SAMPLE,), generator=generator).to(device)
    view = torch.randint(key.views, (_SAMPLE,), generator=generator).to(device)
    sampled = ViewSpace(key.crop_padding, key.flip, key.padding).pad(data.train.pixels[index])
    images = data.normalise(sampled.take(torch.arange(_SAMPLE, device=device), view))
    batch = Batch(images, data.train.labels[index], index, view, index)
    live = getattr(LiveTeacher(model, (key.outputs,))(batch), key.outputs)
    stored = table[view.cpu(), index.cpu()].float().to(device)
    difference = (live - stored).abs()
    allowed = 2.0**-11 * live.abs() + rounding * live.abs().max()
    if isinstance(model, Ensemble):
        members = model.embed_members(images).abs()
        allowed += (2.0**-11 * members + rounding * members.amax((1, 2), keepdim=True)).mean(0)
    wrong = ~(difference <= allowed)  # written so that a NaN is wrong
    if wrong.any():
        raise TeacherError(
            f"table {key.name} of teacher {key.teacher_id}: {int(wrong.any(1).sum())} of {_SAMPLE} sampled outputs "
            f"are not the teacher's, the largest difference is {float(difference.max()):.3g}; remove its two files, "
            "and the next launch builds it again"
        )
    return float(difference.max())


def _map(key: TableKey, shape: Sequence[int], storage: Storage) -> Tensor:
    name = storage.table(key)
    try:
        path = storage.backend.local_path(name)
        table = np.lib.format.open_memmap(path, mode="c")  # copy on write: nobody can change the file
        if table.dtype != np.float16 or list(table.shape) != list(shape):
            raise ValueError(f"found {table.dtype} of shape {table.shape}, expected float16 of shape {tuple(shape)}")
    except StorageError:
        raise
    except Exception as error:  # a damaged header makes NumPy raise errors of several types
        damaged = storage.backend.describe(name)
        raise TeacherError(f"{damaged} is damaged ({error}); remove it, and the next launch builds it again") from None
    return torch.from_numpy(table)


def verify(key: TableKey, config: TrialConfig, data: Data, storage: Storage, device: torch.device) -> float:
    """Repeats the check of a stored table; returns the largest difference. Raises TeacherError where it is wrong."""
    expected = _make_facts(key, config, storage)
    if not _is_complete(key, expected, storage):
        path = storage.backend.describe(storage.table(key))
        raise TeacherError(f"{path} was not made from this teacher; remove it and the .json file next to it")
    table = _map(key, expected["shape"], storage)
    return compare(table, key, load_teacher(config, storage, device), data, _find_rounding(key, storage, device))


def _find_rounding(key: TableKey, storage: Storage, device: torch.device) -> float:
    """The tolerance of a table, given the device that built it and the one that checks it."""
    facts = read_json(storage, storage.table_facts(key))
    recorded = facts.get("rounding") if isinstance(facts, dict) else None
    # Only a known value counts: a damaged one could accept any table.
    return max(value for value in _ROUNDING.values() if value in (recorded, _ROUNDING[device.type]))
