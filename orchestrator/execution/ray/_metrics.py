"""Exports the metrics of a launch through Ray: its agents on every machine serve them to Prometheus.

A launch's process tells Ray every gauge again and again, since Ray's agents drop what they have not heard of for a
while: so no series outlives what it tells of by more than a few seconds.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import ray
import torch
from ray.util.metrics import Counter, Gauge

from orchestrator.errors import ResourceError
from orchestrator.monitor import prometheus
from orchestrator.monitor.events import Event, EventListener
from orchestrator.monitor.metrics import METRICS, Meter, Sample, labels_of
from orchestrator.study.plan import PlannedTrial

_PERIOD = 2.0  # seconds between two times that Ray is told
_PATIENCE = 2.0  # seconds for the thread to end: it may just ask Ray something
_LOOK = 5  # periods between two looks for new machines


@contextmanager
def export_metrics(
    launch_event: Event | None, on_event: EventListener, say: Callable[[str], None]
) -> Iterator[EventListener]:
    """As long as this lasts, what is told of a launch becomes metrics too; gives what is to be told.

    It costs whoever tells an event no more than a queue does, and never fails: `say` says where metrics end before
    the launch. `launch_event` is the event that the launch began with; without it nothing is exported.
    """
    if launch_event is None:
        yield on_event
        return
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    over = threading.Event()

    def forward(event: Event) -> None:
        on_event(event)
        if not over.is_set():
            events.put(event)

    thread = threading.Thread(target=_export, args=(Meter(launch_event), events, over, say), daemon=True)
    thread.start()
    try:
        yield forward
    finally:
        over.set()
        thread.join(_PATIENCE)
        prometheus.withdraw()


def _export(meter: Meter, events: queue.SimpleQueue[Event], over: threading.Event, say: Callable[[str], None]) -> None:
    try:
        exporter, periods, targets = _Exporter(), 0, list[str]()
        while not over.is_set():
            while not events.empty():
                meter.apply(events.get())
            exporter.set(meter.gauges(datetime.now(UTC)), meter.counters())
            if periods % _LOOK == 0:
                targets = _announce_nodes(targets)
            periods += 1
            over.wait(_PERIOD)
    except Exception as error:  # whatever it is, what is trained matters more
        if not over.is_set():
            over.set()
            say(f"metrics are not exported any more ({type(error).__name__}: {error}); the training goes on")


def _announce_nodes(before: Sequence[str]) -> list[str]:
    """Lets Prometheus know of every machine of the cluster; gives the addresses."""
    nodes = (node for node in ray.nodes() if node["Alive"])
    targets = sorted(f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes)
    if targets != before:
        with suppress(OSError, ResourceError):  # a folder that cannot be written; Ray serves the metrics all the same
            prometheus.announce(targets)
    return targets


class _Exporter:
    """The metrics that Ray has received so far."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        self._counted: dict[str, float] = {}

    def set(self, gauges: Sequence[Sample], counters: Sequence[Sample]) -> None:
        """Tells it what there is now."""
        for sample in gauges:
            if sample.name not in self._gauges:
                self._gauges[sample.name] = _gauge(sample.name)
            self._gauges[sample.name].set(sample.value, sample.labels)
        for sample in counters:
            more = sample.value - self._counted.get(sample.name, 0.0)
            if more <= 0:  # which Ray refuses
                continue
            if sample.name not in self._counters:
                metric = METRICS[sample.name]
                self._counters[sample.name] = Counter(sample.name, metric.meaning, metric.labels)
            self._counters[sample.name].inc(more, sample.labels)
            self._counted[sample.name] = sample.value


def _gauge(name: str) -> Gauge:
    return Gauge(name, METRICS[name].meaning, METRICS[name].labels)


def export_memory(study: str, trial: PlannedTrial) -> Callable[[], None]:
    """Exports the GPU memory of this process as that of a trial, until the function that this gives is called.

    Without a GPU nothing is exported.
    """
    over = threading.Event()
    if torch.cuda.is_available():
        labels = labels_of(study, trial)
        threading.Thread(target=_export_memory, args=(labels, over), daemon=True).start()
    return over.set


def _export_memory(labels: dict[str, str], over: threading.Event) -> None:
    with suppress(Exception):  # whatever it is, what is trained matters more
        gauge = _gauge("kdctl_gpu_memory_bytes")
        while not over.wait(_PERIOD):
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # asking is not to be what takes memory
                devices = range(torch.cuda.device_count())
                gauge.set(float(sum(map(torch.cuda.memory_reserved, devices))), labels)
