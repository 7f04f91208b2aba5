"""Shows the events of a launch: one line per event, one JSON object per event, only failures, or a live view."""

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

_PAUSE = 2.0  # seconds between two lines of the same trial, so that short epochs do not flood a log


class Lines:
    """A listener that writes one line per event, by default on standard error, and counts the trials that ended.

    Only the events that `keeps` accepts are written.
    """

    def __init__(
        self, write: Callable[[str], object] | None = None, keeps: Callable[[Event], bool] = lambda event: True
    ) -> None:
        self._write = write or (lambda text: write_line(sys.stderr, text))
        self._keeps = keeps
        self._trials = self._ended = 0
        self._last: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """Writes a line with the time of day for most events; for a trial that failed also the end of its log."""
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
            return ""  # a stopped trial has not ended: the next launch resumes it
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
    """Writes a line and flushes it; returns an OSError instead of raising it, as training matters more."""
    try:
        if stream is not None:
            stream.write(f"{text}\n")
            stream.flush()
    except OSError as error:
        return error
    except (ValueError, RuntimeError):
        pass  # the stream is closed
    return None


def is_failure(event: Event) -> bool:
    """Whether the event is a trial that failed, or that lost its worker."""
    has_failed = isinstance(event.facts, TrialRecord) and event.facts.state is State.FAILED
    return has_failed or event.kind is EventKind.RETRY


def is_news(event: Event) -> bool:
    """Whether the event gets a line above the live view, which shows the other events itself."""
    has_stopped = isinstance(event.facts, TrialRecord) and event.facts.state is State.STOPPED
    return (
        is_failure(event)
        or has_stopped
        or event.kind in (EventKind.LAUNCH, EventKind.NOTE, EventKind.NOTICE, EventKind.END)
    )


@contextmanager
def event_sink(*, as_json: bool = False, quiet: bool = False, stdout: TextIO | None = None) -> Iterator[EventListener]:
    """The listener that shows events: as JSON on standard output (or `stdout`), else on standard error.

    If `quiet` it writes only failures. Otherwise it draws a live view on a terminal, and writes one line per event to
    anything else.
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
    """Writes events as JSON. Raises an OSError only at the end, after training; a closed pipe is no error."""
    lost: list[OSError] = []

    def on_event(event: Event) -> None:
        error = write_line(stream, json.dumps(event.to_json(), ensure_ascii=False))
        if error and not isinstance(error, BrokenPipeError) and not lost:
            lost.append(error)

    yield on_event
    if lost:
        raise lost[0]


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a live view can be drawn on a stream."""
    with suppress(OSError, ValueError):
        return stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
    return False


@contextmanager
def _drawing(stream: TextIO) -> Iterator[EventListener]:
    from orchestrator.monitor.terminal import Frames, Live  # imports rich, which most launches do not need

    notes: list[str] = []
    lines = Lines(lambda text: notes.extend(text.splitlines()), is_news)

    with Live(Frames(stream)) as live:

        def on_event(event: Event) -> None:
            lines(event)
            live.show(lambda status: _apply(status, event), tuple(notes))
            notes.clear()

        yield on_event


def _apply(status: StudyStatus | None, event: Event) -> StudyStatus | None:
    if event.kind is EventKind.LAUNCH:
        return StudyStatus.of_launch(event)
    if status:
        status.apply(event)
    return status
