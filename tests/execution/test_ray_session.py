"""What a launch does about a dashboard that does not come up, without starting Ray."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import ray
from processes import until

from orchestrator.cluster import dashboard
from orchestrator.errors import ResourceError
from orchestrator.execution.ray import _session


class Node:
    """A stand-in for Ray's node: its dashboard comes up or not."""

    webui_url = "127.0.0.1:1"
    head = True

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def start_api_server(self, **options: Any) -> None:
        """Starts nothing."""
        assert options == {"include_dashboard": True, "raise_on_failure": True}
        if self.error:
            raise self.error


def started(node: Node, over: threading.Event, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said while the dashboard of a node starts."""
    monkeypatch.setattr(ray._private.worker, "_global_node", node)
    said: list[str] = []
    thread = threading.Thread(target=_session._start_dashboard, args=("tiny", said.append, over), daemon=True)
    thread.start()
    until(lambda: said or over.is_set())
    over.set()
    thread.join(20)
    assert not thread.is_alive()
    return said


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ValueError("first line\nFailed to bind"), "Failed to bind"), (Exception(), "Exception")],
)
def test_a_dashboard_that_does_not_start_is_a_note(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert started(Node(error), threading.Event(), monkeypatch) == [
        f"there is no dashboard ({reason}); the training goes on"
    ]


def test_one_that_never_answers_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_session, "_POLL", 0.001)
    monkeypatch.setattr(_session, "_COMING_UP", 0.002)
    monkeypatch.setattr(dashboard, "is_answering", lambda url: False)
    (line,) = started(Node(), threading.Event(), monkeypatch)
    assert line == "there is no dashboard (it does not answer at http://127.0.0.1:1); the training goes on"


def test_after_the_launch_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    over.set()
    assert started(Node(ValueError("Ray is gone")), over, monkeypatch) == []


def test_another_ray_starts_its_dashboard_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(start_api_server="its own")
    monkeypatch.setattr(_session.ray_node, "Node", found)
    monkeypatch.setattr(_session, "_API_SERVER", None)
    with _session._no_api_server():
        assert found.start_api_server == "its own"
    monkeypatch.setattr(_session, "_API_SERVER", "its own")
    with _session._no_api_server():
        assert found.start_api_server != "its own"
    assert found.start_api_server == "its own"


def test_a_program_that_is_part_of_a_cluster_cannot_join_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False}])
    monkeypatch.setattr(ray, "shutdown", lambda: pytest.fail("the cluster is the program's own"))
    said: list[str] = []
    with _session.join_cluster(None, "tiny", said.append) as nodes:
        assert nodes == [{"CPU": 2.0}]
    assert len(said) == 1
    other = _session.join_cluster("10.0.0.1:6379", "tiny", said.append)
    with pytest.raises(ResourceError, match=r"ray.init before.*ray.shutdown first"), other:
        pytest.fail("nothing was joined")


def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    joining = _session.join_cluster("127.0.0.1:1", "tiny", print)  # Ray itself would try for minutes
    with (
        patch.dict(os.environ),
        pytest.raises(ResourceError, match=r"'127.0.0.1:1' cannot be joined .*--inline"),
        joining,
    ):
        pytest.fail("nothing was joined")
