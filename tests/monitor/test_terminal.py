"""The live view: what it shows at every size, that it leaves nothing behind, and that it holds up nobody."""

from __future__ import annotations

import fcntl
import io
import os
import pickle
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launch_events import at, end, ended, epoch, launch, planned, played, started
from processes import until
from screen import Terminal

from orchestrator.monitor.events import Event, EventKind
from orchestrator.monitor.study_status import Eta, StudyStatus
from orchestrator.monitor.terminal import Frames, Live, device_name, lines_of, printed, shortened, terminal_size
from orchestrator.records import State

TEACHER = planned(0, epochs=20)
MANY = [TEACHER, *(planned(no, epochs=20, teacher=TEACHER) for no in range(1, 1000))]


def board_of(*events: Event) -> StudyStatus:
    board = StudyStatus.launched(events[0])
    for event in events[1:]:
        board.take(event)
    return board


def busy() -> StudyStatus:
    """A study of 1,000 trials, of which 20 run and 5 failed."""
    events = [launch(*MANY), started(TEACHER, 0), epoch(TEACHER, 20, 20), ended(TEACHER, 20)]
    for trial in MANY[1:21]:
        events += [started(trial, 21, is_hit=trial is not MANY[1]), epoch(trial, 7, 28)]
    events += [ended(trial, 29, State.FAILED, "it broke") for trial in MANY[100:105]]
    return board_of(*events)


def shown(board: StudyStatus, width: int, height: int) -> list[str]:
    return [row.plain.rstrip() for row in lines_of(board, width, height, Eta(600, 600), at(30))]


# What is shown.


def test_a_wide_terminal_shows_all_there_is_to_know() -> None:
    lines = shown(busy(), 199, 49)
    assert lines[0] == "1/1000 about 10 min left · tiny · on Ray · for 0:30"
    assert lines[2] == "20 running, 974 queued, 5 failed, 1 finished"
    assert re.fullmatch(r"id +trial +epoch  acc %  last % +device  images/s", lines[3])
    assert re.fullmatch(r"0{11}1 logit seed 1 +7/20  57\.00   57\.00  ━━━─{7}  CPU +12,346", lines[4])
    assert len([line for line in lines if "7/20" in line]) == 20
    assert f"failed {MANY[104].trial_id} logit seed 104: it broke" in lines
    assert "failed … and 2 more before" in lines
    assert lines[-1] == "cached 19 found their teacher's table, 1 built a table"


def test_what_waits_says_for_whom_and_what_was_finished_before_counts() -> None:
    other = planned(1001)
    board = board_of(launch(TEACHER, other, *MANY[1:4], cached=(other,)), started(TEACHER, 0), epoch(TEACHER, 3, 3))
    lines = shown(board, 120, 30)
    assert f"waiting 3 for {TEACHER.trial_id} base epochs=20 seed 0 (running, epoch 3/20)" in lines
    assert "cached 1 finished before this launch" in lines
    assert "1/5" in lines[0]


def test_what_does_not_fit_is_counted() -> None:
    lines = shown(busy(), 79, 12)
    running = [line for line in lines if "seed" in line and "failed" not in line]
    (more,) = [line for line in lines if line.startswith("… and")]
    assert len(lines) <= 12 and len(running) + int(more.split()[2]) == 20


def test_narrow_terminals_drop_columns_and_keep_what_tells_trials_apart() -> None:
    lines = shown(busy(), 39, 20)
    assert not any("images/s" in line or "CPU" in line for line in lines)
    assert any(re.search(r" logit seed 3 +7/20", line) for line in lines)


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 220), height=st.integers(1, 60))
def test_nothing_is_too_large_at_any_size(width: int, height: int) -> None:
    frames = Frames(io.StringIO(), lambda: (width + 1, height + 1))
    rows = frames.rendered(lines_of(BUSY, width, height, Eta(1, None), at(30)), width)
    assert 1 <= len(rows) <= height and max(length for _, length in rows) <= width


BUSY = busy()


def test_what_comes_from_outside_is_shown_and_not_obeyed() -> None:
    trial = planned(1)
    board = board_of(launch(trial), ended(trial, 1, State.FAILED, "[red]it\x1b[2J \x07broke[/red]"))
    assert any(r"[red]it\x1b[2J \x07broke[/red]" in line for line in shown(board, 200, 20))


def test_the_end_of_a_study() -> None:
    trial = planned(1)
    over = board_of(launch(trial), started(trial, 0), epoch(trial, 1, 5), ended(trial, 5), end(6, finished=1))
    assert lines_of(over, 99, 9, Eta(0, 0), at(99))[0].plain == "1/1 ended · tiny · on Ray · took 0:06"
    left = board_of(launch(trial), started(trial, 0), end(6, stopped=1))
    assert "not running" in shown(left, 99, 9)[0]
    assert "not started" in shown(board_of(launch(*MANY[:3]), end(6)), 99, 9)[2]


