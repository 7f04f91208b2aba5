"""Weights files that the user brings for a teacher: which of a file's tensors fit, and why the others do not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator import models
from orchestrator.errors import TeacherError
from orchestrator.pretrained._formats import UnreadableWeights, parse, select_tensors
from orchestrator.pretrained._mismatches import find_mismatches
from orchestrator.text import printable

_WRAPPERS = {"module", "_orig_mod"}  # DataParallel and torch.compile add these to names; no model of kdctl uses them
_DEEPEST = 4  # levels of nested mappings that are searched
_COUNTER = "num_batches_tracked"  # changes no output of a model in eval mode, and old files lack it
_ACCURACIES = ("accuracy", "best_acc", "best_acc1")  # what the field's checkpoints call it; the first is of their epoch

State = Mapping[str, Tensor | None]  # None for a value that is not a dense tensor of numbers


def read(path: Path, digest: str | None = None) -> Any:
    """Reads the content of a weights file: a state dict, or nested mappings that may contain one.

    Nothing in it is executed. Raises TeacherError where the file is missing, damaged, in an unknown format, or has
    another SHA-256 than `digest`.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise TeacherError(f"{path} is missing; put the file there, or remove it from the study file") from None
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror or error}); name a weights file that you may read"
        raise TeacherError(message) from None
    found = hashlib.sha256(raw).hexdigest()
    if digest not in (None, found):
        raise TeacherError(
            f"{path} changed after the plan was made: its SHA-256 is {found[:12]}…, expected {digest[:12]}…; restore "
            "the planned file, or launch again to use this one as a different teacher"
        )
    try:
        return parse(raw)
    except UnreadableWeights as error:
        raise TeacherError(f"{path} {printable(str(error)).replace('FILE', repr(path.name))}") from None


def find_problems(path: Path, digest: str, teachers: Iterable[tuple[str, int]]) -> list[str]:
    """Why a file does not hold the weights of each of these models, given with their numbers of classes."""
    try:
        content = read(path, digest)
    except TeacherError as error:
        return [str(error)]
    found = []
    for model, classes in teachers:
        try:
            fit(content, path, model, classes)
        except TeacherError as error:
            found.append(str(error))
    return found


def find_stated_accuracy(content: Any) -> tuple[str, float] | None:
    """The accuracy in % that a checkpoint states next to its weights, after its key; None without one. See `read`."""
    if not isinstance(content, Mapping):
        return None
    for key in _ACCURACIES:
        value = content.get(key)
        if isinstance(value, Tensor) and value.numel() == 1 and value.dtype in (torch.float32, torch.float64):
            value = value.item()
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 100:
            return key, float(value if value > 1 else 100 * value)  # some state a fraction
    return None


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Tensors in a file that may be a model's: their location in it, and the tensors by name without a prefix."""

    location: str
    state: State

    def similarity(self, expected: Mapping[str, Tensor]) -> int:
        """Twice the number of expected names that it has, less one where it has others."""
        return 2 * len(self.state.keys() & expected.keys()) - bool(self.state.keys() - expected.keys())

    def has_names(self, expected: Mapping[str, Tensor]) -> bool:
        """Whether it has every name of the model, and no other."""
        return _remove_counters(self.state) == _remove_counters(expected) and self.state.keys() <= expected.keys()

    def has_shapes(self, expected: Mapping[str, Tensor]) -> bool:
        """Whether its tensors have the shapes of the model's."""
        return all(tensor is not None and tensor.shape == expected[name].shape for name, tensor in self.state.items())

    def equals(self, other: _Candidate) -> bool:
        """Whether both are the same weights."""
        return self.state.keys() == other.state.keys() and all(
            tensor is not None and found is not None and torch.equal(tensor, found)
            for tensor, found in ((self.state[name], other.state[name]) for name in self.state)
        )


def _remove_counters(state: Mapping[str, Any]) -> set[str]:
    return {name for name in state if not name.endswith(_COUNTER)}


