"""The teacher, twice cached: its weights, and a table of its answers for every view of every training image."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from orchestrator import models
from orchestrator.data.registry import facts_of
from orchestrator.data.tensors import Data
from orchestrator.data.views import ViewSpace
from orchestrator.errors import LeaseLost, StorageError, TeacherError
from orchestrator.losses.base import TeacherOutputs
from orchestrator.models.base import Classifier
from orchestrator.pretrained import weight_files
from orchestrator.records import TableKey, TrialConfig
from orchestrator.storage.layout import Storage, key_facts, read_json, write_json
from orchestrator.storage.leases import Lease, table_resource, wait_for
from orchestrator.teachers.chunks import Slices
from orchestrator.training.batches import Batch, EpochOrder
from orchestrator.training.evaluation import Check, unchecked
from orchestrator.training.seeds import build_seeded

TABLE_FORMAT = 2  # raise it when the same key would hold other bytes
# Small enough for the caches of a CPU, large enough to keep a GPU busy.
_BUILD_BATCHES = {"cpu": 500, "cuda": 5000}
# What an answer may be off by, as a share of the largest one: float16 as stored, and sums in another order. A GPU
# multiplies float32 as TF32, of ten bits, whose roundings add up over a hundred layers.
_ROUNDING = {"cpu": 2.0**-11, "cuda": 2.0**-7}
_SHARE = 1 / 8  # of the free memory of a GPU that one table may take
_SAMPLE = 1000  # random (view, image) pairs that a check asks about


# Three ways to get a teacher's outputs, with one signature (`batches.Teacher`).


def no_teacher(batch: Batch) -> TeacherOutputs:
    """For methods without a teacher."""
    return TeacherOutputs()


@dataclass(frozen=True)
class LiveTeacher:
    """Runs the teacher on every batch; it is in eval mode and has no gradient."""

    model: Classifier
    needs: tuple[str, ...]

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherOutputs:
        outputs = self.model.embed(batch.images)
        return TeacherOutputs(**{name: getattr(outputs, name) for name in self.needs})


@dataclass(frozen=True)
class TableTeacher:
    """Looks the answers up: `table` is float16 [V, N, C], `answers` says what of the teacher it holds."""

    table: Tensor
    answers: str

    def __call__(self, batch: Batch) -> TeacherOutputs:
        return TeacherOutputs(**{self.answers: self.table[batch.view, batch.index].float()})


class HostTable:
    """A table [V, N, C] of float16 that stays on the host, for a device without room for it.

    An epoch asks one answer an image. They are looked up while the device is still at work on the epoch before, and
    moved there at once: [N, C] a trial is all that lies on the device.
    """

    def __init__(self, table: Tensor, answers: str, device: torch.device) -> None:
        self.table = table
        self.answers = answers
        self._next = torch.empty(0)
        self._now = torch.empty(table.shape[1:], dtype=table.dtype, device=device)

    def prepare(self, order: EpochOrder) -> None:
        """Looks up the answers of the next epoch."""
        self._next = self.table[order.views, order.order]

    def begin(self) -> None:
        """Moves them to the device."""
        self._now.copy_(self._next)

    def __call__(self, batch: Batch) -> TeacherOutputs:
        return TeacherOutputs(**{self.answers: self._now[batch.place].float()})


# Weights.


def load_weights(path: Path, model: str, classes: int, device: torch.device, digest: str | None = None) -> Classifier:
    """A model in eval mode with the weights of a file, in any of the formats of `weights_formats`.

    Nothing in the file is executed. Raises TeacherError where it is damaged, does not fit, or has another SHA-256.
    """
    state = weight_files.fit(weight_files.read(path, digest), path, model, classes)
    built = build_seeded(lambda: models.build(model, classes), 0, device)
    built.load_state_dict({**built.state_dict(), **state})  # counters of batches may be missing
    return built.eval().requires_grad_(False)


def save_weights(model: Classifier, storage: Storage, trial_id: str) -> tuple[int, str]:
    """Writes a trial's weights as safetensors; returns the size of the file and its SHA-256."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    content = save(state)
    storage.backend.write(storage.weights(trial_id), content)
    return len(content), hashlib.sha256(content).hexdigest()


def load_teacher(config: TrialConfig, storage: Storage, device: torch.device) -> Classifier:
    """A trained teacher from the storage, in eval mode. Raises TeacherError where its weights are not whole."""
    name = storage.weights(config.trial_id())
    try:
        path = storage.backend.local_path(name)
    except FileNotFoundError:
        shown = storage.backend.describe(name)
        raise TeacherError(f"{shown} is missing; launch the study again, which trains what is missing") from None
    return load_weights(path, config.student, facts_of(config).classes, device)


