"""The Ray cluster that `kdctl up` keeps on this machine, and where the dashboards are: without loading Ray.

A kept cluster is one session of processes, led by `ray start --head --block`. A small file in the user's cache folder
remembers it: the leader's id and start time, so that no other process is ever taken for it.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from orchestrator import codec
from orchestrator.cluster import tokens
from orchestrator.cluster.supervisor import end_session
from orchestrator.errors import ResourceError
from orchestrator.files import write_file
from orchestrator.machine import folders, limits
from orchestrator.machine.processes import list_session, read_start_time
from orchestrator.text import printable

LOOPBACK = "127.0.0.1"
PORT = 8265  # of a dashboard, or the next free one
_PORTS = 50
_COMING_UP = 120.0  # seconds for a cluster to answer
_GOING_DOWN = 10.0  # seconds for its processes to end by themselves
_ANSWER = 5.0  # seconds for a dashboard to answer a question
_ASKED = "/logical/actors"  # answered once the dashboard's own processes are up

# How Ray's processes are to behave in a cluster of ours, unless the user says otherwise.
SETTINGS = {
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # its agents would stay for a minute after a launch that was killed
    # What the dashboard says of processes would be 20 s old: another trial, by then.
    "RAY_DASHBOARD_STATS_UPDATING_INTERVAL": "1",
    "REPORTER_UPDATE_INTERVAL_MS": "1000",
    "RAY_metrics_report_interval_ms": "2000",  # Ray keeps a metric that ended for three of them, 30 s otherwise
}

Say = Callable[[str], None]


def settings() -> dict[str, str]:
    """SETTINGS, and a port without a server for usage reports: a dashboard would report even that they are off."""
    is_on = os.environ.get("RAY_USAGE_STATS_ENABLED") == "1"
    return SETTINGS if is_on else {**SETTINGS, "RAY_USAGE_STATS_REPORT_URL": f"http://{LOOPBACK}:9/"}


@dataclass(frozen=True, slots=True)
class KeptCluster:
    """A cluster that `kdctl up` started: its leader, and where it and its dashboard listen (HOST:PORT).

    `members` are the start times of the processes that it had once it was up, by their ids; none before.
    """

    pid: int
    started: str
    address: str
    dashboard: str
    members: Mapping[str, str]

    @property
    def is_up(self) -> bool:
        """Whether it can be joined."""
        return bool(self.members)


@dataclass(frozen=True, slots=True)
class LiveDashboard:
    """A dashboard of a launch that runs: the launch's process, and HOST:PORT."""

    pid: int
    started: str
    study: str
    dashboard: str


Memory = TypeVar("Memory", KeptCluster, LiveDashboard)

# How to log in.


def format_command(*words: str) -> str:
    """A kdctl command as this user can type it."""
    script = Path(sys.executable).with_name("kdctl")
    if not script.is_file():
        return " ".join((shlex.quote(sys.executable), "-m", "orchestrator", *words))
    on_path = shutil.which("kdctl")
    if on_path and Path(on_path).samefile(script):
        return " ".join(("kdctl", *words))
    with suppress(ValueError):
        script = script.relative_to(Path.cwd())
    typed = str(script) if len(script.parts) > 1 else f"./{script}"
    return " ".join((shlex.quote(typed), *words))


def describe_login(dashboard: str) -> str:
    """One line: where a dashboard is and how to log in; never the token itself."""
    if not tokens.has_tokens():
        return f"dashboard: http://{dashboard}"
    return f"dashboard: http://{dashboard} — log in with the token that `{format_command('dashboard', 'token')}` prints"


# Asking a dashboard.


def fetch(dashboard: str, path: str) -> Any:
    """What a dashboard answers, JSON as plain data. Raises OSError where it does not answer, or refuses."""
    host, _, port = dashboard.rpartition(":")
    known = tokens.read_token()
    headers = {"Authorization": f"Bearer {known}"} if known else {}
    try:
        with closing(http.client.HTTPConnection(host, int(port), timeout=_ANSWER)) as connection:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != http.HTTPStatus.OK:
                raise OSError(f"the dashboard answers {answer.status} {answer.reason}")
            return json.loads(body)
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"the dashboard answers strangely ({type(error).__name__})") from None


def is_answering(dashboard: str) -> bool:
    """Whether a dashboard can be logged in to, and shows something."""
    try:
        fetch(dashboard, _ASKED)
    except OSError:
        return False
    return True


