"""Exports the metrics of a launch through Ray: its agents on every machine serve them to Prometheus.

The process of a launch reports every gauge to Ray again and again, because Ray's agents drop a gauge that was not
reported for a while. So no series outlives what it measures by more than a few seconds.
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

_PERIOD = 2.0  # seconds between two reports to Ray
_PATIENCE = 2.0  # seconds to wait for the thread to end: it may be in a call to Ray
_NODE_PERIODS = 5  # periods between two checks for new machines


@contextmanager
def export_metrics(
    launch_event: Event | None, on_event: EventListener, report: Callable[[str], None]
) -> Iterator[EventListener]:
    """Yields a listener that passes events on to `on_event` and also turns them into metrics.

    An event costs its sender only a put into a queue, and never fails. If the export ends before the launch does,
    `report` gets the reason. `launch_event` is the first event of the launch; without it nothing is exported.
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

    thread = threading.Thread(target=_export, args=(Meter(launch_event), events, over, report), daemon=True)
    thread.start()
    try:
        yield forward
    finally:
        over.set()
        thread.join(_PATIENCE)
        prometheus.withdraw()


def _export(
    meter: Meter, events: queue.SimpleQueue[Event], over: threading.Event, report: Callable[[str], None]
) -> None:
    try:
        exporter, periods, targets = _Exporter(), 0, list[str]()
        while not over.is_set():
            while not events.empty():
                meter.apply(events.get())
            exporter.set(meter.gauges(datetime.now(UTC)), meter.counters())
            if periods % _NODE_PERIODS == 0:
                targets = _announce_nodes(targets)
            periods += 1
            over.wait(_PERIOD)
    except Exception as error:  # whatever it is, training matters more
        if not over.is_set():
            over.set()
            report(f"metrics are no longer exported ({type(error).__name__}: {error}); training continues")


def _announce_nodes(before: Sequence[str]) -> list[str]:
    """Announces every machine of the cluster to Prometheus if they have changed; returns their addresses."""
    nodes = (node for node in ray.nodes() if node["Alive"])
    targets = sorted(f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes)
    if targets != before:
        with suppress(OSError, ResourceError):  # the folder cannot be written; Ray serves the metrics nevertheless
            prometheus.announce(targets)
    return targets


class _Exporter:
    """The metrics that Ray has received so far."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        self._counted: dict[str, float] = {}

    def set(self, gauges: Sequence[Sample], counters: Sequence[Sample]) -> None:
        """Reports the current values to Ray."""
        for sample in gauges:
            if sample.name not in self._gauges:
                self._gauges[sample.name] = _gauge(sample.name)
            self._gauges[sample.name].set(sample.value, sample.labels)
        for sample in counters:
            more = sample.value - self._counted.get(sample.name, 0.0)
            if more <= 0:  # Ray refuses it
                continue
            if sample.name not in self._counters:
                metric = METRICS[sample.name]
                self._counters[sample.name] = Counter(sample.name, metric.meaning, metric.labels)
            self._counters[sample.name].inc(more, sample.labels)
            self._counted[sample.name] = sample.value


def _gauge(name: str) -> Gauge:
    return Gauge(name, METRICS[name].meaning, METRICS[name].labels)


def export_memory(study: str, trial: PlannedTrial) -> Callable[[], None]:
    """Exports the GPU memory of this process as that of a trial, until the returned function is called.

    Without a GPU nothing is exported.
    """
    over = threading.Event()
    if torch.cuda.is_available():
        labels = labels_of(study, trial)
        threading.Thread(target=_export_memory, args=(labels, over), daemon=True).start()
    return over.set


def _export_memory(labels: dict[str, str], over: threading.Event) -> None:
    with suppress(Exception):  # whatever it is, training matters more
        gauge = _gauge("kdctl_gpu_memory_bytes")
        while not over.wait(_PERIOD):
            if torch.cuda.is_initialized():
                devices = range(torch.cuda.device_count())
                gauge.set(float(sum(map(torch.cuda.memory_reserved, devices))), labels)