def test_a_board_as_plain_lines_has_no_colours_and_every_trial() -> None:
    text = printed(BUSY, io.StringIO())
    assert "\x1b" not in text and text.count("7/20") == 20 and text.count("failed 0") == 5
    assert all(trial_id in text for trial_id in list(BUSY.trials)[:99]) and "more" in text


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
    assert shortened(name, width) == expected


@pytest.mark.parametrize(
    ("device", "name"), [("cpu, 2 threads", "CPU"), ("NVIDIA H100 80GB HBM3", "H100 80GB HBM3"), (None, "")]
)
def test_devices_have_short_names(device: str | None, name: str) -> None:
    assert device_name(device) == name


# How it is drawn.


def drawn(terminal: Terminal, sizes: list[tuple[int, int]], notes: Callable[[int], list[str]]) -> list[list[str]]:
    """Draws a frame at each size, into a terminal that changes to it before; gives the screen after each."""
    stream = io.StringIO()
    frames = Frames(stream, lambda: (terminal.width, terminal.height))
    screens = []
    for number, (width, height) in enumerate(sizes):
        if number:
            terminal.resize(width, height)
        frames.draw(BUSY, Eta(600, 600), notes(number), at(30))
        terminal.feed(stream.getvalue())
        stream.seek(0)
        stream.truncate()
        screens.append(terminal.screen())
        assert terminal.is_seen and terminal.is_plain and terminal.column == 0
    return screens


def test_a_frame_takes_the_place_of_the_last_one_and_notes_scroll_by() -> None:
    terminal = Terminal(80, 24)
    drawn(terminal, [(80, 24)] * 5, lambda number: [f"note {number}"])
    text = terminal.all()
    assert re.findall(r"note \d", text) == [f"note {number}" for number in range(5)]
    assert text.count("1/1000") == 1 and text.index("note 4") < text.index("1/1000")


@settings(max_examples=25, deadline=None)
@given(height=st.integers(6, 60), widths=st.lists(st.integers(20, 210), min_size=1, max_size=6))
def test_a_terminal_that_becomes_narrower_or_wider_shows_one_frame(height: int, widths: list[int]) -> None:
    sizes = [(width, height) for width in widths]
    for width, screen in zip(widths, drawn(Terminal(*sizes[0]), sizes, lambda number: []), strict=True):
        assert len(screen) <= height and max(map(len, screen)) < width
        assert sum(line.startswith("1/1000") for line in screen) == 1 and screen[0].startswith("1/1000")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(20, 210), st.integers(6, 60)), min_size=1, max_size=6))
def test_a_terminal_of_another_height_ends_with_a_whole_frame(sizes: list[tuple[int, int]]) -> None:
    for (width, height), screen in zip(sizes, drawn(Terminal(*sizes[0]), sizes, lambda number: []), strict=True):
        expected = [row.plain.rstrip() for row in lines_of(BUSY, width - 1, height - 1, Eta(600, 600), at(30))]
        found = screen[-1 - len(expected) : -1]  # above it may stand what a lower terminal had no room for
        assert [line[:9] for line in found] == [line[:9] for line in expected]


def test_the_end_takes_the_frame_away() -> None:
    terminal, stream = Terminal(80, 24), io.StringIO()
    frames = Frames(stream, lambda: (80, 24))
    frames.draw(BUSY, None, ["before"], at(30))
    frames.end(["after"])
    terminal.feed(stream.getvalue())
    assert re.sub(r"\n+", "\n", terminal.all()) == "before\nafter\n"


def test_no_colour_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    Frames(stream, lambda: (80, 24)).draw(BUSY, None, (), at(30))
    assert not re.search(r"\x1b\[[\d;]*3\d", stream.getvalue())


def test_a_stream_that_is_no_terminal_has_a_size_too() -> None:
    assert terminal_size(io.StringIO()) == (80, 24)


class Stuck(io.StringIO):
    """A terminal that takes nothing until it is told to, as after Ctrl-S."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def write(self, text: str) -> int:
        self.free.wait(20)
        return super().write(text)


def test_a_terminal_that_stands_still_holds_up_nobody() -> None:
    stream = Stuck()
    live = Live(Frames(stream, lambda: (80, 24)))
    began = time.monotonic()
    for number in range(10_000):
        live.show(lambda board: BUSY, [f"note {number}"] if number % 1000 == 0 else [])
    assert time.monotonic() - began < 10, "nobody waited for the terminal"
    stream.free.set()
    live.close()
    assert re.findall(r"note (\d+)", stream.getvalue()) == [str(1000 * number) for number in range(10)]


def test_a_terminal_that_went_away_is_no_error() -> None:
    closed = io.StringIO()
    closed.close()
    live = Live(Frames(closed, lambda: (80, 24)))
    live.show(lambda board: BUSY)
    live.close()


# A real terminal.

SCRIPT = """
import pickle, sys, time
from orchestrator.monitor.sinks import telling
events = pickle.loads(open(sys.argv[1], "rb").read())
with telling() as tell:
    for event in events:
        tell(event)
        time.sleep(float(sys.argv[2]))
