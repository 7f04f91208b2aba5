"""Metrics of a launch on Ray: exported in time without disturbing it; and a real Prometheus scrapes a real launch."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import prometheus
import pytest
import torch
from launch_events import epoch, launch, planned, started
from processes import until

from orchestrator.execution.ray import _metrics
from orchestrator.monitor import grafana
from orchestrator.monitor.events import Event, EventKind
from orchestrator.monitor.metrics import METRICS, PREFIX
from orchestrator.storage.layout import Storage


class Instrument:
    """A stand-in for a gauge or a counter of Ray."""

    sent: list[tuple[str, float, dict[str, str]]]

    def __init__(self, name: str, meaning: str, labels: tuple[str, ...]) -> None:
        self.name = name

    def set(self, value: float, labels: dict[str, str]) -> None:
        Instrument.sent.append((self.name, value, labels))

    inc = set


@pytest.fixture
def instruments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Instrument]:
    """Records what would be reported to Ray, and makes the reports frequent."""
    Instrument.sent = []
    monkeypatch.setenv("KDCTL_CACHE", str(tmp_path))
    monkeypatch.setattr(_metrics, "Gauge", Instrument)
    monkeypatch.setattr(_metrics, "Counter", Instrument)
    monkeypatch.setattr(_metrics, "_PERIOD", 0.01)
    node = {"Alive": True, "NodeManagerAddress": "127.0.0.1", "MetricsExportPort": 4711}
    monkeypatch.setattr(_metrics.ray, "nodes", lambda: [node, {**node, "Alive": False, "MetricsExportPort": 1}])
    return Instrument


def test_events_become_metrics_until_the_launch_ends(instruments: type[Instrument], tmp_path: Path) -> None:
    trial, student = planned(0), planned(1, teacher=planned(0))
    heard: list[Event] = []
    events = [started(trial, 0), epoch(trial, 1, 1), started(student, 2, is_hit=True), started(student, 3, is_hit=True)]
    with _metrics.export_metrics(launch(trial, student), heard.append, pytest.fail) as on_event:
        for event in events:
            on_event(event)
        own = {"study": "tiny"}
        until(lambda: sum(value for name, value, _ in instruments.sent if name == "kdctl_table_hits_total") == 2)
        until(lambda: any(name == "kdctl_test_accuracy_percent" for name, *_ in instruments.sent))
        (file,) = (tmp_path / "prometheus").iterdir()
        assert json.loads(file.read_text()) == [{"targets": ["127.0.0.1:4711"]}]
        many = len(instruments.sent)
        until(lambda: len(instruments.sent) > 2 * many)  # gauges are reported again, counters are not
    assert heard == events and list((tmp_path / "prometheus").iterdir()) == []
    hits = [value for name, value, labels in instruments.sent if name == "kdctl_table_hits_total" and labels == own]
    assert sum(hits) == 2 and min(hits) > 0
    assert not any(name == "kdctl_table_misses_total" for name, *_ in instruments.sent)


def test_a_failed_export_is_reported_once_and_the_launch_continues(
    instruments: type[Instrument], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, value: float, labels: dict[str, str]) -> None:
        raise RuntimeError("no agent")

    monkeypatch.setattr(instruments, "set", broken)
    heard: list[Event] = []
    messages: list[str] = []
    with _metrics.export_metrics(launch(planned(0)), heard.append, messages.append) as on_event:
        until(lambda: messages)
        on_event(Event(EventKind.NOTE, "next"))
    assert messages == ["metrics are no longer exported (RuntimeError: no agent); training continues"]
    assert [event.text for event in heard] == ["next"]


def test_ray_gets_the_metrics_even_if_prometheus_cannot_be_notified(
    instruments: type[Instrument], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KDCTL_CACHE", str(tmp_path / "file"))
    with _metrics.export_metrics(launch(planned(0)), lambda event: None, pytest.fail):
        until(lambda: len(instruments.sent) > 50)


def test_without_a_first_event_nothing_is_exported() -> None:
    def on_event(event: Event) -> None:
        """Is not called here."""

    with _metrics.export_metrics(None, on_event, pytest.fail) as listener:
        assert listener is on_event


# GPU memory, which a machine without a GPU can test only in part.


def test_without_a_gpu_there_is_no_memory_and_no_thread(instruments: type[Instrument]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    before = threading.active_count()
    _metrics.export_memory("tiny", planned(0))()
    assert threading.active_count() == before and instruments.sent == []


def test_memory_is_reported_from_the_first_use_of_cuda_to_the_end_of_the_trial(
    instruments: type[Instrument], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = threading.Event()
    queried: list[int] = []

    def reserved(device: int) -> int:
        assert used.is_set()
        queried.append(device)
        return 1000 + device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", used.is_set)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "memory_reserved", reserved)
    trial = planned(0)
    end = _metrics.export_memory("tiny", trial)
    thread = next(thread for thread in threading.enumerate() if thread.name.endswith("(_export_memory)"))
    used.set()
    until(lambda: len(instruments.sent) > 2)
    end()
    thread.join(10)
    assert not thread.is_alive()
    name, value, labels = instruments.sent[0]
    assert (name, value, labels["trial_id"]) == ("kdctl_gpu_memory_bytes", 2001.0, trial.trial_id)


# A real launch. The second trial is long enough to be observed while it trains.

STUDY = """\
study: watched
recipe: {limit_train: 64, limit_test: 50, batch_size: 32, crop_padding: 1, flip: false}
experiments:
  - method: logit
    dataset: digits
    student: resnet_32_8
    teacher: {model: resnet_32_8, epochs: 1}
    teacher_cache: table
    epochs: 20000