def fit(content: Any, path: Path, model: str, classes: int) -> dict[str, Tensor]:
    """The float32 state of a model from the content of its weights file, see `read`. Batch counters may be missing.

    Raises TeacherError that states what is wrong where nothing fits, or where several different states fit.
    """
    with torch.device("meta"):
        expected = models.build(model, classes).state_dict()
    found = list(_find_candidates(content, expected))
    has_tensors = any(tensor is not None for candidate in found for tensor in candidate.state.values())
    if not has_tensors and content != {}:
        raise TeacherError(f"{path} holds no dense tensors of numbers by name; save only model.state_dict()")
    chosen = _choose(found, expected, path)
    state, problems = _convert(chosen.state), find_mismatches(chosen.state, expected, model, classes)
    if not problems:  # only then: a tensor of another shape may be far larger than its file
        problems = [f"{name} is not finite" for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if problems:
        listed = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        where = f" (compared {chosen.location})" if chosen.location else ""
        message = f"{path} does not fit {model} with {classes} classes{where}: {listed}; give weights of that model"
        raise TeacherError(printable(message))
    return state


def _convert(state: State) -> dict[str, Tensor]:
    """Weights in float32, whatever their stored dtype; counters unchanged."""
    return {
        name: tensor if name.endswith(_COUNTER) or _is_expanded(tensor) else tensor.float()
        for name, tensor in state.items()
        if tensor is not None
    }


def _is_expanded(tensor: Tensor) -> bool:
    """Whether it has more numbers than stored bytes, so that a copy may fill the memory."""
    return tensor.numel() > tensor.untyped_storage().nbytes()


def _choose(found: list[_Candidate], expected: Mapping[str, Tensor], path: Path) -> _Candidate:
    """The candidate that fits; where none does, the one most similar to the model, for a message about it."""
    named = [candidate for candidate in found if candidate.has_names(expected)]
    fitting = [candidate for candidate in named if candidate.has_shapes(expected)]
    others = [candidate for candidate in fitting[1:] if not candidate.equals(fitting[0])]
    if others:
        listed = ", ".join(candidate.location for candidate in (fitting[0], *others))
        raise TeacherError(
            f"{path} holds {1 + len(others)} different states that fit: {listed}; save only the teacher's, "
            "like `torch.save(torch.load(FILE, 'cpu')['model'], 'state.pth')`, and name state.pth".replace(
                "FILE", repr(path.name)
            )
        )
    if fitting or named:
        return (fitting or named)[0]
    return max(found, key=lambda candidate: candidate.similarity(expected), default=_Candidate("", {}))


def _find_candidates(content: Any, expected: Mapping[str, Tensor]) -> Iterator[_Candidate]:
    """Every mapping of tensors in a file, once for each prefix that a model's names may have in it."""
    anchor = next(iter(expected))  # a name that every state of such a model has
    for path, mapping in _find_mappings(content, ()):
        state = _remove_wrappers(select_tensors(mapping))
        prefixes = {name.removesuffix(anchor) for name in state if name == anchor or name.endswith(f".{anchor}")}
        for prefix in sorted({"", *prefixes}, key=len):
            inner = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
            if inner:
                yield _Candidate(_describe(path, prefix), inner)


def _find_mappings(content: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    if isinstance(content, Mapping):
        yield path, content
        if len(path) < _DEEPEST:
            for name, inner in content.items():
                yield from _find_mappings(inner, (*path, str(name)))


def _remove_wrappers(state: State) -> State:
    bare = {".".join(part for part in name.split(".") if part not in _WRAPPERS): name for name in state}
    return {short: state[name] for short, name in bare.items()} if len(bare) == len(state) else state


def _describe(path: tuple[str, ...], prefix: str) -> str:
    """The location of tensors in a file, like `['model'], names that begin with net.`; empty for the entire file."""
    parts = ("".join(f"[{name!r}]" for name in path), f"names that begin with {prefix}" if prefix else "")
    return ", ".join(filter(None, parts))
