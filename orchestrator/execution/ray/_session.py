"""Being part of a Ray cluster (one of our own while a launch lasts, the kept one, or another), and its dashboard."""

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
from orchestrator.execution.ray import _errors
from orchestrator.machine import addresses, folders, limits, proxies
from orchestrator.text import masked

# Whether the environment lets Ray use other addresses than loopback.
_MAY_LEAVE = bool(ray_constants.ENABLE_RAY_CLUSTER)

OWN = "local"  # an address: a cluster of the launch's own, also where one is kept

_HTTP = 2.0  # seconds for a server to show that it speaks HTTP
_PATIENCE = 7.0  # seconds for our part of Ray to end
_POLL = 0.3  # seconds between two looks whether a dashboard answers
_COMING_UP = 120.0  # seconds for a dashboard to answer

Say = Callable[[str], None]


@contextmanager
def join_cluster(
    address: str | None, study: str, say: Say, *, dashboard: bool = True
) -> Iterator[list[dict[str, float]]]:
    """Joins a cluster, or starts one on this machine for as long as this lasts; gives each node's resources.

    Without an address it is the cluster that RAY_ADDRESS names, or that `kdctl up` started, if there is one.
    `dashboard` says whether a cluster of our own has one: it comes up beside what is done here, and `say` tells once it
    answers. A program that called `ray.init` before is part of a cluster already: that one is used, and left as it is.
    Raises ResourceError, and ClusterError for an address that cannot be joined.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a worker that died is a row, see `ray_runner.Watcher`
    if ray.is_initialized():
        yield _use_as_it_is(address, say)
        return
    address = _choose_address(address, say)
    kept = persistent_cluster.find_cluster(say) if address != OWN else None
    if kept and address not in (None, "auto", kept.address):
        kept = None
    if kept:
        say(f"joined the cluster that `kdctl up` started, at {kept.address}; --address {OWN} starts another one")
    _connect(kept.address if kept else None if address == OWN else address, is_kept=kept is not None)
    over = threading.Event()
    try:
        tokens.hide_token()
        if owns_cluster():
            if dashboard:
                threading.Thread(target=_start_dashboard, args=(study, say, over), daemon=True).start()
        elif url := ray._private.worker._global_node.webui_url:
            _announce_dashboard(study, url, say)
        if not owns_cluster() and not is_token_auth_enabled():
            say(
                f"the cluster at {address} asks for no token: whoever reaches its ports can run programs as its user; "
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


def _use_as_it_is(address: str | None, say: Say) -> list[dict[str, float]]:
    """The nodes of the cluster that this program joined or started itself. Raises ResourceError for another address."""
    if address is not None:
        raise ResourceError(
            f"this program called ray.init before, so it is part of a Ray cluster and cannot join another one at "
            f"{address!r}; leave the address out, or call ray.shutdown first"
        )
    say("the Ray cluster is used that this program is part of already, and stays as it is")
    return _list_nodes()


def _choose_address(address: str | None, say: Say) -> str | None:
    """The address to join: the one that was given, or as in all programs that use Ray the one in RAY_ADDRESS."""
    named = os.environ.get("RAY_ADDRESS", "").strip()
    if address is not None and (address := addresses.to_join(address)) != "auto":
        return address
    if not named:
        return address
    if address is None and addresses.is_dashboard(named):
        say(f"RAY_ADDRESS is ignored: it names a dashboard; --address {masked(named)} hands the study to it")
        return None
    try:
        found = addresses.to_join(named)
    except ClusterError as error:
        raise ClusterError(f"RAY_ADDRESS: {error}") from None
    if address is None and found != OWN:
        say(f"joining the Ray cluster that RAY_ADDRESS names, {found}; --address {OWN} starts another one")
    return found


def owns_cluster() -> bool:
    """Whether this process started the cluster that it is part of."""
    node = ray._private.worker._global_node
    return bool(node and node.head)


def find_dead_process() -> str | None:
    """Which of the processes that every trial needs is gone, in a cluster of our own."""
    node = ray._private.worker._global_node
    dead = node.dead_processes() if owns_cluster() else []
    return next((str(kind) for kind, _ in dead if kind in ("raylet", "gcs_server")), None)


def _connect(address: str | None, *, is_kept: bool) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    _stay_on_this_machine(address is None or is_kept)
    logging.getLogger("ray._private.authentication").setLevel(logging.CRITICAL)  # docs/security.md says it better
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
                runtime_env=_workers_path() if address and not is_kept else None,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:  # Ray raises bare ones too
        if _errors.raised_here(error):
            raise
        raise ResourceError(_explain_refusal(error, address)) from None
    finally:
        _restore_handlers(handlers)


class _Job(JobConfig):
    """What Ray knows of a launch; its workers do not look for modules in the folders where it was started."""

    def _get_proto_job_config(self) -> Any:
        self._py_driver_sys_path: list[str] = []
        return super()._get_proto_job_config()


def _workers_path() -> dict[str, Any]:
    """Lets workers of a cluster that somebody else started put their import path in order, before they load kdctl."""
    ray.cloudpickle.register_pickle_by_value(import_path)  # they may not find the module otherwise
    return {"worker_process_setup_hook": import_path.put_in_order}


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
    """Why there is no cluster, in Ray's own words, and what to do."""
    where = f"a Ray cluster at {address!r} cannot be joined" if address else "a Ray cluster could not be started here"
    logs = None if address else _errors.find_logs(Path(get_default_ray_temp_dir()), os.getpid())
    words = "\n".join([_errors.describe(error), *(_errors.read_errors(logs) if logs else ())])
    look = "check `ray status`" if address else f"see Ray's logs in {logs}" if logs else ""
    steps = [_errors.find_advice(words) or "", look]
    what = "; ".join([*filter(None, steps), "or train with --inline"]).removeprefix("or ")
    if "\n" not in words:
        return f"{where} ({words}); {what}"
    return "\n  ".join([f"{where}:", *words.splitlines()]) + f"\n{what}"


