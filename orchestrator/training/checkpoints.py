"""Checkpoints: a training under way in one file with a digest of its own, and the newest such file that is whole."""

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

# A file is three parts: this and the SHA-256 of the rest in hex, the facts as JSON, the tensors as safetensors; the
# first two end with a new line. Nothing in it is ever executed.
_FORMAT = b"kdctl-checkpoint-1 "


def save_checkpoint(storage: Storage, trial_id: str, state: TrainingState, epochs: Sequence[EpochRecord]) -> None:
    """Writes a training's state with the records of its epochs so far; keeps the checkpoint before, and no others.

    Raises StorageError where it cannot be written; the earlier ones are then still there.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors().items()}
    facts = {"trial_id": trial_id, **_facts_of(state.position), "epochs": codec.encode(epochs)}
    payload = json.dumps(facts).encode() + b"\n" + save(tensors)
    digest = hashlib.sha256(payload).hexdigest().encode()
    written = storage.checkpoint(trial_id, state.epoch, state.images)
    storage.backend.write(written, _FORMAT + digest + b"\n" + payload)
    names = _names(storage, trial_id)
    # Later ones were passed over as damaged, or somebody else wrote them while we stood still.
    kept = [name for name in names if name <= written][-CHECKPOINTS_KEPT:]
    for name in names:
        if name not in kept:
            storage.backend.delete(name)


def restore_checkpoint(
    storage: Storage, trial_id: str, state: TrainingState, say: Callable[[str], None]
) -> list[EpochRecord] | None:
    """Brings a fresh state to where the newest whole checkpoint stands; returns its epochs, None without one.

    A damaged checkpoint is named to `say` and passed over for the one before it. Raises StorageError where the storage
    cannot be read: what it holds is not to be trained again for a cut link.
    """
    for name in reversed(_names(storage, trial_id)):
        content = storage.backend.read(name)
        try:
            facts, tensors = _read(content, trial_id)
            epochs = _epochs(facts["epochs"])
            position = _position(facts, len(epochs) + 1)
            state.restore(tensors)
        except (MemoryError, torch.OutOfMemoryError):
            raise  # the file is good; the next attempt may have room for it
        except Exception as error:  # a damaged file makes json, safetensors and torch raise errors of a dozen types
            reason = printable(first_line(error)[:200])
            shown = storage.backend.describe(name)
            say(f"checkpoint {shown} is damaged ({reason}) and passed over for the one before it")
            continue
        state.move_to(position)
        return epochs
    return None


def _epochs(facts: list[Any]) -> list[EpochRecord]:
    records = [codec.decode(EpochRecord, record) for record in facts]
    if [record.epoch for record in records] != list(range(1, len(records) + 1)):
        raise ValueError("its epochs do not follow each other")
    return records


# What a position's fields are called in a file, in their order.
_NAMES = ("epoch", "images", "seconds", "with_teacher", "arithmetic", "asked")


def _facts_of(position: Position) -> dict[str, Any]:
    return dict(zip(_NAMES, astuple(position), strict=True))


def _position(facts: dict[str, Any], epoch: int) -> Position:
    """The position in a file's facts; `epoch` is the one after those that are recorded."""
    match [facts[name] for name in _NAMES]:
        case [
            int(found),
            int(images),
            float(seconds),
            bool(with_teacher),
            ("float32" | "bfloat16") as compute_dtype,
            (None | "table" | "live") as teacher_mode,
        ]:
            if found == epoch and images >= 0 and 0 <= seconds < math.inf:
                return Position(epoch, int(images), seconds, with_teacher, compute_dtype, teacher_mode)
    raise ValueError("its epochs are not those before it")


def drop_checkpoints(storage: Storage, trial_id: str) -> None:
    """Removes what a finished trial does not need any more."""
    for name in _names(storage, trial_id):
        storage.backend.delete(name)


def _names(storage: Storage, trial_id: str) -> list[str]:
    names = (entry.name for entry in storage.backend.list_files(storage.checkpoints(trial_id)))
    return [name for name in names if storage.is_ours(name)]


def _read(content: bytes, trial_id: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    head, _, payload = content.partition(b"\n")
    if head != _FORMAT + hashlib.sha256(payload).hexdigest().encode():
        raise ValueError("its digest is not that of its content")
    facts, _, tensors = payload.partition(b"\n")
    parsed = json.loads(facts)
    if parsed["trial_id"] != trial_id:
        raise ValueError(f"it is of trial {parsed['trial_id']!r}")
    return parsed, load(tensors)
