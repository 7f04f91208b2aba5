"""Studies as jobs of a cluster: what is sent, what is printed, every way it can go wrong, and one real cluster."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from dashboard import TOKEN, Dashboard
from processes import descendants, processes, until
from safetensors.torch import save_file

from orchestrator import cli
from orchestrator.cluster import ray_jobs, submission
from orchestrator.cluster.ray_jobs import Cluster
from orchestrator.cluster.submission import JobRequest
from orchestrator.commands.shared.jobs import print_log, status_of_jobs, stop_job
from orchestrator.errors import ClusterError, KdctlError
from orchestrator.launch import launch
from orchestrator.machine.addresses import is_dashboard
from orchestrator.models import build
from orchestrator.records import State
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.study.plan import make_plan
from orchestrator.study.reader import load_study

STUDY = """\
study: far.away
recipe: {epochs: 200, limit_train: 128, limit_test: 100, batch_size: 32, crop_padding: 1, flip: false, lr: 0.05}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, seed: 0}
resources: {gpus_per_trial: 0, cpus_per_trial: 1, checkpoint_seconds: 0}
"""
MINE = {
    "study": "far.away",
    "storage": "/shared/runs",
    "file": "a.yaml",
    "command": "kdctl launch a.yaml",
    "kdctl": "0",
}


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    """A stand-in for a cluster, and a token in the environment that it takes."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    server = Dashboard()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a study in it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("KDCTL_STORAGE", "KDCTL_DATA"):
        monkeypatch.delenv(name, raising=False)
    Path("study.yaml").write_text(STUDY)
    return tmp_path / "here"


@pytest.fixture
def kdctl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `kdctl` in this process: its exit code, and what it wrote to standard output and to standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kdctl", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
            raise SystemExit(0)
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return run


# Submitting.


@pytest.mark.parametrize(
    ("address", "is_one"),
    [("http://a:8265", True), ("HTTPS://a", True), ("auto", False), ("a:6379", False), ("ray://a:10001", False)],
)
def test_a_dashboard_differs_from_a_cluster_to_join(address: str, is_one: bool) -> None:
    assert is_dashboard(address) is is_one


