"""How a launch joins a cluster and starts a dashboard, and how it reports problems; Ray is not started."""

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
    """A stand-in for Ray's node, with a dashboard that starts or fails."""

    webui_url = "127.0.0.1:1"
    head = True

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def start_api_server(self, **options: Any) -> None:
        """Starts nothing."""
        assert options == {"include_dashboard": True, "raise_on_failure": True}
        if self.error:
            raise self.error


def start_dashboard(node: Node, over: threading.Event, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Starts the dashboard of a node and returns the notes."""
    monkeypatch.setattr(ray._private.worker, "_global_node", node)
    messages: list[str] = []
    thread = threading.Thread(target=_session._start_dashboard, args=("tiny", messages.append, over), daemon=True)
    thread.start()
    until(lambda: messages or over.is_set())
    over.set()
    thread.join(20)
    assert not thread.is_alive()
    return messages


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ValueError("first line\nFailed to bind"), "Failed to bind"), (Exception(), "Exception")],
)
def test_a_dashboard_that_does_not_start_is_a_note(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start_dashboard(Node(error), threading.Event(), monkeypatch) == [
        f"there is no dashboard ({reason}); training continues"
    ]


def test_a_dashboard_that_never_answers_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_session, "_POLL", 0.001)
    monkeypatch.setattr(_session, "_DASHBOARD_TIMEOUT", 0.002)
    monkeypatch.setattr(dashboard, "is_answering", lambda url: False)
    (line,) = start_dashboard(Node(), threading.Event(), monkeypatch)
    assert line == "there is no dashboard (it does not answer at http://127.0.0.1:1); training continues"


def test_there_is_no_note_after_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    over.set()
    assert start_dashboard(Node(ValueError("Ray is gone")), over, monkeypatch) == []


def test_a_ray_without_the_internal_method_is_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
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
    messages: list[str] = []
    with _session.join_cluster(None, "tiny", messages.append) as nodes:
        assert nodes == [{"CPU": 2.0}]
    assert len(messages) == 1
    other = _session.join_cluster("10.0.0.1:6379", "tiny", messages.append)
    with pytest.raises(ResourceError, match=r"ray.init before.*ray.shutdown first"), other:
        pytest.fail("nothing was joined")


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    joining = _session.join_cluster("127.0.0.1:1", "tiny", print)  # Ray itself would try for minutes
    with (
        patch.dict(os.environ),
        pytest.raises(ResourceError, match=r"'127.0.0.1:1' cannot be joined .*--inline"),
        joining,
    ):
        pytest.fail("nothing was joined")
