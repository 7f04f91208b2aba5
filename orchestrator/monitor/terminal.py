"""Draws the live view on a terminal: rows that are drawn again and again, below lines that scroll by."""

from __future__ import annotations

import io
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from orchestrator.columns import wrapped
from orchestrator.monitor.eta import Eta, estimate
from orchestrator.monitor.live_view import rows_at_start, view_rows
from orchestrator.monitor.study_status import StudyStatus

_PERIOD = 0.2  # seconds between two frames
_ETA_PERIOD = 1.0  # seconds between two estimates of the time left
_UNBOUND = 10_000  # lines, and columns, of a stream that is no terminal
_TIMEOUT = 2.0  # seconds that the end of a launch waits for a terminal that accepts nothing


def format_status(status: StudyStatus, stream: TextIO) -> str:
    """The full view as lines of text: as wide as the terminal, or as needed if the stream is no terminal."""
    is_terminal = stream.isatty()
    width = terminal_size(stream)[0] - 1 if is_terminal else _UNBOUND
    now = datetime.now(UTC)
    rows = view_rows(status, width, _UNBOUND, estimate(status, now), now, is_full=True)
    if not is_terminal:
        return "".join(f"{row.plain.rstrip()}\n" for row in rows)
    return "".join(f"{text}\n" for text, _ in Frames(stream).render(rows, width))


class Frames:
    """Draws frames on a terminal, each over the last one.

    The cursor stays visible, at the beginning of the line below the frame. So a launch can be killed at any time and
    leaves the terminal in order.
    """

    def __init__(self, stream: TextIO, size: Callable[[], tuple[int, int]] | None = None) -> None:
        self._stream = stream
        self._size = size or (lambda: terminal_size(stream))
        self._console = Console(
            file=io.StringIO(), force_terminal=True, legacy_windows=False, highlight=False, markup=False
        )
        self._lengths: list[int] = []  # of the lines of the current frame, in columns

    def draw(self, status: StudyStatus, eta: Eta | None, notes: Sequence[str], now: datetime) -> None:
        """Lets notes scroll by, and draws the view of a study below them. Raises OSError if the terminal is gone."""
        width, height = self._size()
        # One row is for the cursor; one column is spare, as some terminals would wrap a full line.
        self.show(view_rows(status, width - 1, height - 1, eta, now), notes)

    def show(self, rows: Sequence[Text], notes: Sequence[str] = ()) -> None:
        """Lets notes scroll by, and draws rows below them. Raises OSError if the terminal is gone."""
        width, height = self._size()
        frame = self.render(rows, width - 1)
        out = ["\x1b[?25l", self._over(width, height), *(_note(note, width) for note in notes)]
        out += [f"{text}\x1b[0m\x1b[K\n" for text, _ in frame]
        self._write("".join([*out, "\x1b[J\x1b[?25h"]))
        self._lengths = [length for _, length in frame]

    def end(self, notes: Sequence[str] = ()) -> None:
        """Erases the frame; the notes stay."""
        width, height = self._size()
        over = self._over(width, height)
        # Line by line: to erase the entire screen at once makes some terminals keep it in their history.
        erased = "\x1b[K\n" * self._rows(width, height)
        self._write("".join([over, erased, over, *(_note(note, width) for note in notes)]))
        self._lengths = []

    def _rows(self, width: int, height: int) -> int:
        """The rows that the current frame occupies: a terminal that became narrower has wrapped its lines."""
        return min(height - 1, sum(max(1, -(-length // max(1, width))) for length in self._lengths))

    def _over(self, width: int, height: int) -> str:
        """The control sequence that moves the cursor to the first row of the current frame."""
        rows = self._rows(width, height)
        return f"\r\x1b[{rows}A" if rows else "\r"

    def render(self, rows: Sequence[Text], width: int) -> list[tuple[str, int]]:
        """Each row as coloured text, with its length in columns."""
        found = []
        for row in rows:
            row.rstrip()
            row.truncate(max(1, width), overflow="ellipsis")
            found.append((self._coloured(list(row.render(self._console))), row.cell_len))
        return found

    def _coloured(self, segments: Sequence[Segment]) -> str:
        system = self._console._color_system
        if self._console.no_color:
            segments = list(Segment.remove_color(segments))
        styled = [(text, style or Style.null()) for text, style, control in segments if not control]
        return "".join(style.render(text, color_system=system) for text, style in styled).rstrip()

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _note(text: str, width: int) -> str:
    """A line that scrolls by; if it is too long it is wrapped, and its other lines are indented."""
    first, *more = wrapped(text, width).split("\n")
    more = wrapped(" " * 9 + " ".join(more), width).split("\n") if more else []
    return "".join(_line_of_note(line, width) for line in (first, *more))


def _line_of_note(text: str, width: int) -> str:
    # After a full line the cursor is still on the last character, which must not be erased.
    rest = "" if text and cell_len(text) % width == 0 else "\x1b[K"
    return f"\x1b[K{text}{rest}\n"


def terminal_size(stream: TextIO) -> tuple[int, int]:
    """The columns and rows of a terminal now: a process of another session gets no signal when they change."""
    with suppress(OSError, ValueError):
        found = os.get_terminal_size(stream.fileno())
        if found.columns > 0 and found.lines > 0:
            return max(2, found.columns), max(2, found.lines)
    return 80, 24


class Live:
    """Draws the live view in a thread of its own: a terminal that accepts nothing must not hold up training.

    A context manager; on leaving it prints the notes that are left and erases the view.
    """

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._changes: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._status: StudyStatus | None = None
        self._notes: list[str] = []
        self._since = datetime.now(UTC)
        self._eta: tuple[float, Eta | None] = (float("-inf"), None)
        self._thread = threading.Thread(target=self._draw_until_closed, name="live", daemon=True)

    def __enter__(self) -> Live:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._changes.put(None)
        self._thread.join(_TIMEOUT)

    def show(self, change: Callable[[StudyStatus | None], StudyStatus | None], notes: Sequence[str] = ()) -> None:
        """Lets notes scroll by and shows a new status: `change` makes it from the last one, in the drawing thread."""

        def apply() -> None:
            self._status = change(self._status)
            self._notes += notes

        self._changes.put(apply)

    def _draw_until_closed(self) -> None:
        with suppress(OSError, ValueError):  # the terminal is gone; training matters more
            while self._apply_changes(time.monotonic() + _PERIOD):
                now = datetime.now(UTC)
                if self._status:
                    self._frames.draw(self._status, self._estimate(self._status, now), self._take_notes(), now)
                else:
                    self._frames.show(rows_at_start(self._since, now), self._take_notes())
            self._frames.end(self._take_notes())

    def _apply_changes(self, until: float) -> bool:
        """Applies the changes that arrive until then; False if the view is closed."""
        while (seconds := until - time.monotonic()) > 0:
            with suppress(queue.Empty):
                change = self._changes.get(timeout=seconds)
                if change is None:
                    return False
                change()
        return True

    def _take_notes(self) -> list[str]:
        notes, self._notes = self._notes, []
        return notes

    def _estimate(self, status: StudyStatus, now: datetime) -> Eta | None:
        last, eta = self._eta
        if time.monotonic() - last > _ETA_PERIOD:
            eta = estimate(status, now)
            self._eta = time.monotonic(), eta
        return eta
