"""Which requests go through a proxy of the environment (`http_proxy`, `https_proxy`, `all_proxy`), and which must not.

Requests to this machine never do: a proxy cannot reach it, and would see Ray's token.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from orchestrator.text import masked

# What `no_proxy` must list: this machine, and the services that give cloud machines their credentials, unencrypted.
DIRECT = ("localhost", "127.0.0.1", "::1", "127.0.0.0/8", "169.254.169.254", "metadata.google.internal")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and the environment variable that names it."""

    url: str
    variable: str

    def __str__(self) -> str:
        return f"the proxy {masked(self.url)} that {self.variable} names"


def of(url: str) -> Proxy | None:
    """The proxy for a request to a URL; None for a direct request."""
    parts = urlsplit(url)
    if is_loopback(parts.hostname or "") or _is_exempt(parts.hostname or "", parts.port):
        return None
    for kind in (parts.scheme.lower(), "all"):
        for variable in (f"{kind}_proxy", f"{kind.upper()}_PROXY"):
            if value := os.environ.get(variable):
                return Proxy(value if "://" in value else f"http://{value}", variable)
            if variable in os.environ:  # `http_proxy=` switches HTTP_PROXY off, as in other programs
                break
    return None


def through(url: str) -> str:
    """For messages about a request: the proxy that it goes through; "" for a direct request."""
    return f" through {proxy}" if (proxy := of(url)) else ""


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        found = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None) or found  # ::ffff:127.0.0.1
    return bool(mapped.is_loopback or mapped.is_unspecified)


def _is_exempt(host: str, port: int | None) -> bool:
    """Whether `no_proxy` lists a host: by name, as part of a domain, with its port, or in a network."""
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return any(_matches(entry, host, port) for entry in listed.replace(",", " ").split())


def _matches(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:  # one of the two is a name, or has a port
        name = entry.lower().removeprefix("*").lstrip(".")
    bracketed = f"[{host}]" if ":" in host else host
    forms = (host, f"{bracketed}:{port}") if port else (host,)
    return any(form == name or form.endswith(f".{name}") for form in forms)


def spare_loopback() -> None:
    """Adds this machine to `no_proxy` if a proxy is set, for libraries and child processes that use it."""
    is_set = any(value and name.lower() in _VARIABLES for name, value in os.environ.items())
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    listed = known.replace(",", " ").split()
    missing = [name for name in DIRECT if name not in listed]
    if is_set and missing and "*" not in listed:
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join((*listed, *missing))


_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
