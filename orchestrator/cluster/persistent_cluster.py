"""The persistent Ray cluster of this machine: `kdctl up` starts it, later launches join it, `kdctl down` ends it.

It is one session of processes, led by `ray start --head --block`. A small file in the user's cache folder records the
leader's id and start time, so that no other process is ever taken for it. Ray is not imported.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.cluster import _user_files, tokens
from orchestrator.cluster._user_files import ProcessRecord, is_running
from orchestrator.cluster.dashboard import has_live_node
from orchestrator.cluster.launch_supervisor import end_session
from orchestrator.errors import ResourceError
from orchestrator.machine import folders, limits
from orchestrator.machine.command_line import format_command
from orchestrator.machine.processes import list_session, read_start_time
from orchestrator.text import printable

LOOPBACK = "127.0.0.1"
_DASHBOARD_PORT = 8265  # or the next free one
_PORTS_TRIED = 50
_START_TIMEOUT = 120.0  # seconds for a cluster to answer
_STOP_TIMEOUT = 10.0  # seconds for its processes to end by themselves
_RECORD = "cluster"  # the name of the file that records the cluster

# Environment variables for Ray's processes in a cluster that kdctl starts; those that the user set take precedence.
SETTINGS = {
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # otherwise its agents outlive a killed launch by a minute
    # Otherwise the dashboard shows processes as they were 20 s ago, and may name the previous trial.
    "RAY_DASHBOARD_STATS_UPDATING_INTERVAL": "1",
    "REPORTER_UPDATE_INTERVAL_MS": "1000",
    "RAY_metrics_report_interval_ms": "2000",  # Ray keeps a metric for three intervals after its end, 30 s by default
}

Say = Callable[[str], None]


def make_settings() -> dict[str, str]:
    """SETTINGS, and a port without a server for usage reports: a dashboard reports even that reports are off."""
    is_on = os.environ.get("RAY_USAGE_STATS_ENABLED") == "1"
    return SETTINGS if is_on else {**SETTINGS, "RAY_USAGE_STATS_REPORT_URL": f"http://{LOOPBACK}:9/"}


@dataclass(frozen=True, slots=True)
class PersistentCluster(ProcessRecord):
    """The cluster that `kdctl up` started: its leader, and the addresses of it and its dashboard (HOST:PORT).

    `members` maps the ids of its processes, as of when it was up, to their start times; it is empty before that.
    """

    address: str
    dashboard: str
    members: Mapping[str, str]

    @property
    def is_up(self) -> bool:
        """Whether launches can join it."""
        return bool(self.members)


def find_cluster(say: Say) -> PersistentCluster | None:
    """The persistent cluster. If it died, what is left of it is removed, and `say` gets a message about it."""
    cluster = _user_files.read(_user_files.locate(_RECORD), PersistentCluster)
    if cluster is None:
        return None
    if cluster.is_alive:
        return cluster if cluster.is_up else None
    _remove(cluster)
    say(
        "the cluster that `kdctl up` started is gone (the machine was restarted, or its processes were ended); "
        f"start it again with `{format_command('up')}`"
    )
    return None


def _remove(cluster: PersistentCluster) -> None:
    """Ends the processes that are left of a cluster, and deletes its record."""
    if _owns_session(cluster):
        end_session(cluster.pid)
    _forget_address(cluster.address)
    _user_files.locate(_RECORD).unlink(missing_ok=True)


def _owns_session(cluster: PersistentCluster) -> bool:
    """Whether the session with the leader's id is still the cluster's: the system may have reused the id."""
    if cluster.is_alive:
        return True
    session = set(map(str, list_session(cluster.pid)))
    return any(pid in session and is_running(int(pid), started) for pid, started in cluster.members.items())


# Ray records one address per machine for `--address auto`, and keeps it after the end of the cluster.


def _address_file() -> Path:
    return Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"  # noqa: S108 - Ray's own


def _forget_address(address: str) -> None:
    with suppress(OSError):
        if _address_file().read_text().strip() == address:
            _address_file().unlink()


def _find_foreign_cluster() -> str | None:
    """The address of a cluster on this machine that was started with `ray start`; None if none answers."""
    with suppress(OSError, ValueError):
        host, _, port = (address := _address_file().read_text().strip()).rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        return address
    return None


# Starting and ending.


@contextmanager
def _lock() -> Iterator[None]:
    """Keeps two commands from starting or ending a cluster at the same time. Raises ResourceError."""
    try:
        folders.make(folders.own())
        lock = _user_files.locate("lock").open("w")
    except OSError as error:
        raise ResourceError(
            f"{folders.own()}, where kdctl records its cluster, cannot be written ({error.strerror}); "
            "name another folder in KDCTL_CACHE"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ResourceError("another `kdctl up` or `kdctl down` is running; wait until it has ended") from None
        yield


def start_cluster(say: Say) -> tuple[PersistentCluster, bool]:
    """Starts a cluster that runs until `end_cluster`; returns it, and whether it is new.

    It listens on the loopback address alone and requires Ray's token. Raises ResourceError if it cannot be started.
    """
    with _lock():
        if running := find_cluster(say):
            return running, False
        if unfinished := _user_files.read(_user_files.locate(_RECORD), PersistentCluster):  # of a killed `kdctl up`
            _remove(unfinished)
        if foreign := _find_foreign_cluster():
            raise ResourceError(
                f"a Ray cluster that kdctl did not start is running here at {foreign}; join it with "
                f"`kdctl launch FILE --address {foreign}`, or end it with `ray stop`, then try again"
            )
        folders.of_ray()
        folders.shared_memory()
        folders.lend_home()
        tokens.make_token()
        return _start(), True


def _start() -> PersistentCluster:
    address, dashboard = (f"{LOOPBACK}:{_find_free_port(first)}" for first in (0, _DASHBOARD_PORT))
    log = _user_files.locate("log")
    with folders.create_private_file(log) as output:
        process = subprocess.Popen(
            _make_command(address, dashboard), env=_make_environment(), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd="/",
        )  # fmt: skip
    cluster = PersistentCluster(process.pid, read_start_time(process.pid) or "", address, dashboard, {})
    try:
        _user_files.write(_user_files.locate(_RECORD), cluster)
        _wait_until_up(process, dashboard, log)
        members = {str(pid): read_start_time(pid) or "" for pid in list_session(process.pid)}
        cluster = replace(cluster, members=members)
        _user_files.write(_user_files.locate(_RECORD), cluster)
    except BaseException:
        end_session(process.pid)
        process.wait()
        _remove(cluster)
        raise
    tokens.hide_token()
    return cluster


def _make_command(address: str, dashboard: str) -> list[str]:
    port, dashboard_port = address.rpartition(":")[2], dashboard.rpartition(":")[2]
    return [
        *(sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address", LOOPBACK, "--port", port, "--ray-client-server-port", str(_find_free_port())),
        *("--include-dashboard", "true", "--dashboard-host", LOOPBACK, "--dashboard-port", dashboard_port),
        *("--num-cpus", str(limits.cores())),
    ]  # fmt: skip


def _make_environment() -> dict[str, str]:
    fixed = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # makes it listen on the loopback address alone
    defaults = {"RAY_AUTH_MODE": "token", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "NO_COLOR": "1"}
    return {**make_settings(), **defaults, **os.environ, **fixed}


def _find_free_port(first: int = 0) -> int:
    """A port of the loopback address that no program listens at: any, or the first free one from `first` on."""
    for port in range(first, first + _PORTS_TRIED):
        with closing(socket.socket()) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                listener.bind((LOOPBACK, port if first else 0))
                return int(listener.getsockname()[1])
    raise ResourceError(
        f"the ports {first} to {first + _PORTS_TRIED - 1} are all in use; end a program that listens at one of them"
    )


def _wait_until_up(process: subprocess.Popen[bytes], dashboard: str, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while not has_live_node(dashboard):
        if process.poll() is not None:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
            raise ResourceError(f"Ray could not be started: {printable(lines[-1])} (complete output: {log})")
        if time.monotonic() > deadline:
            raise ResourceError(f"Ray did not answer within {_START_TIMEOUT:g} s; see {log}")
        time.sleep(0.2)


def end_cluster(cluster: PersistentCluster) -> None:
    """Ends all processes of the persistent cluster, and deletes its record. Raises ResourceError."""
    with _lock():
        if cluster.is_alive:
            with suppress(ProcessLookupError):
                os.kill(cluster.pid, signal.SIGTERM)
            deadline = time.monotonic() + _STOP_TIMEOUT
            while list_session(cluster.pid) and time.monotonic() < deadline:
                time.sleep(0.1)
        _remove(cluster)
