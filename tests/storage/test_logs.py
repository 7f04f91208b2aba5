"""The logs of trials: bounded, kept across attempts, printable, and never the reason for a failure."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import StorageError
from orchestrator.storage import logs
from orchestrator.storage.layout import Storage
from orchestrator.storage.logs import Log

ID = "0123456789ab"
MOST = 20  # lines of a log here


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """An empty storage."""
    storage = Storage.at(tmp_path / "runs")
    storage.prepare()
    return storage


def read_lines(storage: Storage) -> list[str]:
    """Reads the lines without their times, which are 23 characters long."""
    return [line if line[0] in " …" else line[24:] for line in logs.read(storage, ID)]


def test_a_log_is_written_when_it_is_flushed(storage: Storage) -> None:
    log = Log(storage, ID)
    log.add("begins")
    assert logs.read(storage, ID) == []
    log.flush()
    log.add("two\nlines")
    log.flush()
    assert read_lines(storage) == ["begins", "two", "    lines"]


def test_what_an_earlier_attempt_wrote_stays(storage: Storage) -> None:
    logs.append(storage, ID, "lost")
    log = Log(storage, ID)
    log.add("again")
    log.flush()
    assert read_lines(storage) == ["lost", "again"]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4))
def test_a_log_is_bounded_and_counts_dropped_lines(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "MOST_LINES", MOST)
        check_bound(Storage.at(tmp_path_factory.mktemp("runs")), sizes)


def check_bound(storage: Storage, sizes: list[int]) -> None:
    storage.prepare()
    for size in sizes:
        log = Log(storage, ID)
        for number in range(size):
            log.add(str(number))
        log.flush()
    found, total = read_lines(storage), sum(sizes)
    assert found[-1] == str(sizes[-1] - 1) and len(found) == min(total, MOST)
    if total > MOST:
        assert found[0] == f"… {total - MOST + 1} earlier lines were dropped"


def test_lines_are_printable_masked_and_bounded(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "verysecret")
    logs.append(storage, ID, "\x1b[2J s3://key:verysecret@bucket " + "x" * 5000)
    (line,) = read_lines(storage)
    assert line.startswith("\\x1b[2J s3://***@bucket x") and len(line) < 2100 and line.endswith("…")


def test_a_storage_that_fails_fails_no_reader(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise StorageError("gone")

    for name in ("read", "write"):
        monkeypatch.setattr(f"orchestrator.storage.backend.Folder.{name}", fail)
    assert logs.read(storage, ID) == []
    logs.append(storage, ID, "nobody hears this")
    with pytest.raises(StorageError):  # rather than to write over what cannot be read
        Log(storage, ID)
