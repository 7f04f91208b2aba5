"""The export: complete or not at all, no file of the user is lost, and Prometheus' own tool accepts the result."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from prometheus import tool

from orchestrator.cli import cli
from orchestrator.errors import StorageError
from orchestrator.monitor import grafana, prometheus
from orchestrator.monitor.metrics import METRICS, PREFIX

NAMES = {"README.txt", "SHA256SUMS", "grafana-dashboard.json", "prometheus.yml"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDCTL_CACHE", str(tmp_path / "a cache"))
    return tmp_path / "a cache"


def left(folder: Path) -> dict[str, str]:
    """Every file of a folder, hidden ones too."""
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_an_export_writes_its_files_and_renews_them(tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "deep" / "out"
    assert grafana.foreign(out) == []
    grafana.export(out)
    assert set(left(out)) == NAMES and (cache / "prometheus").is_dir()
    subprocess.run(["sha256sum", "--check", "--quiet", grafana.SUMS], cwd=out, check=True)
    assert grafana.foreign(out) == []
    before = left(out)
    grafana.export(out)
    assert left(out) == before


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_file_changed_since_the_export_is_noticed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    assert grafana.foreign(tmp_path) == [name]
    (tmp_path / name).unlink()
    grafana.export(tmp_path)
    with (tmp_path / name).open("a") as file:
        file.write("x  y\n")
    assert name in grafana.foreign(tmp_path)


def test_an_older_export_is_renewed_without_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grafana.export(tmp_path)
    monkeypatch.setattr(grafana, "PANELS", grafana.PANELS[:3])
    assert grafana.foreign(tmp_path) == []
    grafana.export(tmp_path)
    assert len(json.loads((tmp_path / grafana.GRAFANA).read_text())["panels"]) == 3


def test_it_is_all_or_nothing(tmp_path: Path) -> None:
    tmp_path = tmp_path / "out"
    grafana.export(tmp_path)
    (tmp_path / grafana.README).unlink()
    (tmp_path / grafana.README).mkdir()
    (tmp_path / grafana.PROMETHEUS).write_text("mine")
    with pytest.raises(StorageError, match=r"README\.txt cannot be written \(it is a folder\); name another"):
        grafana.export(tmp_path)
    (tmp_path / grafana.README).rmdir()
    assert left(tmp_path)[grafana.PROMETHEUS] == "mine" and set(left(tmp_path)) == NAMES - {"README.txt"}


def test_the_command_asks_before_it_overwrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(*words: str, answer: str = "") -> tuple[int, str, str]:
        done = CliRunner().invoke(cli, ["dashboard", "export", "--output", str(tmp_path), *words], input=answer)
        return done.exit_code, done.stdout, str(done.exception or "") + done.stderr

    code, out, err = export()
    assert (code, out.strip()) == (0, str(tmp_path / "README.txt")) and "prometheus.yml" in err
    config = tmp_path / grafana.PROMETHEUS
    ours = config.read_text()
    config.write_text("mine")
    code, _, err = export()
    assert code and f"edited since: {config}; name another --output, or" in err
    monkeypatch.setattr("orchestrator.commands.cluster.is_terminal", lambda: True)
    assert "nothing was written" in export(answer="n\n")[2] and config.read_text() == "mine"
    assert export(answer="y\n")[0] == 0 and config.read_text() == ours
    config.write_text("mine")
    assert export("--yes")[0] == 0 and config.read_text() == ours


def test_prometheus_accepts_the_configuration_of_any_folder(tmp_path: Path, cache: Path) -> None:
    grafana.export(tmp_path)
    assert str(cache / "prometheus") in (tmp_path / grafana.PROMETHEUS).read_text()
    prometheus.announce(["127.0.0.1:1"])  # promtool checks what the configuration finds, too
    done = subprocess.run(
        [tool("promtool"), "check", "config", str(tmp_path / grafana.PROMETHEUS)], capture_output=True, text=True
    )
    assert done.returncode == 0 and "WARNING" not in done.stdout + done.stderr, done.stdout + done.stderr


def test_prometheus_parses_every_query(tmp_path: Path) -> None:
    queries = [query.promql for panel in grafana.PANELS for query in panel.queries] + [grafana.FIRST_QUERY]
    rules = [{"record": f"query{no}", "expr": query} for no, query in enumerate(queries)]
    file = tmp_path / "rules.yml"  # JSON is YAML
    for wrong in (False, True):
        file.write_text(json.dumps({"groups": [{"name": "all", "rules": [*rules, *rules[:1] * wrong]}]}))
        if wrong:
            file.write_text(file.read_text().replace("max by (", "max by by ("))
        done = subprocess.run([tool("promtool"), "check", "rules", str(file)], capture_output=True, text=True)
        assert (done.returncode != 0) == wrong, done.stdout + done.stderr
        assert wrong or f"{len(queries)} rules found" in done.stdout


def test_queries_name_existing_metrics_and_every_metric_is_shown() -> None:
    queries = " ".join(query.promql for panel in grafana.PANELS for query in panel.queries)
    named = set(re.findall(rf"{PREFIX}(\w+)", queries + grafana.FIRST_QUERY))
    assert named == set(METRICS)


def test_the_dashboard_has_the_form_of_those_that_come_with_ray() -> None:
    import ray.dashboard.modules.metrics as module

    theirs = json.loads(Path(module.__path__[0], "dashboards", "train_grafana_dashboard_base.json").read_text())
    ours = grafana.grafana_dashboard()
    assert ours["schemaVersion"] == theirs["schemaVersion"] and set(ours) & set(theirs) >= {
        "annotations", "editable", "panels", "refresh", "templating", "time", "title", "uid",
    }  # fmt: skip
    kinds = {variable["name"]: variable["type"] for variable in theirs["templating"]["list"]}
    assert kinds["datasource"] == "datasource"
    assert [(v["name"], v["type"]) for v in ours["templating"]["list"]] == [
        ("datasource", "datasource"),
        ("study", "query"),
    ]
    cells = [
        (x, y)
        for panel in ours["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) == 23
    assert len({panel["id"] for panel in ours["panels"]}) == len(grafana.PANELS)
    for panel in ours["panels"]:
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert all(target["instant"] != target["range"] for target in panel["targets"])
