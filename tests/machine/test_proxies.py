"""Proxies of the environment: requests to this machine pass them by, and Ray's token never goes to one in the clear."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dashboard import TOKEN, Dashboard

from orchestrator.cluster.ray_jobs import Cluster
from orchestrator.data import cifar
from orchestrator.errors import ClusterError, DataError, StorageError
from orchestrator.machine import proxies
from orchestrator.storage import bucket

SECRET = "proxy-password"
VARIABLES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without proxies, and with a token."""
    for name in (*VARIABLES, "no_proxy", "NO_PROXY", "grpc_proxy"):
        monkeypatch.setenv(name, "")  # so that what is set on the way is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)


def disable_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disables tokens, also in a process in which Ray has read the variable before, which it does once."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr("ray.dashboard.modules.dashboard_sdk.get_auth_headers_if_auth_enabled", lambda headers: {})


@pytest.fixture
def server() -> Iterator[Callable[..., Dashboard]]:
    """Makes servers that note what they receive: dashboards, or stand-ins for a proxy."""
    made: list[Dashboard] = []

    def make(**facts: Any) -> Dashboard:
        made.append(Dashboard())
        vars(made[-1]).update(facts)
        return made[-1]

    yield make
    for one in made:
        one.close()


# Which requests.


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST", "localhost.", "a.localhost", "127.0.0.1", "127.9.9.9", "[::1]", "0.0.0.0",
     "[::ffff:127.0.0.1]"],
)  # fmt: skip
@pytest.mark.parametrize("variable", VARIABLES)
def test_this_machine_is_never_behind_a_proxy(host: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "http://proxy:3128")
    scheme = "https" if "https" in variable.lower() else "http"
    assert proxies.of(f"{scheme}://{host}:8265/api") is None
    found = proxies.of(f"{scheme}://10.0.0.7:8265")
    assert found and (found.url, found.variable) == ("http://proxy:3128", variable)


