"""Work that a GPU repeats as a graph: what is run, captured and replayed, with a simulated GPU."""

from __future__ import annotations

import itertools
import os
import runpy
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from orchestrator.errors import KdctlError, ResourceError
from orchestrator.training import graphs
from orchestrator.training.graphs import GraphedStep

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Device:
    """Records the commands to a GPU; a replayed graph does what was captured."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.pools: list[Any] = []
        self.is_capturing = False
        self.failures: list[str] = []  # of the next captures

    def work(self) -> None:
        if self.is_capturing and self.failures:
            raise RuntimeError(f"{self.failures[0]}\nwith many more lines")
        self.commands.append("capture" if self.is_capturing else "run")

    def begin(self, **given: Any) -> None:
        assert given["capture_error_mode"] == "thread_local" and self.commands[-1] == "wait for own stream"
        self.pools.append(given["pool"])
        self.is_capturing = True

    def end(self) -> None:
        self.is_capturing = False
        if self.failures:
            self.failures.pop(0)
            raise RuntimeError("operation failed due to a previous error during capture")


class Stream:
    """A stream whose name is its handle."""

    def __init__(self, handle: str = "mine", index: int = 0, device: Device | None = None) -> None:
        self.cuda_stream = handle
        self.device_index = index
        self._device = device

    def synchronize(self) -> None:
        if self._device:
            self._device.commands.append("wait for own stream")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()

    class Graph:
        capture_begin = staticmethod(device.begin)
        capture_end = staticmethod(device.end)

        def replay(self) -> None:
            device.commands.append("replay")

    pools = itertools.count(2)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, next(pools)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda given: Stream(device=device))
    monkeypatch.setattr(graphs, "_PAUSE", 2)
    monkeypatch.setattr(graphs, "_clear_errors", lambda device: None)
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


CAPTURE = ["wait for own stream", "capture"]


def test_a_gpu_runs_then_captures_then_replays(device: Device) -> None:
    work = repeat(device, 6)
    # A capture does no work: the call that captures also replays.
    assert device.commands == ["run", "run", "run", *CAPTURE, "replay", "replay", "replay"]
    assert work.failure is None and device.pools == [(0, 1)]


def test_every_call_does_the_work_once(device: Device) -> None:
    for calls, failures in itertools.product(range(1, 16), range(4)):
        device.commands.clear()
        device.failures = ["out of memory"] * failures
        repeat(device, calls)
        assert len([word for word in device.commands if word not in CAPTURE]) == calls


def test_a_capture_that_failed_is_tried_again_with_new_memory(device: Device) -> None:
    device.failures = ["out of memory", "out of memory"]
    work = repeat(device, 9)
    wait = "wait for own stream"
    assert device.commands == ["run"] * 3 + [wait, "run", "run", wait, "run", "run", *CAPTURE, "replay", "replay"]
    assert work.failure is None and len(set(device.pools)) == 3


def test_a_step_that_can_never_be_captured_is_run_and_says_why(device: Device) -> None:
    device.failures = ["operation not permitted when stream is capturing", "out of memory", "the last cause"]
    work = repeat(device, 20)
    assert [word for word in device.commands if word == "run"] == ["run"] * 20
    assert len(device.pools) == 3 and work.failure == "the last cause"


def test_the_cause_of_a_broken_capture_is_kdctl_s_explanation_where_there_is_one() -> None:
    with pytest.raises(ValueError) as found:
        try:
            try:
                raise RuntimeError("operation not permitted when stream is capturing")
            except RuntimeError as error:
                raise KdctlError("loss mine waits for the GPU") from error
        finally:
            raise ValueError("the capture was broken")  # as the end of a capture does
    assert str(graphs._find_cause(found.value)) == "loss mine waits for the GPU"


@pytest.mark.parametrize("failures", range(4))
def test_what_is_counted_on_the_host_is_right_however_a_step_is_run(device: Device, failures: int) -> None:
    counter = torch.tensor(0)

    def work() -> None:
        counter.add_(1)
        device.work()

    device.failures = ["out of memory"] * failures
    step = GraphedStep(work, GPU, (0, 1), [counter])
    for calls in range(1, 16):
        step()
        step.settle()
        assert int(counter) == calls


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

    def begin(graph: Any, **given: Any) -> None:
        with pytest.raises(threading.BrokenBarrierError):
            inside.wait()  # for another capture, which does not come

    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", begin)
    failed: list[BaseException] = []

    def train() -> None:
        try:
            repeat(device, 4)
        except BaseException as error:
            failed.append(error)

    run_in_threads(2, train)
    assert failed == [] and device.commands.count("replay") == 2


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[Stream]:
    """Every stream that was created; a thread starts with the default stream. As in PyTorch there are only so many."""
    made: list[Stream] = []
    current = threading.local()

    def make(device: torch.device) -> Stream:
        made.append(Stream(f"own {len(made) % graphs.STREAMS}", device.index or 0))
        return made[-1]

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: getattr(current, "stream", Stream("default")))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "Stream", make)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(current, "stream", stream))
    monkeypatch.setattr(graphs, "_free", defaultdict(list))
    monkeypatch.setattr(graphs, "_used", set())
    return made


def find_current(device: torch.device = GPU) -> str:
    return str(torch.cuda.current_stream(device).cuda_stream)


def test_a_thread_has_its_own_stream_inside_the_context(streams: list[Stream]) -> None:
    with graphs.own_stream(GPU):
        assert find_current() == "own 0"
        with graphs.own_stream(GPU):
            assert find_current() == "own 1"
        assert find_current() == "own 0"
    assert find_current() == "default"


def test_threads_never_share_a_stream_and_few_are_created(streams: list[Stream]) -> None:
    held: set[Any] = set()
    guard, failed = threading.Lock(), []

    def train() -> None:
        for _ in range(50):
            with graphs.own_stream(GPU):
                mine = find_current()
                with guard:
                    failed.append(mine) if mine in held else held.add(mine)
                with guard:
                    held.discard(mine)

    run_in_threads(4, train)
    assert failed == [] and len(streams) <= 4  # of 200 trials


def test_a_stream_in_use_is_never_given_again(streams: list[Stream]) -> None:
    with ExitStack() as stack:
        stack.enter_context(graphs.own_stream(GPU))
        for _ in range(graphs.STREAMS - 1):
            torch.cuda.Stream(GPU)  # type: ignore[no-untyped-call]  # somebody else's
        for number in range(1, graphs.STREAMS):
            stack.enter_context(graphs.own_stream(GPU))
            assert find_current() == f"own {number}"
        with pytest.raises(ResourceError, match="32 trials of this process use cuda already"), graphs.own_stream(GPU):
            pass
    with graphs.own_stream(GPU):
        pass


def test_a_device_has_its_own_streams(streams: list[Stream]) -> None:
    for index in (0, 1, 0, 1):
        with graphs.own_stream(torch.device("cuda", index)):
            assert torch.cuda.current_stream(GPU).device_index == index
    assert len(streams) == 2


def test_the_host_is_never_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    queued, waited = 0, []

    class Event:
        def __init__(self, blocking: bool) -> None:
            assert blocking

        def record(self, stream: str) -> None:
            self.steps = queued

        def synchronize(self) -> None:
            waited.append((queued, self.steps))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "mine")
    pacer, idle = graphs.Pacer(GPU), graphs.Pacer(CPU)
    for queued in range(1, 161):
        pacer.note_step()
        idle.note_step()
    assert waited == [(64, 32), (96, 64), (128, 96), (160, 128)]


@pytest.mark.parametrize(("gpus", "expected"), [(0.0, 1), (1.0, 1), (0.5, 2), (0.34, 2), (0.125, 8), (0.1, 10)])
def test_how_many_share_a_gpu(gpus: float, expected: int) -> None:
    assert graphs.sharing(gpus) == expected


@pytest.mark.parametrize(("own", "expected"), [(None, "32"), ("4", "4")])
def test_streams_have_queues_of_their_own_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, own: str | None, expected: str
) -> None:
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", own or "")
    if own is None:
        monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS")
    runpy.run_path(graphs.__file__)
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == expected
