"""The live view of a launch on a terminal: lines drawn anew, below lines that scroll by. The one door to rich."""

from __future__ import annotations

import io
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from orchestrator import executors
from orchestrator.columns import wrap, wrapped
from orchestrator.monitor.study_status import Eta, Stage, StudyStatus, TrialStatus, age, eta_text
from orchestrator.text import printable

_PAUSE = 0.2  # seconds between two frames
_RECKON = 1.0  # seconds between two reckonings of what is left
_FEW = 3  # failures, and teachers that are waited for, that are shown one by one
_HEADED = 3  # rows for trials from which on they have a header
_LISTED = 100  # trials, where all are listed
_SOME = 20  # of them where there is room
_UNBOUND = 10_000  # lines and columns of what is no terminal
_SLOWEST = 2.0  # seconds that the end of a launch waits for a terminal that takes nothing

_shown = lru_cache(maxsize=10_000)(printable)  # the same names, every frame

_STYLES = {
    Stage.FINISHED: "green", Stage.RUNNING: "cyan", Stage.FAILED: "bold red", Stage.SKIPPED: "yellow",
    Stage.LOST: "red", Stage.RETRYING: "yellow", Stage.STOPPED: "yellow",
}  # fmt: skip

_HEADLINE = {"done": "bold green", "left": "bold", "study": ""}  # styles of its parts
# Beside a trial's id and name, the most important first: where there is no room the last ones go. Each with its head.
_COLUMNS = {
    "epoch": "epoch", "acc": "acc %", "last": "last %", "bar": "", "host": "host", "device": "device",
    "speed": "images/s",
}  # fmt: skip
_LEFT = ("bar", "device", "host")  # columns of which the left edges stand in a line
_NARROWEST = 12  # columns of a name before it takes several lines, each of that width
_ROOMY = 100  # columns of a terminal from which on ids are shown whole
_BAR = 10  # columns of the bar of a trial
_WIDEST = 100  # columns of the bar of the study


