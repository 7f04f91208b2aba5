"""The content of the live view, at every size of the terminal."""

from __future__ import annotations

import re

import pytest
from launch_events import MANY, TEACHER, at, busy, end, ended, epoch, launch, planned, started, status_after

from orchestrator.monitor.eta import Eta
from orchestrator.monitor.live_view import device_name, shorten, view_rows
from orchestrator.monitor.study_status import StudyStatus
from orchestrator.records import State


def render_lines(status: StudyStatus, width: int, height: int) -> list[str]:
    return [row.plain.rstrip() for row in view_rows(status, width, height, Eta(600, 600), at(30))]


def test_a_wide_terminal_shows_everything() -> None:
    lines = render_lines(busy(), 199, 49)
    assert lines[0] == "1/1000 about 10 min left · tiny · on Ray · for 0:30"
    assert lines[2] == "20 running, 974 queued, 5 failed, 1 finished"
    assert re.fullmatch(r"id +trial +epoch  acc %  last % +device  images/s", lines[3])
    assert re.fullmatch(r"0{11}1 logit seed 1 +7/20  57\.00   57\.00  ━━━─{7}  CPU +12,346", lines[4])
    assert len([line for line in lines if "7/20" in line]) == 20
    assert f"failed {MANY[104].trial_id} logit seed 104: it broke" in lines
    assert "failed … and 2 more before" in lines
    assert lines[-1] == "cached 19 found their teacher's table, 1 built a table"


def test_waiting_trials_name_their_teacher_and_cached_trials_count() -> None:
    other = planned(1001)
    status = status_after(
        launch(TEACHER, other, *MANY[1:4], cached=(other,)), started(TEACHER, 0), epoch(TEACHER, 3, 3)
    )
    lines = render_lines(status, 120, 30)
    assert f"waiting 3 for {TEACHER.trial_id} base epochs=20 seed 0 (running, epoch 3/20)" in lines
    assert "cached 1 finished before this launch" in lines
    assert "1/5" in lines[0]


def test_what_does_not_fit_is_counted() -> None:
    lines = render_lines(busy(), 79, 12)
    running = [line for line in lines if "seed" in line and "failed" not in line]
    (more,) = [line for line in lines if line.startswith("… and")]
    assert len(lines) <= 12 and len(running) + int(more.split()[2]) == 20


def test_narrow_terminals_drop_columns_and_keep_the_names_of_trials() -> None:
    lines = render_lines(busy(), 39, 20)
    assert not any("images/s" in line or "CPU" in line for line in lines)
    assert any(re.search(r" logit seed 3 +7/20", line) for line in lines)


def test_control_characters_and_markup_are_shown_as_text() -> None:
    trial = planned(1)
    status = status_after(launch(trial), ended(trial, 1, State.FAILED, "[red]it\x1b[2J \x07broke[/red]"))
    assert any(r"[red]it\x1b[2J \x07broke[/red]" in line for line in render_lines(status, 200, 20))


def test_the_end_of_a_study() -> None:
    trial = planned(1)
    over = status_after(launch(trial), started(trial, 0), epoch(trial, 1, 5), ended(trial, 5), end(6, finished=1))
    assert view_rows(over, 99, 9, Eta(0, 0), at(99))[0].plain == "1/1 ended · tiny · on Ray · took 0:06"
    left = status_after(launch(trial), started(trial, 0), end(6, stopped=1))
    assert "not running" in render_lines(left, 99, 9)[0]
    assert "not started" in render_lines(status_after(launch(*MANY[:3]), end(6)), 99, 9)[2]


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("abc", 3, "abc"),
        ("abcdef", 4, "abc…"),
        ("logit digits resnet seed 12", 20, "logit dig…et seed 12"),
        ("abc", 0, ""),
    ],
)
def test_long_names_keep_both_ends(name: str, width: int, expected: str) -> None:
    assert shorten(name, width) == expected


@pytest.mark.parametrize(
    ("device", "name"), [("cpu, 2 threads", "CPU"), ("NVIDIA H100 80GB HBM3", "H100 80GB HBM3"), (None, "")]
)
def test_devices_have_short_names(device: str | None, name: str) -> None:
    assert device_name(device) == name