# The table.


def open_table(
    key: TableKey,
    config: TrialConfig,
    data: Data,
    storage: Storage,
    device: torch.device,
    check: Check = unchecked,
) -> TableTeacher | HostTable:
    """The table of a teacher (its `config`) over the training images of `data`, built first where it is missing.

    All workers that want it build it together; `check` is called meanwhile. On the CPU, and where a GPU has no room
    to spare, the table stays in the file, memory-mapped: one copy for all workers of a machine. Raises TeacherError
    where the table does not say what the teacher says.
    """
    wanted = _facts(key, config, storage)
    if not _is_whole(key, wanted, storage):
        _build(key, load_teacher(config, storage, device), data, wanted, storage, check)
    table = _map(key, wanted["shape"], storage)
    if device.type == "cuda" and table.nbytes > torch.cuda.mem_get_info(device)[0] * _SHARE:
        return HostTable(table, key.answers, device)
    return TableTeacher(table.to(device), key.answers)


def has_table(key: TableKey, storage: Storage) -> bool:
    """Whether a table stands there, without a look into it."""
    return None not in storage.backend.read_sizes([storage.table(key), storage.table_facts(key)])


def _facts(key: TableKey, config: TrialConfig, storage: Storage) -> dict[str, Any]:
    """Everything that can change a byte of a table."""
    facts = facts_of(config)
    width = facts.classes if key.answers == "logits" else models.widths(config.student).pooled
    return {
        "format": TABLE_FORMAT,
        "dtype": "float16",
        "shape": [key.views, key.images, width],
        "key": key_facts(key),
        "model": config.student,
        "weights": _weights_digest(key.teacher_id, storage),
        "dataset": config.dataset,
        "dataset_digest": facts.digest,
        "mean": list(facts.mean),
        "std": list(facts.std),
    }


def _weights_digest(teacher_id: str, storage: Storage) -> str:
    name = storage.weights(teacher_id)
    try:
        return hashlib.sha256(storage.backend.read(name)).hexdigest()
    except FileNotFoundError:
        shown = storage.backend.describe(name)
        raise TeacherError(f"{shown} is missing; launch the study again, which trains it") from None


def _is_whole(key: TableKey, wanted: dict[str, Any], storage: Storage) -> bool:
    facts = read_json(storage, storage.table_facts(key))
    return (
        isinstance(facts, dict)
        and facts.get("made_from") == wanted
        and storage.backend.read_sizes([storage.table(key)]) == [facts.get("bytes")]
    )


def _build(
    key: TableKey, model: Classifier, data: Data, wanted: dict[str, Any], storage: Storage, check: Check
) -> None:
    """Builds the slices that are left, together with whoever else does, and puts them together unless another did."""
    device = data.train.labels.device.type
    slices = Slices(storage, key, {**wanted, "device": device}, 2 * wanted["shape"][-1])
    questions = _Questions(key, model, data, check)
    try:
        while not _is_whole(key, wanted, storage):
            check()
            slices.build(questions.ask, check, lambda: _is_whole(key, wanted, storage))
            # Who stood still, or finds slices gone that another took for wrong, begins again with what there is.
            with suppress(LeaseLost), wait_for(storage, table_resource(key), check) as lease:
                if not _is_whole(key, wanted, storage) and not slices.missing():
                    _join(slices, wanted, model, data, lease)
                    slices.drop()
    except TeacherError:
        slices.drop()  # what is wrong is not to be used again
        raise


def _join(slices: Slices, wanted: dict[str, Any], model: Classifier, data: Data, lease: Lease) -> None:
    key, storage = slices.key, slices.storage
    rounding = _ROUNDING[data.train.labels.device.type]
    with storage.backend.stage(storage.table(key)) as part:
        with part.open("wb") as file:  # not mapped: a disk that is full would then kill the process
            shape = tuple(wanted["shape"])
            np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
            slices.join(file)
        error = compare(torch.from_numpy(np.load(part, mmap_mode="c")), key, model, data, rounding)
        size = part.stat().st_size
        lease.check()
    lease.check()
    facts = {"made_from": wanted, "key": key_facts(key), "bytes": size}
    write_json(storage, storage.table_facts(key), {**facts, "rounding": rounding, "largest_difference": error})


