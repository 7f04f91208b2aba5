"""What the trials of one process hold together: each value is made once, and freed with its last user."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

import torch

_Value = TypeVar("_Value")


class SharedValues(Generic[_Value]):
    """Values by key. A key has to say everything that a value depends on, its device included."""

    def __init__(self) -> None:
        self._values: WeakValueDictionary[Hashable, _Value] = WeakValueDictionary()
        self._making = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], _Value], device: torch.device) -> _Value:
        """The value of a key, on a device; `make` makes it where no trial holds it."""
        with self._making:
            value = self._values.get(key)
            if value is None:
                value = self._values[key] = make()
                wait(device)
            return value


def wait(device: torch.device) -> None:
    """Waits until a GPU has finished the work of this thread, as other threads use their own streams."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
