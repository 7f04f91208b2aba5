"""Launches on Ray as a user sees them: exit codes, clean lines, Ctrl-C, and no process left."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from launches import find_noise, finish_inline, kill_trainers, launch, make_folder, states
from processes import LOOPBACK, descendants, listening

from orchestrator.records import State
from orchestrator.results import store
from orchestrator.storage.layout import Storage

pytestmark = [
    pytest.mark.timeout(290),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc"),
]


@pytest.fixture
def folder(digits_storage: Storage, tmp_path: Path) -> Path:
    """A folder with a study and a storage that holds digits."""
    return make_folder(digits_storage, tmp_path)


def test_a_worker_that_is_lost_too_often_is_a_failed_row(folder: Path) -> None:
    events = [(": epoch 1/", kill_trainers(folder))]
    first = launch(folder, "--max-concurrent", "1", "--set", "resources.retries=0", events=events)
    assert first.code == 1 and first.left == set()
    rows = store.read_trials(Storage.at(folder / "runs"))
    assert sorted(row.state for row in rows) == [State.FAILED, State.FINISHED, State.FINISHED]
    (failed,) = [row for row in rows if row.state is State.FAILED]
    assert failed.error == "its worker process was lost, 1 times; launch again to resume from its checkpoint"
    assert failed.failure == "lost_worker"
    assert find_noise(first) == [] and "Traceback" not in first.stdout
    ended = [line for line in first.stderr.splitlines() if re.search(r" \[\d/3\] ", line)]
    assert len(ended) == 3, "one line for each trial that ended"
    epoch = re.compile(r": epoch \d+/\d+, acc [\d.]+ %, last [\d.]+ %, [\d,]+ images/s$")
    assert {line.split()[1] for line in first.stderr.splitlines() if epoch.search(line)} == set(states(folder))

    messages = finish_inline(folder)
    assert any("2 of 3 trials are finished" in text for text in messages)
    assert any("resumes in epoch" in text for text in messages)
    assert set(states(folder).values()) == {State.FINISHED}


def test_ctrl_c_stops_and_the_same_command_resumes(folder: Path) -> None:
    # A terminal sends it to every process of the foreground group.
    events = [(": epoch 1/", lambda pid: os.killpg(pid, signal.SIGINT))]
    stopped = launch(folder, "--max-concurrent", "1", events=events)
    assert stopped.code == 130
    assert "resume with:  kdctl launch study.yaml --max-concurrent 1 --no-dashboard" in stopped.stderr
    assert len(find_noise(stopped)) == 2 and stopped.left == set()  # why it stopped, and how to resume
    (row,) = store.read_trials(Storage.at(folder / "runs"))
    assert row.state is State.STOPPED
    assert row.error and re.fullmatch(r"stopped in epoch \d+ of 120; the same command resumes it from there", row.error)

    assert any("resumes in epoch" in text for text in finish_inline(folder))
    assert list(states(folder).values()) == [State.FINISHED] * 3


def test_a_second_ctrl_c_ends_at_once_and_only_loopback_was_open(folder: Path) -> None:
    addresses: set[str] = set()

    def list_addresses_and_stop(pid: int) -> None:
        addresses.update(listening({process for process, _ in descendants(pid)}))
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)

    stopped = launch(folder, events=[("dashboard: http://127.0.0.1:", list_addresses_and_stop)], dashboard=True)
    assert stopped.code == 130
    assert "stopped at once" in stopped.stderr and "resume with:" in stopped.stderr
    assert stopped.left == set()
    assert addresses and addresses <= LOOPBACK
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    assert token.stat().st_mode & 0o077 == 0
