"""Captures a step that always uses the same tensors as a CUDA graph, so that no kernel waits for Python after that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from orchestrator.errors import KdctlError
from orchestrator.text import first_line

_WARM_UP = 3  # runs before a capture, in which libraries choose their kernels and allocate their workspaces
STREAMS = 32  # PyTorch's own limit; after these it hands out the first ones again, even while they are in use
_capturing = threading.Lock()  # only one capture at a time in a process
_taking = threading.Lock()
_free: list[Any] = []  # streams that exist and that no thread uses


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Gives this thread its own CUDA stream: the default one cannot be captured, and all threads on it take turns."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.current_stream(device)
    with _taking:
        stream = _free.pop() if _free else torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    torch.cuda.set_stream(stream)
    try:
        yield
    finally:
        torch.cuda.set_stream(before)
        with _taking:
            _free.append(stream)


class GraphedStep:
    """A function without arguments or result that always reads and writes the same tensors.

    On the CPU every call runs it. On a GPU the first few calls run it, the next one is captured as a graph, and later
    calls replay the graph. If the capture fails, calls continue to run the function, and `failure` says why. Graphs of
    one `pool` share its memory: they must not run at the same time, nor leave data in it for each other.
    """

    def __init__(self, work: Callable[[], None], device: torch.device, pool: Any) -> None:
        self._work = work
        self._runs_left = _WARM_UP if device.type == "cuda" else -1
        self._pool = pool
        self._graph: torch.cuda.CUDAGraph | None = None
        self.failure: str | None = None

    def __call__(self) -> None:
        """Runs or replays the function once; on a GPU it is only queued when this returns."""
        if self._runs_left == 0 and self._graph is None and self.failure is None:
            self._capture()
        if self._graph is not None:
            self._graph.replay()
            return
        self._work()
        self._runs_left -= self._runs_left > 0

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        # Other threads continue meanwhile, also with calls that would break a capture in their own thread.
        recording = torch.cuda.graph(
            graph, pool=self._pool, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
        )
        try:
            with _capturing, recording:
                self._work()
        except (RuntimeError, KdctlError) as error:  # the latter explains one in a user's own loss
            self.failure = first_line(error)
            return
        self._graph = graph


def new_pool(device: torch.device) -> Any:
    """Memory that the graphs of one training share; None where there are no graphs."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def sharing(gpus: float) -> int:
    """How many trials share a GPU; 1 where they use none."""
    return int(1 / gpus + 1e-9) if gpus else 1  # 0.1 gives ten, in spite of rounding
