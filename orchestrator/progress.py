"""What a launch tells while it runs, for a log file or a person: one line an event on standard error."""

from __future__ import annotations

import sys
import time
from contextlib import suppress

from orchestrator.errors import masked
from orchestrator.events import Event, Launch
from orchestrator.records import EpochRecord, State, TrialRecord

_PAUSE = 2.0  # seconds between two lines of one trial, so that short epochs do not flood a log


class Lines:
    """Prints events, and counts trials."""

    def __init__(self) -> None:
        self._trials = self._ended = 0
        self._last: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """One line with the time of day, for most events; some more for a trial that failed."""
        if isinstance(event.facts, Launch):
            self._trials = len(event.facts.members)
            self._ended = sum(member.is_cached for member in event.facts.members)
        if isinstance(event.facts, EpochRecord) and not self._is_due(event, event.facts):
            return
        of = f"{event.trial.trial_id} {event.trial.title()}: " if event.trial else ""
        self._say(f"{self._count(event)}{of}{event.text}")
        if event.log:
            self._say(f"{of}the end of its log, {event.log_name}:", *(f"    {line}" for line in event.log))

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

    def _say(self, text: str, *more: str) -> None:
        with suppress(OSError, ValueError):  # nobody reads it any more; what is trained matters more
            now = time.strftime("%H:%M:%S")
            print("\n".join([f"{now} {masked(text)}", *map(masked, more)]), file=sys.stderr, flush=True)


def quiet(event: Event) -> None:
    """Says nothing."""
