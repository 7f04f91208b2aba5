"""How the live view is drawn: at every size, on a real terminal, without traces and without delaying anyone."""

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
from launch_events import at, busy, end, ended, epoch, planned, played, started
from processes import until
from screen import Terminal

from orchestrator.monitor.eta import Eta
from orchestrator.monitor.events import Event, EventKind
from orchestrator.monitor.live_view import view_rows
from orchestrator.monitor.terminal import Frames, Live, format_status, terminal_size
from orchestrator.records import State

BUSY = busy()


def test_a_status_as_plain_text_has_no_colours_and_every_trial() -> None:
    text = format_status(BUSY, io.StringIO())
    assert "\x1b" not in text and text.count("7/20") == 20 and text.count("failed 0") == 5
    assert all(trial_id in text for trial_id in list(BUSY.trials)[:99]) and "more" in text


@settings(max_examples=40)
@given(width=st.integers(1, 220), height=st.integers(1, 60))
def test_nothing_is_too_large_at_any_size(width: int, height: int) -> None:
    frames = Frames(io.StringIO(), lambda: (width + 1, height + 1))
    rows = frames.render(view_rows(BUSY, width, height, Eta(1, None), at(30)), width)
    assert 1 <= len(rows) <= height and max(length for _, length in rows) <= width


def drawn(terminal: Terminal, sizes: list[tuple[int, int]], notes: Callable[[int], list[str]]) -> list[list[str]]:
    """Draws a frame at each size, after the terminal has changed to it; returns the screen after each frame."""
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
        assert terminal.is_cursor_visible and terminal.is_unstyled and terminal.column == 0
    return screens


def test_a_frame_replaces_the_last_one_and_notes_scroll_by() -> None:
    terminal = Terminal(80, 24)
    drawn(terminal, [(80, 24)] * 5, lambda number: [f"note {number}"])
    text = terminal.all()
    assert re.findall(r"note \d", text) == [f"note {number}" for number in range(5)]
    assert text.count("1/1000") == 1 and text.index("note 4") < text.index("1/1000")


@settings(max_examples=25)
@given(height=st.integers(6, 60), widths=st.lists(st.integers(20, 210), min_size=1, max_size=6))
def test_a_terminal_that_becomes_narrower_or_wider_shows_one_frame(height: int, widths: list[int]) -> None:
    sizes = [(width, height) for width in widths]
    for width, screen in zip(widths, drawn(Terminal(*sizes[0]), sizes, lambda number: []), strict=True):
        assert len(screen) <= height and max(map(len, screen)) < width
        assert sum(line.startswith("1/1000") for line in screen) == 1 and screen[0].startswith("1/1000")


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(20, 210), st.integers(6, 60)), min_size=1, max_size=6))
def test_a_terminal_of_another_height_ends_with_a_whole_frame(sizes: list[tuple[int, int]]) -> None:
    for (width, height), screen in zip(sizes, drawn(Terminal(*sizes[0]), sizes, lambda number: []), strict=True):
        expected = [row.plain.rstrip() for row in view_rows(BUSY, width - 1, height - 1, Eta(600, 600), at(30))]
        found = screen[-1 - len(expected) : -1]  # above it may stand what a lower terminal had no room for
        assert [line[:9] for line in found] == [line[:9] for line in expected]


def test_the_end_removes_the_frame() -> None:
    terminal, stream = Terminal(80, 24), io.StringIO()
    frames = Frames(stream, lambda: (80, 24))
    frames.draw(BUSY, None, ["before"], at(30))
    frames.end(["after"])
    terminal.feed(stream.getvalue())
    assert re.sub(r"\n+", "\n", terminal.all()) == "before\nafter\n"


def test_no_color_turns_colours_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    Frames(stream, lambda: (80, 24)).draw(BUSY, None, (), at(30))
    assert not re.search(r"\x1b\[[\d;]*3\d", stream.getvalue())


def test_a_stream_that_is_no_terminal_has_a_size_too() -> None:
    assert terminal_size(io.StringIO()) == (80, 24)


