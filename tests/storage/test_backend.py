"""What every storage backend promises, on a folder and on a bucket of a real server, and faults of folders."""

from __future__ import annotations

import base64
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import StorageError
from orchestrator.files import PART
from orchestrator.storage.backend import MARKER, Folder, StorageBackend
from orchestrator.storage.bucket import Bucket


@pytest.fixture(params=["folder", "bucket"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> StorageBackend:
    """An empty storage that is prepared."""
    made: StorageBackend = Folder(tmp_path / "root")
    if request.param == "bucket":
        made = Bucket.at(request.getfixturevalue("s3_address"))
    made.prepare()
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path / "root")
    made.prepare()
    return made


def packed(backend: StorageBackend) -> str:
    """A backend as an argument of another process."""
    return base64.b64encode(pickle.dumps(backend)).decode()


UNPACK = "import base64, os, pickle, sys\nbackend = pickle.loads(base64.b64decode(sys.argv[1]))\n"


def start(script: str, *arguments: str, **options: object) -> subprocess.Popen[str]:
    """A Python process that runs a script."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)  # type: ignore[call-overload,no-any-return]


# The contract.


def test_what_is_written_is_read(backend: StorageBackend) -> None:
    backend.write("a/b.bin", b"one")
    assert backend.read("a/b.bin") == backend.local_path("a/b.bin").read_bytes() == b"one"
    backend.write("a/b.bin", b"")
    assert backend.read("a/b.bin") == backend.local_path("a/b.bin").read_bytes() == b""
    backend.write("a/b.bin", b"three")
    assert backend.read("a/b.bin") == backend.local_path("a/b.bin").read_bytes() == b"three"


def test_versions_of_equal_size_differ(backend: StorageBackend) -> None:
    for content in (b"aaaa", b"bbbb", b"cccc"):
        backend.write("a/b", content)
        assert backend.local_path("a/b").read_bytes() == content


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=1 << 16))
def test_any_bytes_come_back(backend: StorageBackend, content: bytes) -> None:
    backend.write("bytes", content)
    assert backend.read("bytes") == content
    entry = backend.stat("bytes")
    assert entry and entry.size == len(content)


@pytest.mark.parametrize("name", ["a b", "é/ü ß", "雪", "%25", "a+b&c=d", "#?", "~x~y.json", "a'\"b", "-", "[x]*"])
def test_odd_names(backend: StorageBackend, name: str) -> None:
    backend.write(f"odd/{name}", b"here")
    assert backend.read(f"odd/{name}") == backend.local_path(f"odd/{name}").read_bytes() == b"here"
    assert [entry.name for entry in backend.list_files("odd")] == [f"odd/{name}"]
    assert backend.touch(f"odd/{name}")
    backend.delete(f"odd/{name}")
    assert backend.list_files("odd") == []


def test_building_is_whole_when_the_block_ends(backend: StorageBackend) -> None:
    content = os.urandom(23 << 20)  # several parts of an upload
    with backend.stage("deep/er/big") as part:
        part.write_bytes(content[: 1 << 20])
        assert backend.stat("deep/er/big") is None
        part.write_bytes(content)
    assert backend.read("deep/er/big") == backend.local_path("deep/er/big").read_bytes() == content
    assert not part.exists()


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_nothing_comes_of_a_block_that_fails(backend: StorageBackend, failure: type[BaseException]) -> None:
    backend.write("a/old", b"old")
    for name in ("a/old", "a/new"):
        with pytest.raises(failure), backend.stage(name) as part:
            part.write_bytes(b"half")
            raise failure
        assert not part.exists()
    assert backend.read("a/old") == b"old"
    assert [entry.name for entry in backend.list_files("a")] == ["a/old"]
    assert backend.list_unfinished() == []


def test_a_block_that_writes_nothing_makes_an_empty_file(backend: StorageBackend) -> None:
    with backend.stage("a/empty"):
        pass
    assert backend.read("a/empty") == b""


def test_a_missing_file(backend: StorageBackend) -> None:
    with pytest.raises(FileNotFoundError):
        backend.read("no/such")
    with pytest.raises(FileNotFoundError):
        backend.local_path("no/such")
    assert backend.stat("no/such") is None
    assert backend.list_files("no/such") == []
    assert not backend.touch("no/such")
    backend.delete("no/such")
    assert backend.read_sizes(["no/such"]) == [None]
    backend.write("file", b"1")
    assert backend.stat("file/below") is None
    with pytest.raises(FileNotFoundError):
        backend.read("file/below")


def test_a_folder_is_no_file(backend: StorageBackend) -> None:
    backend.write("a/b/c", b"1")
    assert backend.stat("a/b") is None
    assert backend.read_sizes(["a/b"]) == [None]
    with pytest.raises(FileNotFoundError):
        backend.local_path("a/b")


def test_listing_at_any_depth(backend: StorageBackend) -> None:
    names = ["b/2", "b/10", "b/c/d/e", "b/a", "bb/1", "a/1"]
    for name in names:
        backend.write(name, name.encode())
    assert [entry.name for entry in backend.list_files("b")] == sorted(name for name in names if name.startswith("b/"))
    assert [entry.size for entry in backend.list_files("b")] == [
        len(name) for name in sorted(names) if name.startswith("b/")
    ]
    assert [entry.name for entry in backend.list_files("")] == sorted([*names, MARKER])
    assert [entry.name for entry in backend.list_files(".")] == sorted([*names, MARKER])


def test_sizes_in_the_order_of_the_names(backend: StorageBackend) -> None:
    names = [f"s/{index}" for index in range(12)]
    for index, name in enumerate(names):
        if index % 3:
            backend.write(name, b"x" * index)
    assert backend.read_sizes(names) == [index if index % 3 else None for index in range(12)]
    assert backend.read_sizes(names[::-1]) == backend.read_sizes(names)[::-1]
    assert backend.read_sizes([]) == []


def test_touch_brings_the_time_forward_and_keeps_the_content(backend: StorageBackend) -> None:
    backend.write("t", b"kept")
    before = backend.stat("t")
    assert before and backend.touch("t")
    after = backend.stat("t")
    assert after and after.modified >= before.modified
    assert backend.read("t") == b"kept"


def test_deleted_is_gone(backend: StorageBackend) -> None:
    backend.write("d/1", b"1")
    backend.write("d/2", b"2")
    backend.local_path("d/1")
    backend.delete("d/1")
    assert [entry.name for entry in backend.list_files("d")] == ["d/2"]
    with pytest.raises(FileNotFoundError):
        backend.local_path("d/1")


def test_preparing_again_changes_nothing(backend: StorageBackend) -> None:
    backend.write("a", b"1")
    marker = backend.read(MARKER)
    backend.prepare()
    assert backend.read(MARKER) == marker
    assert [entry.name for entry in backend.list_files("")] == sorted(["a", MARKER])
    assert backend.list_unfinished() == []


def test_a_backend_is_plain_data(backend: StorageBackend) -> None:
    again = pickle.loads(pickle.dumps(backend))
    assert again == backend and hash(again) == hash(backend) and again.address == backend.address
    assert backend.describe("a/b").endswith("/a/b")
    assert backend.describe("a/b").startswith(backend.address.partition("?")[0])


LENGTHS = {b"-": 1, b"a": 300_000, b"b": 200_000}
WRITER = f"""{UNPACK}
for turn in range(20):
    backend.write("shared/file", sys.argv[2].encode() * {{"a": 300_000, "b": 200_000}}[sys.argv[2]])
"""


def test_readers_never_see_half_a_file_of_several_writers(backend: StorageBackend) -> None:
    backend.write("shared/file", b"-")
    with start(WRITER, packed(backend), "a") as one, start(WRITER, packed(backend), "b") as other:
        contents = set()
        is_live = True
        while is_live:
            is_live = one.poll() is None or other.poll() is None
            content = backend.read("shared/file")
            assert len(content) == LENGTHS[content[:1]] and len(set(content)) == 1
            contents.add(content[:1])
    assert one.returncode == other.returncode == 0
    assert contents & {b"a", b"b"}
    assert backend.list_unfinished() == []


KILLED = f"""{UNPACK}
with backend.stage("k/big") as part:
    part.write_bytes(b"x" * 100)
    print("half", flush=True)
    sys.stdin.read()
"""


def test_a_writer_that_is_killed_leaves_no_file(backend: StorageBackend) -> None:
    backend.write("k/other", b"1")
    writer = start(KILLED, packed(backend))
    assert writer.stdout and writer.stdout.readline() == "half\n"
    writer.kill()
    writer.communicate()
    assert [entry.name for entry in backend.list_files("k")] == ["k/other"]
    left = backend.list_unfinished()
    if isinstance(backend, Folder):
        assert [entry.size for entry in left] == [100]
        assert left[0].name.startswith(f"k/{PART}big-")
        backend.delete(left[0].name)
    assert backend.list_unfinished() == []


# Folders alone.


def test_files_are_as_shared_as_any_other(folder: Folder) -> None:
    mask = os.umask(0o027)
    try:
        folder.write("a/b", b"1")
    finally:
        os.umask(mask)
    assert folder.local_path("a/b").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("is_empty", [True, False])
def test_a_mount_that_is_gone_is_not_written_below(folder: Folder, is_empty: bool) -> None:
    folder.write("a/b", b"1")
    shutil.rmtree(folder.root)
    if is_empty:
        folder.root.mkdir()
    for name in ("a/b", "new/one"):
        with pytest.raises(StorageError, match="mount the folder again"):
            folder.write(name, b"2")
    with pytest.raises(StorageError, match="mount the folder again"):
        folder.touch("a/b")
    folder.delete("a/b")
    assert folder.list_files("a") == []
    assert list(folder.root.iterdir()) == [] if is_empty else not folder.root.exists()


@pytest.mark.parametrize("is_file", [True, False])
def test_an_impossible_root(tmp_path: Path, is_file: bool) -> None:
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" if is_file else tmp_path / "file" / "below"
    with pytest.raises(StorageError, match="cannot be written .*expected a folder .*--storage"):
        Folder(root).prepare()


LIMITED = f"""{UNPACK}
import resource
from orchestrator.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    backend.write("a/b", b"x" * 5000)
except StorageError as error:
    print(error)
"""


def test_a_file_that_may_not_grow(folder: Folder) -> None:
    folder.write("a/b", b"old")
    with start(LIMITED, packed(folder)) as writer:
        assert "a/b cannot be written (File too large); free some space" in writer.communicate()[0]
    assert folder.read("a/b") == b"old"
    assert folder.list_unfinished() == []


# In a mount namespace of its own: nobody else sees its mounts, and they disappear with the process.
MOUNTED = f"""{UNPACK}
import subprocess
from orchestrator.errors import StorageError


def refused(call, *arguments):
    try:
        call(*arguments)
    except StorageError as error:
        print(error)
    else:
        raise SystemExit("not refused")


def build():
    with backend.stage("a/b") as part:
        part.write_bytes(b"x" * 3_000_000)


command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", backend.address]
if subprocess.run(command, capture_output=True).returncode:
    raise SystemExit(77)
backend.prepare()
backend.write("a/b", b"old")
if sys.argv[2] == "full":
    refused(backend.write, "a/b", b"x" * 3_000_000)
    refused(build)
else:
    subprocess.run(["mount", "-o", "remount,ro", backend.address], check=True)
    for call, arguments in [
        (backend.write, ("a/b", b"new")), (backend.write, ("c/d", b"new")), (build, ()), (backend.touch, ("a/b",)),
        (backend.delete, ("a/b",)), (backend.prepare, ()),
    ]:
        refused(call, *arguments)
assert backend.read("a/b") == b"old"
assert [entry.name for entry in backend.list_files("a")] == ["a/b"]
assert backend.list_unfinished() == []
"""


@pytest.mark.parametrize(
    ("state", "reason"), [("full", "No space left on device"), ("read-only", "Read-only file system")]
)
def test_a_disk_that_cannot_be_written(tmp_path: Path, state: str, reason: str) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        pytest.skip("needs unshare, and root to mount a small disk")
    command = [unshare, "-m", sys.executable, "-c", MOUNTED, packed(Folder(tmp_path)), state]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip(f"this machine lets nobody mount a small disk: {done.stderr.strip() or 'mount failed'}")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == {"full": 2, "read-only": 6}[state]
    assert all(f"({reason})" in line for line in done.stdout.splitlines())
