"""Teacher weights that the user brings: which of a file's tensors they are, and what is wrong where they do not fit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator import models
from orchestrator.errors import TeacherError, printable
from orchestrator.pretrained.formats import UnreadableWeights, parse, tensors
from orchestrator.pretrained.mismatches import reasons

_WRAPPERS = {"module", "_orig_mod"}  # what DataParallel and torch.compile put into names; no model of ours has them
_DEEPEST = 4  # mappings within mappings that are looked into
_COUNTER = "num_batches_tracked"  # changes nothing that a model in eval mode says, and old files lack it

State = Mapping[str, Tensor | None]  # None stands for what is no dense tensor of numbers


def read(path: Path, digest: str | None = None) -> Any:
    """What a weights file holds: a state dict, or mappings in which one may be.

    Nothing in it is executed. Raises TeacherError where it is missing, damaged, of another kind, or not the file with
    this SHA-256.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise TeacherError(f"{path} is missing; put it there, or take it out of the study file") from None
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror or error}); name a weights file that you may read"
        raise TeacherError(message) from None
    found = hashlib.sha256(raw).hexdigest()
    if digest not in (None, found):
        raise TeacherError(
            f"{path} is not the file that was planned with: its SHA-256 is {found[:12]}…, wanted {digest[:12]}…; put "
            "that file back, or launch again, which takes this one as another teacher"
        )
    try:
        return parse(raw)
    except UnreadableWeights as error:
        raise TeacherError(f"{path} {printable(str(error)).replace('FILE', repr(path.name))}") from None


def problems(path: Path, digest: str, teachers: Iterable[tuple[str, int]]) -> list[str]:
    """What keeps a file from being the weights of each of these models, given with their numbers of classes."""
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


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Tensors of a file that may be a model's: where they stand in it, and what they are called without a prefix."""

    place: str
    state: State

    def likeness(self, wanted: Mapping[str, Tensor]) -> int:
        """How many of the wanted names it has, less one where it has others."""
        return 2 * len(self.state.keys() & wanted.keys()) - bool(self.state.keys() - wanted.keys())

    def has_names(self, wanted: Mapping[str, Tensor]) -> bool:
        """Whether it has every name of the model, and no other."""
        return _counted(self.state) == _counted(wanted) and self.state.keys() <= wanted.keys()

    def has_shapes(self, wanted: Mapping[str, Tensor]) -> bool:
        """Whether its tensors have the shapes of the model's."""
        return all(tensor is not None and tensor.shape == wanted[name].shape for name, tensor in self.state.items())

    def equals(self, other: _Candidate) -> bool:
        """Whether both are the same weights."""
        return self.state.keys() == other.state.keys() and all(
            tensor is not None and found is not None and torch.equal(tensor, found)
            for tensor, found in ((self.state[name], other.state[name]) for name in self.state)
        )


def _counted(state: Mapping[str, Any]) -> set[str]:
    return {name for name in state if not name.endswith(_COUNTER)}


def fit(content: Any, path: Path, model: str, classes: int) -> dict[str, Tensor]:
    """The float32 state of a model, from what its weights file holds (see `read`); counters of batches may be missing.

    Raises TeacherError that says what is wrong where it does not fit, or where it holds several states that do.
    """
    with torch.device("meta"):
        wanted = models.build(model, classes).state_dict()
    found = list(_candidates(content, wanted))
    has_tensors = any(tensor is not None for candidate in found for tensor in candidate.state.values())
    if not has_tensors and content != {}:
        raise TeacherError(f"{path} holds something else than plain tensors by name; save model.state_dict() alone")
    chosen = _chosen(found, wanted, path)
    state, problems = _converted(chosen.state), reasons(chosen.state, wanted, model, classes)
    if not problems:  # a tensor of another shape may be far larger than its file
        problems = [f"{name} is not finite" for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if problems:
        listed = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        where = f" (looked at {chosen.place})" if chosen.place else ""
        message = f"{path} does not fit {model} with {classes} classes{where}: {listed}; give weights of that model"
        raise TeacherError(printable(message))
    return state


def _converted(state: State) -> dict[str, Tensor]:
    """Weights in float32, whatever they were saved in; counters as they are."""
    return {
        name: tensor if name.endswith(_COUNTER) or _is_expanded(tensor) else tensor.float()
        for name, tensor in state.items()
        if tensor is not None
    }


def _is_expanded(tensor: Tensor) -> bool:
    """Whether it has more numbers than bytes are there for, and a copy of it may fill the memory."""
    return tensor.numel() > tensor.untyped_storage().nbytes()


def _chosen(found: list[_Candidate], wanted: Mapping[str, Tensor], path: Path) -> _Candidate:
    """The one that fits; where none does, the one that is most like the model, to say what is wrong with it."""
    named = [candidate for candidate in found if candidate.has_names(wanted)]
    fitting = [candidate for candidate in named if candidate.has_shapes(wanted)]
    others = [candidate for candidate in fitting[1:] if not candidate.equals(fitting[0])]
    if others:
        listed = ", ".join(candidate.place for candidate in (fitting[0], *others))
        raise TeacherError(
            f"{path} holds {1 + len(others)} different states that fit: {listed}; save the one that shall teach alone, "
            "like `torch.save(torch.load(FILE, 'cpu')['model'], 'state.pth')`, and name state.pth".replace(
                "FILE", repr(path.name)
            )
        )
    if fitting or named:
        return (fitting or named)[0]
    return max(found, key=lambda candidate: candidate.likeness(wanted), default=_Candidate("", {}))


def _candidates(content: Any, wanted: Mapping[str, Tensor]) -> Iterator[_Candidate]:
    """Every mapping of tensors in a file, under each prefix below which a model's names may stand."""
    anchor = next(iter(wanted))  # a name that every state of such a model has
    for place, mapping in _mappings(content, ()):
        state = _without_wrappers(tensors(mapping))
        prefixes = {name.removesuffix(anchor) for name in state if name == anchor or name.endswith(f".{anchor}")}
        for prefix in sorted({"", *prefixes}, key=len):
            inner = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
            if inner:
                yield _Candidate(_shown(place, prefix), inner)


def _mappings(content: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    if isinstance(content, Mapping):
        yield place, content
        if len(place) < _DEEPEST:
            for name, inner in content.items():
                yield from _mappings(inner, (*place, str(name)))


def _without_wrappers(state: State) -> State:
    bare = {".".join(part for part in name.split(".") if part not in _WRAPPERS): name for name in state}
    return {short: state[name] for short, name in bare.items()} if len(bare) == len(state) else state


def _shown(place: tuple[str, ...], prefix: str) -> str:
    """Where tensors stand, like `['model'], names that begin with net.`; empty for the whole of a file."""
    parts = ("".join(f"[{name!r}]" for name in place), f"names that begin with {prefix}" if prefix else "")
    return ", ".join(filter(None, parts))
