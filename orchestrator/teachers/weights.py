"""A teacher's weights: written when it is trained, read when it teaches."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from orchestrator import models
from orchestrator.data.registry import facts_of_trial
from orchestrator.errors import DivergedError, TeacherError
from orchestrator.models.base import Classifier
from orchestrator.models.ensemble import Ensemble
from orchestrator.pretrained import weight_files
from orchestrator.records import TrialConfig
from orchestrator.storage.layout import Storage
from orchestrator.training.seeds import build_seeded


def load_weights(path: Path, model: str, classes: int, device: torch.device, digest: str | None = None) -> Classifier:
    """A model in eval mode with the weights of a file, in any format that `pretrained` reads.

    Nothing in the file is executed. Raises TeacherError where it is damaged, does not fit, or has another SHA-256.
    """
    return build_loaded(weight_files.read(path, digest), path, model, classes, device)


def build_loaded(content: Any, path: Path, model: str, classes: int, device: torch.device) -> Classifier:
    """A model in eval mode with the weights in the content of a file, see `load_weights`."""
    state = weight_files.fit(content, path, model, classes)
    built = build_seeded(lambda: models.build(model, classes), 0, device)
    built.load_state_dict({**built.state_dict(), **state})  # batch counters may be missing
    return built.eval().requires_grad_(False)


def save_weights(model: Classifier, storage: Storage, trial_id: str) -> tuple[int, str]:
    """Writes a trial's weights as safetensors; returns the size of the file and its SHA-256.

    Raises DivergedError where the last step made a weight infinite or NaN: no loss was computed with it.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if bad := next((name for name, tensor in state.items() if not tensor.isfinite().all()), None):
        raise DivergedError(f"after the last epoch {bad} is not finite; try a smaller lr")
    content = save(state)
    storage.backend.write(storage.weights(trial_id), content)
    return len(content), hashlib.sha256(content).hexdigest()


def load_ensemble(config: TrialConfig, storage: Storage, device: torch.device) -> Classifier:
    """An ensemble of trained members from the storage, in eval mode. Raises TeacherError as `load_teacher` does."""
    return Ensemble(load_teacher(member, storage, device) for member in config.members).eval()


def load_teacher(config: TrialConfig, storage: Storage, device: torch.device) -> Classifier:
    """A trained teacher from the storage, in eval mode. Raises TeacherError for missing or damaged weights."""
    name = storage.weights(config.trial_id())
    try:
        path = storage.backend.local_path(name)
    except FileNotFoundError:
        missing = storage.backend.describe(name)
        raise TeacherError(f"{missing} is missing; launch the study again, which trains the teacher again") from None
    return load_weights(path, config.student, facts_of_trial(config).classes, device)
