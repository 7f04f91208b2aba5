"""The addresses of Ray clusters as people write them: every form either works, or gets one message with the fix."""

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
    """Whether an address is that of a dashboard, which takes a study, and not that of a cluster to join."""
    return address.strip().lower().startswith(("http://", "https://"))


def dashboard(address: str) -> str:
    """The address of a dashboard in one form: lower case, without what a browser adds. Raises ClusterError."""
    try:
        parts = urlsplit(address.strip())
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if host and "@" in parts.netloc:
        raise ClusterError(
            f"the address {masked(address)} holds a user name or a password, which Ray's dashboard does not take; "
            "remove them, and put the token of the cluster into RAY_AUTH_TOKEN"
        )
    if not is_dashboard(address) or not _HOST.fullmatch(host) or port == 0:
        raise ClusterError(
            f"{masked(address)!r} is not the address of a dashboard; expected one like http://127.0.0.1:8265"
        )
    shown = f"[{host}]" if ":" in host else host
    place = f"{shown}:{port}" if port else shown
    return f"{parts.scheme.lower()}://{place}{parts.path.rstrip('/')}"


def to_join(address: str) -> str:
    """The address of a cluster to join in one form: `auto`, `local` or HOST:PORT. Raises ClusterError."""
    written = address.strip()
    if written.lower() in NAMES:
        return written.lower()
    if found := _JOINABLE.fullmatch(written):
        if 0 < int(found[1]) < 65536:
            return written.lower()
        raise ClusterError(f"{written!r} has no port that can exist; expected one from 1 to 65535, 6379 as a rule")
    raise ClusterError(_why_not(written))


def _why_not(written: str) -> str:
    shown = masked(written)
    if not written:
        return f"the address of the cluster is empty; expected {_FORMS}"
    if is_dashboard(written):
        return f"{shown!r} is a dashboard, which cannot be joined; `kdctl launch FILE --address` hands a study to it"
    if written.lower().startswith("ray://"):
        host = re.sub(r":\d+$", "", written[6:].rpartition("@")[2].strip("/")) or "HOST"
        return (
            f"{shown!r} is an address of Ray Client, which kdctl does not use; submit the study to the cluster's "
            f"dashboard (--address http://{host}:8265), or launch on a machine of the cluster with --address auto"
        )
    if re.fullmatch(r"[\w.-]+|\[[\da-fA-F:.]+\]", written):
        return (
            f"{shown!r} has no port; expected HOST:PORT, as in {written}:6379 for a cluster to join, or "
            f"http://{written}:8265 for a dashboard to submit the study to"
        )
    return f"{shown!r} is not the address of a Ray cluster; expected {_FORMS}"