@pytest.mark.parametrize(
    ("listed", "is_direct"),
    [
        ("*", True), ("head.example.org", True), ("example.org", True), (".example.org", True), ("*.example.org", True),
        ("other, example.org", True), ("head.example.org:8265", True), ("HEAD.example.org", True), ("", False),
        ("head.example.org:80", False), ("ample.org", False), ("head", False), ("10.0.0.0/8", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_exceptions_by_name(listed: str, is_direct: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv(name, listed)
    assert (proxies.of("http://head.example.org:8265") is None) is is_direct


@pytest.mark.parametrize(
    ("listed", "url"),
    [
        ("10.0.0.0/8", "http://10.1.2.3:8265"), ("10.1.2.3", "http://10.1.2.3:8265"), ("10.1.2.3:8265", "http://10.1.2.3:8265"),
        ("fd00::/8", "http://[fd00::7]:8265"), ("[fd00::7]", "http://[fd00::7]:8265"), ("[fd00::7]:8265", "http://[fd00::7]:8265"),
    ],
)  # fmt: skip
def test_exceptions_by_address(listed: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    assert proxies.of(url)
    monkeypatch.setenv("no_proxy", listed)
    assert proxies.of(url) is None


def test_a_variable_in_lower_case_goes_first_and_may_switch_the_other_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "upper:1")
    monkeypatch.setenv("http_proxy", "lower:1")
    assert str(proxies.of("http://head")) == "the proxy http://lower:1 that http_proxy names"
    monkeypatch.setenv("http_proxy", "")
    assert proxies.of("http://head") is None


def test_other_readers_of_the_environment_use_no_proxy_for_this_machine_either(monkeypatch: pytest.MonkeyPatch) -> None:
    proxies.spare_loopback()
    assert "no_proxy" not in os.environ, "there is no proxy"
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "example.org, localhost")
    proxies.spare_loopback()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == ",".join(("example.org", *proxies.DIRECT))
    monkeypatch.setenv("no_proxy", "*")
    proxies.spare_loopback()
    assert os.environ["no_proxy"] == "*"


# Ray's dashboard.


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_dashboard_here_is_reached_directly(
    host: str, variable: str, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dashboard, proxy = server(), server()
    monkeypatch.setenv(variable, proxy.address)
    assert Cluster(dashboard.address.replace("127.0.0.1", host)).list_jobs() == []
    assert dashboard.received and proxy.received == []


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_the_token_never_goes_to_a_proxy_in_the_clear(
    variable: str, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = server()
    monkeypatch.setenv(variable, proxy.address.replace("://", f"://me:{SECRET}@"))
    with pytest.raises(ClusterError, match=f"that {variable} names, which would see Ray's token") as raised:
        Cluster("http://head.example:8265")
    assert proxy.received == [] and SECRET not in str(raised.value)
    assert all(fix in str(raised.value) for fix in ("add head.example to no_proxy", "https://", "ssh -L"))


def test_without_a_token_a_proxy_is_used_and_named_if_it_answers(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    disable_tokens(monkeypatch)
    proxy = server(token=None)  # as far as kdctl can see, it answers by itself
    monkeypatch.setenv("http_proxy", proxy.address)
    assert Cluster("http://head.example:8265").list_jobs() == []
    assert "/api/version" in proxy.received[0]
    proxy.status, proxy.page = 502, "no such host"
    with pytest.raises(ClusterError, match="head.example:8265 through the proxy http://127.* does not answer like"):
        Cluster("http://head.example:8265")


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        ("http://me:proxy-password@127.0.0.1:9", r"through the proxy http://\*\*\*@127.0.0.1:9 that https_proxy names"),
        ("http://me:proxy-password@127.0.0.1:9", "add head.example to no_proxy"),
        ("gopher://127.0.0.1:9", "the proxy gopher://127.0.0.1:9 that https_proxy names cannot be used"),
        ("http://", "that https_proxy names cannot be used"),
    ],
)
def test_a_proxy_that_fails_is_named(proxy: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(ClusterError, match=message) as raised:
        Cluster("https://head.example")
    assert SECRET not in str(raised.value) and "Traceback" not in str(raised.value)


def test_the_token_does_not_follow_a_redirect(server: Any) -> None:
    other = server()
    first = server(page="", status=302, location=f"{other.address}/api/version")
    with pytest.raises(ClusterError, match=f"redirect to {other.address}/api/version, which kdctl does not follow"):
        Cluster(first.address)
    assert other.received == []


def test_netrc_does_not_replace_the_token(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("default login me password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert Cluster(server().address).list_jobs() == []


def test_a_log_is_followed_through_a_proxy(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    disable_tokens(monkeypatch)
    proxy = server(token=None)
    proxy.add("kdctl-1", {"kdctl": "0", "study": "a"}, status="SUCCEEDED")
    monkeypatch.setenv("http_proxy", proxy.address)
    cluster = Cluster("http://head.example:8265")
    assert list(cluster.follow(cluster.find_job("a"))) == ["log of kdctl-1\n"]


# Downloads and buckets.


def test_a_download_names_its_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", f"http://me:{SECRET}@127.0.0.1:9")
    with pytest.raises(
        DataError, match=r"could not be downloaded through the proxy http://\*\*\*@127.0.0.1:9"
    ) as raised:
        cifar._download("cifar10", tmp_path / "data")
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("gs://bucket/a", "cannot be read through the proxy http://p:1 that all_proxy names"),
        (
            "s3://bucket/a",
            "cannot be read without the proxy http://p:1 that all_proxy names, because s3:// is reached directly",
        ),
        ("s3://bucket/a?endpoint_override=127.0.0.1:9", r"cannot be read \(no\)"),
    ],
)
def test_a_bucket_names_its_proxy(address: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError("no")

    monkeypatch.setenv("all_proxy", "http://p:1")
    monkeypatch.setattr(bucket, "_connect", fail)
    with pytest.raises(StorageError, match=message):
        bucket.Bucket.at(address).read("x")


def test_a_bucket_of_google_here_is_reached_without_a_proxy(server: Any) -> None:
    proxy = server(token=None)
    script = (
        "from datetime import timedelta; from orchestrator.storage import bucket\n"
        "bucket.timedelta = lambda seconds: timedelta(seconds=0.1)\n"
        "bucket.Bucket.at('gs://bucket/a?endpoint_override=127.0.0.1:9&scheme=http').stat('x')"
    )
    environment = {**os.environ, "http_proxy": proxy.address, "GOOGLE_APPLICATION_CREDENTIALS": ""}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert "StorageError" in done.stderr and proxy.received == []
