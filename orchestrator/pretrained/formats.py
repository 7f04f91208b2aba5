"""The formats of weights files: bytes → nested mappings of tensors. Nothing in a file is ever executed."""

from __future__ import annotations

import io
import pickletools
import re
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor
from torch.serialization import safe_globals


class UnreadableWeights(Exception):
    """A file that holds no weights that kdctl can read; the message says what it is, and what to do."""


# What people have by mistake: how such a file begins → what it is, and what to do.
_AGAIN = "copy or download it again"
_MISTAKEN = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself; run `git lfs pull` where it comes from",
    b"<": "is a web page, not weights: the download got a page instead of the file; download the file itself",
    b"\x1f\x8b": "is a gzip archive; unpack it, and name the weights file that was in it",
    b"BZh": "is a bzip2 archive; unpack it, and name the weights file that was in it",
    b"\xfd7zXZ": "is an xz archive; unpack it, and name the weights file that was in it",
    b"7z\xbc\xaf": "is a 7z archive; unpack it, and name the weights file that was in it",
    b"Rar!": "is a RAR archive; unpack it, and name the weights file that was in it",
    b"\x89HDF": "is HDF5, as Keras writes; save the weights as a PyTorch state dict or as safetensors",
}


def parse(raw: bytes) -> Any:
    """What a file holds: a state dict, or mappings in which one may be. Raises UnreadableWeights."""
    if not raw:
        raise UnreadableWeights(f"is empty; {_AGAIN}")
    start = raw[:256].lstrip()
    for beginning, message in _MISTAKEN.items():
        if start.startswith(beginning):
            raise UnreadableWeights(message)
    if raw[257:262] == b"ustar":
        raise UnreadableWeights("is a tar archive; unpack it, and name the weights file that was in it")
    if raw[:2] == b"PK":
        return _from_zip(raw)
    if start and start[:64].decode("latin-1").isprintable() and start.isascii():
        raise UnreadableWeights(f"is text, not weights (it begins with {start[:40].decode()!r}); {_AGAIN}")
    return _unpickled(raw, [raw]) if raw[:1] == b"\x80" else _from_safetensors(raw)


def _from_safetensors(raw: bytes) -> dict[str, Tensor]:
    try:
        return load(raw)
    except Exception as error:  # a damaged file makes safetensors and torch raise errors of a dozen types
        raise _unknown(error) from None


def _unknown(error: Exception) -> UnreadableWeights:
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()  # before it torch tells how to run code
    reason = (text.splitlines() or [type(error).__name__])[0]
    if reason.startswith("Unsupported operand"):
        reason = "its pickle is of a protocol other than 2, which torch.save writes"
    elif isinstance(error, zipfile.BadZipFile):
        reason = "its archive is cut off or damaged"
    return UnreadableWeights(
        f"is neither whole safetensors nor a whole checkpoint of PyTorch ({reason}); {_AGAIN}, or save it again as "
        "one of them"
    )


def _from_zip(raw: bytes) -> Any:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            names = archive.namelist()
            pickles = [archive.read(name) for name in names if name.rpartition("/")[2] == "data.pkl"]
    except Exception as error:  # zipfile raises errors of several types for a damaged archive
        raise _unknown(error) from None
    if any(name.endswith("/constants.pkl") for name in names):
        raise UnreadableWeights(
            "is a TorchScript archive, which holds a program; save its state alone: "
            "`torch.save(torch.jit.load(FILE, 'cpu').state_dict(), 'state.pth')`, and name state.pth"
        )
    if pickles:
        return _unpickled(raw, pickles)
    if names and all(name.endswith(".npy") for name in names):
        return _from_numpy(raw)
    listed = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    raise UnreadableWeights(f"is a zip archive of {listed or 'nothing'}; unpack it, and name the weights file in it")


def _from_numpy(raw: bytes) -> dict[str, Tensor]:
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
            return {name: torch.from_numpy(array) for name, array in arrays.items()}
    except Exception as error:  # NumPy raises errors of several types for a damaged archive
        raise _unknown(error) from None


# Pickles of torch.save.


