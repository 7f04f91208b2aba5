"""The files of `kdctl dashboard export`: a Prometheus configuration, a Grafana dashboard, and instructions."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from errno import EISDIR
from pathlib import Path
from typing import Any

from orchestrator.errors import StorageError
from orchestrator.monitor import prometheus
from orchestrator.monitor.metrics import METRICS, PREFIX

PROMETHEUS, GRAFANA, README, SUMS = "prometheus.yml", "grafana-dashboard.json", "README.txt", "SHA256SUMS"

# The first query that the README suggests.
FIRST_QUERY = "max by (trial) (ray_kdctl_train_loss and on (study, trial_id) ray_kdctl_trial_running == 1)"

_STUDY = 'study=~"$study"'
_BY_TRIAL = "study, trial_id, trial"


@dataclass(frozen=True, slots=True)
class Query:
    """A query in PromQL, where `$study` is a regular expression, and the legend of its series."""

    promql: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel of the dashboard: what Grafana draws (`timeseries`, `stat`, `bargauge`), and in which unit."""

    title: str
    draws: str
    unit: str
    width: int  # of 24
    queries: tuple[Query, ...]
    meaning: str


def _named(name: str) -> str:
    """The PromQL selector of a metric, for the studies that the dashboard shows."""
    assert name in METRICS, name
    return f"{PREFIX}{name}{{{_STUDY}}}"


def _by_trial(expression: str) -> Query:
    """A value of each running trial: a trial that has ended would keep its last value for some seconds."""
    runs = f"and on (study, trial_id) {_named('kdctl_trial_running')} == 1"
    return Query(f"max by ({_BY_TRIAL}) ({expression} {runs})", "{{trial}} ({{trial_id}})")


def _of_study(name: str, by: str, legend: str, where: str = "") -> Query:
    return Query(f"max by (study, {by}) ({_named(name)}){where}", legend)


def _sum(name: str, legend: str) -> Query:
    return Query(f"sum by (study) ({_named(name)})", legend)


_EPOCH, _EPOCHS = _named("kdctl_epoch"), _named("kdctl_epochs")

PANELS = (
    Panel("Trials by state", "timeseries", "short", 12,
          (_of_study("kdctl_trials", "state", "{{study}} {{state}}", " > 0"),),
          "All trials of the study, including those that wait."),
    Panel("Time left", "stat", "s", 6,
          (_of_study("kdctl_remaining_seconds", "bound", "{{study}} {{bound}}"),),
          "Until the launch ends: at least, and at most about. Absent while it is unknown."),
    Panel("Teacher tables", "stat", "short", 6,
          (_sum("kdctl_table_hits_total", "{{study}} found"), _sum("kdctl_table_misses_total", "{{study}} built")),
          "Students that found their teacher's table, and students that had to build it, since the cluster started."),
    Panel("Progress of running trials", "bargauge", "percentunit", 12,
          (_by_trial(f"{_EPOCH} / {_EPOCHS}"),), "The share of its epochs that a trial has completed."),
    Panel("Time left of running trials", "timeseries", "s", 12,
          (_by_trial(f"({_EPOCHS} - {_EPOCH}) * {_named('kdctl_epoch_duration_seconds')}"),),
          "The remaining epochs, if each takes as long as the last one."),
    Panel("Test accuracy", "timeseries", "percent", 12,
          (_by_trial(_named("kdctl_test_accuracy_percent")),), "After each epoch, of running trials."),
    Panel("Training loss", "timeseries", "short", 12,
          (_by_trial(_named("kdctl_train_loss")),), "Mean over the images of each epoch, of running trials."),
    Panel("Images per second", "timeseries", "short", 12,
          (_by_trial(_named("kdctl_images_per_second")),), "Training speed in the last epoch, of running trials."),
    Panel("GPU memory", "timeseries", "bytes", 12,
          (_by_trial(_named("kdctl_gpu_memory_bytes")),),
          "Reserved by PyTorch in the process of each running trial. Empty without a GPU."),
)  # fmt: skip

_HEIGHT = 8


def prometheus_config(folder: Path) -> str:
    """A Prometheus configuration that finds every launch that announces itself in a folder, see `prometheus`."""
    return f"""\
# Written by `kdctl dashboard export`.
global:
  scrape_interval: 5s

scrape_configs:
  - job_name: kdctl
    file_sd_configs:
      # Every launch on Ray has a file here while it runs.
      - files: [{json.dumps(str(folder / "*.json"))}]
        refresh_interval: 10s
    metric_relabel_configs:
      # Ray has hundreds of metrics of its own; keep those of kdctl and those of machines.
      - source_labels: [__name__]
        regex: {PREFIX}(kdctl|node)_.+
        action: keep
      # Ray's labels are ASCII; give trials the names that they have everywhere else.
      - source_labels: [trial]
        regex: (.+) <- (.+)
        target_label: trial
        replacement: ${{1}} ← ${{2}}
      - regex: otel_scope_.+
        action: labeldrop
"""


