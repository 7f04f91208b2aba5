"""Joins a Ray cluster (one that lasts as long as the launch, the kept one, or another), and starts its dashboard."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private import node as ray_node
from ray._private import ray_constants
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray.job_config import JobConfig

from orchestrator import import_path
from orchestrator.cluster import dashboard as dashboards
from orchestrator.cluster import persistent_cluster, tokens
from orchestrator.errors import ClusterError, ResourceError
from orchestrator.execution.ray import _failures
from orchestrator.machine import addresses, folders, limits, proxies
from orchestrator.text import masked

# Whether the environment lets Ray use other addresses than loopback.
_MAY_LEAVE = bool(ray_constants.ENABLE_RAY_CLUSTER)

OWN = "local"  # the address that stands for a new cluster of the launch's own, even if `kdctl up` started one

_HTTP_TIMEOUT = 2.0  # seconds for a server to answer in HTTP
_PATIENCE = 7.0  # seconds to wait until Ray has shut down in this process
_POLL = 0.3  # seconds between two attempts to reach a dashboard
_DASHBOARD_TIMEOUT = 120.0  # seconds for a dashboard to answer

OnNote = Callable[[str], None]


@contextmanager
def join_cluster(
    address: str | None, study: str, on_note: OnNote, *, dashboard: bool = True
) -> Iterator[list[dict[str, float]]]:
    """Joins a cluster, or starts one on this machine for the duration of the block; yields each node's resources.

    Without an address it is the cluster that RAY_ADDRESS names, else the one that `kdctl up` started, else a new one.
    If `dashboard`, a new cluster has a dashboard: it starts in the background, and `on_note` gets a message once it
    answers. A program that called `ray.init` before is already part of a cluster: that one is used, and not changed.
    Raises ResourceError, and ClusterError for an address that cannot be joined.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a worker that died is a row, see `_worker_watcher`
    if ray.is_initialized():
        yield _use_existing(address, on_note)
        return
    address = _choose_address(address, on_note)
    kept = persistent_cluster.find_cluster(on_note) if address != OWN else None
    if kept and address not in (None, "auto", kept.address):
        kept = None
    if kept:
        on_note(f"joined the cluster that `kdctl up` started, at {kept.address}; --address {OWN} starts another one")
    _connect(kept.address if kept else None if address == OWN else address, is_kept=kept is not None)
    over = threading.Event()
    try:
        tokens.hide_token()
        if owns_cluster():
            if dashboard:
                threading.Thread(target=_start_dashboard, args=(study, on_note, over), daemon=True).start()
        elif url := ray._private.worker._global_node.webui_url:
            _announce_dashboard(study, url, on_note)
        if not owns_cluster() and not is_token_auth_enabled():
            on_note(
                f"the cluster at {address} requires no token: whoever reaches its ports can run programs as its user; "
                "start it with RAY_AUTH_MODE=token, see docs/security.md"
            )
        yield _list_nodes()
    finally:
        over.set()
        dashboards.forget_dashboard()
        _leave()


