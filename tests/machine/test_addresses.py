"""Addresses of clusters as people write them: each works in one form, or gets one message with the fix."""

from __future__ import annotations

from typing import Any

import pytest
from dashboard import Dashboard

from orchestrator import cli
from orchestrator.errors import ClusterError
from orchestrator.execution.ray import _session
from orchestrator.machine import addresses

URL = "http://127.0.0.1:8265"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("http://Head:8265", "http://head:8265"), ("HTTP://LOCALHOST:8265//", "http://localhost:8265"),
        (f" {URL} ", URL),
        ("https://head.example", "https://head.example"), ("http://[::1]:8265/", "http://[::1]:8265"),
        (f"{URL}/#/jobs", URL), (f"{URL}/ray/?x=1", f"{URL}/ray"), ("http://head:", "http://head"),
    ],
)  # fmt: skip
def test_a_dashboard(written: str, meant: str) -> None:
    assert addresses.is_dashboard(written) and addresses.dashboard(written) == meant


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("http://", "expected one like http://127.0.0.1:8265"), ("http://:8265", "expected one like"),
        ("", "expected one like"), ("http://a b", "expected one like"), ("http://[::1:8265", "expected one like"),
        ("http://h:0", "expected one like"), ("http://h:99999", "expected one like"), ("auto", "expected one like"),
        ("h:8265", "expected one like"),
        ("http://me:pass@h:8265", r"http://\*\*\*@h:8265 contains a user name or a password"),
        ("http://me@h:8265", "remove them, and put the token of the cluster into RAY_AUTH_TOKEN"),
    ],
)  # fmt: skip
def test_no_dashboard(written: str, message: str) -> None:
    with pytest.raises(ClusterError, match=message) as raised:
        addresses.dashboard(written)
    assert "pass@" not in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("AUTO", "auto"), ("local ", "local"), ("Head:6379", "head:6379"), ("[::1]:6379", "[::1]:6379")],
)  # fmt: skip
def test_a_cluster_to_join(written: str, meant: str) -> None:
    assert addresses.to_join(written) == meant


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "is empty; expected auto, local, HOST:PORT"), ("ray://h:10001", "--address http://h:8265"),
        ("RAY://me:pass@[::1]:10001", r"Ray Client.* http://\[::1\]:8265"), ("head", "as in head:6379"),
        ("[::1]", r"as in \[::1\]:6379"), ("h:0", "from 1 to 65535"), ("h:99999", "from 1 to 65535"),
        ("::1:6379", "is not the address of a Ray cluster"), ("htp://h", "is not the address"),
        (URL, "is a dashboard, which cannot be joined"), ("h:1:2", "is not the address"),
    ],
)  # fmt: skip
def test_no_cluster_to_join(written: str, message: str) -> None:
    with pytest.raises(ClusterError, match=message) as raised:
        addresses.to_join(written)
    assert "pass@" not in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("command", [["launch", "none.yaml"], ["status"], ["logs"], ["stop"]])
@pytest.mark.parametrize("address", ["", "htp://h:10001", "http://", "head"])
def test_the_commands_refuse_it_before_anything_else(
    command: list[str], address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["kdctl", *command, "--address", address])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "expected" in (err := capsys.readouterr().err) and "none.yaml" not in err


# RAY_ADDRESS.


@pytest.mark.parametrize(
    ("given", "named", "meant", "note"),
    [
        (None, "", None, None),
        (None, "head:6379", "head:6379", "joining the Ray cluster that RAY_ADDRESS names, head:6379; --address local"),
        (None, "local", "local", None),
        (None, "auto", "auto", "joining the Ray cluster that RAY_ADDRESS names, auto"),
        (None, URL, None, f"RAY_ADDRESS is ignored: it names a dashboard; --address {URL}"),
        ("auto", "head:6379", "head:6379", None),  # as in a job, where Ray sets it
        ("auto", "", "auto", None),
        ("local", "head:6379", "local", None),
        ("Other:1", "head:6379", "other:1", None),
    ],
)
def test_the_cluster_of_the_environment(
    given: str | None, named: str, meant: str | None, note: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", named)
    notes: list[str] = []
    assert _session._choose_address(given, notes.append) == meant
    assert len(notes) == bool(note) and all(line.startswith(str(note)) for line in notes)


@pytest.mark.parametrize(
    ("given", "named"), [(None, "ray://h:1"), ("auto", URL), (None, "head"), ("auto", "ray://h:1")]
)
def test_an_invalid_address_of_the_environment(given: Any, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", named)
    with pytest.raises(ClusterError, match=r"^RAY_ADDRESS: "):
        _session._choose_address(given, pytest.fail)


def test_a_dashboard_that_is_named_as_a_cluster_to_join() -> None:
    dashboard = Dashboard()
    try:
        with pytest.raises(ClusterError, match=f"submit the study to it with --address {dashboard.address}, or"):
            _session._reach(dashboard.address.removeprefix("http://"))
    finally:
        dashboard.close()
