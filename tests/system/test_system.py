"""Processes as the system reports them: /proc and `ps` give the same, so that other systems than Linux work too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import until

from orchestrator.cluster import persistent_cluster
from orchestrator.cluster.launch_supervisor import end_session
from orchestrator.cluster.persistent_cluster import PersistentCluster
from orchestrator.machine import processes
from orchestrator.monitor import prometheus
from orchestrator.storage import leases
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import acquire

SLEEP = "import time; time.sleep(600)"


@pytest.fixture(params=["proc", "ps"], autouse=True)
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Both sources, the second as on a machine without /proc."""
    if request.param == "proc" and not Path("/proc/self/stat").exists():
        pytest.skip("there is no /proc here")
    if request.param == "ps":
        if shutil.which("ps") is None:
            pytest.skip("there is no `ps` here")
        monkeypatch.setattr(processes, "_PROC", tmp_path / "no-proc")
    leases._read_machine_id.cache_clear()
    yield request.param
    leases._read_machine_id.cache_clear()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a session with a process of its own."""
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); print(1, flush=True); {SLEEP}"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        process.stdout.close()
        end_session(process.pid)


def test_a_process_has_a_start_and_a_dead_one_none(child: subprocess.Popen[bytes]) -> None:
    start = processes.read_start_time(child.pid)
    assert start and start == processes.read_start_time(child.pid)
    assert processes.exists(child.pid)
    child.kill()
    assert until(lambda: processes.read_start_time(child.pid) == "")  # it has ended, and nobody has waited for it
    child.wait()
    assert processes.read_start_time(child.pid) is None
    assert not processes.exists(child.pid)


def test_a_session_is_its_living_processes(child: subprocess.Popen[bytes]) -> None:
    members = processes.list_session(child.pid)
    assert child.pid in members and len(members) == 2
    assert os.getpid() not in members
    end_session(child.pid)
    assert processes.list_session(child.pid) == []


def test_the_name_of_a_process_confuses_nobody(tmp_path: Path) -> None:
    link = tmp_path / "a) S 1 ("
    link.symlink_to("/bin/sleep")
    with subprocess.Popen([link, "600"], start_new_session=True) as process:
        assert until(lambda: processes.list_session(process.pid) == [process.pid])
        assert processes.read_start_time(process.pid)
        process.kill()


def test_a_process_of_another_user_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert processes.exists(1)


def test_a_lease_whose_holder_was_killed_is_free(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if source == "ps":
        monkeypatch.setattr(processes, "read_boot_id", lambda: "this boot")  # where `sysctl` knows it
    leases._read_machine_id.cache_clear()
    storage = Storage.at(tmp_path / "runs")
    storage.prepare()
    with subprocess.Popen([sys.executable, "-c", SLEEP]) as process:
        holder = leases.Holder(
            "here", leases._read_machine_id(), process.pid, processes.read_start_time(process.pid) or "", "0" * 16
        )
        facts = {name: getattr(holder, name) for name in ("host", "machine", "pid", "started", "owner")}
        claim = storage.claim("trial-1", holder.owner)
        storage.backend.write(claim, json.dumps(facts).encode())
        assert not holder.is_gone() and acquire(storage, "trial-1") is None
        process.kill()
    assert holder.is_gone()
    lease = acquire(storage, "trial-1")
    assert lease
    lease.release()


def test_a_persistent_cluster_is_known_by_its_start(child: subprocess.Popen[bytes]) -> None:
    start = processes.read_start_time(child.pid) or ""
    gone = PersistentCluster(child.pid, "another", "127.0.0.1:1", "127.0.0.1:2", {str(child.pid): start})
    assert start and persistent_cluster._owns_session(gone)  # a member is left
    assert not persistent_cluster._owns_session(
        PersistentCluster(child.pid, "another", "127.0.0.1:1", "127.0.0.1:2", {})
    )


def test_prometheus_forgets_launches_that_were_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDCTL_CACHE", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    prometheus.announce(["127.0.0.1:1"])
    prometheus._file(process.pid).touch()
    prometheus._file(os.getppid()).touch()
    prometheus.announce(["127.0.0.1:1"])
    assert {file.name for file in prometheus.folder().iterdir()} == {
        prometheus._file(os.getpid()).name,
        prometheus._file(os.getppid()).name,
    }


def test_a_machine_with_neither_knows_nothing_and_fails_nowhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(processes, "_PROC", tmp_path / "no-proc")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert processes.read_start_time(os.getpid()) is None and processes.list_session(os.getpid()) == []
    assert processes.read_boot_id() is None and processes.exists(os.getpid())


# On systems whose kernel does not signal a child when its parent ends.

ORPHAN = """
import os, signal, subprocess, sys, time
child = '''
import signal, sys, time
from orchestrator.cluster import launch_supervisor
signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1], "w").close(), sys.exit()))
launch_supervisor._LOOK = 0.05
launch_supervisor.sys = type("system", (), {"platform": "darwin"})
launch_supervisor.follow_parent()
print(1, flush=True)
time.sleep(600)
'''
environment = {**os.environ, "KDCTL_SUPERVISOR": str(os.getpid())}
process = subprocess.Popen([sys.executable, "-c", child, sys.argv[1]], env=environment, stdout=subprocess.PIPE)
process.stdout.readline()
os._exit(0)
"""


def test_a_child_stops_when_its_parent_dies_on_any_system(tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    subprocess.run([sys.executable, "-c", ORPHAN, str(stopped)], check=True, stdout=subprocess.DEVNULL)
    assert until(stopped.exists)
