"""Work that a GPU repeats as a graph: what is run, captured and replayed, with a simulated GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from orchestrator.training import graphs
from orchestrator.training.graphs import GraphedStep

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Device:
    """Records the commands to a GPU; a replayed graph does what was captured."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.capturing: list[Any] = []
        self.failure: str | None = None

    def work(self) -> None:
        if self.capturing and self.failure:
            raise RuntimeError(f"{self.failure}\nwith many more lines")
        self.commands.append("capture" if self.capturing else "run")

    @contextmanager
    def graph(self, graph: Any, **given: Any) -> Iterator[None]:
        assert given["capture_error_mode"] == "thread_local" and given["stream"] == "mine" and given["pool"] == (0, 1)
        self.capturing.append(graph)
        try:
            yield
        finally:
            self.capturing.pop()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()

    class Graph:
        def replay(self) -> None:
            device.commands.append("replay")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", device.graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "mine")
    return device


def run_in_threads(count: int, work: Callable[[], None]) -> None:
    """Runs `work` in `count` threads, and waits for them."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)


def repeat(device: Device, calls: int) -> GraphedStep:
    found = GraphedStep(device.work, GPU, (0, 1))
    for _ in range(calls):
        found()
    return found


def test_a_gpu_runs_then_captures_then_replays(device: Device) -> None:
    work = repeat(device, 6)
    # A capture does no work: the call that captures also replays.
    assert device.commands == ["run", "run", "run", "capture", "replay", "replay", "replay"]
    assert work.failure is None


def test_every_call_does_the_work_once(device: Device) -> None:
    for calls in range(1, 7):
        device.commands.clear()
        repeat(device, calls)
        assert len([word for word in device.commands if word != "capture"]) == calls


def test_a_step_that_cannot_be_captured_is_run(device: Device) -> None:
    device.failure = "operation not permitted when stream is capturing"
    work = repeat(device, 6)
    assert device.commands == ["run"] * 6
    assert work.failure == device.failure


def test_a_cpu_runs_it_every_time(device: Device) -> None:
    work = GraphedStep(device.work, CPU, None)
    for _ in range(6):
        work()
    assert device.commands == ["run"] * 6
    assert work.failure is None and graphs.new_pool(CPU) is None
    with graphs.own_stream(CPU):
        pass  # a CPU has no streams


def test_threads_capture_in_turn(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = threading.Barrier(2, timeout=0.2)

    @contextmanager
    def graph(graph: Any, **given: Any) -> Iterator[None]:
        with pytest.raises(threading.BrokenBarrierError):
            inside.wait()  # for another capture, which does not come
        yield

    monkeypatch.setattr(torch.cuda, "graph", graph)
    failed: list[BaseException] = []

    def train() -> None:
        try:
            repeat(device, 4)
        except BaseException as error:
            failed.append(error)

    run_in_threads(2, train)
    assert failed == [] and device.commands.count("replay") == 2


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every stream that was created; a thread starts with the default stream."""
    made: list[str] = []
    current = threading.local()

    def make(device: torch.device) -> str:
        made.append(f"own {len(made)}")
        return made[-1]

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: getattr(current, "stream", "default"))
    monkeypatch.setattr(torch.cuda, "Stream", make)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(current, "stream", stream))
    monkeypatch.setattr(graphs, "_free", [])
    return made


def test_a_thread_has_its_own_stream_inside_the_context(streams: list[str]) -> None:
    with graphs.own_stream(GPU):
        assert torch.cuda.current_stream(GPU) == "own 0"  # type: ignore[comparison-overlap]
        with graphs.own_stream(GPU):
            assert torch.cuda.current_stream(GPU) == "own 1"  # type: ignore[comparison-overlap]
        assert torch.cuda.current_stream(GPU) == "own 0"  # type: ignore[comparison-overlap]
    assert torch.cuda.current_stream(GPU) == "default"  # type: ignore[comparison-overlap]


def test_threads_never_share_a_stream_and_few_are_created(streams: list[str]) -> None:
    held: set[Any] = set()
    guard, failed = threading.Lock(), []

    def train() -> None:
        for _ in range(50):
            with graphs.own_stream(GPU):
                mine = torch.cuda.current_stream(GPU)
                with guard:
                    failed.append(mine) if mine in held else held.add(mine)
                with guard:
                    held.discard(mine)

    run_in_threads(4, train)
    assert failed == [] and len(streams) <= 4  # of 200 trials


@pytest.mark.parametrize(("gpus", "expected"), [(0.0, 1), (1.0, 1), (0.5, 2), (0.34, 2), (0.125, 8), (0.1, 10)])
def test_how_many_share_a_gpu(gpus: float, expected: int) -> None:
    assert graphs.sharing(gpus) == expected
