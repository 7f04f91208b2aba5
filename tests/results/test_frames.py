"""The tables as DataFrames have the values that `kdctl results` and `kdctl query` print."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
from stored_launch import SINCE, STUDENTS, TRIALS, remember, write

from orchestrator.errors import KdctlError
from orchestrator.records import State
from orchestrator.results import frames, store
from orchestrator.results.evidence.comparisons import COMPARISON_COLUMNS, summarize_comparisons
from orchestrator.results.paper_table import build_paper_table
from orchestrator.results.summary import summarize_results
from orchestrator.storage.layout import Storage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A storage with a study of a teacher and three students, one of which failed."""
    storage = Storage.at(tmp_path)
    storage.prepare()
    remember(storage)
    for number, trial in enumerate(TRIALS):
        write(storage, trial, State.FAILED if trial is STUDENTS[2] else State.FINISHED)
        stored = store.read_trials(storage, [trial.trial_id])[0]
        if stored.state is State.FINISHED:
            store.write_trial(storage, replace(stored, acc=80.0 + number, last_acc=70.0 + number))
    return tmp_path


def test_the_table_of_a_paper_has_its_values(folder: Path) -> None:
    frame = frames.read_paper_table(folder)
    table = build_paper_table(store.read_trials(Storage.at(folder)))
    assert frame.index.tolist() == [row.name for row in table.rows] and frame.index.name == "method"
    assert frame.columns.names == ["epoch", "pair", "value"]
    for row in table.rows:
        for epoch, metric in (("best epoch", "acc"), ("last epoch", "last_acc")):
            for column, cell in zip(table.columns, row.cells[metric], strict=True):
                mean, std, n, mark = (
                    frame.loc[row.name, (epoch, column.name, name)] for name in ("mean", "std", "n", "mark")
                )
                assert n == (cell.statistic.n if cell.statistic else 0) and (mark == cell.mark or pd.isna(mark))
                assert mean == cell.statistic.mean if cell.statistic else pd.isna(mean)
                assert std == cell.statistic.std if cell.statistic and cell.statistic.std else pd.isna(std)


def test_settings_and_trials_have_their_columns(folder: Path) -> None:
    rows = store.read_trials(Storage.at(folder), [trial.trial_id for trial in TRIALS])
    pd.testing.assert_frame_equal(frames.read_results(folder), pd.DataFrame(summarize_results(rows, "tiny")))
    compared = frames.read_comparisons(folder)
    assert list(compared.columns) == list(COMPARISON_COLUMNS)
    assert compared.to_dict("records") == list(summarize_comparisons(rows, "tiny"))
    trials = frames.read_trials(folder, "tiny")
    assert trials.trial_id.tolist() == [trial.trial_id for trial in TRIALS], "in the order of the plan"
    assert list(trials.columns) == [*store.TRIAL_COLUMNS, "setting"] and trials.setting.str.contains("epochs=").all()
    assert trials.start_time.dt.tz is not None and (trials.state == "finished").sum() == 3


def test_the_study_is_the_last_or_the_one_of_this_name(folder: Path) -> None:
    remember(Storage.at(folder), STUDENTS[:1], "later", SINCE + timedelta(seconds=1))
    assert len(frames.read_trials(folder)) == 1 and len(frames.read_trials(folder, "tiny")) == 4
    with pytest.raises(KdctlError, match="no study 'tny' in this storage.*did you mean tiny"):
        frames.read_trials(folder, "tny")
    with pytest.raises(KdctlError, match="holds no study yet"):
        frames.read_paper_table(folder / "nothing")


def test_without_pandas_the_message_says_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(KdctlError, match="found no pandas.*pip install pandas"):
        frames.read_results(folder)
