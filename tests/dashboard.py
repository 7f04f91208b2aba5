"""A stand-in for a Ray dashboard in tests: the few answers of its job API, and a record of the requests."""

from __future__ import annotations

import io
import json
import platform
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import ray

TOKEN = "a-token-that-is-long-enough-for-ray"


class Dashboard:
    """Answers on a free port of the loopback address until it is closed; demands `token` unless that is None.

    If `page` is set, it answers every request with that, with status `status`, like a server that is not Ray's.
    """

    def __init__(self) -> None:
        self.token: str | None = TOKEN
        self.version = ray.__version__
        self.python = platform.python_version()
        self.page: str | None = None
        self.status = 200
        self.location = ""  # where the page redirects to
        self.received: list[str] = []  # the first lines of the requests
        self.jobs: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}  # of the last package
        self.refusal: str | None = None  # the answer to a job that is submitted
        self.stops: list[str] = []
        dashboard = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                dashboard.answer(self)

            do_POST = do_PUT = do_GET  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.received.append(request.requestline)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        given = request.headers.get("Authorization")
        if self.page is not None:
            status, text = self.status, self.page
        elif self.token and given is None:
            status, text = 401, "Unauthorized: Missing authentication token"
        elif self.token and given != f"Bearer {self.token}":
            status, text = 403, "Forbidden: Invalid authentication token"
        else:
            path = urlsplit(request.path).path  # a proxy receives a whole URL
            status, text = self._answer(request.command, path, body)
        request.send_response(status)
        if self.location:
            request.send_header("Location", self.location)
        request.send_header("Content-Length", str(len(text.encode())))
        request.end_headers()
        request.wfile.write(text.encode())

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, str]:
        if path == "/api/version":
            return 200, json.dumps({"version": "4", "ray_version": self.version, "session_name": "s"})
        if path == "/api/v0/cluster_metadata":
            return 200, json.dumps({"data": {"pythonVersion": self.python}})
        if path.startswith("/api/packages/"):
            return self._package(method, body)
        if path == "/api/jobs/" and method == "GET":
            return 200, json.dumps(list(self.jobs.values()))
        if path == "/api/jobs/":
            return self._submit(json.loads(body))
        job_id, _, what = path.removeprefix("/api/jobs/").partition("/")
        if job_id not in self.jobs:
            return 404, f"Job {job_id} does not exist"
        if what == "logs":
            return 200, json.dumps({"logs": f"log of {job_id}\n"})
        if what == "stop":
            self.stops.append(job_id)
            self.jobs[job_id] |= {"status": "STOPPED", "end_time": time.time_ns() // 1_000_000}
            return 200, json.dumps({"stopped": True})
        return 200, json.dumps(self.jobs[job_id])

    def _package(self, method: str, body: bytes) -> tuple[int, str]:
        if method == "GET":
            return 404, "no such package"
        with zipfile.ZipFile(io.BytesIO(body)) as package:
            self.files = {name: package.read(name) for name in package.namelist() if not name.endswith("/")}
        return 200, "{}"

    def _submit(self, order: dict[str, Any]) -> tuple[int, str]:
        if self.refusal:
            return 500, self.refusal
        self.add(order["submission_id"], order["metadata"], entrypoint=order["entrypoint"])
        self.jobs[order["submission_id"]]["runtime_env"] = order["runtime_env"]
        return 200, json.dumps({"job_id": order["submission_id"], "submission_id": order["submission_id"]})

    def add(self, job_id: str, metadata: dict[str, str] | None, **facts: Any) -> None:
        """Adds a job."""
        self.jobs[job_id] = {
            "type": "SUBMISSION", "submission_id": job_id, "job_id": None, "status": "RUNNING", "entrypoint": "",
            "metadata": metadata, "start_time": time.time_ns() // 1_000_000,
        } | facts  # fmt: skip
