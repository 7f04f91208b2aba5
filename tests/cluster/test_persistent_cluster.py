"""A persistent cluster, for real: a study joins it, its dashboard is right in a browser, and nothing is left."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect
from processes import LOOPBACK, listening, processes, until
from terminal import Terminal

from orchestrator.cluster import _user_files, dashboard, persistent_cluster, tokens
from orchestrator.cluster.launch_supervisor import end_session
from orchestrator.cluster.persistent_cluster import PersistentCluster
from orchestrator.errors import ResourceError
from orchestrator.machine import folders
from orchestrator.machine.processes import list_session, read_start_time
from orchestrator.storage.layout import Storage
from orchestrator.study.plan import make_plan
from orchestrator.study.reader import load_study

pytestmark = [
    pytest.mark.timeout(290),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc"),
]

# The second trial is long enough to be observed while it trains, by the worker that trained the first.
STUDY = """\
study: moving-on
recipe: {epochs: 1, limit_train: 64, limit_test: 50, batch_size: 32, crop_padding: 1, flip: false}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, seed: 7}
  - {method: base, dataset: digits, student: resnet_32_8, seed: 8, epochs: 5000}
resources: {gpus_per_trial: 0}
"""
with tempfile.TemporaryDirectory() as _folder:
    (Path(_folder) / "study.yaml").write_text(STUDY)
    _TRIALS = make_plan(load_study(Path(_folder) / "study.yaml")).trials
FIRST, SECOND = (f"{trial.trial_id} {trial.title()}" for trial in _TRIALS)  # what Ray calls their tasks
KDCTL = str(Path(sys.executable).with_name("kdctl"))


@pytest.fixture(scope="module")
def home(digits_storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a study, where kdctl remembers its cluster, and where Ray keeps its token."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "study.yaml").write_text(STUDY)
    shutil.copytree(Path(digits_storage.backend.address) / "datasets", folder / "runs" / "datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCTL_CACHE", str(folder / "cache"))
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
        with tempfile.TemporaryDirectory(
            prefix="kdctl-", ignore_cleanup_errors=True
        ) as short:  # as names of sockets are
            patch.setenv("RAY_TMPDIR", short)
            yield folder


def kdctl(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder."""
    return subprocess.run([KDCTL, *words], cwd=home, input="", capture_output=True, text=True, check=False)


def read_memory(home: Path) -> dict[str, Any]:
    """Reads the file about the persistent cluster, which exists as soon as a cluster starts."""
    files = [file for file in home.glob("cache/cluster-*") if file.is_file()]
    return json.loads(files[0].read_text()) if files else {}


@pytest.fixture(scope="module")
def stopped_up(home: Path) -> tuple[int, list[int], dict[str, Any]]:
    """Ctrl-C while a cluster comes up: the exit code, the processes that are left, and the content of the file."""
    with subprocess.Popen([KDCTL, "up"], cwd=home, stderr=subprocess.DEVNULL) as process:
        starting = until(lambda: read_memory(home))
        until(lambda: len(list_session(starting["pid"])) > 1)
        process.send_signal(signal.SIGINT)
        code = process.wait()
    return code, list_session(starting["pid"]), read_memory(home)


@pytest.fixture(scope="module")
def kept(home: Path, stopped_up: object) -> Iterator[PersistentCluster]:
    """A cluster that `kdctl up` started."""
    started = kdctl(home, "up")
    assert started.returncode == 0, started.stderr
    found = PersistentCluster(**read_memory(home))
    try:
        yield found
    finally:
        if list_session(found.pid):
            end_session(found.pid)


