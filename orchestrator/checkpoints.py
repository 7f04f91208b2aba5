"""Checkpoints: a training under way in one file with a digest of its own, and the newest such file that is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from orchestrator.errors import StorageError
from orchestrator.records import EpochRecord
from orchestrator.storage import Storage
from orchestrator.training import Course

# A file is three parts: this and the SHA-256 of the rest in hex, the facts as JSON, the tensors as safetensors; the
# first two end with a new line. Nothing in it is ever executed.
_FORMAT = b"kdctl-checkpoint-1 "
_KEPT = 2  # the last one, and the one before it in case that one is damaged


def save_checkpoint(storage: Storage, trial_id: str, course: Course, epochs: Sequence[EpochRecord]) -> None:
    """Writes where a training stands, with the records of its epochs so far; older checkpoints but one go.

    Raises StorageError where it cannot be written; the earlier ones are then still there.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in course.tensors().items()}
    facts = {
        "trial_id": trial_id,
        "epoch": course.epoch,
        "images": course.images,
        "seconds": course.seconds,
        "with_teacher": course.with_teacher,
        "epochs": [asdict(record) for record in epochs],
    }
    payload = json.dumps(facts).encode() + b"\n" + save(tensors)
    digest = hashlib.sha256(payload).hexdigest().encode()
    storage.place.write(storage.checkpoint(trial_id, course.epoch, course.images), _FORMAT + digest + b"\n" + payload)
    for name in _names(storage, trial_id)[:-_KEPT]:
        storage.place.delete(name)


def restore_checkpoint(
    storage: Storage, trial_id: str, course: Course, say: Callable[[str], None]
) -> list[EpochRecord] | None:
    """Brings a fresh course to where the newest whole checkpoint stands; returns its epochs, None without one.

    A damaged checkpoint is named to `say` and passed over for the one before it.
    """
    for name in reversed(_names(storage, trial_id)):
        try:
            facts, tensors = _read(storage.place.read(name), trial_id)
            epochs = [EpochRecord(**record) for record in facts["epochs"]]
            position = (int(facts["epoch"]), int(facts["images"]), float(facts["seconds"]))
            if position[0] != len(epochs) + 1 or position[1] < 0:
                raise ValueError("its epochs are not those before it")
            course.restore(tensors)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError, StorageError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            say(f"checkpoint {storage.place.shown(name)} is damaged ({reason}) and passed over for the one before it")
            continue
        course.epoch, course.images, course.seconds = position
        course.with_teacher = bool(facts["with_teacher"])
        return epochs
    return None


def drop_checkpoints(storage: Storage, trial_id: str) -> None:
    """Removes what a finished trial does not need any more."""
    for name in _names(storage, trial_id):
        storage.place.delete(name)


def _names(storage: Storage, trial_id: str) -> list[str]:
    return [entry.name for entry in storage.place.entries(storage.checkpoints(trial_id))]


def _read(content: bytes, trial_id: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    head, _, payload = content.partition(b"\n")
    if head != _FORMAT + hashlib.sha256(payload).hexdigest().encode():
        raise ValueError("its digest is not that of its content")
    facts, _, tensors = payload.partition(b"\n")
    parsed = json.loads(facts)
    if parsed["trial_id"] != trial_id:
        raise ValueError(f"it is of trial {parsed['trial_id']}")
    return parsed, load(tensors)