def lines_of(
    board: StudyStatus, width: int, height: int, eta: Eta | None, now: datetime, few: int = _FEW, *, whole: bool = False
) -> list[Text]:
    """What is shown of a board, top down: at most so many rows, each of which fits one line of the terminal.

    Of the trials it is those that run, or where it is to be `whole` the others too.
    """
    rows: list[Text] = [_headline(board, eta, now, width)]
    if height > 2:
        share, room = board.share(), max(1, min(width, _WIDEST) - 6)
        rows.append(_bar(share, room).append(f" {int(100 * share):3} %"))
    if height > 3:
        rows.append(_counts(board))
    if board.preparing and height > 4:
        rows.append(_line(board.preparing, "…", "cyan"))
    rest = height - len(rows)
    ids = _ids(board, width)
    failed, waits, notes = _failures(board, few, ids), _waits(board, few, ids), _hits(board)
    lives = board.at(Stage.RUNNING, Stage.ELSEWHERE, Stage.RETRYING, Stage.LOST)
    # What runs comes first, but not all of it before the first word of what failed.
    shown = [part[: max(0, min(len(part), rest // 4 if lives else rest // 2))] for part in (failed, waits, notes)]
    rest -= sum(map(len, shown))
    trials, most = (list(board.trials.values()), min(rest, _LISTED + 1)) if whole else (lives, rest)
    rows += _listed(trials, ids, width, most)
    for part in shown:
        rows += part
    return rows[:height]


def starting(since: datetime, now: datetime) -> list[Text]:
    """What is shown before a launch knows its trials."""
    return [Text("starting", "bold", no_wrap=True).append(f" · for {_clock((now - since).total_seconds())}", "dim")]


def _ids(board: StudyStatus, width: int) -> Mapping[str, str]:
    """The id of each trial as it is shown: whole where there is room, else as short as it is unique in the study."""
    return {trial_id: trial_id for trial_id in board.trials} if width >= _ROOMY else board.short_ids


def _headline(board: StudyStatus, eta: Eta | None, now: datetime, width: int) -> Text:
    """How much is done, of what, and how long it takes; the less important parts go where there is no room."""
    parts = {
        "done": f"{board.counts().get(Stage.FINISHED, 0)}/{len(board.trials)}", "left": _left_words(board, eta),
        "study": _shown(board.study), "where": _where(board),
    }  # fmt: skip
    if board.is_running or board.ended:
        parts["clock"] = f"{'for' if board.is_running else 'took'} {_clock(age(board, now))}"
    for name in ("where", "left", "clock"):
        if _too_wide(parts, width) > 0:
            parts.pop(name, None)
    parts["study"] = shortened(parts["study"], cell_len(parts["study"]) - max(0, _too_wide(parts, width)))
    text = Text(no_wrap=True, overflow="ellipsis")
    for number, (name, words) in enumerate(parts.items()):
        text.append(" · " if number > 1 else " " if number else "").append(words, _HEADLINE.get(name, "dim"))
    return text


def _too_wide(parts: Mapping[str, str], width: int) -> int:
    return sum(cell_len(words) + 3 for words in parts.values()) - 5 - width


def _left_words(board: StudyStatus, eta: Eta | None) -> str:
    if board.is_running:
        left = eta_text(eta)
        return "time left unknown" if left == "-" else f"{left} left"
    over = (Stage.FINISHED, Stage.FAILED, Stage.SKIPPED)
    return "not running" if any(stage not in over for stage in board.counts()) else "ended"


def _clock(seconds: float) -> str:
    """A time that passes, by the second: `0:07`, `12:34`, `1:02:03`."""
    minutes, seconds = divmod(max(0, int(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"


def _where(board: StudyStatus) -> str:
    how = executors.describe_place(board.executor)
    return _shown(f"{how}, {board.host}" if board.host else how)


def _bar(share: float, width: int) -> Text:
    done = int(share * width)
    return Text(no_wrap=True).append("━" * done, "cyan").append("─" * (width - done), "dim")


def _counts(board: StudyStatus) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for stage, count in board.counts().items():
        word = "not started" if not board.is_running and stage in (Stage.QUEUED, Stage.WAITING) else str(stage)
        text.append(", " if text else "").append(f"{count} {word}", _STYLES.get(stage, ""))
    return text


def _line(label: str, said: str, style: str = "") -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    return text.append(f"{label} ", style).append(_shown(said))


def _failures(board: StudyStatus, few: int, ids: Mapping[str, str]) -> list[Text]:
    failed = board.at(Stage.FAILED)
    rows: list[Text] = [
        _line("failed", f"{ids[one.member.trial_id]} {one.member.shown}: {one.reason or 'no reason given'}", "bold red")
        for one in failed[-few:]
    ]
    if len(failed) > few:
        rows.append(_line("failed", f"… and {len(failed) - few} more before", "bold red"))
    return rows


def _waits(board: StudyStatus, few: int, ids: Mapping[str, str]) -> list[Text]:
    if not board.is_running:
        return []
    waits = board.waits()
    rows: list[Text] = []
    for teacher, count in waits[:few]:
        where = f", epoch {teacher.epoch}/{teacher.member.epochs}" if teacher.stage is Stage.RUNNING else ""
        name = f"{ids[teacher.member.trial_id]} {teacher.member.shown}"
        rows.append(_line("waiting", f"{count} for {name} ({teacher.stage}{where})", "dim"))
    if len(waits) > few:
        rows.append(_line("waiting", f"… and for {len(waits) - few} more teachers", "dim"))
    return rows


def _hits(board: StudyStatus) -> list[Text]:
    found, built = board.tables()
    parts = []
    if board.cached():
        parts.append(f"{board.cached()} finished before this launch")
    if found:
        parts.append(f"{found} found {'its' if found == 1 else 'their'} teacher's table")
    if built:
        parts.append(f"{built} built a table")
    return [_line("cached", ", ".join(parts), "dim")] if parts else []


def _listed(trials: Sequence[TrialStatus], ids: Mapping[str, str], width: int, rest: int) -> list[Text]:
    """A header and as many trials as there is room for, with a word on how many more there are."""
    if not trials or rest < 1:
        return []
    header, *blocks = _aligned(trials[:rest], ids, width)
    rows = header if rest > _HEADED else []
    left = len(trials)
    for block in blocks:
        if len(rows) + len(block) > rest - (left > 1):
            break
        rows, left = rows + block, left - 1
    if left:
        more = f"… and {left} more" if left < len(trials) else f"{left} running"
        rows.append(Text(more, "dim", no_wrap=True, overflow="ellipsis"))
    return rows


def _aligned(trials: Sequence[TrialStatus], ids: Mapping[str, str], width: int) -> list[list[Text]]:
    """The lines of the header and of each trial; columns for which there is no room are dropped, the speed first."""
    columns = {
        name: [Text(head, "dim"), *(_cell(standing, name) for standing in trials)] for name, head in _COLUMNS.items()
    }
    if len({standing.host for standing in trials}) < 2:
        del columns["host"]
    ids_shown = ["id", *(ids[standing.member.trial_id] for standing in trials)]
    names = ["trial", *(_shown(standing.member.shown) for standing in trials)]
    id_width, longest = max(map(len, ids_shown)), max(map(cell_len, names))
    room, kept = width - id_width - 1, dict[str, int]()
    for name, cells in columns.items():
        size = max(cell.cell_len for cell in cells[1:]) and max(cell.cell_len for cell in cells)
        least = _NARROWEST if name == "epoch" else longest  # all others make room for names
        if size and room - size - 2 < least:
            break
        if size:
            room, kept[name] = room - size - 2, size
    return [
        _row(ids_shown[no].ljust(id_width), names[no], min(room, longest), {k: (columns[k][no], kept[k]) for k in kept})
        for no in range(len(names))
    ]


def _row(id_shown: str, name: str, width: int, cells: Mapping[str, tuple[Text, int]]) -> list[Text]:
    """One trial: a name that is too long goes on in the next lines."""
    first, *more = wrap(name, width) if width >= _NARROWEST else [shortened(name, width)]
    row = Text(no_wrap=True, overflow="ellipsis")
    row.append(id_shown, "dim").append(f" {set_cell_size(first, max(0, width))}")
    for column, (cell, size) in cells.items():
        cell.align("left" if column in _LEFT else "right", size)
        row.append("  ").append_text(cell)
    return [row, *(Text(f"{'':{len(id_shown)}} {part}", no_wrap=True) for part in more)]


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


def _cell(standing: TrialStatus, name: str) -> Text:
    epochs = standing.member.epochs
    if name == "bar":
        return _bar(min(1.0, standing.epoch / epochs) if epochs else 0.0, _BAR)
    if name == "epoch" and standing.stage is not Stage.RUNNING:
        return Text(str(standing.stage), _STYLES.get(standing.stage, ""))
    words = {
        "epoch": "building table" if standing.is_building else f"{standing.epoch}/{epochs}",
        "acc": "" if standing.acc is None else f"{standing.acc:.2f}",
        "last": "" if standing.last is None else f"{standing.last:.2f}",
        "speed": "" if standing.speed is None else f"{standing.speed:,.0f}",
        "device": device_name(standing.device),
        "host": standing.host or "",
    }
    return Text(_shown(words[name]))


def device_name(device: str | None) -> str:
    """A device as short as it can be told apart: `CPU`, or the name of the GPU without its maker."""
    if not device:
        return ""
    return "CPU" if device.startswith("cpu") else device.removeprefix("NVIDIA ")


def printed(board: StudyStatus, stream: TextIO) -> str:
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

    def draw(self, board: StudyStatus, eta: Eta | None, notes: Sequence[str] = (), now: datetime | None = None) -> None:
        """Lets notes scroll by, and draws the board below them. Raises OSError where nobody reads it any more."""
        width, height = self._size()
        # One row is the cursor's; without one column to spare some terminals would wrap.
        self.show(lines_of(board, width - 1, height - 1, eta, now or datetime.now(UTC)), notes)

    def show(self, rows: Sequence[Text], notes: Sequence[str] = ()) -> None:
        """Lets notes scroll by, and puts rows below them. Raises OSError where nobody reads it any more."""
        width, height = self._size()
        frame = self.rendered(rows, width - 1)
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
    """A line that scrolls by, broken at spaces where it is too long, and then indented."""
    first, *more = wrapped(text, width).split("\n")
    more = wrapped(" " * 9 + " ".join(more), width).split("\n") if more else []
    return "".join(_line_of_note(line, width) for line in (first, *more))


def _line_of_note(text: str, width: int) -> str:
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
        self._board: StudyStatus | None = None
        self._notes: list[str] = []
        self._since = datetime.now(UTC)
        self._eta: tuple[float, Eta | None] = (float("-inf"), None)
        self._thread = threading.Thread(target=self._live, name="live", daemon=True)
        self._thread.start()

    def show(self, change: Callable[[StudyStatus | None], StudyStatus | None], notes: Sequence[str] = ()) -> None:
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
                now = datetime.now(UTC)
                if self._board:
                    self._frames.draw(self._board, self._left(self._board, now), self._taken(), now)
                else:
                    self._frames.show(starting(self._since, now), self._taken())
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

    def _left(self, board: StudyStatus, now: datetime) -> Eta | None:
        asked, eta = self._eta
        if time.monotonic() - asked > _RECKON:
            eta = board.eta(now)
            self._eta = time.monotonic(), eta
        return eta
