"""Asking a launch to stop through its storage."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from orchestrator.errors import StorageError
from orchestrator.storage import stops
from orchestrator.storage.layout import Storage


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """An empty storage, whose requests are checked continuously."""
    monkeypatch.setattr(stops, "BEAT", 0.005)
    storage = Storage.at(tmp_path / "runs")
    storage.prepare()
    return storage


def test_a_request_is_received_once_and_only_by_its_launch(storage: Storage) -> None:
    requested, other, ended = threading.Event(), threading.Event(), threading.Event()
    threads = [
        stops.listen(storage, "launch-1", requested.set, ended),
        stops.listen(storage, "launch-2", other.set, ended),
    ]
    stops.request(storage, "launch-1")
    assert requested.wait(20) and not other.is_set()
    threads[0].join(20)
    ended.set()
    threads[1].join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert stops.is_requested(storage, "launch-1")
    stops.clear(storage, "launch-1")
    assert not stops.is_requested(storage, "launch-1")


def test_a_storage_that_fails_for_a_while_is_asked_again(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = threading.Semaphore(0)
    real = stops.is_requested

    def fail(*arguments: object) -> bool:
        looks.release()
        raise StorageError("gone")

    monkeypatch.setattr(stops, "is_requested", fail)
    requested, ended = threading.Event(), threading.Event()
    thread = stops.listen(storage, "launch-1", requested.set, ended)
    for _ in range(3):
        assert looks.acquire(timeout=20)
    stops.request(storage, "launch-1")
    monkeypatch.setattr(stops, "is_requested", real)
    assert requested.wait(20)
    thread.join(20)
