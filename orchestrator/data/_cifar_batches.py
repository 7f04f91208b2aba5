"""Reads the batches of CIFAR in torchvision's layout, which are pickles, without running anything that they name."""

from __future__ import annotations

import io
import pickle
import pickletools

import numpy as np

from orchestrator.data.order import Labels, Pixels


class _Part:
    """Replaces the NumPy objects in a batch: records their arguments and state, and runs no code of NumPy."""

    def __init__(self, *args: object) -> None:
        self.args = args
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _BatchUnpickler(pickle.Unpickler):
    """An unpickler that can create only plain values and `_Part`s, so that no file can run code."""

    # The names in the published files; Python 2 wrote them, with a NumPy older than 2.0.
    admitted = (("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"))

    def find_class(self, module: str, name: str) -> type[_Part]:
        """The stand-in for one of the admitted names. Raises UnpicklingError for all others."""
        if (module, name) in self.admitted:
            return _Part
        raise pickle.UnpicklingError(f"it names {f'{module}.{name}'!r}, which no batch needs and kdctl never loads")


def parse_batch(raw: bytes, width: int) -> tuple[Pixels, Labels]:
    """The images of a batch, [N, width], and their labels. Raises an error of any type for anything else."""
    return _read_rows(_unpickle(raw), width)


def _unpickle(raw: bytes) -> object:
    for opcode, argument, _ in pickletools.genops(raw):  # this also checks that every length in it fits the file
        # The unpickler allocates a list as long as the largest number under which an object is stored.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument not in range(len(raw)):
            raise pickle.UnpicklingError(f"it stores an object under the number {argument}")
    return _BatchUnpickler(io.BytesIO(raw), encoding="bytes").load()


def _read_rows(batch: object, width: int) -> tuple[Pixels, Labels]:
    if not isinstance(batch, dict):
        raise ValueError(f"found {type(batch).__name__}, expected a dict")
    match batch.get(b"data"):
        case _Part(state=(_, (int(count), int(found)), _Part(args=(b"u1", *_)), int(by_column), bytes(pixels))):
            if found != width or count < 1:
                raise ValueError(f"found an array of shape {(count, found)}, expected rows of {width:,}")
            rows = np.frombuffer(pixels, np.uint8).reshape((count, width), order="F" if by_column else "C")
        case _:
            raise ValueError("its data is not a complete array of bytes with two axes")
    labels = batch.get(b"labels", batch.get(b"fine_labels"))
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise ValueError("its labels are not a list of whole numbers")
    if len(labels) != count:
        raise ValueError(f"found {len(labels):,} labels for {count:,} images")
    return rows, np.array(labels, np.int64)
