"""Paths from the user: the one function that expands `~`.

It refuses a path that looks like an address or a typing error, for which kdctl would otherwise create a folder.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from orchestrator.errors import KdctlError
from orchestrator.text import printable

BUCKETS = ("s3://", "gs://")  # the prefixes of bucket addresses

_WINDOWS = re.compile(r"[A-Za-z]:(?:[\\/]|$)|\\\\")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//?)?(.*)", re.DOTALL)
_SCHEMES = {
    "s3": "s3",
    "s3a": "s3",
    "s3n": "s3",
    "gs": "gs",
    "gcs": "gs",
}  # how other programs write them, and how kdctl does
_OTHER_SCHEMES = ("file", "http", "https", "hdfs", "ftp", "abfs", "abfss", "az", "wasb", "dbfs", "ssh", "smb", "nfs")


class PathError(KdctlError):
    """A path that is not of this machine, or is certainly a mistake."""


def local(given: str | os.PathLike[str], what: str, *, or_bucket: bool = False) -> Path:
    """The path that the user gave, with `~` and `~user` expanded; `what` names the option, for messages.

    With `or_bucket` the messages mention buckets too, but the address of a bucket is refused. Raises PathError.
    """
    text = os.fspath(given)
    if problem := _find_problem(text, or_bucket):
        raise PathError(f"{what} {printable(repr(text))} {problem}")
    if not text.startswith("~"):
        return Path(text)
    # With an empty HOME the home directory would be /. Path.expanduser does not know ./~x from ~x.
    expanded = text if os.environ.get("HOME") == "" else os.path.expanduser(text)  # noqa: PTH111
    if expanded.startswith("~"):
        whose = "you have" if text.partition("/")[0] == "~" else f"{text.partition('/')[0][1:]!r} has"
        raise PathError(
            f"{what} {printable(repr(text))} begins with ~, and {whose} no home directory here; set HOME, or write the "
            f"full path (./{text} for a name that begins with ~)"
        )
    return Path(expanded)


def word(file: str) -> str:
    """A file as an argument of a command; `./` protects a name that begins with `-`, like an option."""
    return f"./{file}" if file.startswith("-") else file


def _find_problem(text: str, or_bucket: bool) -> str | None:
    buckets = ", or a bucket like s3://bucket/folder or gs://bucket/folder"
    expected = f"name a folder{buckets}" if or_bucket else "name a file or folder"
    if not text.strip():
        return f"is empty; {expected}"
    if text != text.strip():
        return "begins or ends with white space; remove it"
    if "\0" in text:
        return "contains a NUL byte, which no name can have; remove it"
    if _WINDOWS.match(text):
        return "is a path of Windows; name a folder of this system (C:\\runs is /mnt/c/runs in WSL)"
    if (match := _ADDRESS.fullmatch(text)) and (match[2] or match[1].lower() in (*_SCHEMES, *_OTHER_SCHEMES)):
        return _find_address_problem(match[1].lower(), match[3].lstrip("/"), or_bucket, expected)
    return f"is an address of a kind that kdctl does not know; {expected}" if "://" in text else None


def _find_address_problem(scheme: str, rest: str, or_bucket: bool, expected: str) -> str:
    if scheme == "file":
        return f"is an address; write the path alone, like /{rest.removeprefix('localhost/')}"
    if scheme not in _SCHEMES:
        return f"is an address of a kind that kdctl does not know; {expected}"
    if or_bucket:
        return f"is no address of a bucket as kdctl reads it; write {_SCHEMES[scheme]}://{rest or 'bucket/folder'}"
    return f"is the address of a bucket; expected a path on this machine: {expected}"