class _Questions:
    """The teacher and everything that it is asked: every view of every image, in the order of the table."""

    def __init__(self, key: TableKey, model: Classifier, data: Data, check: Check) -> None:
        self._key = key
        self._model = model.folded()
        self._data = data
        self._padded = ViewSpace(key.crop_padding, key.flip).pad(data.train.pixels)
        self._check = check

    @torch.inference_mode()
    def ask(self, start: int, end: int) -> bytes:
        """The answers to a range of questions, as the table holds them. Raises TeacherError for one that is too large.

        At one batch at a time, in a bounded amount of memory.
        """
        numbers = torch.arange(start, end, device=self._data.train.labels.device)
        said = []
        for some in torch.split(numbers, _BUILD_BATCHES[numbers.device.type]):
            self._check()
            images = self._padded.take(some % self._key.images, some // self._key.images)
            said.append(getattr(self._model.embed(self._data.normalise(images)), self._key.answers).half())
        stored = torch.cat(said)
        if not torch.isfinite(stored).all():
            message = f"teacher {self._key.teacher_id} answers with more than float16 holds (65,504)"
            raise TeacherError(f"{message}; use another teacher, or set teacher_cache: live")
        return stored.cpu().numpy().tobytes()


@torch.no_grad()
def compare(table: Tensor, key: TableKey, model: Classifier, data: Data, rounding: float = _ROUNDING["cpu"]) -> float:
    """Asks the teacher live about random views of random images; returns the largest difference to the table.

    Raises TeacherError where one is more than the rounding to float16, half a unit in its last place (2⁻¹¹ of the
    value), and `rounding` of the largest answer, for what was multiplied and added another way.
    """
    device = data.train.labels.device
    generator = torch.Generator().manual_seed(secrets.randbits(63))  # other pairs at every check
    index = torch.randint(key.images, (_SAMPLE,), generator=generator).to(device)
    view = torch.randint(key.views, (_SAMPLE,), generator=generator).to(device)
    sampled = ViewSpace(key.crop_padding, key.flip).pad(data.train.pixels[index])
    images = data.normalise(sampled.take(torch.arange(_SAMPLE, device=device), view))
    batch = Batch(images, data.train.labels[index], index, view, index)
    live = getattr(LiveTeacher(model, (key.answers,))(batch), key.answers)
    stored = table[view.cpu(), index.cpu()].float().to(device)
    difference = (live - stored).abs()
    allowed = 2.0**-11 * live.abs() + rounding * live.abs().max()
    wrong = ~(difference <= allowed)  # so that a NaN is wrong
    if wrong.any():
        raise TeacherError(
            f"table {key.name} of teacher {key.teacher_id}: {int(wrong.any(1).sum())} of {_SAMPLE} sampled answers are "
            f"not the teacher's, the largest difference is {float(difference.max()):.3g}; remove its two files, and "
            "the next launch builds it anew"
        )
    return float(difference.max())


def _map(key: TableKey, shape: Sequence[int], storage: Storage) -> Tensor:
    name = storage.table(key)
    try:
        path = storage.backend.local_path(name)
        table = np.lib.format.open_memmap(path, mode="c")  # copy on write: nobody can change it
        if table.dtype != np.float16 or list(table.shape) != list(shape):
            raise ValueError(f"got {table.dtype} of shape {table.shape}, wanted float16 of shape {tuple(shape)}")
    except StorageError:
        raise
    except Exception as error:  # a damaged header makes NumPy raise errors of several types
        shown = storage.backend.describe(name)
        raise TeacherError(f"{shown} is damaged ({error}); remove it, and the next launch builds it anew") from None
    return torch.from_numpy(table)


def verify(key: TableKey, config: TrialConfig, data: Data, storage: Storage, device: torch.device) -> float:
    """Repeats the check of a stored table; returns the largest difference. Raises TeacherError where it is wrong."""
    wanted = _facts(key, config, storage)
    if not _is_whole(key, wanted, storage):
        shown = storage.backend.describe(storage.table(key))
        raise TeacherError(f"{shown} was made from something else than this teacher; remove it and its .json beside it")
    table = _map(key, wanted["shape"], storage)
    return compare(table, key, load_teacher(config, storage, device), data, _rounding(key, storage, device))


def _rounding(key: TableKey, storage: Storage, device: torch.device) -> float:
    """What a table may be off by, given where it was built and where it is looked at."""
    facts = read_json(storage, storage.table_facts(key))
    recorded = facts.get("rounding") if isinstance(facts, dict) else None
    # One that is damaged shall not let everything pass.
    return max(value for value in _ROUNDING.values() if value in (recorded, _ROUNDING[device.type]))
