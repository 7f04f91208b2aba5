"""What a launch tells while it runs: a line an event, a JSON object an event, failures alone, or a live view."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from orchestrator.monitor.events import Event, EventKind, EventListener, LaunchStarted
from orchestrator.monitor.study_status import StudyStatus
from orchestrator.records import EpochRecord, State, TrialRecord
from orchestrator.text import printable

_PAUSE = 2.0  # seconds between two lines of one trial, so that short epochs do not flood a log


class Lines:
    """Writes events as lines, on standard error unless told otherwise, and counts trials.

    `keeps` says which events are written.
    """

    def __init__(
        self, write: Callable[[str], object] | None = None, keeps: Callable[[Event], bool] = lambda event: True
    ) -> None:
        self._write = write or (lambda text: write_line(sys.stderr, text))
        self._keeps = keeps
        self._trials = self._ended = 0
        self._last: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """One line with the time of day, for most events; some more for a trial that failed."""
        if isinstance(event.facts, LaunchStarted):
            self._trials = len(event.facts.members)
            self._ended = sum(member.is_cached for member in event.facts.members) + len(event.facts.left)
        count = self._count(event)
        if not self._keeps(event) or (isinstance(event.facts, EpochRecord) and not self._is_due(event, event.facts)):
            return
        of = f"{event.trial.trial_id} {event.trial.title()}: " if event.trial else ""
        lines = [f"{count}{of}{event.text}", *(f"    {line}" for line in event.log)]
        if event.log_name:
            lines.append(f"    its log: {event.log_name}")
        self._write("\n".join([f"{time.strftime('%H:%M:%S')} {printable(lines[0])}", *map(printable, lines[1:])]))

    def _count(self, event: Event) -> str:
        if not isinstance(event.facts, TrialRecord) or event.facts.state is State.STOPPED:
            return ""  # one that stopped has not ended: the next launch goes on with it
        self._ended += 1
        return f"[{self._ended}/{self._trials}] "

    def _is_due(self, event: Event, record: EpochRecord) -> bool:
        assert event.trial
        key, now = event.trial.trial_id, time.monotonic()
        if record.epoch < event.trial.config.epochs and now - self._last.get(key, -_PAUSE) < _PAUSE:
            return False
        self._last[key] = now
        return True


def write_line(stream: TextIO | None, text: str) -> OSError | None:
    """Writes a line at once; gives the error, and raises none: what is trained matters more."""
    try:
        if stream is not None:
            stream.write(f"{text}\n")
            stream.flush()
    except OSError as error:
        return error
    except (ValueError, RuntimeError):
        pass  # it is closed
    return None


def is_failure(event: Event) -> bool:
    """Whether a trial failed, or lost its worker."""
    has_failed = isinstance(event.facts, TrialRecord) and event.facts.state is State.FAILED
    return has_failed or event.kind is EventKind.RETRY


def is_news(event: Event) -> bool:
    """Whether an event scrolls by above a live view, which shows all others by itself."""
    has_stopped = isinstance(event.facts, TrialRecord) and event.facts.state is State.STOPPED
    return (
        is_failure(event)
        or has_stopped
        or event.kind in (EventKind.LAUNCH, EventKind.NOTE, EventKind.NOTICE, EventKind.END)
    )


@contextmanager
def event_sink(*, as_json: bool = False, quiet: bool = False, stdout: TextIO | None = None) -> Iterator[EventListener]:
    """What shows the events that it is told of: as JSON on standard output, or on `stdout`; else on standard error.

    A launch that is `quiet` says what fails, and no more. Any other one draws a live view on a terminal, and writes a
    line an event elsewhere.
    """
    if as_json:
        with _json(stdout or sys.stdout) as on_event:
            yield on_event
    elif quiet:
        yield Lines(keeps=is_failure)
    elif is_terminal(sys.stderr):
        with _drawing(sys.stderr) as on_event:
            yield on_event
    else:
        yield Lines()


@contextmanager
def _json(stream: TextIO | None) -> Iterator[EventListener]:
    """Events as JSON. Raises an OSError at the end, when everything is trained, but not that of a reader who left."""
    lost: list[OSError] = []

    def on_event(event: Event) -> None:
        error = write_line(stream, json.dumps(event.to_json(), ensure_ascii=False))
        if error and not isinstance(error, BrokenPipeError) and not lost:
            lost.append(error)

    yield on_event
    if lost:
        raise lost[0]


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a live view can be drawn there."""
    with suppress(OSError, ValueError):
        return stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
    return False


@contextmanager
def _drawing(stream: TextIO) -> Iterator[EventListener]:
    from orchestrator.monitor.terminal import Frames, Live  # few launches need it

    live = Live(Frames(stream))
    news: list[str] = []
    lines = Lines(lambda text: news.extend(text.splitlines()), is_news)

    def on_event(event: Event) -> None:
        lines(event)
        live.show(lambda board: _after(board, event), tuple(news))
        news.clear()

    try:
        yield on_event
    finally:
        live.close()


def _after(board: StudyStatus | None, event: Event) -> StudyStatus | None:
    if board is None or event.kind is EventKind.LAUNCH:
        return StudyStatus.launched(event) if event.kind is EventKind.LAUNCH else None
    board.take(event)
    return board