def _check_loopback() -> None:
    """Raises OSError where this machine does not reach itself: Ray would end this process without a word."""
    with socket.create_server((persistent_cluster.LOOPBACK, 0)) as server:
        socket.create_connection(server.getsockname(), timeout=10).close()


def _stay_on_this_machine(is_ours: bool) -> None:
    """Lets a cluster of our own listen on the loopback address alone; one that is joined is where it is.

    A job on a cluster that does so as well has that from its environment.
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
    """Ray takes SIGTERM for itself when it starts; what was to hear it is to hear it again."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _reach(address: str) -> None:
    """Raises OSError where nobody listens at a `host:port`, for Ray itself would try for minutes; ClusterError where
    it is a dashboard that does.
    """
    host, _, port = address.rpartition(":")
    if not host:
        return
    with socket.create_connection((host.strip("[]"), int(port)), timeout=10) as connection:
        connection.settimeout(_HTTP)
        with suppress(OSError):
            connection.sendall(f"GET /api/version HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            if connection.recv(5) == b"HTTP/":
                raise ClusterError(
                    f"{address} speaks HTTP, as dashboards do, and cannot be joined; submit the study to it with "
                    f"--address http://{address}, or join the cluster at its own port, 6379 as a rule"
                )


def _leave() -> None:
    """Ends our part of Ray, which would wait for ever for some processes that are gone."""
    leaving = threading.Thread(target=ray.shutdown, daemon=True)
    leaving.start()
    leaving.join(_PATIENCE)


# The dashboard.

_API_SERVER = getattr(ray_node.Node, "start_api_server", None)  # Ray's own affair; it may go


@contextmanager
def _no_api_server() -> Iterator[None]:
    """Keeps `ray.init` from starting the dashboard's process, and waiting for it; see `_start_dashboard`."""

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


def _start_dashboard(study: str, say: Say, over: threading.Event) -> None:
    """Starts the dashboard of our own cluster, and tells of it once it answers, or why it does not."""
    logging.getLogger("ray._private.services").setLevel(logging.CRITICAL)  # it would print twenty lines of a log
    node = ray._private.worker._global_node
    try:
        node.start_api_server(include_dashboard=True, raise_on_failure=True)
        url = node.webui_url
        waited = 0.0
        while not over.wait(_POLL) and not dashboards.is_answering(url):
            waited += _POLL
            if waited > _COMING_UP:
                raise OSError(f"it does not answer at http://{url}")
        if not over.is_set():
            _announce_dashboard(study, url, say)
        over.wait()  # the kernel ends the process together with the thread that started it
    except Exception as error:  # whatever it is, what is trained matters more
        if not over.is_set():
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            say(f"there is no dashboard ({reason}); the training goes on")


def _announce_dashboard(study: str, url: str, say: Say) -> None:
    dashboards.remember_dashboard(study, url)
    say(dashboards.describe_login(url) if is_token_auth_enabled() else f"dashboard: http://{url}")
