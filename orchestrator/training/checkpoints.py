"""Checkpoints: each stores an unfinished training in one file with a digest; the newest undamaged one is restored."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from orchestrator import codec
from orchestrator.records import EpochRecord
from orchestrator.storage.layout import CHECKPOINTS_KEPT, Storage
from orchestrator.text import first_line, printable
from orchestrator.training.state import Position, TrainingState

# A file has three parts: this and the SHA-256 of the rest in hex, the facts as JSON, the tensors as safetensors. The
# first two end with a newline. Nothing in it is ever executed.
_FORMAT = b"kdctl-checkpoint-1 "


def save_checkpoint(storage: Storage, trial_id: str, state: TrainingState, epochs: Sequence[EpochRecord]) -> None:
    """Writes a training's state with the records of its epochs so far; keeps the checkpoint before it, and no others.

    Raises StorageError where it cannot be written; the earlier ones are then still there.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors().items()}
    facts = {"trial_id": trial_id, **_encode_position(state.position), "epochs": codec.encode(epochs)}
    payload = json.dumps(facts).encode() + b"\n" + save(tensors)
    digest = hashlib.sha256(payload).hexdigest().encode()
    written = storage.checkpoint(trial_id, state.epoch, state.images)
    storage.backend.write(written, _FORMAT + digest + b"\n" + payload)
    names = _list_names(storage, trial_id)
    # Later ones were skipped as damaged, or another process wrote them while this one was suspended.
    kept = [name for name in names if name <= written][-CHECKPOINTS_KEPT:]
    for name in names:
        if name not in kept:
            storage.backend.delete(name)


def restore_checkpoint(
    storage: Storage, trial_id: str, state: TrainingState, on_note: Callable[[str], None]
) -> list[EpochRecord] | None:
    """Brings a fresh state to the newest undamaged checkpoint; returns its epochs, or None if there is no checkpoint.

    `on_note` gets a sentence for each damaged checkpoint; the one before it is used instead. Raises StorageError if the
    storage cannot be read, as a lost connection must not make the training start again.
    """
    for name in reversed(_list_names(storage, trial_id)):
        content = storage.backend.read(name)
        try:
            facts, tensors = _read(content, trial_id)
            epochs = _decode_epochs(facts["epochs"])
            position = _decode_position(facts, len(epochs) + 1)
            state.restore(tensors)
        except (MemoryError, torch.OutOfMemoryError):
            raise  # the file is good; the next attempt may have room for it
        except Exception as error:  # a damaged file makes json, safetensors and torch raise errors of a dozen types
            reason = printable(first_line(error)[:200])
            path = storage.backend.describe(name)
            on_note(f"checkpoint {path} is damaged ({reason}); the one before it is used instead")
            continue
        state.move_to(position)
        return epochs
    return None


def _decode_epochs(facts: list[Any]) -> list[EpochRecord]:
    records = [codec.decode(EpochRecord, record) for record in facts]
    if [record.epoch for record in records] != list(range(1, len(records) + 1)):
        raise ValueError("its epochs do not follow each other")
    return records


# The names of a position's fields in a file, in their order.
_POSITION_NAMES = ("epoch", "images", "seconds", "with_teacher", "arithmetic", "asked", "threads")
_LATER_NAMES = ("threads",)  # which files of earlier versions lack


def _encode_position(position: Position) -> dict[str, Any]:
    return dict(zip(_POSITION_NAMES, astuple(position), strict=True))


def _decode_position(facts: dict[str, Any], epoch: int) -> Position:
    """The position in a file's facts; `epoch` is the one after the recorded epochs."""
    match [facts.get(name) if name in _LATER_NAMES else facts[name] for name in _POSITION_NAMES]:
        case [
            int(found),
            int(images),
            float(seconds),
            bool(with_teacher),
            ("float32" | "bfloat16" | "float16") as compute_dtype,
            (None | "table" | "live") as teacher_mode,
            threads,
        ]:
            is_count = threads is None or (type(threads) is int and threads > 0)
            if found == epoch and images >= 0 and 0 <= seconds < math.inf and is_count:
                return Position(epoch, int(images), seconds, with_teacher, compute_dtype, teacher_mode, threads)
    raise ValueError("its position does not follow from its epochs")


def drop_checkpoints(storage: Storage, trial_id: str) -> None:
    """Removes the checkpoints of a finished trial."""
    for name in _list_names(storage, trial_id):
        storage.backend.delete(name)


def _list_names(storage: Storage, trial_id: str) -> list[str]:
    names = (entry.name for entry in storage.backend.list_files(storage.checkpoints(trial_id)))
    return [name for name in names if storage.is_ours(name)]


def _read(content: bytes, trial_id: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    head, _, payload = content.partition(b"\n")
    if head != _FORMAT + hashlib.sha256(payload).hexdigest().encode():
        raise ValueError("its digest does not match its content")
    facts, _, tensors = payload.partition(b"\n")
    parsed = json.loads(facts)
    if parsed["trial_id"] != trial_id:
        raise ValueError(f"it belongs to trial {parsed['trial_id']!r}")
    return parsed, load(tensors)