print("the end", file=sys.stderr)
"""


class Shown:
    """A process whose standard error is a terminal, in a session of its own, as a launch on Ray is."""

    def __init__(self, folder: Path, events: list[Event], pause: float, **environment: str) -> None:
        (folder / "events").write_bytes(pickle.dumps(events))
        self._ours, theirs = pty.openpty()
        self.resize(100, 30)
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(folder / "events"), str(pause)],
            stderr=theirs, start_new_session=True, env={**os.environ, "TERM": "xterm-256color", **environment},
        )  # fmt: skip
        os.close(theirs)
        self.text = ""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with suppress(OSError):
            while found := os.read(self._ours, 65536):
                self.text += found.decode(errors="replace")

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def end(self) -> int:
        code = self.process.wait(20)
        self._thread.join(5)
        os.close(self._ours)
        return code


@pytest.fixture
def show(tmp_path: Path) -> Iterator[Callable[..., Shown]]:
    made: list[Shown] = []

    def make(events: list[Event], pause: float, **environment: str) -> Shown:
        made.append(Shown(tmp_path, events, pause, **environment))
        return made[-1]

    yield make
    for one in made:
        one.process.kill()


EIGHT = [planned(no) for no in range(8)]
WHOLE = list(played(EIGHT, 2, {trial.trial_id: 1.0 for trial in EIGHT}))


def frames_of(text: str) -> list[str]:
    """Each frame without colours."""
    return [re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", part) for part in text.split("\x1b[?25l")[1:]]


def test_a_terminal_that_changes_its_size_is_asked_anew(show: Callable[..., Shown]) -> None:
    shown = show(WHOLE, 0.03)
    assert until(lambda: "about" in shown.text)
    shown.resize(40, 12)
    assert until(lambda: max(map(len, frames_of(shown.text)[-1].splitlines()), default=99) <= 39)
    narrow = frames_of(shown.text)[-1]
    assert len(narrow.splitlines()) <= 12 and "images/s" not in narrow
    assert shown.end() == 0
    assert shown.text.rstrip().endswith("the end") and "over" in shown.text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_launch_that_is_ended_leaves_a_good_terminal(show: Callable[..., Shown], number: signal.Signals) -> None:
    shown = show(WHOLE, 1.0)
    assert until(lambda: len(frames_of(shown.text)) > 2)
    os.kill(shown.process.pid, number)
    assert shown.end() != 0
    whole = shown.text[: shown.text.rindex("\x1b[?25h") + 6]  # a kill may meet a process that writes
    terminal = Terminal(100, 30)
    terminal.feed(whole)
    assert terminal.is_seen and terminal.is_plain and terminal.column == 0


def test_a_dumb_terminal_gets_lines(show: Callable[..., Shown]) -> None:
    shown = show([WHOLE[0], *WHOLE[-2:]], 0.0, TERM="dumb")
    assert shown.end() == 0
    assert "\x1b" not in shown.text and re.search(r"\d\d:\d\d:\d\d \[1/8\] ", shown.text)


def test_news_scroll_by_and_epochs_do_not(show: Callable[..., Shown]) -> None:
    trial = EIGHT[0]
    note = Event(EventKind.NOTE, "no GPU is used \x1b[31m", time=at(0))
    failed = replace(ended(trial, 3, State.FAILED, "it broke"), text="failed: it broke")
    shown = show([WHOLE[0], note, started(trial, 0), epoch(trial, 1, 1), failed, end(4, failed=1)], 0.3)
    assert shown.end() == 0
    terminal = Terminal(100, 30)
    terminal.feed(shown.text)
    scrolled = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", shown.text)
    assert r"no GPU is used \x1b[31m" in scrolled and [line for line in terminal.screen() if line][-1] == "the end"
    log = ("    Traceback:", "      it broke", "    its log: logs/")
    told = " ".join([f"[1/8] {trial.trial_id} {trial.title()}: failed: it broke", *log])
    words = " ".join(scrolled.split())  # long lines are broken at spaces
    assert " ".join(told.split()) in words and f"{trial.title()}: epoch 1" not in words
