"""The tables of a study as pandas DataFrames, for notebooks.

from orchestrator.results import frames
frames.read_paper_table("runs", "my-digits")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import KdctlError
from orchestrator.records import TrialRecord
from orchestrator.results import store, summary
from orchestrator.results.evidence import comparisons
from orchestrator.results.paper_table import COLUMN_GROUPS, Cell, build_paper_table
from orchestrator.storage.layout import Storage
from orchestrator.study import stored_studies

if TYPE_CHECKING:
    from pandas import DataFrame

_VALUES = ("mean", "std", "n", "mark")


def read_paper_table(storage: str | Path = "runs", study: str | None = None) -> DataFrame:
    """The table that `kdctl results` prints first: a row for each method, three levels of columns.

    They are epoch (`best epoch`, `last epoch`), pair (like `ResNet20>>8/Digits`) and value: `mean`, `std`, `n` and
    `mark` (see `paper_table.Mark`). Without a name, `study` is the one that was launched last. Raises KdctlError.
    """
    table = build_paper_table(_read_rows(storage, study)[1])
    data = {
        (COLUMN_GROUPS[metric], column.name, name): [_find_value(row.cells[metric][number], name) for row in table.rows]
        for metric in table.metrics
        for number, column in enumerate(table.columns)
        for name in _VALUES
    }
    frame = _import_pandas().DataFrame(data, index=[row.name for row in table.rows])
    return frame.rename_axis(index="method", columns=["epoch", "pair", "value"])


def _find_value(cell: Cell, name: str) -> float | str | None:
    if name == "mark":
        return cell.mark and cell.mark.value
    if name == "n":
        return cell.statistic.n if cell.statistic else 0
    return getattr(cell.statistic, name, None)


def read_results(storage: str | Path = "runs", study: str | None = None) -> DataFrame:
    """A row for each pair and setting, with the columns of `summary.RESULT_COLUMNS`. Raises KdctlError."""
    name, rows = _read_rows(storage, study)
    return _import_pandas().DataFrame(list(summary.summarize_results(rows, name)), columns=list(summary.RESULT_COLUMNS))


def read_comparisons(storage: str | Path = "runs", study: str | None = None) -> DataFrame:
    """A row for each comparison of two settings, with the columns of `comparisons.COMPARISON_COLUMNS`. KdctlError."""
    name, rows = _read_rows(storage, study)
    lines = list(comparisons.summarize_comparisons(rows, name))
    return _import_pandas().DataFrame(lines, columns=list(comparisons.COMPARISON_COLUMNS))


def read_trials(storage: str | Path = "runs", study: str | None = None) -> DataFrame:
    """A row for each trial, with the columns of `trials` and its setting. Raises KdctlError."""
    _, rows = _read_rows(storage, study)
    settings = {
        row.trial_id: group.label
        for table in summary.group_tables(rows)
        for group in table.groups
        for row in group.rows
    }
    data = [{**row.to_row(), "setting": settings[row.trial_id]} for row in rows]
    return _import_pandas().DataFrame(data, columns=[*store.TRIAL_COLUMNS, "setting"])


def _read_rows(storage: str | Path, study: str | None) -> tuple[str, list[TrialRecord]]:
    """The name of a study, and the rows of its trials in the order of its plan."""
    opened = Storage.at(storage)
    found = stored_studies.find(opened, study)
    return found.name, store.read_trials(opened, [member.trial_id for member in found.members])


def _import_pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise KdctlError("found no pandas, which DataFrames need; install it with `pip install pandas`") from None
    return pandas
