"""The addresses of Ray clusters as people write them; each is accepted, or refused with a fix."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from orchestrator.errors import ClusterError
from orchestrator.text import masked

NAMES = ("auto", "local")  # the cluster of this machine; one of the launch's own

_FORMS = "auto, local, HOST:PORT of a cluster to join, or http://HOST:8265 of a dashboard to submit the study to"
_JOINABLE = re.compile(r"(?:[\w.-]+|\[[\da-fA-F:.]+(?:%\w+)?\]):(\d{1,5})")
_HOST = re.compile(r"[\w.-]+|[\da-f:.]+(?:%\w+)?")


def is_dashboard(address: str) -> bool:
    """Whether an address is of a dashboard, to submit studies to, and not of a cluster to join."""
    return address.strip().lower().startswith(("http://", "https://"))


def dashboard(address: str) -> str:
    """The address of a dashboard in normal form: lower case, without query and fragment. Raises ClusterError."""
    try:
        parts = urlsplit(address.strip())
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if host and "@" in parts.netloc:
        raise ClusterError(
            f"the address {masked(address)} contains a user name or a password, which Ray's dashboard does not take; "
            "remove them, and put the token of the cluster into RAY_AUTH_TOKEN"
        )
    if not is_dashboard(address) or not _HOST.fullmatch(host) or port == 0:
        raise ClusterError(
            f"{masked(address)!r} is not the address of a dashboard; expected one like http://127.0.0.1:8265"
        )
    bracketed = f"[{host}]" if ":" in host else host
    server = f"{bracketed}:{port}" if port else bracketed
    return f"{parts.scheme.lower()}://{server}{parts.path.rstrip('/')}"


def to_join(address: str) -> str:
    """The address of a cluster to join in normal form: `auto`, `local` or HOST:PORT. Raises ClusterError."""
    written = address.strip()
    if written.lower() in NAMES:
        return written.lower()
    if found := _JOINABLE.fullmatch(written):
        if 0 < int(found[1]) < 65536:
            return written.lower()
        raise ClusterError(f"{written!r} has an impossible port; expected one from 1 to 65535, usually 6379")
    raise ClusterError(_describe_problem(written))


def _describe_problem(written: str) -> str:
    address = masked(written)
    if not written:
        return f"the address of the cluster is empty; expected {_FORMS}"
    if is_dashboard(written):
        return f"{address!r} is a dashboard, which cannot be joined; `kdctl launch FILE --address` submits to it"
    if written.lower().startswith("ray://"):
        host = re.sub(r":\d+$", "", written[6:].rpartition("@")[2].strip("/")) or "HOST"
        return (
            f"{address!r} is an address of Ray Client, which kdctl does not use; submit the study to the cluster's "
            f"dashboard (--address http://{host}:8265), or launch on a machine of the cluster with --address auto"
        )
    if re.fullmatch(r"[\w.-]+|\[[\da-fA-F:.]+\]", written):
        return (
            f"{address!r} has no port; expected HOST:PORT, as in {written}:6379 for a cluster to join, or "
            f"http://{written}:8265 for a dashboard to submit the study to"
        )
    return f"{address!r} is not the address of a Ray cluster; expected {_FORMS}"