def list_programs(kept: KeptCluster) -> list[str]:
    """The programs that run on a kept cluster, as their users typed them. Raises OSError where it does not answer."""
    jobs = fetch(kept.dashboard, "/api/jobs/")
    found = [job for job in jobs if job.get("status") in ("RUNNING", "PENDING")]
    return [printable(_format_entrypoint(str(job.get("entrypoint") or job.get("submission_id")))) for job in found]


def _format_entrypoint(entrypoint: str) -> str:
    words = entrypoint.partition("orchestrator.cli ")[2] or entrypoint.partition("orchestrator/cli.py ")[2]
    return f"kdctl {words}" if words else entrypoint


# What is remembered.


def folder() -> Path:
    """The folder that remembers the clusters and dashboards of this user. Raises ResourceError."""
    return folders.own()


def _file(name: str) -> Path:
    return folder() / f"{name}-{socket.gethostname()}"  # machines may share a home


def _start_of(pid: int) -> str | None:
    """When a living process started; None where there is none."""
    return read_start_time(pid) or None


def _write(file: Path, content: KeptCluster | LiveDashboard) -> None:
    folders.make(file.parent)
    write_file(file, json.dumps(codec.encode(content)), private=True)


def _read(file: Path, kind: type[Memory]) -> Memory | None:
    try:
        return codec.decode(kind, json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):  # a file of another version, or half of one
        file.unlink(missing_ok=True)
        return None


def remember_dashboard(study: str, dashboard: str) -> None:
    """Remembers where the dashboard of this process's launch is."""
    with suppress(OSError, ResourceError):  # it is only for `kdctl dashboard`
        _write(
            _file(f"dashboard-{os.getpid()}"),
            LiveDashboard(os.getpid(), _start_of(os.getpid()) or "", study, dashboard),
        )


def forget_dashboard() -> None:
    """Forgets what `remember_dashboard` remembered."""
    with suppress(OSError, ResourceError):
        _file(f"dashboard-{os.getpid()}").unlink(missing_ok=True)


def list_dashboards() -> list[LiveDashboard]:
    """The dashboards of the launches that run; those of launches that died are forgotten."""
    found = []
    of_this_machine = re.compile(rf"dashboard-\d+-{re.escape(socket.gethostname())}")
    for file in sorted(folder().glob("dashboard-*")):
        if not of_this_machine.fullmatch(file.name):
            continue
        one = _read(file, LiveDashboard)
        if one and _start_of(one.pid) == one.started:
            found.append(one)
        else:
            file.unlink(missing_ok=True)
    return found


def find_kept(say: Say) -> KeptCluster | None:
    """The cluster that `kdctl up` keeps; one that died is cleared away, which `say` tells."""
    file = _file("cluster")
    one = _read(file, KeptCluster)
    if one is None:
        return None
    if _start_of(one.pid) == one.started:
        return one if one.is_up else None
    _clear(one)
    say(
        "the cluster that `kdctl up` started is gone (the machine was restarted, or its processes were ended); "
        f"start it again with `{format_command('up')}`"
    )
    return None


def _clear(one: KeptCluster) -> None:
    """Ends what is left of a cluster, and forgets it."""
    if _is_same_session(one):
        end_session(one.pid)
    _forget_address(one.address)
    _file("cluster").unlink(missing_ok=True)


def _is_same_session(one: KeptCluster) -> bool:
    """Whether the session with the leader's number is still that of the cluster: another one may have got it."""
    if _start_of(one.pid) == one.started:
        return True
    left = set(map(str, list_session(one.pid)))
    return any(pid in left and _start_of(int(pid)) == started for pid, started in one.members.items())


# Ray remembers one address a machine for `--address auto`, and leaves it there after the cluster's end.


def _address_file() -> Path:
    return Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"  # noqa: S108 - Ray's own


def _forget_address(address: str) -> None:
    with suppress(OSError):
        if _address_file().read_text().strip() == address:
            _address_file().unlink()


def _find_foreign_cluster() -> str | None:
    """The address of a cluster here that somebody else started with `ray start`, where one answers."""
    with suppress(OSError, ValueError):
        host, _, port = (address := _address_file().read_text().strip()).rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        return address
    return None


# Up and down.


