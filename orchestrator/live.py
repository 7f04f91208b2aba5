"""The live view of a launch on a terminal: lines drawn anew, below lines that scroll by. The one door to rich."""

from __future__ import annotations

import io
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from orchestrator.board import Board, Eta, Stage, Standing, age, eta_text, lasting
from orchestrator.errors import printable

_PAUSE = 0.2  # seconds between two frames
_RECKON = 1.0  # seconds between two reckonings of what is left
_FEW = 3  # failures, and teachers that are waited for, that are shown one by one
_LISTED = 100  # trials, where all are listed
_SOME = 20  # of them where there is room
_UNBOUND = 10_000  # lines and columns of what is no terminal
_SLOWEST = 2.0  # seconds that the end of a launch waits for a terminal that takes nothing

_shown = lru_cache(maxsize=10_000)(printable)  # the same names, every frame

_STYLES = {
    Stage.FINISHED: "green", Stage.RUNNING: "cyan", Stage.FAILED: "bold red", Stage.SKIPPED: "yellow",
    Stage.LOST: "red", Stage.RETRYING: "yellow", Stage.STOPPED: "yellow",
}  # fmt: skip

_COLUMNS = ("epoch", "acc", "bar", "speed", "device", "host", "id")  # beside a trial's name, the most important first
_LEFT = ("bar", "device", "host", "id")  # columns of which the left edges stand in a line
_NAME = 20  # columns that a name keeps before another column is dropped
_LONGEST = 72  # columns of a name where there is room
_BAR = 10  # columns of the bar of a trial
_WIDEST = 100  # columns of the bar of the study


