"""Figures on their own: those of the page as objects and files, and which sweep is drawn how."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure as Drawing
from reported import facts, fill, row, study, teacher

from orchestrator.errors import KdctlError
from orchestrator.records import TrialRecord
from orchestrator.report import _figures, _sweeps, figures, page
from orchestrator.report._figures import Figure
from orchestrator.storage.layout import Storage

PAIRS = ("digits-resnet-32-8", "digits-resnet-32-20")
NAMES = ["standing-digits-resnet-32-8-1", *(f"curves-{pair}-{number}" for pair in PAIRS for number in (1, 2))]
NAMES += ["cost-digits-1", "cost-digits-2"]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """A storage with a study in it."""
    made = Storage.at(tmp_path / "runs")
    made.prepare()
    fill(made, study())
    return made


def test_a_notebook_gets_every_figure(storage: Storage, tmp_path: Path) -> None:
    found = figures.draw(tmp_path / "runs")
    assert list(found) == NAMES
    assert all(isinstance(one, Drawing) for one in found.values())
    found["cost-digits-1"].savefig(tmp_path / "own.png")
    assert (tmp_path / "own.png").stat().st_size > 1000


def test_an_unknown_study_is_one_message(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(KdctlError, match="no-such-study"):
        figures.draw(tmp_path / "runs", "no-such-study")


def test_files_are_written_again_but_not_over_others(storage: Storage, tmp_path: Path) -> None:
    files = figures.render_files(facts(storage, study()))
    assert sorted(files) == sorted(f"{name}.{form}" for name in NAMES for form in ("svg", "pdf", "png"))
    for _ in range(2):
        page.write(tmp_path / "out", files)
    for form in ("svg", "pdf", "png"):
        name = f"{NAMES[0]}.{form}"
        assert (tmp_path / "out" / name).read_bytes() == files[name]
        (tmp_path / "out" / name).write_bytes(files[name].replace(b"kdctl report", b"my own paper"))
        with pytest.raises(KdctlError, match=f"{name} exists and was not written by kdctl report"):
            page.write(tmp_path / "out", files)
        (tmp_path / "out" / name).unlink()


def test_only_a_report_loads_matplotlib() -> None:
    code = "import sys; from orchestrator.commands import report, results, plan; assert 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Sweeps.


def sweep(axes: dict[str, list[float]], method: str = "st", first: int = 100, **own: float) -> list[TrialRecord]:
    """A run for each combination of two numbers; `lr` is a key of the recipe, other numbers are options."""
    settings = [{}]
    for name, values in axes.items():
        settings = [{**setting, name: value} for setting in settings for value in values]
    made = []
    for no, setting in enumerate(settings, first):
        lr = {"lr": setting["lr"]} if "lr" in setting else {}
        options = {name: value for name, value in setting.items() if name != "lr"}
        made.append(row(no, method, 80 + no / 100, seed=0, options=options, **lr, **own))
    return made


def draw(rows: list[TrialRecord]) -> list[Figure]:
    return list(_sweeps.draw_sweeps(_figures.group_pairs([teacher(), *rows])))


BASE = row(1, acc=70.0, seed=0)


def test_one_number_is_a_line_with_the_base() -> None:
    [figure] = draw([BASE, *sweep({"temperature": [1, 2, 8]}), *sweep({"temperature": [1, 2, 8]}, "dkd", 200)])
    assert figure.title == "ResNet8 on Digits: accuracy by temperature"
    [chart] = figure.charts
    found = {mark["title"]: (mark["data-x"], mark["data-y"]) for mark in chart.marks.values()}
    assert found == {
        "st, mean": ("1 2 8", "81.00 81.01 81.02"),
        "dkd, mean": ("1 2 8", "82.00 82.01 82.02"),
    }
    assert any(list(line.get_ydata()) == [70, 70] for line in chart.axes.lines)
    assert "All with epochs=10, batch_size=32." in figure.caption


def test_two_numbers_are_a_heat_map_with_the_base_of_the_same_setting() -> None:
    bases = [row(no, acc=70.0 + no, seed=0, lr=lr) for no, lr in enumerate((0.05, 0.1), 1)]
    [figure] = draw([*bases, *sweep({"temperature": [1, 2, 8], "lr": [0.05, 0.1]})])
    assert figure.title == "ResNet8 on Digits: st by temperature and lr"
    [chart] = figure.charts
    texts = {text.get_position(): text.get_text() for text in chart.axes.texts}
    assert texts[(0, 0)] == "81.0\n+10.0"  # temperature 1, lr 0.05: the base of this lr has 71
    assert texts[(2, 1)] == "81.0\n+9.0"  # temperature 8, lr 0.1: the base of this lr has 72
    assert "the difference to the base of the same setting" in figure.caption and "n=1." in figure.caption


def test_a_third_number_makes_a_heat_map_for_each_value() -> None:
    found = draw(sweep({"temperature": [1, 2, 8], "lr": [0.01, 0.05, 0.2], "feature_weight": [1.5, 3]}))
    assert len(found) == 2 and all("by temperature and lr" in figure.title for figure in found)
    assert "feature_weight=3" in found[1].title


def test_two_numbers_one_at_a_time_are_two_lines() -> None:
    rows = [*sweep({"temperature": [1, 2, 8]}), *sweep({"lr": [0.01, 0.02, 0.05, 0.2]}, first=200)]
    titles = [figure.title for figure in draw(rows)]
    assert titles == ["ResNet8 on Digits: accuracy by lr", "ResNet8 on Digits: accuracy by temperature"]


def test_labels_name_their_settings_in_one_order_where_one_is_a_default() -> None:
    rows = [BASE, *sweep({"temperature": [1, 4], "ce_weight": [0.5, 1]}, "kd")]
    [pair] = [pair for pair in _figures.group_pairs([teacher(), *rows]) if pair.student == "resnet_32_8"]
    taught = [entry for entry in pair.entries if entry.group.method == "kd"]
    names, _ = pair.name_settings(taught)
    found = [[part.split("=")[0] for part in name.split(" ")[1:]] for name in names]
    assert len({tuple(order) for order in found if len(order) == 2}) == 1


def test_two_values_are_no_sweep() -> None:
    assert draw(sweep({"temperature": [1, 2]})) == []
    assert draw([BASE]) == []


def test_names_and_colours_are_the_same_in_all_figures() -> None:
    rows = [teacher(), BASE, *sweep({"temperature": [1, 2, 8]}), *sweep({"temperature": [1]}, "logit", 200)]
    [pair, _] = _figures.group_pairs(rows)
    looks = {
        entry.group.label: look.colour
        for chosen in (pair.entries, pair.entries[::-1], pair.entries[1:3])
        for entry, look in zip(chosen, pair.choose_looks(chosen), strict=True)
        if entry.group.method in ("base", "logit")
    }
    assert len(set(looks.values())) == 2
    for chosen in (pair.entries, pair.entries[::-1]):
        assert len({look.marker for look in pair.choose_looks(chosen)}) == 3  # base, st and logit


@pytest.mark.parametrize(
    ("labels", "short", "note"),
    [
        (["st a=1 b=2", "logit b=2"], ["st a=1", "logit"], " All with b=2."),
        (["st a=1", "st a=2"], ["st a=1", "st a=2"], ""),
        (["base a=1"], ["base"], " All with a=1."),
        (["base", "st teacher.a=1", "logit teacher.a=1"], ["base", "st", "logit"], " All with teacher.a=1."),
        (["base", "st teacher.a=1", "logit"], ["base", "st teacher.a=1", "logit"], ""),
        ([], [], ""),
    ],
)
def test_labels_name_what_differs(labels: list[str], short: list[str], note: str) -> None:
    assert _figures.name_settings(labels) == (short, note)


def test_a_default_is_stated_where_another_setting_of_the_method_differs() -> None:
    [pair, _] = _figures.group_pairs([teacher(), BASE, *sweep({"temperature": [2, 4]})])
    assert pair.name_settings(pair.entries)[0] == ["base", "st temperature=2", "st temperature=4"]


def test_the_base_is_a_line_only_if_it_is_the_same_for_all() -> None:
    [pair, _] = _figures.group_pairs([teacher(), BASE, *sweep({"lr": [0.1, 0.2]})])
    assert _figures.find_shared_base(pair.entries).value == 70
    two = [BASE, row(2, acc=75.0, seed=0, lr=0.2), *sweep({"lr": [0.1, 0.2]})]
    [pair, _] = _figures.group_pairs([teacher(), *two])
    assert _figures.find_shared_base(pair.entries) is None
    [figure] = _figures.draw_comparisons([pair])
    own = [list(line.get_xdata()) for line in figure.charts[0].axes.lines]
    assert [70, 70] in own and [75, 75] in own
