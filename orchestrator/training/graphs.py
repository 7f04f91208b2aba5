"""CUDA graphs and streams: a captured step waits for no Python, and each trial of a process has its own stream."""

from __future__ import annotations

import os
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from orchestrator.errors import KdctlError, ResourceError
from orchestrator.text import first_line
from orchestrator.training.gpu.counters import ReplayCounts

# The driver reads it once, when CUDA starts, which nothing does before this import. With its default, streams share
# eight queues of the hardware, and the ninth trial at a time waits for another one.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")

STREAMS = 32  # of a device: PyTorch's own limit, after which it hands out the first ones again, in use or not
_WARM_UP = 3  # runs before a capture, in which libraries choose their kernels and allocate their workspaces
_ATTEMPTS = 3  # at a capture; what broke one, like too little memory, may be over some steps later
_PAUSE = 20  # runs before the next attempt
_EVENT_STEPS = 32  # steps between two events; the host is at most twice as many ahead of the device
_capturing = threading.Lock()  # only one capture at a time in a process
_taking = threading.Lock()
_free: defaultdict[int | None, list[Any]] = defaultdict(list)  # by device: streams that no thread uses
_used: set[Any] = set()  # handles of streams that a thread uses


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Gives this thread its own CUDA stream: the default one cannot be captured, and all threads on it take turns.

    Raises ResourceError where all streams of the device are in use.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.current_stream(device)
    stream = _take_stream(device)
    torch.cuda.set_stream(stream)
    try:
        yield
    finally:
        torch.cuda.set_stream(before)
        with _taking:
            _used.discard(stream.cuda_stream)
            _free[stream.device_index].append(stream)


def _take_stream(device: torch.device) -> Any:
    """A stream of a device that no other thread has, whoever else created streams."""
    with _taking:
        index = torch.cuda.current_device() if device.index is None else device.index
        for _ in range(STREAMS):
            stream = _free[index].pop() if _free[index] else torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            if stream.cuda_stream not in _used:
                _used.add(stream.cuda_stream)
                return stream
    raise ResourceError(f"{STREAMS} trials of this process use {device} already; set a smaller --max-concurrent")


class GraphedStep:
    """A function without arguments or result that always reads and writes the same tensors.

    On the CPU every call runs it. On a GPU the first few calls run it, the next one is captured as a graph, and later
    calls replay the graph. If the capture fails, calls run the function, and the capture is tried again later; after
    the last attempt `failure` says why. Graphs of one `pool` share its memory: they must not run at the same time, nor
    leave data in it for each other. The function may add to `counters` on the host, which are right after `settle`.
    """

    def __init__(
        self, work: Callable[[], None], device: torch.device, pool: Any, counters: Sequence[Tensor] = ()
    ) -> None:
        self._work = work
        self._device = device
        self._runs_left = _WARM_UP if device.type == "cuda" else -1
        self._attempts = 0
        self._pool = pool
        self._counts = ReplayCounts(counters)
        self._graph: torch.cuda.CUDAGraph | None = None
        self.failure: str | None = None

    def __call__(self) -> None:
        """Runs or replays the function once; on a GPU it is only queued when this returns."""
        if self._runs_left == 0 and self._graph is None and self.failure is None:
            self._capture()
        if self._graph is not None:
            self._graph.replay()
            self._counts.note_replay()
            return
        self._work()
        self._runs_left -= self._runs_left > 0

    def settle(self) -> None:
        """Brings the counters up to date."""
        self._counts.settle()

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with _capturing:
                self._record(graph)
        except (RuntimeError, KdctlError) as error:  # the latter explains one in a user's own loss
            self._attempts += 1
            self._runs_left = _PAUSE
            self._pool = new_pool(self._device)  # PyTorch does not capture again into that of a broken capture
            _clear_errors(self._device)
            if self._attempts == _ATTEMPTS:
                self.failure = first_line(_find_cause(error))
            return
        self._graph = graph

    def _record(self, graph: torch.cuda.CUDAGraph) -> None:
        """Captures the function in this thread's stream.

        `torch.cuda.graph` would also wait for the work of all other threads, and free the memory that they keep.
        """
        torch.cuda.current_stream(self._device).synchronize()
        # Other threads continue meanwhile, also with calls that would break a capture in their own thread.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        self._counts.begin_capture()
        try:
            self._work()
        finally:
            self._counts.end_capture()
            graph.capture_end()


def _clear_errors(device: torch.device) -> None:
    """CUDA keeps an error for each thread until it is asked: this one and autograd's must not report it later."""
    for _ in range(2):
        with suppress(RuntimeError):
            torch.zeros((), device=device, requires_grad=True).exp().backward()  # type: ignore[no-untyped-call]


def _find_cause(error: BaseException) -> BaseException:
    """The error that broke a capture, which ends with an error of its own; or kdctl's explanation of it."""
    while error.__context__ and not isinstance(error, KdctlError):
        error = error.__context__
    return error


def new_pool(device: torch.device) -> Any:
    """Memory that the graphs of one training share; None where there are no graphs."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def is_lost(device: torch.device) -> bool:
    """Whether every call for a device fails in this process from now on, as after an illegal access to its memory."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.current_stream(device).synchronize()
    except RuntimeError:
        return True
    return False


class Pacer:
    """Keeps the host from queueing an entire epoch: what is queued can no longer be stopped."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps = 0
        self._events: deque[torch.cuda.Event] = deque()

    def note_step(self) -> None:
        """Notes that a step was queued; waits while too many are."""
        if self._device.type != "cuda":
            return
        self._steps += 1
        if self._steps % _EVENT_STEPS == 0:
            event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # leaves the core to others
            event.record(torch.cuda.current_stream(self._device))
            self._events.append(event)
            if len(self._events) == 2:
                self._events.popleft().synchronize()


def sharing(gpus: float) -> int:
    """How many trials share a GPU; 1 where they use none."""
    return int(1 / gpus + 1e-9) if gpus else 1  # 0.1 gives ten, in spite of rounding
