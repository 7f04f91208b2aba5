"""A real S3 server for the tests, SeaweedFS in a process of its own, and a proxy that refuses some requests."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pyarrow import fs

ACCESS, SECRET = "kdctl-test-access", "kdctl-test-secret"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": ACCESS,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_EC2_METADATA_DISABLED": "true",  # asks an address outside this machine
}
PATIENCE = 120  # seconds until a server that does not answer is a failure
NAMES = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc")
NAMES += ("filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address on which nothing listens."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Server:
    """An S3 server with its data in a folder, so that it can be killed and started again."""

    def __init__(self, folder: Path, ip: str = "127.0.0.1") -> None:
        self.folder = folder
        self.ip = ip
        (folder / "data").mkdir(parents=True)
        person = {
            "name": "tests",
            "credentials": [{"accessKey": ACCESS, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [person]}))
        self.ports = dict(zip(NAMES, free_ports(len(NAMES)), strict=True))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"{self.ip}:{self.ports['s3.port']}"

    def start(self) -> None:
        """Starts the server; returns when a bucket can be made, which needs all its parts."""
        self.launch()
        self.make_bucket()

    def launch(self) -> None:
        """Starts the server, and does not wait."""
        options = {
            "dir": self.folder / "data",
            "ip": self.ip,
            "ip.bind": self.ip,
            "filer": "true",
            "filer.localSocket": self.folder / "filer.sock",
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": 64,
            "volume.max": 1000,  # each bucket takes some
            "s3": "true",
            "s3.localSocket": self.folder / "s3.sock",
            "s3.config": self.folder / "s3.json",
            "s3.autoCreateBucket": "false",
            "s3.iam": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            **self.ports,
        }
        arguments = [f"-{name}={value}" for name, value in options.items()]
        program = Path(sys.executable).parent / "weed"
        with (self.folder / "log").open("ab") as log:
            command = [str(program), f"-logdir={self.folder}", "server", *arguments]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder)

    def make_bucket(self) -> str:
        """Creates a new bucket; returns its name."""
        name = f"kdctl-{uuid.uuid4().hex[:12]}"
        client = fs.S3FileSystem(
            access_key=ACCESS,
            secret_key=SECRET,
            endpoint_override=self.endpoint,
            scheme="http",
            region="us-east-1",
            allow_bucket_creation=True,
        )
        end = time.monotonic() + PATIENCE
        while True:
            try:
                client.create_dir(name)
                return name
            except OSError as error:
                assert self.process is not None
                log = (self.folder / "log").read_text(errors="replace")[-3000:]
                assert self.process.poll() is None and time.monotonic() < end, f"{error}\n{log}"
            time.sleep(0.1)

    def kill(self) -> None:
        """Kills the server, as the failure of its machine would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class RefusingProxy(ThreadingHTTPServer):
    """Forwards every request to a server, except those that `refuses`, called with method and path, is true for."""

    daemon_threads = True  # clients keep their connections

    def __init__(self, server: Server) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.inner = server
        self.refuses: Callable[[str, str], bool] = lambda method, path: False
        self.thread = threading.Thread(target=self.serve_forever)
        self.thread.start()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


HOP = {"transfer-encoding", "content-length", "connection", "date", "server"}


class Handler(BaseHTTPRequestHandler):
    """One connection to a `RefusingProxy`."""

    protocol_version = "HTTP/1.1"
    server: RefusingProxy

    def log_message(self, *_: object) -> None:
        pass

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while True:  # forwarded unchanged, because its chunks may be signed
            line = self.rfile.readline()
            size = int(line.partition(b";")[0], 16)
            body += line + self.rfile.read(size + 2)
            if not size:
                return body

    def answer(self) -> None:
        body = self.body()
        if self.server.refuses(self.command, self.path):
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.forward(body)

    def forward(self, body: bytes) -> None:
        link = http.client.HTTPConnection(self.server.inner.endpoint)
        link.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            link.putheader(name, value)
        link.endheaders(body)
        answer = link.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP:
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        link.close()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815