def test_a_launch_submits_the_study(dashboard: Dashboard, folder: Path, kdctl: Any) -> None:
    code, out, err = kdctl(
        "launch", "study.yaml", "--address", f"{dashboard.address}/", "--set", "recipe.lr=0.1", "--set", "study=it's",
    )  # fmt: skip
    assert code == 2 and "study" in err and dashboard.jobs == {}, "faults of the file come first"
    command = ["launch", "study.yaml", "--address", f"{dashboard.address}/", "--set", "recipe.lr=0.1"]
    code, out, err = kdctl(*command, "--max-concurrent", "3", "--skip-failed", "--data", "images")
    assert code == 0
    (job_id,) = dashboard.jobs
    assert out == f"{job_id}\n"
    assert re.fullmatch(r"kdctl-far\.away-\d{8}-\d{6}-[0-9a-f]{4}", job_id)
    job = dashboard.jobs[job_id]
    assert job["entrypoint"] == (
        f"exec sh ./kdctl-job launch study.yaml --address auto --storage {shlex.quote(str(folder / 'runs'))} "
        f"--data {shlex.quote(str(folder / 'images'))} --set recipe.lr=0.1 --max-concurrent 3 --skip-failed"
    )
    assert set(dashboard.files) == {"study.yaml", "kdctl-job"}
    assert dashboard.files["study.yaml"].decode() == STUDY
    assert job["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "40"
    assert job["metadata"]["storage"] == str(folder / "runs")
    assert job["metadata"]["command"].startswith(f"kdctl launch study.yaml --address {dashboard.address}/ --set")
    for line in (
        f"kdctl status --address {dashboard.address}\n",
        f"kdctl logs {job_id} --address {dashboard.address} --follow\n",
        f"kdctl stop {job_id} --address {dashboard.address}\n",
        f"{dashboard.address}/#/jobs/{job_id}\n",
        f"must be able to use the folder {folder / 'runs'} under this path",
        "1 trials",
    ):
        assert line in err
    assert TOKEN not in out + err + json.dumps(dashboard.jobs)


def test_unnamed_folders_are_those_of_the_cluster_and_a_bucket_is_passed_on(
    dashboard: Dashboard, folder: Path, kdctl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-the-cluster")
    code, _, err = kdctl(
        "launch", "study.yaml", "--address", dashboard.address, "--storage", "s3://bucket/a?region=eu-1"
    )
    assert code == 0 and "every machine" not in err
    (job,) = dashboard.jobs.values()
    assert "--data" not in job["entrypoint"] and "--storage 's3://bucket/a?region=eu-1'" in job["entrypoint"]
    assert "not-for-the-cluster" not in json.dumps(job)


@pytest.mark.parametrize("storage", ["ftp://bucket/a", "s3://key:secret@bucket/a"])
def test_an_impossible_storage_is_refused_before_any_request(
    storage: str, dashboard: Dashboard, folder: Path, kdctl: Any
) -> None:
    code, out, err = kdctl("launch", "study.yaml", "--address", dashboard.address, "--storage", storage)
    assert (code, out) == (2, "") and "storage" in err and "secret" not in err and dashboard.jobs == {}


def test_weights_beside_the_study_are_sent_and_no_other_file(dashboard: Dashboard, folder: Path) -> None:
    weights = folder.parent / "teachers" / "w.safetensors"
    weights.parent.mkdir()
    save_file(build("resnet_32_8", 10).state_dict(), weights)
    shutil.copy(weights, folder.parent / "far.safetensors")
    Path("secret.txt").write_text("mine")
    teachers = ["../teachers/w.safetensors", str(folder.parent / "far.safetensors")]
    Path("study.yaml").write_text(
        STUDY.replace(
            "method: base", f"method: logit, teacher: {{model: resnet_32_8, weights: {json.dumps(teachers)}}}"
        )
    )
    study = load_study("study.yaml")
    job = Cluster(dashboard.address).submit(JobRequest(study, "/runs"))
    assert set(dashboard.files) == {"here/study.yaml", "teachers/w.safetensors", "kdctl-job"}
    assert dashboard.files["teachers/w.safetensors"] == weights.read_bytes()
    assert " launch here/study.yaml " in dashboard.jobs[job.job_id]["entrypoint"]


def test_the_users_own_code_goes_along_and_trains_the_same_trials(dashboard: Dashboard, folder: Path) -> None:
    own = {
        "here/loss.py": "import json\ndef f(student, labels, teacher, progress):\n    return student.logits.mean()\n",
        "here/json.py": "from inner import part\n",
        "here/inner/part.py": "x = 1\n",
        "shared/loss.py": "import inner\ndef g(student, labels, teacher, progress):\n    return student.logits.sum()\n",
        "shared/inner/__init__.py": "name = 'é'\r\n",
    }
    for name, text in {**own, "here/unused.py": "mine", "far/far.py": own["here/loss.py"]}.items():
        path = folder.parent / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text, newline="")
    methods = f"[./loss.py:f, {{../shared/loss.py:g: , st: }}, {folder.parent}/far/far.py:f]"
    Path("study.yaml").write_text(STUDY.replace("method: base", f"method: {methods}, teacher: resnet_32_8"))
    study = load_study("study.yaml")
    job = Cluster(dashboard.address).submit(JobRequest(study, "/runs"))
    assert set(dashboard.files) == {"kdctl-job", "study/here/study.yaml", *(f"study/{name}" for name in own)}
    assert " launch study/here/study.yaml " in dashboard.jobs[job.job_id]["entrypoint"]
    there = folder.parent / "there"
    for name, content in dashboard.files.items():
        (there / name).parent.mkdir(exist_ok=True, parents=True)
        (there / name).write_bytes(content)
    arrived = make_plan(load_study(there / "study/here/study.yaml"))
    assert [t.trial_id for t in arrived.trials] == [t.trial_id for t in make_plan(study).trials]
    assert len(arrived.trials) == 4


def test_a_cluster_of_the_environment_does_not_replace_the_named_one(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:2")
    assert Cluster(dashboard.address).list_jobs() == []
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:1"


# What the job runs first.


def run_script(folder: Path, path: str, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "kdctl-job").write_text(submission._SCRIPT)
    environment = {"PATH": path, "KDCTL_EXPECTED": "kdctl, version 7"}
    command = ["/bin/sh", str(folder / "kdctl-job"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20)


def test_a_cluster_without_kdctl_is_reported(tmp_path: Path) -> None:
    done = run_script(tmp_path, "/nowhere:/usr/bin:/bin", "launch", "a.yaml")
    assert done.returncode == 127
    assert "kdctl is not on the PATH" in done.stderr and "install it on every machine" in done.stderr


@pytest.mark.parametrize("version", ["7", "8"])
def test_another_version_of_kdctl_is_a_note(version: str, tmp_path: Path) -> None:
    stand_in = tmp_path / "kdctl"
    stand_in.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "kdctl, version {version}" || printf "%s|" "$@"\n')
    stand_in.chmod(0o755)
    done = run_script(tmp_path, f"{tmp_path}:/usr/bin:/bin", "launch", "a b.yaml")
    assert (done.returncode, done.stdout) == (0, "launch|a b.yaml|")
    note = "note: the study was checked by kdctl, version 7; the cluster has kdctl, version 8\n"
    assert done.stderr == (note if version == "8" else "")


# Listing.


def test_the_list_contains_our_jobs_with_the_newest_first(dashboard: Dashboard, capsys: Any) -> None:
    dashboard.add("raysubmit_1", {})
    dashboard.add("raysubmit_2", None)
    dashboard.add("kdctl-b", {**MINE, "study": "b"}, start_time=2_000, end_time=3_725_000, status="SUCCEEDED")
    dashboard.add(
        "kdctl-c", {**MINE, "study": "c"}, start_time=3_000, end_time=4_000, status="FAILED", driver_exit_code=1
    )
    dashboard.add("kdctl-a", {**MINE, "study": "a\x1b[2J"}, start_time=1_000, status="PENDING")
    dashboard.add("kdctl-d", {**MINE, "study": "d"}, start_time=4_000, status="FAILED", message="no room\nfor it")
    dashboard.add(
        "kdctl-e", {**MINE, "study": "e"}, start_time=5_000, end_time=6_000, status="FAILED", driver_exit_code=130
    )
    status_of_jobs(dashboard.address, None, as_json=False)
    out, _ = capsys.readouterr()
    lines = [line.split() for line in out.splitlines() if "kdctl-" in line]
    assert [line[-1] for line in lines] == ["kdctl-e", "kdctl-d", "kdctl-c", "kdctl-b", "kdctl-a"]
    assert "failed to start: no room" in out and "failed (exit code 1)" in out and "1:02:03" in out
    assert lines[0][1] == "stopped" and lines[4][1] == "waiting" and "\x1b" not in out
    status_of_jobs(dashboard.address, None, as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert rows[3] == {
        "job_id": "kdctl-b", "study": "b", "state": "finished", "since": "1970-01-01T00:00:02+00:00",
        "ended": "1970-01-01T01:02:05+00:00", "exit_code": None, "reason": None, "storage": "/shared/runs",
        "file": "a.yaml", "command": "kdctl launch a.yaml", "kdctl": "0", "finished": None, "trials": None,
    }  # fmt: skip


def test_a_cluster_without_a_study_prints_how_to_submit_one(dashboard: Dashboard, capsys: Any) -> None:
    status_of_jobs(dashboard.address, None, as_json=False)
    output = capsys.readouterr()
    assert output.out == "" and f"kdctl launch FILE --address {dashboard.address}" in output.err
    with pytest.raises(ClusterError, match="no study was submitted"):
        Cluster(dashboard.address).find_job()


def test_trials_are_counted_if_the_storage_is_reachable_and_of_the_same_launch(
    dashboard: Dashboard, folder: Path, digits_storage: Storage, capsys: Any
) -> None:
    shutil.copytree(Path(digits_storage.backend.address) / "datasets", folder / "runs" / "datasets")
    dashboard.add("kdctl-1", {**MINE, "storage": str(folder / "runs")})
    before = datetime.now(UTC).timestamp() * 1000
    dashboard.add("kdctl-0", {**MINE, "storage": str(folder / "runs")}, start_time=1, end_time=int(before - 3_600_000))
    small = ["recipe.epochs=1", "recipe.limit_train=64", "recipe.limit_test=50"]
    launch("study.yaml", inline=True, storage="runs", settings=small)
    rows = {job.job_id: ray_jobs.count_trials(job) for job in Cluster(dashboard.address).list_jobs()}
    assert rows == {"kdctl-1": (1, 1), "kdctl-0": None}
    status_of_jobs(dashboard.address, None, as_json=False)
    assert re.search(r"far\.away +running +1/1 ", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "found"),
    [(None, "kdctl-b-2"), ("b", "kdctl-b-2"), ("kdctl-b-1", "kdctl-b-1"), ("kdctl-a", "kdctl-a-1"), ("a", "kdctl-a-1")],
)
def test_a_job_is_found(name: str | None, found: str, dashboard: Dashboard, capsys: Any) -> None:
    for number, (job_id, study) in enumerate([("kdctl-a-1", "a"), ("kdctl-b-1", "b"), ("kdctl-b-2", "b")]):
        dashboard.add(job_id, {**MINE, "study": study}, start_time=1_000 + number)
    print_log(dashboard.address, name, None, follow=False)
    assert capsys.readouterr().out == f"log of {found}\n"


def test_an_unknown_job_gets_the_nearest_known_one(dashboard: Dashboard) -> None:
    dashboard.add("kdctl-b-1", {**MINE, "study": "digits"})
    dashboard.add("kdctl-b-2", {**MINE, "study": "digits"})
    cluster = Cluster(dashboard.address)
    with pytest.raises(ClusterError, match="did you mean digits?"):
        cluster.find_job("digist")
    with pytest.raises(ClusterError, match="2 jobs begin with 'kdctl-b': kdctl-b-"):
        cluster.find_job("kdctl-b")
    dashboard.add("raysubmit_1", {})
    with pytest.raises(ClusterError, match="not submitted by kdctl"):
        cluster.read_job("raysubmit_1")
    with pytest.raises(ClusterError, match="refused the request: .*404.*does not exist"):
        cluster.read_job("gone")


# Stopping.


def test_a_stop_waits_for_the_end_and_prints_how_to_resume(dashboard: Dashboard, capsys: Any) -> None:
    dashboard.add("kdctl-1", MINE, start_time=1)
    dashboard.add("kdctl-2", MINE, start_time=2, status="SUCCEEDED")
    stop_job(dashboard.address, "far.away", yes=False)
    output = capsys.readouterr()
    assert dashboard.stops == ["kdctl-1"], "the one that runs, though another is newer"
    assert output.out == "" and output.err.endswith(
        "job kdctl-1 has ended: stopped\nresume with:  kdctl launch a.yaml\n"
    )
    stop_job(dashboard.address, "kdctl-2", yes=False)
    assert dashboard.stops == ["kdctl-1"]
    assert "job kdctl-2 has already ended: finished" in capsys.readouterr().err


def test_a_stop_asks_first_on_a_terminal(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, kdctl: Any) -> None:
    dashboard.add("kdctl-1", MINE)
    monkeypatch.setattr("orchestrator.commands.shared.jobs.is_terminal", lambda: True)
    monkeypatch.setattr("click.confirm", lambda text, **how: (_ for _ in ()).throw(KeyboardInterrupt(text)))
    with pytest.raises(KeyboardInterrupt, match=r"Stop study far\.away, job kdctl-1\?"):
        stop_job(dashboard.address, None, yes=False)
    assert dashboard.stops == []
    stop_job(dashboard.address, None, yes=True)
    assert dashboard.stops == ["kdctl-1"]


def test_a_job_that_does_not_stop_is_reported(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    dashboard.add("kdctl-1", MINE)
    monkeypatch.setattr(submission, "STOP_SECONDS", -61)
    cluster = Cluster(dashboard.address)
    monkeypatch.setattr(cluster._client, "stop_job", lambda job_id: True)
    with pytest.raises(ClusterError, match="is still running; see http.*/#/jobs/kdctl-1"):
        cluster.stop(cluster.read_job("kdctl-1"))


# What goes wrong.


@pytest.mark.parametrize("token", [None, "another-token-of-the-same-length-or-so"])
def test_a_token_that_is_missing_or_wrong(
    token: str | None, dashboard: Dashboard, folder: Path, kdctl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
    if token:
        (folder / "token").write_text(f"{token}\n")
    code, out, err = kdctl("launch", "study.yaml", "--address", dashboard.address)
    assert (code, out) == (2, "")
    assert ("rejects your token" if token else "requires a token") in err
    assert "RAY_AUTH_TOKEN" in err and "docs/clusters.md" in err and "another-token" not in err
    (folder / "token").write_text(f"{TOKEN}\n")
    assert Cluster(dashboard.address).list_jobs() == []
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ClusterError, match="requires a token"):
        Cluster(dashboard.address)


@pytest.mark.parametrize(
    ("status", "page"),
    [(200, "<html>Welcome to nginx</html>"), (404, "not here"), (500, "oh"), (200, "[]"), (200, "{}")],
)
def test_another_server_than_rays(status: int, page: str, dashboard: Dashboard, folder: Path, kdctl: Any) -> None:
    dashboard.status, dashboard.page = status, page
    code, out, err = kdctl("launch", "study.yaml", "--address", dashboard.address)
    assert (code, out) == (2, "") and "does not answer like a Ray dashboard" in err and err.count("\n") == 1


def test_an_address_where_nothing_listens(dashboard: Dashboard, folder: Path, kdctl: Any) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        code, out, err = kdctl("launch", "study.yaml", "--address", f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert (code, out) == (2, "") and "no Ray dashboard answers" in err and "ray start --head" in err


def test_a_machine_that_accepts_connections_and_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "_RESPONSE_TIMEOUT", 0.05)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(ClusterError, match="no Ray dashboard answers"),
    ):
        Cluster(f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize("address", ["http://", "http://a b", "http://127.0.0.1:99999999"])
def test_an_invalid_address(address: str) -> None:
    with pytest.raises(KdctlError, match="dashboard"):
        Cluster(address)


def test_an_old_version_of_ray(dashboard: Dashboard) -> None:
    dashboard.version = "1.8.0"
    with pytest.raises(ClusterError, match=r"Ray version 1\.8\.0 is running on the cluster"):
        Cluster(dashboard.address)


def test_the_reason_of_a_refusal_is_shown(dashboard: Dashboard, folder: Path) -> None:
    dashboard.refusal = "Traceback (most recent call last):\n  File\nValueError: no agent is there"
    with pytest.raises(ClusterError, match="refused the request: ValueError: no agent is there"):
        Cluster(dashboard.address).submit(JobRequest(load_study("study.yaml"), "/runs"))


# A real cluster.


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The dashboard of a real cluster with a token, started from an environment that is not active."""
    port, board, agent, client = free_ports(4)
    temp = tempfile.mkdtemp(prefix="kj-")  # paths of sockets may not be long
    environment = {
        **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "PATH": "/usr/bin:/bin",
    }  # fmt: skip
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={board}", f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}", "--num-cpus=1", f"--temp-dir={temp}",
    ]  # fmt: skip
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        started = set()
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("RAY_AUTH_TOKEN", TOKEN)
                assert until(lambda: is_up(f"http://127.0.0.1:{board}"), 120)
                started = descendants(process.pid)
                yield f"http://127.0.0.1:{board}"
        finally:
            started |= descendants(process.pid)
            process.kill()
            for pid, start in started:
                if (pid, start) in processes():
                    os.kill(pid, signal.SIGKILL)
            shutil.rmtree(temp, ignore_errors=True)


def is_up(address: str) -> bool:
    try:
        Cluster(address)
    except ClusterError:
        return False
    return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.timeout(290)
def test_a_study_on_a_real_cluster_is_watched_stopped_and_resumed(
    cluster: str, folder: Path, kdctl: Any, digits_storage: Storage, capsys: Any
) -> None:
    shutil.copytree(Path(digits_storage.backend.address) / "datasets", folder / "runs" / "datasets")
    launched = kdctl("launch", "study.yaml", "--address", cluster)
    while launched[0] and "No available agent" in launched[2]:  # the dashboard answers before its agent is there
        launched = kdctl("launch", "study.yaml", "--address", cluster)
    code, out, err = launched
    assert code == 0, err
    dashboard, job = Cluster(cluster), Cluster(cluster).find_job(out.strip())
    lines = dashboard.follow(job)
    log = ""
    for text in lines:
        log += text
        if re.search(r": epoch \d+/200", log):
            break
    else:
        pytest.fail(log)
    lines.close()  # type: ignore[attr-defined]
    own = [pid for pid, title in titles() if str(folder / "runs") in title]
    status_of_jobs(cluster, None, as_json=False)
    assert re.search(rf"far\.away +running +0/1 .*{job.job_id}", capsys.readouterr().out)
    stop_job(cluster, "far.away", yes=False)
    assert f"job {job.job_id} has ended: stopped\n" in capsys.readouterr().err
    assert len(own) == 2, "the launch and its supervisor"
    assert not until(lambda: any(pid in own for pid, _ in titles()), 0.1), "a process of the job is left"
    output = dashboard.read_log(job)
    stopped = re.search(r"stopped in epoch (\d+) of 200", output)
    assert stopped and output.count("SIGTERM: stopping") == 1, output
    assert f"resume with:  kdctl launch study.yaml --address {cluster}" in output

    code, out, err = kdctl("launch", "study.yaml", "--address", cluster)
    again = dashboard.find_job("far.away")
    assert code == 0 and again.job_id == out.strip() != job.job_id
    print_log(cluster, again.job_id, None, follow=True)
    output = capsys.readouterr().out
    assert f"resumes in epoch {stopped[1]} of 200, from its checkpoint" in output
    assert until(lambda: dashboard.read_job(again.job_id).state == "finished", 30)
    status_of_jobs(cluster, None, as_json=False)
    assert re.search(rf"far\.away +finished +1/1 .*{again.job_id}", capsys.readouterr().out)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.timeout(290)
def test_a_loss_of_the_users_trains_on_a_real_cluster(
    cluster: str, folder: Path, kdctl: Any, digits_storage: Storage
) -> None:
    shutil.copytree(Path(digits_storage.backend.address) / "datasets", folder / "runs" / "datasets")
    own = {
        "loss.py": "import json\nfrom models import part\n"
        "def f(student, labels, teacher, progress):\n    return json.SCALE * part.compare(student, teacher)\n",
        "json.py": "SCALE = 2\n",
        "models/part.py": "def compare(a, b):\n    return (a.logits - b.logits).square().mean()\n",
    }
    Path("models").mkdir()
    for name, text in own.items():
        Path(name).write_text(text)
    Path("study.yaml").write_text(STUDY.replace("method: base", "method: ./loss.py:f, teacher: resnet_32_8"))
    job = ["launch", "study.yaml", "--address", cluster, "--set", "recipe.epochs=1"]
    code, out, err = kdctl(*job)
    while code and "No available agent" in err:
        code, out, err = kdctl(*job)
    assert code == 0, err
    dashboard = Cluster(cluster)
    assert until(lambda: dashboard.read_job(out.strip()).is_over, 200)
    assert dashboard.read_job(out.strip()).state == "finished", dashboard.read_log(dashboard.read_job(out.strip()))
    rows = store.read_trials(Storage.at(folder / "runs"))
    assert {row.method: row.state for row in rows} == {"base": State.FINISHED, "loss:f": State.FINISHED}


def titles() -> list[tuple[int, str]]:
    """Every process with its command line."""
    found = []
    for pid, _ in processes():
        try:
            found.append((pid, Path(f"/proc/{pid}/cmdline").read_text(errors="replace")))
        except OSError:  # it has ended in the meantime
            continue
    return found