@pytest.fixture(scope="module")
def study(home: Path, kept: PersistentCluster) -> Iterator[tuple[int, str]]:
    """A launch that joined it and trains its second trial: its process, and what it has printed."""
    command = [KDCTL, "launch", "study.yaml", "--max-concurrent", "1"]  # without an address
    with subprocess.Popen(
        command, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stderr
            output = ""
            for line in process.stderr:
                output += line
                if f"{SECOND}: epoch" in line:
                    break
            yield process.pid, output
        finally:
            process.terminate()
            process.communicate()


def test_ctrl_c_while_it_comes_up_leaves_nothing(stopped_up: tuple[int, list[int], dict[str, Any]]) -> None:
    assert stopped_up == (130, [], {})


def test_other_users_have_no_access(home: Path, kept: PersistentCluster) -> None:
    assert listening(set(list_session(kept.pid))) <= LOOPBACK
    assert (home / "token").stat().st_mode & 0o077 == 0


def test_without_the_token_the_dashboard_refuses(kept: PersistentCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dashboard.is_answering(kept.dashboard)
    for wrong, code in (("", 401), ("0" * 64, 403)):
        monkeypatch.setattr(tokens, "read_token", lambda wrong=wrong: wrong)
        with pytest.raises(OSError, match=str(code)):
            dashboard.fetch(kept.dashboard, "/api/jobs/")


def test_a_second_up_prints_how_to_log_in(home: Path, kept: PersistentCluster) -> None:
    again = kdctl(home, "up")
    assert again.returncode == 0 and f"already running at {kept.address}" in again.stdout
    assert f"http://{kept.dashboard}" in again.stdout
    (typed,) = re.findall(r"the token that `(.+)` prints", again.stdout)
    printed = subprocess.run(typed.split(), cwd=home, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == (home / "token").read_text()
    assert printed.stdout.strip() not in again.stdout + again.stderr + printed.stderr


def test_a_launch_joins_it(study: tuple[int, str], kept: PersistentCluster) -> None:
    assert f"joined the cluster that `kdctl up` started, at {kept.address}" in study[1]
    assert f"dashboard: http://{kept.dashboard}" in study[1]


def test_the_dashboard_names_the_running_trial(study: tuple[int, str], kept: PersistentCluster) -> None:
    def running() -> list[str]:
        tasks = dashboard.fetch(kept.dashboard, "/api/v0/tasks?detail=1&limit=1000")["data"]["result"]["result"]
        return [task["name"] for task in tasks if task["state"] == "RUNNING"]

    assert until(lambda: running() == [SECOND])

    def actors() -> list[tuple[str, str]]:
        found = dashboard.fetch(kept.dashboard, "/logical/actors")["data"]["actors"].values()
        return [(actor["reprName"], actor["actorClass"]) for actor in found if actor["reprName"]]

    # One worker trained both trials, and what Ray keeps of it is true of both. The dashboard hears of it late.
    assert until(actors) == [("kdctl worker of study moving-on", "TrialWorker")]


def test_a_browser_shows_it(study: tuple[int, str], kept: PersistentCluster, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 1100})
    page.goto(f"http://{kept.dashboard}/#/cluster")
    page.get_by_label("Authentication Token", exact=True).fill(tokens.read_token() or "")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text(f"ray::{SECOND}")).to_be_visible(timeout=30_000)
    expect(page.get_by_text(FIRST)).to_have_count(0)
    page.close()


def test_down_asks_before_it_cuts_off_a_study_and_then_leaves_nothing(
    study: tuple[int, str], kept: PersistentCluster, home: Path
) -> None:
    refused = kdctl(home, "down")
    assert refused.returncode == 2 and "kdctl launch study.yaml --max-concurrent 1" in refused.stderr
    with Terminal([KDCTL, "down"], home, os.environ) as terminal:
        terminal.wait_for("shut it down anyway?")
        terminal.type("n\n")
    assert terminal.code == 0 and "nothing was shut down" in terminal.output
    assert kept.pid in list_session(kept.pid)
    members = {process for process in processes() if process[0] in list_session(kept.pid)}
    os.kill(study[0], signal.SIGINT)
    until(lambda: not dashboard.list_programs(kept.dashboard))
    ended = kdctl(home, "down")
    assert ended.returncode == 0 and f"shut down the cluster at {kept.address}" in ended.stderr
    assert not members & set(processes()) and not list_session(kept.pid)
    assert read_memory(home) == {}
    again = kdctl(home, "down")
    assert again.returncode == 0 and "nothing to shut down" in again.stderr
    assert kdctl(home, "dashboard").returncode == 1


# What is remembered, without Ray.


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where nothing is remembered yet."""
    monkeypatch.setenv("KDCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    return tmp_path


@contextmanager
def sleeper(leader: str = "exec sleep 600") -> Iterator[subprocess.Popen[bytes]]:
    """A session of processes, like that of a cluster."""
    with subprocess.Popen(["sh", "-c", leader], start_new_session=True) as process:
        try:
            yield process
        finally:
            end_session(process.pid)


def remember(process: subprocess.Popen[bytes], **changes: Any) -> PersistentCluster:
    """Stores a process as the leader of a persistent cluster."""
    members = {str(pid): read_start_time(pid) for pid in list_session(process.pid)}
    facts = {"pid": process.pid, "started": read_start_time(process.pid) or "gone", "members": members}
    kept = PersistentCluster(**{**facts, "address": "127.0.0.1:1", "dashboard": "127.0.0.1:2", **changes})
    _user_files.write(_user_files.locate("cluster"), kept)
    return kept


def test_ray_reports_nothing_unless_the_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.delenv("RAY_USAGE_STATS_REPORT_URL", raising=False)
    assert persistent_cluster._make_environment()["RAY_USAGE_STATS_REPORT_URL"] == "http://127.0.0.1:9/"
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    assert "RAY_USAGE_STATS_REPORT_URL" not in persistent_cluster._make_environment()


def test_at_first_there_is_no_cluster(memory: Path) -> None:
    notes: list[str] = []
    assert persistent_cluster.find_cluster(notes.append) is None and dashboard.list_dashboards() == [] and notes == []


def test_a_living_cluster_is_found(memory: Path) -> None:
    notes: list[str] = []
    with sleeper() as process:
        remembered = remember(process)
        assert persistent_cluster.find_cluster(notes.append) == remembered
        remember(process, members={})  # it is still starting
        assert persistent_cluster.find_cluster(notes.append) is None
        assert process.poll() is None and notes == []


def test_a_dead_cluster_is_reported_once_and_its_processes_are_ended(memory: Path) -> None:
    notes: list[str] = []
    with sleeper("sleep 600 & exec sleep 600") as process:
        assert until(lambda: len(list_session(process.pid)) == 2)
        remember(process)
        process.kill()
        process.wait()
        assert persistent_cluster.find_cluster(notes.append) is None
        assert list_session(process.pid) == []
    assert persistent_cluster.find_cluster(notes.append) is None
    assert len(notes) == 1 and "is gone" in notes[0] and "up`" in notes[0]


@pytest.mark.parametrize("members", [{}, {"1": "1"}, "earlier"])
def test_another_process_with_the_same_id_is_left_alone(memory: Path, members: Any) -> None:
    notes: list[str] = []
    with sleeper() as process:
        remember(process, started="1", members={str(process.pid): "1"} if members == "earlier" else members)
        assert persistent_cluster.find_cluster(notes.append) is None and len(notes) == 1
        assert process.poll() is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', '{"of": "another version"}'])
def test_a_damaged_file_is_ignored(memory: Path, content: str) -> None:
    file = _user_files.locate("cluster")
    file.parent.mkdir()
    file.write_text(content)
    assert persistent_cluster.find_cluster(pytest.fail) is None and not file.exists()


def test_a_cluster_of_somebody_else_is_left_alone_and_named(memory: Path) -> None:
    (memory / "ray").mkdir()
    current = memory / "ray" / "ray_current_cluster"
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        current.write_text(address)
        with pytest.raises(ResourceError, match=f"kdctl did not start is running here at {address}; join it with"):
            persistent_cluster.start_cluster(pytest.fail)
    assert current.read_text() == address
    assert persistent_cluster._find_foreign_cluster() is None  # it does not answer any more


def test_only_one_command_starts_a_cluster_at_a_time(memory: Path) -> None:
    lock = persistent_cluster._lock
    with lock(), pytest.raises(ResourceError, match="wait until it has ended"), lock():
        pass


def test_a_cache_that_cannot_be_written_is_named(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (memory / "file").touch()
    monkeypatch.setenv("KDCTL_CACHE", str(memory / "file" / "folder"))
    with pytest.raises(ResourceError, match="name another folder in KDCTL_CACHE"):
        persistent_cluster.start_cluster(pytest.fail)


def test_dashboards_of_launches_are_found_while_they_run(memory: Path) -> None:
    dashboard.remember_dashboard("tiny", "127.0.0.1:5")
    with sleeper() as process:
        _user_files.write(
            _user_files.locate("dashboard-1"), dashboard.LiveDashboard(process.pid, "1", "dead", "127.0.0.1:6")
        )
    other = folders.own() / f"dashboard-1-head-{socket.gethostname()}"  # of a machine that shares the home
    other.touch()
    (mine,) = dashboard.list_dashboards()
    assert other.exists()
    assert (mine.pid, mine.study, mine.dashboard) == (os.getpid(), "tiny", "127.0.0.1:5")
    assert _user_files.locate(f"dashboard-{os.getpid()}").stat().st_mode & 0o077 == 0
    dashboard.forget_dashboard()
    assert dashboard.list_dashboards() == []


def test_a_token_is_created_once_and_only_for_this_user(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tokens.read_token() is None
    tokens.make_token()
    made = tokens.read_token()
    assert made and len(made) == 64 and (memory / "token").stat().st_mode & 0o777 == 0o600
    (memory / "token").chmod(0o644)
    tokens.make_token()
    tokens.hide_token()
    assert tokens.read_token() == made and (memory / "token").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the environment")
    assert tokens.read_token() == "of the environment"


def test_the_login_hint_does_not_contain_the_token(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    tokens.make_token()
    line = dashboard.describe_login("127.0.0.1:8265")
    assert "http://127.0.0.1:8265" in line and "dashboard token" in line and str(tokens.read_token()) not in line
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert dashboard.describe_login("127.0.0.1:8265") == "dashboard: http://127.0.0.1:8265"


@pytest.mark.parametrize(
    ("entrypoint", "typed"),
    [
        ("/a b/python -P -m orchestrator.cli launch x.yaml", "kdctl launch x.yaml"),
        ("/a/python /b/orchestrator/cli.py launch x.yaml", "kdctl launch x.yaml"),
        ("python train.py", "python train.py"),
    ],
)
def test_programs_are_named_as_they_were_typed(entrypoint: str, typed: str) -> None:
    assert dashboard._format_entrypoint(entrypoint) == typed


def test_a_port_in_use_is_skipped() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert persistent_cluster._find_free_port(port) > port