def _list_nodes() -> list[dict[str, float]]:
    """The resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _use_existing(address: str | None, on_note: OnNote) -> list[dict[str, float]]:
    """The nodes of the cluster that this program joined or started itself. Raises ResourceError for any address."""
    if address is not None:
        raise ResourceError(
            f"this program called ray.init before, so it is part of a Ray cluster and cannot join another one at "
            f"{address!r}; leave the address out, or call ray.shutdown first"
        )
    on_note("using the Ray cluster that this program is already part of; it is not changed")
    return _list_nodes()


def _choose_address(address: str | None, on_note: OnNote) -> str | None:
    """The address to join: the given one, else the one in RAY_ADDRESS, as in all programs that use Ray."""
    named = os.environ.get("RAY_ADDRESS", "").strip()
    if address is not None and (address := addresses.to_join(address)) != "auto":
        return address
    if not named:
        return address
    if address is None and addresses.is_dashboard(named):
        on_note(f"RAY_ADDRESS is ignored: it names a dashboard; --address {masked(named)} submits the study to it")
        return None
    try:
        found = addresses.to_join(named)
    except ClusterError as error:
        raise ClusterError(f"RAY_ADDRESS: {error}") from None
    if address is None and found != OWN:
        on_note(f"joining the Ray cluster that RAY_ADDRESS names, {found}; --address {OWN} starts another one")
    return found


def owns_cluster() -> bool:
    """Whether this process started the cluster that it is part of."""
    node = ray._private.worker._global_node
    return bool(node and node.head)


def find_dead_process() -> str | None:
    """The name of a dead process that every trial needs, in a cluster of our own; None if all are alive."""
    node = ray._private.worker._global_node
    dead = node.dead_processes() if owns_cluster() else []
    return next((str(kind) for kind, _ in dead if kind in ("raylet", "gcs_server")), None)


def _connect(address: str | None, *, is_kept: bool) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    _limit_to_loopback(address is None or is_kept)
    logging.getLogger("ray._private.authentication").setLevel(logging.CRITICAL)  # docs/security.md explains it better
    if address is None:
        folders.of_ray()
        folders.shared_memory()
        tokens.make_token()
    tokens.lend_token()
    proxies.spare_loopback()
    if os.environ.get("NO_COLOR") or not (sys.stderr and sys.stderr.isatty()):
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    try:
        if address:
            _reach(address)
        else:
            _check_loopback()
        if is_kept:
            maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        with _no_api_server(), _no_uv():
            ray.init(
                address=address or "local",
                num_cpus=None if address else limits.cores(),
                job_config=_Job(),
                runtime_env=_make_runtime_environment() if address and not is_kept else None,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:  # Ray also raises plain Exception
        if _failures.raised_here(error):
            raise
        raise ResourceError(_explain_refusal(error, address)) from None
    finally:
        _restore_handlers(handlers)


class _Job(JobConfig):
    """Ray's config of a launch; its workers do not search the launch's own `sys.path` for modules."""

    def _get_proto_job_config(self) -> Any:
        self._py_driver_sys_path: list[str] = []
        return super()._get_proto_job_config()


def _make_runtime_environment() -> dict[str, Any]:
    """Makes workers of a cluster that somebody else started put their import path in order before they import kdctl."""
    ray.cloudpickle.register_pickle_by_value(import_path)  # they may not find the module otherwise
    return {"worker_process_setup_hook": import_path.put_in_order, "env_vars": limits.make_thread_environment()}


@contextmanager
def _no_uv() -> Iterator[None]:
    """Keeps `ray.init` from uploading the working folder after `uv run`, also where Ray was imported before us."""
    name = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
    before = getattr(ray_constants, name, False)
    setattr(ray_constants, name, False)
    try:
        yield
    finally:
        setattr(ray_constants, name, before)


def _explain_refusal(error: Exception, address: str | None) -> str:
    """Why there is no cluster, as Ray explains it, and what to do."""
    where = f"a Ray cluster at {address!r} cannot be joined" if address else "a Ray cluster could not be started here"
    logs = None if address else _failures.find_logs(Path(get_default_ray_temp_dir()), os.getpid())
    text = "\n".join([_failures.describe(error), *(_failures.read_errors(logs) if logs else ())])
    check = "check `ray status`" if address else f"see Ray's logs in {logs}" if logs else ""
    steps = [_failures.find_advice(text) or "", check]
    advice = "; ".join([*filter(None, steps), "or train with --inline"]).removeprefix("or ")
    if "\n" not in text:
        return f"{where} ({text}); {advice}"
    return "\n  ".join([f"{where}:", *text.splitlines()]) + f"\n{advice}"


def _check_loopback() -> None:
    """Raises OSError if this machine cannot reach itself: Ray would end this process without any message."""
    with socket.create_server((persistent_cluster.LOOPBACK, 0)) as server:
        socket.create_connection(server.getsockname(), timeout=10).close()


def _limit_to_loopback(is_ours: bool) -> None:
    """Makes a cluster of our own listen on the loopback address only; a joined cluster keeps its addresses.

    If the joined cluster also uses only the loopback address, a job on it inherits that from its environment.
    """
    ray_constants.ENABLE_RAY_CLUSTER = not is_ours and _MAY_LEAVE
    if is_ours:
        for name, value in persistent_cluster.make_settings().items():
            os.environ.setdefault(name, value)
    if is_ours or not _MAY_LEAVE:
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    else:
        os.environ.pop(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, None)


def _restore_handlers(handlers: dict[signal.Signals, Any]) -> None:
    """Restores the signal handlers that were set before Ray started: it replaces that of SIGTERM."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _reach(address: str) -> None:
    """Raises OSError if nothing listens at a `host:port`, as Ray itself would try for minutes.

    Raises ClusterError if a dashboard listens there.
    """
    host, _, port = address.rpartition(":")
    if not host:
        return
    with socket.create_connection((host.strip("[]"), int(port)), timeout=10) as connection:
        connection.settimeout(_HTTP_TIMEOUT)
        with suppress(OSError):
            connection.sendall(f"GET /api/version HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            if connection.recv(5) == b"HTTP/":
                raise ClusterError(
                    f"{address} speaks HTTP, as dashboards do, and cannot be joined; submit the study to it with "
                    f"--address http://{address}, or join the cluster at its own port, usually 6379"
                )


def _leave() -> None:
    """Shuts Ray down in this process, but does not wait for it forever: it may wait for processes that are gone."""
    thread = threading.Thread(target=ray.shutdown, daemon=True)
    thread.start()
    thread.join(_PATIENCE)


# The dashboard.

_API_SERVER = getattr(ray_node.Node, "start_api_server", None)  # internal to Ray, so a later version may lack it


@contextmanager
def _no_api_server() -> Iterator[None]:
    """Keeps `ray.init` from starting the dashboard's process and waiting for it; see `_start_dashboard`."""
    if _API_SERVER is None:
        yield
        return

    def skip(node: Any, **options: Any) -> None:
        node._webui_url = ""

    ray_node.Node.start_api_server = skip
    try:
        yield
    finally:
        ray_node.Node.start_api_server = _API_SERVER


def _start_dashboard(study: str, on_note: OnNote, over: threading.Event) -> None:
    """Starts the dashboard of our own cluster; a note gives its address once it answers, or why it does not."""
    logging.getLogger("ray._private.services").setLevel(logging.CRITICAL)  # it would print twenty lines of a log
    node = ray._private.worker._global_node
    try:
        node.start_api_server(include_dashboard=True, raise_on_failure=True)
        url = node.webui_url
        waited = 0.0
        while not over.wait(_POLL) and not dashboards.is_answering(url):
            waited += _POLL
            if waited > _DASHBOARD_TIMEOUT:
                raise OSError(f"it does not answer at http://{url}")
        if not over.is_set():
            _announce_dashboard(study, url, on_note)
        over.wait()  # the kernel ends the process together with the thread that started it
    except Exception as error:  # whatever it is, training matters more
        if not over.is_set():
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            on_note(f"there is no dashboard ({reason}); training continues")


def _announce_dashboard(study: str, url: str, on_note: OnNote) -> None:
    dashboards.remember_dashboard(study, url)
    on_note(dashboards.describe_login(url) if is_token_auth_enabled() else f"dashboard: http://{url}")
