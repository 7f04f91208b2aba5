"""Values that the trials of a process share: each is made once, whoever asks at the same time, and then freed."""

from __future__ import annotations

import gc
import threading
import time

import pytest
import torch

from orchestrator.data.shared import SharedValues

CPU = torch.device("cpu")


class Value:
    """Something that a weak reference can name."""


def test_threads_get_one_value_for_a_key() -> None:
    shared: SharedValues[Value] = SharedValues()
    made: list[int] = []
    got: list[tuple[int, Value]] = []

    def make() -> Value:
        made.append(1)
        time.sleep(0.01)
        return Value()

    threads = [
        threading.Thread(target=lambda key=key: got.append((key, shared.get(key, make, CPU)))) for key in (1, 2) * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2 and len({value for _, value in got}) == 2 and len(set(got)) == 2


def test_a_value_is_freed_with_its_last_user() -> None:
    shared: SharedValues[Value] = SharedValues()
    first, second = shared.get("key", Value, CPU), shared.get("key", Value, CPU)
    assert first is second
    del first
    assert shared.get("key", Value, CPU) is second
    del second
    gc.collect()
    assert len(shared._values) == 0


def test_what_cannot_be_made_is_tried_again() -> None:
    shared: SharedValues[Value] = SharedValues()
    with pytest.raises(ZeroDivisionError):
        shared.get("key", lambda: 1 / 0, CPU)  # type: ignore[arg-type,return-value]
    assert isinstance(shared.get("key", Value, CPU), Value)