resources: {gpus_per_trial: 0}
"""
_CUT = "batch_size=32 crop_padding=1 flip=false limit_train=64 limit_test=50"
TEACHER = f"base epochs=1 {_CUT}, digits, resnet_32_8, seed 0"
STUDENT = f"logit epochs=20000 {_CUT} teacher_cache=table teacher.epochs=1, digits, resnet_32_8 ← resnet_32_8, seed 0"
KDCTL = str(Path(sys.executable).with_name("kdctl"))


@dataclass
class Watched:
    """A running launch, a Prometheus that found it, and the folder of both."""

    folder: Path
    server: prometheus.Server
    process: subprocess.Popen[bytes]

    def targets(self) -> list[str]:
        """The addresses that the launch announces."""
        files = (self.folder / "cache" / "prometheus").iterdir()
        return [target for file in files for entry in json.loads(file.read_text()) for target in entry["targets"]]


@pytest.fixture(scope="module")
def watched(digits_storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A launch while its student trains; it has no dashboard, because metrics do not need one."""
    prometheus.tool("prometheus")
    folder = tmp_path_factory.mktemp("watched")
    (folder / "study.yaml").write_text(STUDY)
    shutil.copytree(Path(digits_storage.backend.address) / "datasets", folder / "runs" / "datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCTL_CACHE", str(folder / "cache"))
        subprocess.run([KDCTL, "dashboard", "export"], cwd=folder, check=True, capture_output=True)
        config = folder / "monitoring" / grafana.PROMETHEUS
        config.write_text(config.read_text().replace(" 5s", " 1s").replace(" 10s", " 1s"))  # so that the test is fast
        command = [KDCTL, "launch", "study.yaml", "--address", "local", "--no-dashboard"]
        with (
            prometheus.serving(config, folder / "data") as server,
            (folder / "output").open("wb") as output,
            subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, start_new_session=True) as process,
        ):
            try:
                until(lambda: process.poll() is not None or server.ask(grafana.FIRST_QUERY), 90)
                assert process.poll() is None, (folder / "output").read_text()
                yield Watched(folder, server, process)
            finally:
                process.send_signal(signal.SIGINT)
                process.wait(60)


def of_trials(found: list[dict[str, Any]]) -> dict[str, float]:
    """Values by the trial's name."""
    return {series["metric"]["trial"]: float(series["value"][1]) for series in found}


@pytest.mark.timeout(200)
def test_a_real_prometheus_gets_the_metrics_of_a_running_study(watched: Watched) -> None:
    ask = watched.server.ask
    assert set(of_trials(ask(grafana.FIRST_QUERY))) == {STUDENT}
    queries = {query.promql: panel.title for panel in grafana.PANELS for query in panel.queries}
    values = {promql: ask(promql.replace("$study", "watched")) for promql in queries}
    empty = {queries[promql] for promql, found in values.items() if not found}
    # There is no GPU, and the only table was built and counted.
    assert empty == {"GPU memory", "Teacher tables"}
    assert float(ask("sum(ray_kdctl_table_misses_total)")[0]["value"][1]) == 1
    assert all(
        set(of_trials(found)) == {STUDENT} for found in values.values() if found and "trial" in found[0]["metric"]
    )
    states = {s["metric"]["state"]: float(s["value"][1]) for s in ask("ray_kdctl_trials > 0")}
    assert states == {"finished": 1, "running": 1}
    # The teacher has ended: it is reported as not running, and has no other series.
    assert of_trials(ask("ray_kdctl_trial_running")) == {TEACHER: 0, STUDENT: 1}
    until(lambda: set(of_trials(ask("ray_kdctl_epoch"))) == {STUDENT})
    before = of_trials(ask("ray_kdctl_epoch"))[STUDENT]
    until(lambda: of_trials(ask("ray_kdctl_epoch"))[STUDENT] > before)


@pytest.mark.timeout(200)
def test_the_agent_of_ray_exports_the_metrics_of_the_table(watched: Watched) -> None:
    (target,) = watched.targets()
    assert target.startswith("127.0.0.1:")
    with urlopen(f"http://{target}/metrics", timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if f"{PREFIX}kdctl_" in line]
    kinds = dict(re.findall(rf"^# TYPE {PREFIX}(\w+) (\w+)$", "\n".join(lines), re.MULTILINE))
    absent = {"kdctl_gpu_memory_bytes", "kdctl_table_hits_total"}  # no GPU, and no table existed before
    assert kinds == {name: metric.kind for name, metric in METRICS.items() if name not in absent}
    plain = re.sub(r'\b[A-Z]\w*="[^"]*",', "", "\n".join(lines))  # Ray's own labels, which promtool does not like
    lint = subprocess.run(
        [prometheus.tool("promtool"), "check", "metrics"], input=plain + "\n", capture_output=True, text=True
    )
    assert lint.returncode == 0, lint.stdout + lint.stderr


@pytest.mark.timeout(200)
def test_a_launch_that_ended_is_no_longer_announced(watched: Watched) -> None:
    watched.process.send_signal(signal.SIGINT)
    assert watched.process.wait(60) == 130
    assert watched.targets() == []
    # Prometheus drops a target that is no longer announced.
    until(lambda: not watched.server.ask("ray_kdctl_trials"), 60)