class Stuck(io.StringIO):
    """A terminal that accepts nothing until `free` is set, as after Ctrl-S."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def write(self, text: str) -> int:
        self.free.wait(20)
        return super().write(text)


def test_a_terminal_that_accepts_nothing_delays_nothing() -> None:
    stream = Stuck()
    with Live(Frames(stream, lambda: (80, 24))) as live:
        start = time.monotonic()
        for number in range(10_000):
            live.show(lambda status: BUSY, [f"note {number}"] if number % 1000 == 0 else [])
        assert time.monotonic() - start < 10, "nothing waits for the terminal"
        stream.free.set()
    assert re.findall(r"note (\d+)", stream.getvalue()) == [str(1000 * number) for number in range(10)]


def test_a_terminal_that_went_away_is_no_error() -> None:
    closed = io.StringIO()
    closed.close()
    with Live(Frames(closed, lambda: (80, 24))) as live:
        live.show(lambda status: BUSY)


# A real terminal.

SCRIPT = """
import pickle, sys, time
from orchestrator.monitor.sinks import event_sink
events = pickle.loads(open(sys.argv[1], "rb").read())
with event_sink() as on_event:
    for event in events:
        on_event(event)
        time.sleep(float(sys.argv[2]))
print("the end", file=sys.stderr)
"""


class DrawingProcess:
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
def show(tmp_path: Path) -> Iterator[Callable[..., DrawingProcess]]:
    made: list[DrawingProcess] = []

    def make(events: list[Event], pause: float, **environment: str) -> DrawingProcess:
        made.append(DrawingProcess(tmp_path, events, pause, **environment))
        return made[-1]

    yield make
    for one in made:
        one.process.kill()


EIGHT = [planned(no) for no in range(8)]
WHOLE = list(played(EIGHT, 2, {trial.trial_id: 1.0 for trial in EIGHT}))


def frames_of(text: str) -> list[str]:
    """Each frame without colours."""
    return [re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", part) for part in text.split("\x1b[?25l")[1:]]


def test_a_terminal_that_changes_its_size_gets_frames_of_the_new_size(show: Callable[..., DrawingProcess]) -> None:
    drawing = show(WHOLE, 0.03)
    assert until(lambda: "about" in drawing.text)
    drawing.resize(40, 12)
    assert until(lambda: max(map(len, frames_of(drawing.text)[-1].splitlines()), default=99) <= 39)
    narrow = frames_of(drawing.text)[-1]
    assert len(narrow.splitlines()) <= 12 and "images/s" not in narrow
    assert drawing.end() == 0
    assert drawing.text.rstrip().endswith("the end") and "over" in drawing.text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_launch_that_is_ended_leaves_a_good_terminal(
    show: Callable[..., DrawingProcess], number: signal.Signals
) -> None:
    drawing = show(WHOLE, 1.0)
    assert until(lambda: len(frames_of(drawing.text)) > 2)
    os.kill(drawing.process.pid, number)
    assert drawing.end() != 0
    whole = drawing.text[: drawing.text.rindex("\x1b[?25h") + 6]  # a kill may hit a process that is writing
    terminal = Terminal(100, 30)
    terminal.feed(whole)
    assert terminal.is_cursor_visible and terminal.is_unstyled and terminal.column == 0


def test_a_dumb_terminal_gets_lines(show: Callable[..., DrawingProcess]) -> None:
    drawing = show([WHOLE[0], *WHOLE[-2:]], 0.0, TERM="dumb")
    assert drawing.end() == 0
    assert "\x1b" not in drawing.text and re.search(r"\d\d:\d\d:\d\d \[1/8\] ", drawing.text)


def test_news_scroll_by_and_epochs_do_not(show: Callable[..., DrawingProcess]) -> None:
    trial = EIGHT[0]
    note = Event(EventKind.NOTE, "no GPU is used \x1b[31m", time=at(0))
    failed = replace(ended(trial, 3, State.FAILED, "it broke"), text="failed: it broke")
    drawing = show([WHOLE[0], note, started(trial, 0), epoch(trial, 1, 1), failed, end(4, failed=1)], 0.3)
    assert drawing.end() == 0
    terminal = Terminal(100, 30)
    terminal.feed(drawing.text)
    scrolled = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", drawing.text)
    assert r"no GPU is used \x1b[31m" in scrolled and [line for line in terminal.screen() if line][-1] == "the end"
    log = ("    Traceback:", "      it broke", "    its log: logs/")
    message = " ".join([f"[1/8] {trial.trial_id} {trial.title()}: failed: it broke", *log])
    words = " ".join(scrolled.split())  # long lines are broken at spaces
    assert " ".join(message.split()) in words and f"{trial.title()}: epoch 1" not in words
