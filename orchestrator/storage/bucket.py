"""A storage in a bucket, s3:// or gs://, through Arrow's file systems."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode

import pyarrow as pa
from pyarrow import fs

from orchestrator.errors import StorageError
from orchestrator.files import PART
from orchestrator.machine import folders, proxies
from orchestrator.storage.backend import MARKER, Entry
from orchestrator.text import first_line, printable

KEYS = {"s3": ("endpoint_override", "region", "scheme"), "gs": ("endpoint_override", "scheme")}
_SAME_READS = 4  # equal reads in a row that prove a content, if the server's tags do not
ATTEMPTS = 12  # Arrow doubles the wait from 50 ms: a minute and a half in all, longer than a short network failure
CONNECT_SECONDS = 10
REQUEST_SECONDS = 60
ONE_REQUEST = 4 << 20  # bytes; Arrow sends up to this size in one request
STALE_SECONDS = 86_400  # the process of an older unfinished download was killed

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_ENDPOINT = re.compile(r"[\w.-]+(:\d+)?|\[[\da-fA-F:]+\](:\d+)?")
_SECRET = re.compile(r"key|secret|token|password|credential", re.IGNORECASE)

T = TypeVar("T")
_Failure = (OSError, pa.ArrowException)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket, or a folder in one; the contract of its methods is `backend.StorageBackend`."""

    kind: str  # s3 or gs
    root: str  # bucket/folder
    options: tuple[tuple[str, str], ...]  # those after the question mark of the address

    @classmethod
    def at(cls, address: str) -> Bucket:
        """The bucket at an address like s3://bucket/folder?region=eu-west-1.

        Raises StorageError for an address that is wrong or contains credentials; the message does not repeat them.
        """
        kind, _, rest = address.partition("://")
        path, _, query = rest.partition("?")
        bucket, _, folder = path.partition("/")
        # A secret may contain a slash, so an @ anywhere in the path may end credentials.
        if "@" in bucket or ("@" in path and ":" in path.partition("@")[0]):
            raise _make_credentials_error(kind)
        if kind not in KEYS or not _BUCKET.fullmatch(bucket):
            raise StorageError(
                f"storage {kind}://… names no bucket that could exist; expected {kind}://bucket/folder, the bucket in "
                "lower-case letters, digits, dots and hyphens"
            )
        parts = folder.strip("/").split("/") if folder.strip("/") else []
        if not path.isprintable() or {"", ".", ".."} & set(parts):
            raise StorageError(
                f"storage {printable(f'{kind}://{path}')} has a folder that is empty, . or .., or that cannot be "
                f"printed; expected {kind}://{bucket}/folder"
            )
        return cls(kind, "/".join([bucket, *parts]), _parse_options(kind, f"{kind}://{path}", query))

    @property
    def address(self) -> str:
        query = urlencode(self.options, safe=":")
        return f"{self.kind}://{self.root}" + (f"?{query}" if query else "")

    def describe(self, name: str) -> str:
        return f"{self.kind}://{self._key(name)}"

    def prepare(self) -> None:
        probe = f"{PART}probe-{uuid.uuid4().hex}"
        self.write(probe, b"kdctl")
        with self._trying("read", probe):
            found = self.stat(probe)
            if found is None or self.read(probe) != b"kdctl":
                raise OSError("a file that was just written cannot be read")
        self.delete(probe)
        if self.stat(MARKER) is None:
            self.write(MARKER, b'{"kdctl_storage": 1}\n')

    def read(self, name: str) -> bytes:
        same, before = 0, None
        for _ in range(2 * ATTEMPTS):
            found = content, tag = self._read(name)
            # Arrow requests the size before the content, and the file may be replaced in between. Most servers use the
            # content's MD5 as its tag; for other servers, several equal reads in a row must do.
            same = same + 1 if found == before else 1
            if hashlib.md5(content, usedforsecurity=False).hexdigest() == tag or same == _SAME_READS:
                return content
            before = found
        raise self._make_unstable_error(name)

    def _read(self, name: str) -> tuple[bytes, str]:
        with self._trying("read", name), self._filesystem.open_input_file(self._key(name)) as stream:
            content = bytes(stream.read_at(stream.size(), 0))  # in one request
            return content, (stream.metadata() or {}).get("ETag", b"").decode().strip('"')

    def _make_unstable_error(self, name: str) -> StorageError:
        return StorageError(
            f"{printable(self.describe(name))} cannot be read because it keeps being replaced; stop "
            "the program that writes it, then continue with the same command"
        )

    def _retry_until_stable(self, name: str, fetch: Callable[[Entry], T]) -> T:
        """The result of `fetch` for a file, repeated if the file is replaced meanwhile: Arrow uses the first size."""
        for _ in range(ATTEMPTS):
            entry = self.stat(name)
            if entry is None:
                raise FileNotFoundError(self.describe(name))
            with suppress(FileNotFoundError):
                found = fetch(entry)
                if self.stat(name) == entry:
                    return found
        raise self._make_unstable_error(name)

    def write(self, name: str, content: bytes) -> None:
        self._put(content, name)

    @contextmanager
    def stage(self, name: str) -> Iterator[Path]:
        with _using_disk(name), tempfile.TemporaryDirectory(prefix="kdctl-") as folder:
            part = Path(folder) / "part"
            part.touch()
            yield part
            self._put(pa.memory_map(str(part)).read_buffer() if part.stat().st_size else b"", name)

    def _put(self, content: Any, name: str) -> None:
        # Arrow's streams store a partial content if an exception closes them. So a thread writes the whole content in
        # one call: no interrupt reaches a thread.
        with self._trying("written", name), ThreadPoolExecutor(1) as thread:
            thread.submit(_put_all, self, self._key(name), content).result()
        shutil.rmtree(
            self._cached(name), ignore_errors=True
        )  # a stale copy can have the size and the time of the new file

    def local_path(self, name: str) -> Path:
        return self._retry_until_stable(name, lambda entry: self._copy(name, entry))

    def _copy(self, name: str, entry: Entry) -> Path:
        copy = self._cached(name) / f"{entry.modified:.6f}-{entry.size}-{Path(name).name}"
        if _size(copy) != entry.size:
            self._fetch(name, entry, copy)
        return copy

    def _fetch(self, name: str, entry: Entry, copy: Path) -> None:
        """Downloads a file into the cache; earlier copies are removed."""
        with _using_disk(name):
            copy.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=PART, dir=copy.parent)
            os.close(handle)
        part = Path(temporary)
        try:
            with self._trying("read", name):
                fs.copy_files(self._key(name), temporary, self._filesystem, fs.LocalFileSystem(), use_threads=False)
            if _size(part) != entry.size or self.stat(name) != entry:
                raise FileNotFoundError(self.describe(name))  # this version was replaced
            with _using_disk(name):
                part.replace(copy)
                _drop_others(copy)
        finally:
            part.unlink(missing_ok=True)

    def stat(self, name: str) -> Entry | None:
        return self._infos([name])[0]

    def read_sizes(self, names: Sequence[str]) -> list[int | None]:
        return [entry.size if entry else None for entry in self._infos(names)]

    def _infos(self, names: Sequence[str]) -> list[Entry | None]:
        if not names:
            return []
        with self._trying("read", names[0]):
            infos = self._filesystem.get_file_info([self._key(name) for name in names])
        return [_entry(name, info) for name, info in zip(names, infos, strict=True)]

    def list_files(self, folder: str) -> list[Entry]:
        base = self._key(folder)
        with self._trying("read", folder):
            infos = self._filesystem.get_file_info(fs.FileSelector(base, allow_not_found=True, recursive=True))
        found = (_entry(info.path.removeprefix(f"{self.root}/"), info) for info in infos)
        finished = [entry for entry in found if entry and not Path(entry.name).name.startswith(PART)]
        return sorted(finished, key=lambda entry: entry.name)

    def list_unfinished(self) -> list[Entry]:
        return []  # a bucket lists no object before it is complete

    def touch(self, name: str) -> bool:
        # A bucket can neither change the time of an object, nor copy an object onto itself unchanged.
        try:
            self.write(name, self.read(name))
        except FileNotFoundError:
            return False
        return True

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError), self._trying("removed", name):
            self._filesystem.delete_file(self._key(name))
        shutil.rmtree(self._cached(name), ignore_errors=True)

    def _key(self, name: str) -> str:
        return self.root if name in ("", ".") else f"{self.root}/{name}"

    def _cached(self, name: str) -> Path:
        return folders.own() / hashlib.sha256(f"{self.address}\n{name}".encode()).hexdigest()[:32]

    @property
    def _filesystem(self) -> Any:
        return _connect(self)

    @property
    def _route(self) -> str:
        """For messages: the proxy between this machine and the bucket, if there is one."""
        options = dict(self.options)
        server = options.get("endpoint_override", "storage.googleapis.com" if self.kind == "gs" else "amazonaws.com")
        url = f"{options.get('scheme', 'https')}://{server}"
        if self.kind == "gs" or not (proxy := proxies.of(url)):
            return proxies.through(url)
        return f" without {proxy}, because s3:// is reached directly"

    @contextmanager
    def _trying(self, what: str, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise FileNotFoundError(self.describe(name)) from None
        except _Failure as error:
            reason = printable(first_line(error))
            raise StorageError(
                f"{printable(self.describe(name))} cannot be {what}{self._route} ({reason}); expected a bucket that "
                "exists and lets you read, write and remove; check the bucket, the credentials in the environment and "
                "the network, then continue with the same command"
            ) from None


def _make_credentials_error(kind: str) -> StorageError:
    return StorageError(
        f"storage {kind}://… has credentials in its address, which logs and results would show; expected "
        f"{kind}://bucket/folder alone; put the credentials into the environment or the credential files of the cloud"
    )


def _parse_options(kind: str, location: str, query: str) -> tuple[tuple[str, str], ...]:
    """The options of an address. Raises StorageError for unknown ones; the message does not contain their values."""
    pairs = parse_qsl(query, keep_blank_values=True)
    if any(_SECRET.search(key) for key, _ in pairs):
        raise _make_credentials_error(kind)
    known = ", ".join(KEYS[kind])
    for key, value in pairs:
        if key not in KEYS[kind]:
            raise StorageError(
                f"storage {printable(location)} has an option {printable(key)!r} that kdctl does not know; the options "
                f"of {kind}:// are {known}"
            )
        expected = re.compile("https?") if key == "scheme" else _ENDPOINT
        if not expected.fullmatch(value):
            raise StorageError(
                f"storage {printable(location)} has an option {key} with an impossible value; expected "
                "http or https as scheme, host:port as endpoint_override and a name as region"
            )
    if len(dict(pairs)) != len(pairs) or bool(query) != bool(pairs):
        raise StorageError(
            f"storage {printable(location)} has options that are repeated or not name=value; expected any of "
            f"{known}, each once"
        )
    return tuple(sorted(pairs))


@lru_cache(maxsize=16)
def _connect(bucket: Bucket, is_multipart: bool = False) -> Any:
    """One file system per process and bucket, created on first use, because it holds connections."""
    proxies.spare_loopback()  # for gs://; requests to s3:// use no proxy
    options: dict[str, Any] = dict(bucket.options)
    if bucket.kind == "gs":
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=90), **options)
    if "region" not in options:
        # Without a region the library asks the metadata service of a cloud machine, which most machines are not.
        has_endpoint = "endpoint_override" in options
        options["region"] = "us-east-1" if has_endpoint else fs.resolve_s3_region(bucket.root.partition("/")[0])
    return fs.S3FileSystem(
        retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=ATTEMPTS),
        connect_timeout=CONNECT_SECONDS,
        request_timeout=REQUEST_SECONDS,
        background_writes=True,
        allow_delayed_open=not is_multipart,  # small objects go in one request
        **options,
    )


def _put_all(bucket: Bucket, key: str, content: Any) -> None:
    # Written in the background, because otherwise a stream whose part was refused stores the parts before it.
    # A stream that opens late hangs forever if the server refuses to start a multipart upload.
    stream = _connect(bucket, len(content) > ONE_REQUEST).open_output_stream(key)
    stream.write(content)
    stream.close()


def _entry(name: str, info: Any) -> Entry | None:
    if info.type != fs.FileType.File:
        return None
    return Entry(name, int(info.size), (info.mtime_ns or 0) / 1e9)


def _drop_others(copy: Path) -> None:
    """Removes earlier copies of a file, and the leftovers of downloads that were killed."""
    for path in copy.parent.iterdir():
        with suppress(FileNotFoundError):
            is_live = path.name.startswith(PART) and time.time() - path.stat().st_mtime < STALE_SECONDS
            if path != copy and not is_live:
                path.unlink()


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


@contextmanager
def _using_disk(name: str) -> Iterator[None]:
    """Turns errors of the local disk, through which uploads and downloads go, into a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"no room on this machine for {printable(name)} ({error.strerror or error}); expected a writable folder "
            "for temporary files and a cache; make room, or name others in TMPDIR and KDCTL_CACHE"
        ) from None