def lines_of(
    board: Board, width: int, height: int, eta: Eta | None, now: datetime, few: int = _FEW, *, whole: bool = False
) -> list[Text]:
    """What is shown of a board, top down: at most so many rows, each of which fits one line of the terminal.

    Of the trials it is those that run, or where it is to be `whole` the others too.
    """
    rows: list[Text] = [_headline(board, eta, now)]
    if height > 2:
        share, room = board.share(), max(1, min(width, _WIDEST) - 6)
        rows.append(_bar(share, room).append(f" {int(100 * share):3} %"))
    if height > 3:
        rows.append(_counts(board))
    rest = height - len(rows)
    failed, waits, notes = _failures(board, few), _waits(board, few), _hits(board)
    lives = board.at(Stage.RUNNING, Stage.ELSEWHERE, Stage.RETRYING, Stage.LOST)
    # What runs comes first, but not all of it before the first word of what failed.
    shown = [part[: max(0, min(len(part), rest // 4 if lives else rest // 2))] for part in (failed, waits, notes)]
    rest -= sum(map(len, shown))
    rows += _listed(list(board.trials.values()), width, min(rest, _LISTED)) if whole else _listed(lives, width, rest)
    for part in shown:
        rows += part
    return rows[:height]


def _headline(board: Board, eta: Eta | None, now: datetime) -> Text:
    counts = board.counts()
    done = f"{counts.get(Stage.FINISHED, 0)}/{len(board.trials)}"
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{done} ", "bold green")
    if board.is_running:
        left = eta_text(eta)
        text.append("time left unknown" if left == "-" else f"{left} left", "bold")
    else:
        open_ = sum(
            count for stage, count in counts.items() if stage not in (Stage.FINISHED, Stage.FAILED, Stage.SKIPPED)
        )
        text.append("not running" if open_ else "ended", "bold")
    text.append(f" · {_shown(board.study)}")
    text.append(f" · {_where(board)}", "dim")
    if board.is_running or board.ended:
        text.append(f" · {'for' if board.is_running else 'took'} {lasting(age(board, now))}", "dim")
    return text


def _where(board: Board) -> str:
    how = {"inline": "in one process", "ray": "on Ray"}.get(board.executor, board.executor)
    return _shown(f"{how}, {board.host}" if board.host else how)


def _bar(share: float, width: int) -> Text:
    done = int(share * width)
    return Text(no_wrap=True).append("━" * done, "cyan").append("─" * (width - done), "dim")


def _counts(board: Board) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for stage, count in board.counts().items():
        word = "not started" if not board.is_running and stage in (Stage.QUEUED, Stage.WAITING) else str(stage)
        text.append(", " if text else "").append(f"{count} {word}", _STYLES.get(stage, ""))
    return text


def _line(label: str, said: str, style: str = "") -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    return text.append(f"{label} ", style).append(_shown(said))


def _failures(board: Board, few: int) -> list[Text]:
    failed = board.at(Stage.FAILED)
    rows: list[Text] = [
        _line("failed", f"{one.member.trial_id} {one.member.title}: {one.reason or 'no reason given'}", "bold red")
        for one in failed[-few:]
    ]
    if len(failed) > few:
        rows.append(_line("failed", f"… and {len(failed) - few} more before", "bold red"))
    return rows


def _waits(board: Board, few: int) -> list[Text]:
    if not board.is_running:
        return []
    waits = board.waits()
    rows: list[Text] = []
    for teacher, count in waits[:few]:
        where = f", epoch {teacher.epoch}/{teacher.member.epochs}" if teacher.stage is Stage.RUNNING else ""
        rows.append(_line("waiting", f"{count} for {teacher.member.title} ({teacher.stage}{where})", "dim"))
    if len(waits) > few:
        rows.append(_line("waiting", f"… and for {len(waits) - few} more teachers", "dim"))
    return rows


def _hits(board: Board) -> list[Text]:
    found, built = board.tables()
    parts = []
    if board.cached():
        parts.append(f"{board.cached()} finished before this launch")
    if found:
        parts.append(f"{found} found {'its' if found == 1 else 'their'} teacher's table")
    if built:
        parts.append(f"{built} built a table")
    return [_line("cached", ", ".join(parts), "dim")] if parts else []


def _listed(trials: Sequence[Standing], width: int, rest: int) -> list[Text]:
    if not trials or rest < 1:
        return []
    shown = list(trials if len(trials) <= rest else trials[: rest - 1])
    rows = _aligned(shown, width)
    if len(shown) < len(trials):
        left = f"… and {len(trials) - len(shown)} more" if shown else f"{len(trials)} running"
        rows.append(Text(left, "dim", no_wrap=True, overflow="ellipsis"))
    return rows


def _aligned(lives: Sequence[Standing], width: int) -> list[Text]:
    """A line for each, in columns as wide as they need to be; those for which there is no room are dropped."""
    columns = {name: [_cell(standing, name) for standing in lives] for name in _COLUMNS}
    names = [_shown(standing.member.title) for standing in lives]
    if len({standing.host for standing in lives}) < 2:
        del columns["host"]
    widths = {name: max((cell.cell_len for cell in cells), default=0) for name, cells in columns.items()}
    room, kept = width - _NAME, dict[str, int]()
    for name, size in widths.items():
        if size + 2 > room:
            break
        if size:
            room, kept[name] = room - size - 2, size
    longest = min(_LONGEST, room + _NAME, max(map(cell_len, names), default=0))
    rows = []
    for number, name in enumerate(names):
        row = Text(set_cell_size(shortened(name, longest), longest), no_wrap=True, overflow="ellipsis")
        for column, size in kept.items():
            cell = columns[column][number]
            cell.align("left" if column in _LEFT else "right", size)
            row.append("  ").append_text(cell)
        rows.append(row)
    return rows


def shortened(name: str, width: int) -> str:
    """A name that fits so many columns: what tells trials apart is its beginning and its end."""
    if cell_len(name) <= width:
        return name
    if width < 12:
        return set_cell_size(name, max(0, width - 1)) + "…" * (width > 0)
    end = name[-(width // 2) :]
    while cell_len(end) > width // 2:
        end = end[1:]
    return set_cell_size(name, width - 1 - cell_len(end)) + "…" + end


def _cell(standing: Standing, name: str) -> Text:
    epochs = standing.member.epochs
    if name == "bar":
        return _bar(min(1.0, standing.epoch / epochs) if epochs else 0.0, _BAR)
    if name == "epoch" and standing.stage is not Stage.RUNNING:
        return Text(str(standing.stage), _STYLES.get(standing.stage, ""))
    words = {
        "epoch": f"{standing.epoch}/{epochs}",
        "acc": "" if standing.acc is None else f"{standing.acc:.2f} %",
        "speed": "" if standing.speed is None else f"{standing.speed:,.0f} images/s",
        "device": device_name(standing.device),
        "host": standing.host or "",
        "id": standing.member.trial_id,
    }
    return Text(_shown(words[name]))


def device_name(device: str | None) -> str:
    """A device as short as it can be told apart: `CPU`, or the name of the GPU without its maker."""
    if not device:
        return ""
    return "CPU" if device.startswith("cpu") else device.removeprefix("NVIDIA ")


def printed(board: Board, stream: TextIO) -> str:
    """A board as lines for a person: as wide as the terminal, or as wide as it needs to be where there is none."""
    is_terminal = stream.isatty()
    width = terminal_size(stream)[0] - 1 if is_terminal else _UNBOUND
    now = datetime.now(UTC)
    rows = lines_of(board, width, _UNBOUND, board.eta(now), now, _SOME, whole=True)
    if not is_terminal:
        return "".join(f"{row.plain.rstrip()}\n" for row in rows)
    return "".join(f"{text}\n" for text, _ in Frames(stream).rendered(rows, width))


class Frames:
    """Draws boards on a terminal, each over the last one.

    Its cursor stays visible, at the beginning of the line below the frame: wherever a launch is killed, the terminal
    is as it should be, and nothing needs to be put back.
    """

    def __init__(self, stream: TextIO, size: Callable[[], tuple[int, int]] | None = None) -> None:
        self._stream = stream
        self._size = size or (lambda: terminal_size(stream))
        self._console = Console(
            file=io.StringIO(), force_terminal=True, legacy_windows=False, highlight=False, markup=False
        )
        self._lengths: list[int] = []  # of the lines that stand there, in columns

    def draw(self, board: Board, eta: Eta | None, notes: Sequence[str] = (), now: datetime | None = None) -> None:
        """Lets notes scroll by, and draws the board below them. Raises OSError where nobody reads it any more."""
        width, height = self._size()
        # One row is the cursor's; without one column to spare some terminals would wrap.
        frame = self.rendered(lines_of(board, width - 1, height - 1, eta, now or datetime.now(UTC)), width - 1)
        out = ["\x1b[?25l", self._over(width, height), *(_note(note, width) for note in notes)]
        out += [f"{text}\x1b[0m\x1b[K\n" for text, _ in frame]
        self._write("".join([*out, "\x1b[J\x1b[?25h"]))
        self._lengths = [length for _, length in frame]

    def end(self, notes: Sequence[str] = ()) -> None:
        """Takes the frame away; notes stay."""
        width, height = self._size()
        over = self._over(width, height)
        # Line by line: to erase a whole screen at once makes some terminals keep it in their history.
        erased = "\x1b[K\n" * self._rows(width, height)
        self._write("".join([over, erased, over, *(_note(note, width) for note in notes)]))
        self._lengths = []

    def _rows(self, width: int, height: int) -> int:
        """How many rows the frame that stands there takes: a terminal that became narrower has broken its lines."""
        return min(height - 1, sum(max(1, -(-length // max(1, width))) for length in self._lengths))

    def _over(self, width: int, height: int) -> str:
        """To the first row of the frame that stands there."""
        rows = self._rows(width, height)
        return f"\r\x1b[{rows}A" if rows else "\r"

    def rendered(self, rows: Sequence[Text], width: int) -> list[tuple[str, int]]:
        """Each row as text with its colours, and its length in columns."""
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
    # Where it ends at the edge the cursor stands on its last character still, which is not to be erased.
    rest = "" if text and cell_len(text) % width == 0 else "\x1b[K"
    return f"\x1b[K{text}{rest}\n"


def terminal_size(stream: TextIO) -> tuple[int, int]:
    """Columns and rows of a terminal, asked anew: a process of another session hears of no change."""
    with suppress(OSError, ValueError):
        found = os.get_terminal_size(stream.fileno())
        if found.columns > 0 and found.lines > 0:
            return max(2, found.columns), max(2, found.lines)
    return 80, 24


class Live:
    """Draws what a board says, from a thread of its own: a terminal that stands still must not hold up training."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._board: Board | None = None
        self._notes: list[str] = []
        self._eta: tuple[float, Eta | None] = (float("-inf"), None)
        self._thread = threading.Thread(target=self._live, name="live", daemon=True)
        self._thread.start()

    def show(self, change: Callable[[Board | None], Board | None], notes: Sequence[str] = ()) -> None:
        """Changes what is shown, from within the thread that shows it, and lets notes scroll by."""

        def do() -> None:
            self._board = change(self._board)
            self._notes += notes

        self._jobs.put(do)

    def close(self) -> None:
        """Shows all notes, and takes the board away."""
        self._jobs.put(None)
        self._thread.join(_SLOWEST)

    def _live(self) -> None:
        with suppress(OSError, ValueError):  # nobody reads it any more; what is trained matters more
            while self._drain(time.monotonic() + _PAUSE):
                if self._board:
                    now = datetime.now(UTC)
                    self._frames.draw(self._board, self._left(self._board, now), self._taken(), now)
            self._frames.end(self._taken())

    def _drain(self, until: float) -> bool:
        """Does what came until then; False once there is nothing more to come."""
        while (seconds := until - time.monotonic()) > 0:
            with suppress(queue.Empty):
                job = self._jobs.get(timeout=seconds)
                if job is None:
                    return False
                job()
        return True

    def _taken(self) -> list[str]:
        notes, self._notes = self._notes, []
        return notes

    def _left(self, board: Board, now: datetime) -> Eta | None:
        asked, eta = self._eta
        if time.monotonic() - asked > _RECKON:
            eta = board.eta(now)
            self._eta = time.monotonic(), eta
        return eta
