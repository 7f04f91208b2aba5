"""What the live view shows: the status of a study as rows of text, at any size of the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from orchestrator import executors
from orchestrator.columns import wrap
from orchestrator.monitor.eta import Eta, format_eta
from orchestrator.monitor.study_status import StudyStatus
from orchestrator.monitor.trial_status import FINAL, Stage, TrialStatus
from orchestrator.text import printable

_FEW, _SOME = 3, 20  # failures and awaited teachers with a row each; the second in a full view
_HEADED = 3  # rows; a list of trials with more rows has a header
_LISTED = 100  # trials at most in a full view

_escape = lru_cache(maxsize=10_000)(printable)  # every frame shows the same names

_STYLES = {
    Stage.FINISHED: "green", Stage.RUNNING: "cyan", Stage.FAILED: "bold red", Stage.SKIPPED: "yellow",
    Stage.LOST: "red", Stage.RETRYING: "yellow", Stage.STOPPED: "yellow",
}  # fmt: skip

_HEADLINE = {"done": "bold green", "left": "bold", "study": ""}  # the styles of its parts
# The columns after a trial's id and name, and their headings. The last ones are dropped first if there is no room.
_COLUMNS = {
    "epoch": "epoch", "acc": "acc %", "last": "last %", "bar": "", "host": "host", "device": "device",
    "speed": "images/s",
}  # fmt: skip
_LEFT = ("bar", "device", "host")  # columns that are aligned left
_NARROWEST = 12  # columns; a name with fewer is shortened, with more it is wrapped
_ROOMY = 100  # columns; a terminal at least as wide shows full ids
_BAR = 10  # columns of the bar of a trial
_WIDEST = 100  # columns of the bar of the study at most


def view_rows(
    status: StudyStatus,
    width: int,
    height: int,
    eta: Eta | None,
    now: datetime,
    *,
    is_full: bool = False,
) -> list[Text]:
    """The view of a study, top down: at most `height` rows, each of which fits one line of a terminal.

    It lists the running trials and a few failures and awaited teachers; if `is_full`, all trials and more of the rest.
    """
    few = _SOME if is_full else _FEW
    rows: list[Text] = [_headline_row(status, eta, now, width)]
    if height > 2:
        share, room = status.share_done(), max(1, min(width, _WIDEST) - 6)
        rows.append(_bar(share, room).append(f" {int(100 * share):3} %"))
    if height > 3:
        rows.append(_counts_row(status))
    if status.preparing and height > 4:
        rows.append(_labelled_row(status.preparing, "…", "cyan"))
    rest = height - len(rows)
    ids = _ids(status, width)
    failed, waiting, cached = _failed_rows(status, few, ids), _waiting_rows(status, few, ids), _cached_rows(status)
    live = status.in_stage(Stage.RUNNING, Stage.ELSEWHERE, Stage.RETRYING, Stage.LOST)
    # Running trials come first, but leave room for the failures.
    parts = [part[: max(0, min(len(part), rest // 4 if live else rest // 2))] for part in (failed, waiting, cached)]
    rest -= sum(map(len, parts))
    trials, most = (list(status.trials.values()), min(rest, _LISTED + 1)) if is_full else (live, rest)
    rows += _listed(trials, ids, width, most)
    for part in parts:
        rows += part
    return rows[:height]


def rows_at_start(since: datetime, now: datetime) -> list[Text]:
    """The view before a launch knows its trials."""
    return [Text("starting", "bold", no_wrap=True).append(f" · for {_clock((now - since).total_seconds())}", "dim")]


def _ids(status: StudyStatus, width: int) -> Mapping[str, str]:
    """The id to show for each trial: in full if there is room, else as short as is unique within the study."""
    return {trial_id: trial_id for trial_id in status.trials} if width >= _ROOMY else status.short_ids


def _headline_row(status: StudyStatus, eta: Eta | None, now: datetime, width: int) -> Text:
    """How much is done of what, and how long it takes; without the less important parts if there is no room."""
    parts = {
        "done": f"{status.counts().get(Stage.FINISHED, 0)}/{len(status.trials)}", "left": _time_left(status, eta),
        "study": _escape(status.study), "where": _where(status),
    }  # fmt: skip
    if status.is_running or status.ended:
        parts["clock"] = f"{'for' if status.is_running else 'took'} {_clock(status.seconds_since_start(now))}"
    for name in ("where", "left", "clock"):
        if _too_wide(parts, width) > 0:
            parts.pop(name, None)
    parts["study"] = shorten(parts["study"], cell_len(parts["study"]) - max(0, _too_wide(parts, width)))
    text = Text(no_wrap=True, overflow="ellipsis")
    for number, (name, part) in enumerate(parts.items()):
        text.append(" · " if number > 1 else " " if number else "").append(part, _HEADLINE.get(name, "dim"))
    return text


def _too_wide(parts: Mapping[str, str], width: int) -> int:
    return sum(cell_len(part) + 3 for part in parts.values()) - 5 - width


def _time_left(status: StudyStatus, eta: Eta | None) -> str:
    if status.is_running:
        left = format_eta(eta)
        return "time left unknown" if left == "-" else f"{left} left"
    return "not running" if any(stage not in FINAL for stage in status.counts()) else "ended"


def _clock(seconds: float) -> str:
    """An elapsed time: `0:07`, `12:34`, `1:02:03`."""
    minutes, seconds = divmod(max(0, int(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"


def _where(status: StudyStatus) -> str:
    how = executors.describe_where(status.executor)
    return _escape(f"{how}, {status.host}" if status.host else how)


def _bar(share: float, width: int) -> Text:
    done = int(share * width)
    return Text(no_wrap=True).append("━" * done, "cyan").append("─" * (width - done), "dim")


def _counts_row(status: StudyStatus) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for stage, count in status.counts().items():
        word = "not started" if not status.is_running and stage in (Stage.QUEUED, Stage.WAITING) else str(stage)
        text.append(", " if text else "").append(f"{count} {word}", _STYLES.get(stage, ""))
    return text


def _labelled_row(label: str, text: str, style: str = "") -> Text:
    row = Text(no_wrap=True, overflow="ellipsis")
    return row.append(f"{label} ", style).append(_escape(text))


def _failed_rows(status: StudyStatus, few: int, ids: Mapping[str, str]) -> list[Text]:
    failed = status.in_stage(Stage.FAILED)
    texts = [
        f"{ids[trial.member.trial_id]} {trial.member.display_name}: {trial.reason or 'no reason given'}"
        for trial in failed[-few:]
    ]
    if len(failed) > few:
        texts.append(f"… and {len(failed) - few} more before")
    return [_labelled_row("failed", text, "bold red") for text in texts]


def _waiting_rows(status: StudyStatus, few: int, ids: Mapping[str, str]) -> list[Text]:
    if not status.is_running:
        return []
    awaited = status.awaited_teachers()
    rows: list[Text] = []
    for teacher, count in awaited[:few]:
        where = f", epoch {teacher.progress.epoch}/{teacher.member.epochs}" if teacher.stage is Stage.RUNNING else ""
        name = f"{ids[teacher.member.trial_id]} {teacher.member.display_name}"
        rows.append(_labelled_row("waiting", f"{count} for {name} ({teacher.stage}{where})", "dim"))
    if len(awaited) > few:
        rows.append(_labelled_row("waiting", f"… and for {len(awaited) - few} more teachers", "dim"))
    return rows


def _cached_rows(status: StudyStatus) -> list[Text]:
    found, built = status.count_tables()
    parts = []
    if status.count_cached():
        parts.append(f"{status.count_cached()} finished before this launch")
    if found:
        parts.append(f"{found} found {'its' if found == 1 else 'their'} teacher's table")
    if built:
        parts.append(f"{built} built a table")
    return [_labelled_row("cached", ", ".join(parts), "dim")] if parts else []


def _listed(trials: Sequence[TrialStatus], ids: Mapping[str, str], width: int, rest: int) -> list[Text]:
    """A header, as many trials as fit, and the number of the other trials."""
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
    """The lines of the header and of each trial. Columns that do not fit are dropped, the speed first."""
    columns = {name: [Text(head, "dim"), *(_cell(trial, name) for trial in trials)] for name, head in _COLUMNS.items()}
    if len({trial.host for trial in trials}) < 2:
        del columns["host"]
    id_cells = ["id", *(ids[trial.member.trial_id] for trial in trials)]
    names = ["trial", *(_escape(trial.member.display_name) for trial in trials)]
    id_width, longest = max(map(len, id_cells)), max(map(cell_len, names))
    room, kept = width - id_width - 1, dict[str, int]()
    for name, cells in columns.items():
        size = max(cell.cell_len for cell in cells[1:]) and max(cell.cell_len for cell in cells)
        least = _NARROWEST if name == "epoch" else longest  # the others leave room for the names
        if size and room - size - 2 < least:
            break
        if size:
            room, kept[name] = room - size - 2, size
    return [
        _row(id_cells[no].ljust(id_width), names[no], min(room, longest), {k: (columns[k][no], kept[k]) for k in kept})
        for no in range(len(names))
    ]


def _row(trial_id: str, name: str, width: int, cells: Mapping[str, tuple[Text, int]]) -> list[Text]:
    """The lines of one trial; a name that is too long is wrapped."""
    first, *more = wrap(name, width) if width >= _NARROWEST else [shorten(name, width)]
    row = Text(no_wrap=True, overflow="ellipsis")
    row.append(trial_id, "dim").append(f" {set_cell_size(first, max(0, width))}")
    for column, (cell, size) in cells.items():
        cell.align("left" if column in _LEFT else "right", size)
        row.append("  ").append_text(cell)
    return [row, *(Text(f"{'':{len(trial_id)}} {part}", no_wrap=True) for part in more)]


def shorten(name: str, width: int) -> str:
    """A name in at most `width` columns. It keeps its beginning and its end, which distinguish trials."""
    if cell_len(name) <= width:
        return name
    if width < 12:
        return set_cell_size(name, max(0, width - 1)) + "…" * (width > 0)
    end = name[-(width // 2) :]
    while cell_len(end) > width // 2:
        end = end[1:]
    return set_cell_size(name, width - 1 - cell_len(end)) + "…" + end


def _cell(trial: TrialStatus, name: str) -> Text:
    epochs = trial.member.epochs
    if name == "bar":
        return _bar(min(1.0, trial.progress.epoch / epochs) if epochs else 0.0, _BAR)
    if name == "epoch" and trial.stage is not Stage.RUNNING:
        return Text(str(trial.stage), _STYLES.get(trial.stage, ""))
    texts = {
        "epoch": "building table" if trial.is_building else f"{trial.progress.epoch}/{epochs}",
        "acc": "" if trial.progress.acc is None else f"{trial.progress.acc:.2f}",
        "last": "" if trial.progress.last is None else f"{trial.progress.last:.2f}",
        "speed": "" if trial.progress.speed is None else f"{trial.progress.speed:,.0f}",
        "device": device_name(trial.device),
        "host": trial.host or "",
    }
    return Text(_escape(texts[name]))


def device_name(device: str | None) -> str:
    """A short name of a device: `CPU`, or the name of the GPU without its maker."""
    if not device:
        return ""
    return "CPU" if device.startswith("cpu") else device.removeprefix("NVIDIA ")
