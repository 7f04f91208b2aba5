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
    """A file without weights that kdctl can read; the message states what the file is and how to fix it."""


# Files that people name by mistake: their first bytes → what the file is, and how to fix it.
_AGAIN = "copy or download it again"
_MISTAKEN = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository",
    b"<": "is a web page, not weights: the download saved a page instead of the file; download the file itself",
    b"\x1f\x8b": "is a gzip archive; unpack it, and name the weights file in it",
    b"BZh": "is a bzip2 archive; unpack it, and name the weights file in it",
    b"\xfd7zXZ": "is an xz archive; unpack it, and name the weights file in it",
    b"7z\xbc\xaf": "is a 7z archive; unpack it, and name the weights file in it",
    b"Rar!": "is a RAR archive; unpack it, and name the weights file in it",
    b"\x89HDF": "is an HDF5 file, as Keras writes; save the weights as a PyTorch state dict or as safetensors",
}


def parse(raw: bytes) -> Any:
    """The content of a file: a state dict, or nested mappings that may contain one. Raises UnreadableWeights."""
    if not raw:
        raise UnreadableWeights(f"is empty; {_AGAIN}")
    # Safetensors begin with the length of their JSON header, whose bytes may be the beginning of any other format.
    if raw[7:9] == b"\0{":
        return _from_safetensors(raw)
    start = raw[:256].lstrip()
    for beginning, message in _MISTAKEN.items():
        if start.startswith(beginning):
            raise UnreadableWeights(message)
    if raw[257:262] == b"ustar":
        raise UnreadableWeights("is a tar archive; unpack it, and name the weights file in it")
    if raw[:2] == b"PK":
        return _from_zip(raw)
    if start and start[:64].decode("latin-1").isprintable() and start.isascii():
        raise UnreadableWeights(f"is text, not weights (it begins with {start[:40].decode()!r}); {_AGAIN}")
    return _unpickle(raw, [raw]) if raw[:1] == b"\x80" else _from_safetensors(raw)


def _from_safetensors(raw: bytes) -> dict[str, Tensor]:
    try:
        return load(raw)
    except Exception as error:  # a damaged file makes safetensors and torch raise errors of a dozen types
        raise _explain(error) from None


def _explain(error: Exception) -> UnreadableWeights:
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()  # the text before it recommends to run code
    reason = (text.splitlines() or [type(error).__name__])[0]
    if reason.startswith("Unsupported operand"):
        reason = "its pickle has a protocol other than 2, the one that torch.save writes"
    elif isinstance(error, zipfile.BadZipFile):
        reason = "its archive is cut off or damaged"
    return UnreadableWeights(
        f"is neither a complete safetensors file nor a complete PyTorch checkpoint ({reason}); {_AGAIN}, or save it "
        "again in one of these formats"
    )


def _from_zip(raw: bytes) -> Any:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            names = archive.namelist()
            pickles = [archive.read(name) for name in names if name.rpartition("/")[2] == "data.pkl"]
    except Exception as error:  # zipfile raises errors of several types for a damaged archive
        raise _explain(error) from None
    if any(name.endswith("/constants.pkl") for name in names):
        raise UnreadableWeights(
            "is a TorchScript archive, which holds a program; save only its state: "
            "`torch.save(torch.jit.load(FILE, 'cpu').state_dict(), 'state.pth')`, and name state.pth"
        )
    if pickles:
        return _unpickle(raw, pickles)
    if names and all(name.endswith(".npy") for name in names):
        return _from_numpy(raw)
    listed = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    raise UnreadableWeights(f"is a zip archive of {listed or 'nothing'}; unpack it, and name the weights file in it")


def _from_numpy(raw: bytes) -> dict[str, Tensor]:
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
            return {name: torch.from_numpy(array) for name, array in arrays.items()}
    except Exception as error:  # NumPy raises errors of several types for a damaged archive
        raise _explain(error) from None


# Pickles of torch.save.


class Part:
    """Replaces the NumPy objects in a checkpoint: records their arguments and state, and runs no code of NumPy."""

    def __init__(self, *args: object) -> None:
        self.args = args
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


_PARTS: list[Any] = [(Part, name) for name in ("numpy.ndarray", "numpy.dtype")]
_PARTS += [
    (Part, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name in ("_reconstruct", "scalar")
]
_FIRST = 4  # pickles in a file of torch before 1.6: three headers, then the content; plain numbers follow
_loading = threading.Lock()  # `safe_globals` changes the whole process, and trials may run in its threads


def _unpickle(raw: bytes, pickles: list[bytes]) -> Any:
    try:
        with _loading, safe_globals(_PARTS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how the file was saved
            return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise errors of a dozen types
        refused = re.search(r"GLOBAL (\S+) |persistent_load", str(error))
        raise (_explain_refusal(list(_find_names(pickles))) if refused else _explain(error)) from None


def _find_names(pickles: list[bytes]) -> Iterator[str]:
    """Every class or function that pickles name, in order; the same bytes may hold several pickles in a row."""
    for pickled in pickles:
        file, texts = io.BytesIO(pickled), ["", ""]
        with suppress(Exception):  # damaged bytes; the names before them are still useful
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


def _explain_refusal(named: list[str]) -> UnreadableWeights:
    refused = list(dict.fromkeys(name for name in named if not _HARMLESS.fullmatch(name))) or named[:1]
    if any(_TORCH_MODULE.match(name) for name in named):
        return UnreadableWeights(
            f"holds a pickled model of class {refused[0]}, and opening it would run code; where its source code "
            "is available, save only its state: "
            "`torch.save(torch.load(FILE, 'cpu', weights_only=False).state_dict(), 'state.pth')`, and name state.pth"
        )
    listed = ", ".join(refused[:3]) + (", …" if len(refused) > 3 else "")
    return UnreadableWeights(
        f"holds {listed} besides its tensors, and opening it could run code; if you trust the file, save only the "
        "tensors: `torch.save(torch.load(FILE, 'cpu', weights_only=False)['model'], 'state.pth')` (or the "
        "key that holds them), and name state.pth"
    )


# Values.

_NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_NUMBERS |= {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def select_tensors(mapping: Mapping[Any, Any]) -> dict[str, Tensor | None]:
    """The tensors and arrays of a mapping by name; None for one that is not a dense tensor of numbers."""
    return {
        name: _to_dense(value)
        for name, value in mapping.items()
        if isinstance(name, str) and isinstance(value, (Tensor, Part))
    }


def _to_dense(value: Tensor | Part) -> Tensor | None:
    """A dense tensor with stored numbers, neither quantised nor sparse nor a meta tensor; None for all others."""
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