@contextmanager
def _alone() -> Iterator[None]:
    """Keeps two commands from starting and ending a cluster at the same time."""
    try:
        folders.make(folder())
        lock = _file("lock").open("w")
    except OSError as error:
        raise ResourceError(
            f"{folder()} cannot be written ({error.strerror}), where kdctl remembers its cluster; "
            "name another folder in KDCTL_CACHE"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ResourceError("another `kdctl up` or `kdctl down` is at work; wait for its end") from None
        yield


def up(say: Say) -> tuple[KeptCluster, bool]:
    """Starts a cluster on this machine that stays until `down`; gives it, and whether it is new.

    It listens on the loopback address alone and asks for Ray's token. Raises ResourceError where it cannot be started.
    """
    with _alone():
        if found := find_kept(say):
            return found, False
        if left := _read(_file("cluster"), KeptCluster):  # of an `up` that was killed
            _clear(left)
        if another := _find_foreign_cluster():
            raise ResourceError(
                f"a Ray cluster that kdctl did not start is up here at {another}; join it with "
                f"`kdctl launch FILE --address {another}`, or end it with `ray stop`, then try again"
            )
        folders.of_ray()
        folders.shared_memory()
        folders.lend_home()
        tokens.make_token()
        return _start(), True


def _start() -> KeptCluster:
    kept = KeptCluster(0, "", f"{LOOPBACK}:{_free_port()}", f"{LOOPBACK}:{_free_port(PORT)}", {})
    log = _file("log")
    with folders.create_private_file(log) as output:
        process = subprocess.Popen(
            _head(kept), env=_environment(), start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, cwd="/",
        )  # fmt: skip
    kept = replace(kept, pid=process.pid, started=_start_of(process.pid) or "")
    try:
        _write(_file("cluster"), kept)
        _wait(process, kept, log)
        kept = replace(kept, members={str(pid): _start_of(pid) or "" for pid in list_session(process.pid)})
        _write(_file("cluster"), kept)
    except BaseException:
        end_session(process.pid)
        process.wait()
        _clear(kept)
        raise
    tokens.hide_token()
    return kept


def _head(kept: KeptCluster) -> list[str]:
    port, dashboard = kept.address.rpartition(":")[2], kept.dashboard.rpartition(":")[2]
    return [
        *(sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address", LOOPBACK, "--port", port, "--ray-client-server-port", str(_free_port())),
        *("--include-dashboard", "true", "--dashboard-host", LOOPBACK, "--dashboard-port", dashboard),
        *("--num-cpus", str(limits.cores())),
    ]  # fmt: skip


def _environment() -> dict[str, str]:
    own = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # makes it listen on the loopback address alone
    wanted = {"RAY_AUTH_MODE": "token", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "NO_COLOR": "1"}
    return {**settings(), **wanted, **os.environ, **own}


def _free_port(first: int = 0) -> int:
    """A port of the loopback address that nobody listens at: any, or the next from one on."""
    for port in range(first, first + _PORTS):
        with closing(socket.socket()) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                listener.bind((LOOPBACK, port if first else 0))
                return int(listener.getsockname()[1])
    raise ResourceError(f"the ports {first} to {first + _PORTS - 1} are all taken; end a program that listens at one")


def _wait(process: subprocess.Popen[bytes], kept: KeptCluster, log: Path) -> None:
    deadline = time.monotonic() + _COMING_UP
    while not _has_node(kept.dashboard):
        if process.poll() is not None:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
            raise ResourceError(f"Ray could not be started: {printable(lines[-1])} (all of it: {log})")
        if time.monotonic() > deadline:
            raise ResourceError(f"Ray did not answer within {_COMING_UP:g} s; see {log}")
        time.sleep(0.2)


def _has_node(dashboard: str) -> bool:
    """Whether a cluster can train: its dashboard comes before the process that starts workers."""
    with suppress(OSError, KeyError, TypeError):
        nodes = fetch(dashboard, "/nodes?view=summary")["data"]["summary"]
        return any(node["raylet"]["state"] == "ALIVE" for node in nodes) and is_answering(dashboard)
    return False


def down(one: KeptCluster) -> None:
    """Ends a kept cluster, and every process of it."""
    with _alone():
        if _start_of(one.pid) == one.started:
            with suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGTERM)
            deadline = time.monotonic() + _GOING_DOWN
            while list_session(one.pid) and time.monotonic() < deadline:
                time.sleep(0.1)
        _clear(one)