def grafana_dashboard() -> dict[str, Any]:
    """A dashboard to import into Grafana, as plain JSON data; the data source and the studies are chosen there."""
    return {
        "title": "kdctl",
        "uid": "kdctl",
        "description": "Running studies; written by `kdctl dashboard export`.",
        "tags": ["kdctl"],
        "schemaVersion": 27,
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "annotations": {"list": []},
        "templating": {"list": [_data_source(), _studies()]},
        "panels": _panels(),
    }


def _data_source() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1}


def _studies() -> dict[str, Any]:
    query = f"label_values({PREFIX}kdctl_trials, study)"
    return {
        "name": "study", "label": "Study", "type": "query", "datasource": {"uid": "${datasource}"},
        "definition": query, "query": {"query": query, "refId": "studies"}, "refresh": 2, "sort": 1,
        "includeAll": True, "allValue": ".+", "multi": True, "current": {"text": ["All"], "value": ["$__all"]},
    }  # fmt: skip


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    x = y = 0
    for number, panel in enumerate(PANELS, 1):
        if x + panel.width > 24:
            x, y = 0, y + _HEIGHT
        panels.append(_panel(number, panel, {"x": x, "y": y, "w": panel.width, "h": _HEIGHT}))
        x += panel.width
    return panels


def _panel(number: int, panel: Panel, area: Mapping[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    is_now = panel.draws != "timeseries"
    targets = [
        {
            "refId": chr(ord("A") + at), "datasource": source, "expr": query.promql, "legendFormat": query.legend,
            "instant": is_now, "range": not is_now,
        }
        for at, query in enumerate(panel.queries)
    ]  # fmt: skip
    return {
        "id": number, "type": panel.draws, "title": panel.title, "description": panel.meaning, "gridPos": dict(area),
        "datasource": source, "targets": targets, "options": {},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
    }  # fmt: skip


def _readme(folder: Path) -> str:
    here = shlex.quote(str(folder))
    return f"""\
Prometheus and Grafana for kdctl. Written by `kdctl dashboard export`; export again after an upgrade of kdctl.

1. Start Prometheus (Debian and Ubuntu: apt-get install prometheus) as the user who launches studies, so that it is
   reachable from this machine only:

     prometheus --config.file={here}/{PROMETHEUS} --storage.tsdb.path={here}/data \\
       --web.listen-address=127.0.0.1:9090

   Then launch a study (on Ray, so without --inline), and open http://127.0.0.1:9090/graph with the query

     {FIRST_QUERY}

2. Grafana: Connections, Add new connection, Prometheus, with the URL http://127.0.0.1:9090. Then Dashboards, New,
   Import, and choose {GRAFANA}. The file has the format of Ray's own dashboards, and all of its queries were tested
   with a real Prometheus; the import into Grafana itself was not tested.

While a launch runs, it has a file in {prometheus.folder()}, by which Prometheus finds it.
`{PROMETHEUS}` contains the path of that folder: export again if KDCTL_CACHE changes.

With {SUMS}, `kdctl dashboard export` detects which of these files were edited.
"""


def files(folder: Path) -> dict[str, str]:
    """The files of an export into a folder: name → text."""
    texts = {
        PROMETHEUS: prometheus_config(prometheus.folder().absolute()),
        GRAFANA: json.dumps(grafana_dashboard(), indent=1, ensure_ascii=False) + "\n",
        README: _readme(folder.absolute()),
    }
    sums = "".join(f"{_digest(text.encode())}  {name}\n" for name, text in texts.items())
    return {**texts, SUMS: sums}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def foreign(folder: Path) -> list[str]:
    """The files that an export would replace although no export wrote them, or edited since. Raises StorageError."""
    try:
        known: dict[str, str] = {}
        with suppress(FileNotFoundError, UnicodeDecodeError):
            for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
                digest, _, name = line.partition("  ")
                known[name] = digest
        found = {name: (folder / name).read_bytes() for name in files(folder) if (folder / name).exists()}
    except OSError as error:
        raise _unwritable(folder, error) from None
    if SUMS in found and set(known) <= set(files(folder)):
        del found[SUMS]
    return [name for name, content in found.items() if known.get(name) != _digest(content)]


def export(folder: Path) -> None:
    """Writes the files of an export into a folder, all or none. Raises StorageError."""
    written: dict[Path, Path] = {}
    prometheus.prepare()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files(folder).items():
            new = folder / f".{name}.new"
            written[new] = folder / name
            new.write_text(text, encoding="utf-8")
        for file in filter(Path.is_dir, written.values()):
            raise IsADirectoryError(EISDIR, "it is a folder", str(file))
        for new, file in written.items():
            new.replace(file)
    except OSError as error:
        raise _unwritable(folder, error) from None
    finally:
        for new in written:
            with suppress(OSError):
                new.unlink(missing_ok=True)


def _unwritable(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{error.filename or folder} cannot be written ({error.strerror}); name another folder with --output"
    )
