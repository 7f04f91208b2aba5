"""Buckets: their addresses, what a server or a link that fails does to them, and the local copies."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from s3 import SECRET, RefusingProxy, Server

from orchestrator.errors import StorageError
from orchestrator.files import PART
from orchestrator.storage import bucket
from orchestrator.storage.backend import MARKER
from orchestrator.storage.bucket import Bucket
from orchestrator.storage.layout import Storage


@pytest.fixture
def backend(s3_address: str) -> Bucket:
    made = Bucket.at(s3_address)
    made.prepare()
    return made


@pytest.fixture
def proxy(s3_server: Server) -> Iterator[RefusingProxy]:
    made = RefusingProxy(s3_server)
    yield made
    made.close()


@pytest.fixture
def own_server(tmp_path: Path, s3_environment: None) -> Iterator[Server]:
    """A server that a test may kill."""
    server = Server(tmp_path / "own-s3")
    try:
        server.start()
        yield server
    finally:
        server.kill()


def at(server: Server | RefusingProxy, name: str) -> Bucket:
    return Bucket.at(f"s3://{name}/some/folder?endpoint_override={server.endpoint}&scheme=http")


# Addresses.


@pytest.mark.parametrize(
    ("address", "normal"),
    [
        ("s3://bkt", "s3://bkt"),
        ("s3://bkt/", "s3://bkt"),
        ("s3://bkt/a/b/", "s3://bkt/a/b"),
        ("s3://my.bkt-1/ä b?region=eu-west-1", "s3://my.bkt-1/ä b?region=eu-west-1"),
        ("s3://bkt/a@b", "s3://bkt/a@b"),
        (
            "s3://bkt/a?scheme=http&endpoint_override=localhost:9000",
            "s3://bkt/a?endpoint_override=localhost:9000&scheme=http",
        ),
        ("s3://bkt?endpoint_override=localhost%3A9000", "s3://bkt?endpoint_override=localhost:9000"),
        ("gs://bkt_1/a", "gs://bkt_1/a"),
        ("gs://bkt/a?scheme=http&endpoint_override=[::1]:4443", "gs://bkt/a?endpoint_override=[::1]:4443&scheme=http"),
    ],
)
def test_addresses(address: str, normal: str) -> None:
    made = Bucket.at(address)
    assert Bucket.at(made.address) == made == pickle.loads(pickle.dumps(made))
    assert hash(Bucket.at(made.address)) == hash(made)
    assert made.address.replace("%5B", "[").replace("%5D", "]") == normal
    assert Storage.at(address).backend == made
    assert made.describe("x/y") == normal.partition("?")[0] + "/x/y"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://", "names no bucket"),
        ("s3:///folder", "names no bucket"),
        ("s3://UPPER/folder", "lower-case"),
        ("s3://bkt:9000/folder", "names no bucket"),
        ("s3://bkt/a//b", "folder that is empty"),
        ("s3://bkt/a/../b", r"folder that is empty, \. or \.\."),
        ("s3://bkt/a\nb", r"'s3://bkt/a\\nb'|s3://bkt/a\\nb has"),
        (
            "s3://bkt/a?colour=red",
            "'colour' that kdctl does not know; the options of s3:// are endpoint_override, region",
        ),
        (
            "gs://bkt/a?region=eu-west-1",
            "'region' that kdctl does not know; the options of gs:// are endpoint_override,",
        ),
        ("s3://bkt/a?scheme=ftp", "option scheme with an impossible value; expected http or https"),
        ("s3://bkt/a?endpoint_override=http://localhost:9000", "host:port as endpoint_override"),
        ("s3://bkt/a?region=", "name as region"),
        ("s3://bkt/a?region=a&region=b", "repeated"),
        ("s3://bkt/a?region", "name as region|repeated or not name=value"),
    ],
)
def test_wrong_addresses(address: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        Bucket.at(address)


@pytest.mark.parametrize(
    "address",
    [
        "s3://AKIA123:hush-hush@bkt/folder",
        "s3://AKIA123:hush-hush/more@bkt/folder",
        "s3://:hush-hush@bkt",
        "s3://hush-hush@bkt/folder",
        "gs://me:hush-hush@bkt",
        "s3://bkt/folder?access_key=AKIA123&secret_key=hush-hush",
        "s3://bkt/folder?session_token=hush-hush",
        "s3://bkt/folder?AWS_SECRET_ACCESS_KEY=hush-hush",
        "gs://bkt/folder?credentials=hush-hush",
        "s3://bkt/folder?region=x&Password=hush-hush",
        "s3://bkt/folder?endpoint_override=me:hush-hush@localhost:9000",
        "s3://bkt/folder?colour=hush-hush",
    ],
)
def test_secrets_are_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(StorageError) as caught:
        Bucket.at(address)
    assert "hush" not in str(caught.value) and "AKIA" not in str(caught.value)
    if "colour" not in address and "endpoint" not in address:
        assert "put the credentials into the environment" in str(caught.value)


# Servers.


def test_a_bucket_that_does_not_exist(s3_server: Server, s3_environment: None) -> None:
    with pytest.raises(StorageError, match="NO_SUCH_BUCKET.*expected a bucket that exists"):
        at(s3_server, "kdctl-no-such").prepare()


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials(s3_address: str, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "hush-hush")
    backend = Bucket.at(s3_address)
    with pytest.raises(StorageError, match="check the bucket, the credentials in the environment") as caught:
        backend.prepare()
    assert "hush" not in str(caught.value) and SECRET not in str(caught.value)
    for call in (lambda: backend.read("a"), lambda: backend.list_files(""), lambda: backend.read_sizes(["a"])):
        with pytest.raises(StorageError, match="cannot be read"):
            call()
    with pytest.raises(StorageError, match="cannot be removed"):
        backend.delete("a")


def test_a_server_that_is_gone(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "ATTEMPTS", 3)
    backend = at(own_server, own_server.make_bucket())
    backend.prepare()
    backend.write("a/b", b"1")
    copy = backend.local_path("a/b")
    own_server.kill()
    with pytest.raises(StorageError, match="a/c cannot be written .*check the bucket, .* and the network"):
        backend.write("a/c", b"2")
    with pytest.raises(StorageError, match="a/c cannot be written"), backend.stage("a/c") as part:
        part.write_bytes(os.urandom(12 << 20))
    for call in (backend.read, backend.local_path, backend.stat, backend.list_files, backend.touch):
        with pytest.raises(StorageError, match="a/b cannot be read"):
            call("a/b")
    with pytest.raises(StorageError, match="cannot be removed"):
        backend.delete("a/b")
    assert copy.read_bytes() == b"1"


def test_a_server_that_comes_back_is_waited_for(own_server: Server) -> None:
    backend = at(own_server, own_server.make_bucket())
    backend.prepare()
    own_server.kill()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            backend.write("a", b"written")
        except BaseException as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    own_server.start()
    writer.join()
    assert failures == []
    assert backend.read("a") == b"written"


def test_a_server_that_never_answers(s3_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "ATTEMPTS", 1)
    monkeypatch.setattr(bucket, "REQUEST_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        backend = Bucket.at(f"s3://kdctl-mute/a?endpoint_override=127.0.0.1:{port}&scheme=http")
        with pytest.raises(StorageError, match="cannot be read"):
            backend.stat("a")


@pytest.mark.parametrize("refused", ["partNumber=2", "partNumber=1", "uploadId", "uploads"])
def test_an_upload_that_fails_midway_leaves_the_old_file(
    s3_server: Server, s3_environment: None, proxy: RefusingProxy, refused: str
) -> None:
    backend = at(proxy, s3_server.make_bucket())
    backend.prepare()
    backend.write("a", b"old")
    proxy.refuses = lambda method, path: method != "GET" and refused in path
    content = os.urandom(25 << 20)
    with pytest.raises(StorageError, match="a cannot be written .*ACCESS_DENIED"):
        backend.write("a", content)
    with pytest.raises(StorageError, match="a cannot be written .*ACCESS_DENIED"), backend.stage("a") as part:
        part.write_bytes(content)
    assert backend.read("a") == b"old"
    assert [entry.name for entry in backend.list_files("")] == ["a", MARKER]
    proxy.refuses = lambda method, path: False
    backend.write("a", content)
    assert backend.read("a") == content


@pytest.mark.parametrize("refused", ["PUT", "GET", "DELETE"])
def test_a_bucket_with_missing_permissions(
    s3_server: Server, s3_environment: None, proxy: RefusingProxy, refused: str
) -> None:
    proxy.refuses = lambda method, path: method == refused and PART in path
    with pytest.raises(StorageError, match="lets you read, write and remove"):
        at(proxy, s3_server.make_bucket()).prepare()


# Local copies.


def copies(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_copy_is_fetched_once_and_replaced_with_its_file(
    backend: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.write("a/x.bin", b"one")
    copy = backend.local_path("a/x.bin")
    fetched = copy.stat()
    assert backend.local_path("a/x.bin") == copy and copy.stat().st_ino == fetched.st_ino
    assert copies(tmp_path) == [copy] and copy.name.endswith("x.bin")
    stale = copy.parent / f"{PART}killed"
    stale.write_bytes(b"")
    os.utime(stale, (0, 0))
    monkeypatch.setenv("KDCTL_CACHE", str(tmp_path / "other"))  # as another machine writes it
    backend.write("a/x.bin", b"three")
    monkeypatch.setenv("KDCTL_CACHE", str(tmp_path / "cache"))
    assert backend.local_path("a/x.bin").read_bytes() == b"three"
    assert copies(tmp_path) == [backend.local_path("a/x.bin")]


def test_equal_names_in_two_buckets_are_kept_apart(s3_server: Server, s3_environment: None) -> None:
    one, other = (at(s3_server, s3_server.make_bucket()) for _ in range(2))
    one.write("a", b"1")
    other.write("a", b"2")
    assert (one.local_path("a").read_bytes(), other.local_path("a").read_bytes()) == (b"1", b"2")


def test_the_cache_is_where_caches_are(backend: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.write("a", b"1")
    monkeypatch.delenv("KDCTL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert backend.local_path("a").is_relative_to(tmp_path / "xdg" / "kdctl")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert backend.local_path("a").is_relative_to(tmp_path / ".cache" / "kdctl")


def test_a_cache_that_cannot_be_written(backend: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.write("a", b"1")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDCTL_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="no room on this machine for a .*KDCTL_CACHE"):
        backend.local_path("a")


# Processes.

QUIET = """
import sys
from orchestrator.storage.bucket import Bucket
backend = Bucket.at(sys.argv[1])
backend.prepare()
with backend.stage("a") as part:
    part.write_bytes(b"1")
print(backend.local_path("a").read_bytes())
try:
    Bucket.at(sys.argv[1].replace("s3://kdctl", "s3://no-such")).prepare()
except Exception as error:
    print(type(error).__name__)
"""


def test_a_process_ends_without_noise(s3_address: str) -> None:
    done = subprocess.run([sys.executable, "-c", QUIET, s3_address], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "b'1'\nStorageError\n", "")


def test_several_processes_fetch_one_file(backend: Bucket, tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    backend.write("big", content)
    script = "import sys\nfrom orchestrator.storage.bucket import Bucket"
    script += "\nprint(Bucket.at(sys.argv[1]).local_path('big'))"
    command = [sys.executable, "-c", script, backend.address]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {one.communicate()[0].strip() for one in started}
    assert [one.returncode for one in started] == [0, 0, 0]
    assert [Path(path).read_bytes() == content for path in paths] == [True]
    assert copies(tmp_path) == [Path(*paths)]


def test_addresses_survive_quoting() -> None:
    assert Bucket.at(f"s3://bkt?endpoint_override={quote('127.0.0.1:9000')}").options == (
        ("endpoint_override", "127.0.0.1:9000"),
    )