class Part:
    """Stands where a checkpoint names something of NumPy: records what it is made of, and runs nothing of NumPy."""

    def __init__(self, *args: object) -> None:
        self.args = args
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


_PARTS: list[Any] = [(Part, name) for name in ("numpy.ndarray", "numpy.dtype")]
_PARTS += [
    (Part, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name in ("_reconstruct", "scalar")
]
_FIRST = 4  # pickles of the format before torch 1.6: three of its own, then the content, then bare numbers
_loading = threading.Lock()  # what torch admits is a setting of the whole process, and trials may be threads of it


def _unpickled(raw: bytes, pickles: list[bytes]) -> Any:
    try:
        with _loading, safe_globals(_PARTS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how a file was saved, which nobody here can change
            return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise errors of a dozen types
        refused = re.search(r"GLOBAL (\S+) |persistent_load", str(error))
        raise (_refusal(list(_named(pickles))) if refused else _unknown(error)) from None


def _named(pickles: list[bytes]) -> Iterator[str]:
    """Every class or function that pickles name, in their order; one after another may stand in the same bytes."""
    for pickled in pickles:
        file, texts = io.BytesIO(pickled), ["", ""]
        with suppress(Exception):  # damage; what was found before it is worth telling
            for _ in range(_FIRST):
                for opcode, argument, _ in pickletools.genops(file):
                    if opcode.name == "GLOBAL":
                        yield str(argument).replace(" ", ".")
                    elif opcode.name == "STACK_GLOBAL":
                        yield ".".join(texts)
                    elif isinstance(argument, str):
                        texts = [texts[1], argument]


_HARMLESS = re.compile(r"(collections|torch|torch\._utils|_codecs|numpy[\w.]*|builtins|__builtin__)\.[^.]+")
_TORCH_MODULE = re.compile(r"torch\.nn\.(modules|parallel)\.")


def _refusal(named: list[str]) -> UnreadableWeights:
    refused = list(dict.fromkeys(name for name in named if not _HARMLESS.fullmatch(name))) or named[:1]
    if any(_TORCH_MODULE.match(name) for name in named):
        return UnreadableWeights(
            f"holds a whole pickled model of class {refused[0]}, and to open that would run code; where its code is, "
            "save its state alone: "
            "`torch.save(torch.load(FILE, 'cpu', weights_only=False).state_dict(), 'state.pth')`, and name state.pth"
        )
    listed = ", ".join(refused[:3]) + (", …" if len(refused) > 3 else "")
    return UnreadableWeights(
        f"holds {listed} beside its tensors, and to open that could run code; where you trust the file, save the "
        "tensors alone: `torch.save(torch.load(FILE, 'cpu', weights_only=False)['model'], 'state.pth')` (or whatever "
        "key holds them), and name state.pth"
    )


# Values.

_NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_NUMBERS |= {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def tensors(mapping: Mapping[Any, Any]) -> dict[str, Tensor | None]:
    """The tensors and arrays of a mapping by name; None for one that is no dense tensor of numbers."""
    return {
        name: _plain(value)
        for name, value in mapping.items()
        if isinstance(name, str) and isinstance(value, (Tensor, Part))
    }


def _plain(value: Tensor | Part) -> Tensor | None:
    """A dense tensor with numbers of its own, neither quantised nor sparse nor a meta tensor; None for all others."""
    if isinstance(value, Part):
        return _from_parts(value)
    is_dense = value.layout is torch.strided and value.device.type == "cpu"
    return value.detach() if is_dense and value.dtype in _NUMBERS else None


def _from_parts(part: Part) -> Tensor | None:
    match part.state:
        case (_, tuple(shape), Part(args=(str(kind), *_), state=(_, str(order), *_)), by_column, bytes(content)):
            if not re.fullmatch(r"[<>=|]", order) or not re.fullmatch(r"[fi][1248]|[ub]1", kind):
                return None
            values = np.frombuffer(content, order + kind)
            if all(type(size) is int and size >= 0 for size in shape) and values.size == np.prod(shape, dtype=object):
                values = values.reshape(shape, order="F" if by_column else "C")
                return torch.from_numpy(np.array(values, values.dtype.newbyteorder("="), order="C"))
    return None
