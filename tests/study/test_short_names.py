"""What distinguishes the trials of one study: in names, in the plan at every width, and in the list of `kdctl logs`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.cells import cell_len

from orchestrator.cli import cli
from orchestrator.commands.plan import _format_text
from orchestrator.storage.layout import Storage
from orchestrator.study import stored_studies
from orchestrator.study.plan import Plan, make_plan
from orchestrator.study.reader import load_study
from orchestrator.study.short_names import names, short_ids

WHEN = datetime(2026, 1, 2, tzinfo=UTC)
SWEEP = """\
study: {name}
recipe: {{epochs: 5, limit_train: 256}}
experiments:
  - {{method: st, dataset: digits, teacher: resnet_32_14, student: resnet_32_8, lr: [0.05, 0.1], temperature: [2, 4],
     seed: [0, 1]}}
  - {{method: base, dataset: digits, student: resnet_32_8, lr: [0.05, 0.1]}}
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Plan:
    return planned(tmp_path, "sweep")


def planned(folder: Path, name: str) -> Plan:
    file = folder / "study.yaml"
    file.write_text(SWEEP.format(name=name), encoding="utf-8")
    return make_plan(load_study(file))


def test_names_show_what_varies_defaults_included_and_are_unique(sweep: Plan) -> None:
    found = names([trial.config for trial in sweep.trials])
    assert len(set(found)) == len(found) == 11
    assert found[0] == "base lr=0.1 resnet_32_14 seed 0" and found[1] == "st temperature=2 lr=0.05 seed 0"
    assert found[8] == "st temperature=4 lr=0.1 seed 1" and found[9] == "base lr=0.05 resnet_32_8 seed 0"


def test_short_ids_have_as_many_digits_as_distinguish_them() -> None:
    assert short_ids(["abcd00000000", "abce00000000"]) == {"abcd00000000": "abcd", "abce00000000": "abce"}
    assert set(short_ids(["abcdef000000", "abcdee000000"]).values()) == {"abcdef", "abcdee"}


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_a_plan_fits_its_terminal_and_distinguishes_all_trials(sweep: Plan, width: int) -> None:
    text = _format_text(sweep, "", width)
    assert max(map(cell_len, text.split("\n"))) <= width
    lines = [" ".join(line.split()) for line in text.partition("\n\n")[0].split("\n")]
    assert len(set(lines)) >= len(sweep.trials) and all(trial.trial_id[:4] in text for trial in sweep.trials)
    if width >= 80:
        assert lines[0].startswith(("id method lr temperature student seed", "trial_id role method lr temperature"))
        assert any("st 0.1 4 resnet_32_8 1" in line for line in lines)


def test_a_plan_without_a_terminal_has_full_ids_and_names_what_all_share(sweep: Plan) -> None:
    text = _format_text(sweep, "", None)
    assert all(trial.trial_id in text for trial in sweep.trials)
    assert "the same in all trials: epochs 5," in text and "limit_train 256" in text and "weight_decay" not in text


def test_wide_characters_in_the_name_of_a_study_count_for_two(tmp_path: Path) -> None:
    plan = planned(tmp_path, "sweep")
    text = _format_text(Plan("蒸留" * 30, plan.source, plan.trials, plan.resources), "", 40)
    assert max(map(cell_len, text.split("\n"))) <= 40 and text.count("蒸") == 30


def test_logs_without_a_trial_lists_them(sweep: Plan, tmp_path: Path) -> None:
    storage = Storage.at(tmp_path / "runs")
    storage.prepare()
    words = ("logs", "--storage", storage.backend.address)
    assert "holds no study yet" in CliRunner().invoke(cli, words).stderr
    launched = stored_studies.Launch("launch-abc", WHEN, "node-1", "ray", "study.yaml", "", (), "data")
    stored_studies.store_plan(storage, sweep, launched)
    found = CliRunner().invoke(cli, words)
    assert found.exit_code == 2 and f"{sweep.trials[1].trial_id}  st temperature=2 lr=0.05 seed 0" in found.stderr
