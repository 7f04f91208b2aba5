"""Ray's dashboards on this machine: the ones that launches started, how to log in to one, and requests to one.

Ray is not imported.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster import _user_files, tokens
from orchestrator.cluster._user_files import ProcessRecord
from orchestrator.errors import ResourceError
from orchestrator.machine import folders
from orchestrator.machine.command_line import format_command
from orchestrator.machine.processes import read_start_time
from orchestrator.text import printable

_TIMEOUT = 5.0  # seconds for a response
_PROBE = "/logical/actors"  # this path works only after the dashboard's own processes are up


@dataclass(frozen=True, slots=True)
class LiveDashboard(ProcessRecord):
    """The dashboard of a running launch, whose process it records, and its address (HOST:PORT)."""

    study: str
    dashboard: str


def remember_dashboard(study: str, dashboard: str) -> None:
    """Records where the dashboard of this process's launch is."""
    with suppress(OSError, ResourceError):  # only `kdctl dashboard` needs it
        record = LiveDashboard(os.getpid(), read_start_time(os.getpid()) or "", study, dashboard)
        _user_files.write(_user_files.locate(f"dashboard-{os.getpid()}"), record)


def forget_dashboard() -> None:
    """Deletes what `remember_dashboard` recorded."""
    with suppress(OSError, ResourceError):
        _user_files.locate(f"dashboard-{os.getpid()}").unlink(missing_ok=True)


def list_dashboards() -> list[LiveDashboard]:
    """The dashboards of all running launches. Deletes the records of launches that died. Raises ResourceError."""
    found = []
    of_this_machine = re.compile(rf"dashboard-\d+-{re.escape(socket.gethostname())}")
    for file in sorted(folders.own().glob("dashboard-*")):
        if not of_this_machine.fullmatch(file.name):
            continue
        record = _user_files.read(file, LiveDashboard)
        if record and record.is_alive:
            found.append(record)
        else:
            file.unlink(missing_ok=True)
    return found


def describe_login(dashboard: str) -> str:
    """One line: where a dashboard is and how to log in; never the token itself."""
    if not tokens.has_tokens():
        return f"dashboard: http://{dashboard}"
    return f"dashboard: http://{dashboard} — log in with the token that `{format_command('dashboard', 'token')}` prints"


def fetch(dashboard: str, path: str) -> Any:
    """The JSON that a dashboard returns for a path, as plain data. Raises OSError if it does not answer, or refuses."""
    host, _, port = dashboard.rpartition(":")
    token = tokens.read_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with closing(http.client.HTTPConnection(host, int(port), timeout=_TIMEOUT)) as connection:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            body = response.read()
            if response.status != http.HTTPStatus.OK:
                raise OSError(f"the dashboard answers {response.status} {response.reason}")
            return json.loads(body)
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"the dashboard's answer cannot be read ({type(error).__name__})") from None


def is_answering(dashboard: str) -> bool:
    """Whether a dashboard is up and accepts our token."""
    try:
        fetch(dashboard, _PROBE)
    except OSError:
        return False
    return True


def has_live_node(dashboard: str) -> bool:
    """Whether a cluster can train: its dashboard answers before the process that starts workers is up."""
    with suppress(OSError, KeyError, TypeError):
        nodes = fetch(dashboard, "/nodes?view=summary")["data"]["summary"]
        return any(node["raylet"]["state"] == "ALIVE" for node in nodes) and is_answering(dashboard)
    return False


def list_programs(dashboard: str) -> list[str]:
    """The programs that run on a cluster, as their users typed them. Raises OSError if it does not answer."""
    jobs = fetch(dashboard, "/api/jobs/")
    running = [job for job in jobs if job.get("status") in ("RUNNING", "PENDING")]
    return [printable(_format_entrypoint(str(job.get("entrypoint") or job.get("submission_id")))) for job in running]


def _format_entrypoint(entrypoint: str) -> str:
    words = entrypoint.partition("orchestrator.cli ")[2] or entrypoint.partition("orchestrator/cli.py ")[2]
    return f"kdctl {words}" if words else entrypoint
