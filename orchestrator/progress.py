"""What a launch tells while it runs: one line an event on standard error, for a terminal and a log file alike."""

from __future__ import annotations

import sys
import time
from contextlib import suppress

from orchestrator.errors import masked
from orchestrator.records import EpochRecord, State, TrialRecord
from orchestrator.trial import Job

_PAUSE = 2.0  # seconds between two lines of one trial, so that short epochs do not flood a log


class Progress:
    """Counts trials and prints lines; `quiet` prints none."""

    def __init__(self, trials: int, ended: int, *, quiet: bool = False) -> None:
        self._trials = trials
        self._ended = ended
        self._quiet = quiet
        self._last: dict[str, float] = {}
        if ended:
            self.say(f"{ended} of {trials} trials are finished in this storage and not trained again")

    def say(self, text: str) -> None:
        """One line with the time of day."""
        if not self._quiet:
            with suppress(OSError, ValueError):  # nobody reads it any more; what is trained matters more
                print(f"{time.strftime('%H:%M:%S')} {masked(text)}", file=sys.stderr, flush=True)

    def watch(self, job: Job, record: EpochRecord | TrialRecord) -> None:
        """An epoch, or the end of a trial, or where one stopped."""
        if isinstance(record, EpochRecord):
            self._epoch(job, record)
            return
        if record.state is State.STOPPED:  # it has not ended: the next launch goes on with it
            self.say(f"{job.trial.trial_id} {job.trial.title()}: {record.error}")
            return
        self._ended += 1
        count = f"[{self._ended}/{self._trials}]"
        self.say(f"{count} {job.trial.trial_id} {job.trial.title()}: {_outcome(record)}")

    def _epoch(self, job: Job, record: EpochRecord) -> None:
        key, now = job.trial.trial_id, time.monotonic()
        is_last = record.epoch == job.trial.config.epochs
        if is_last or now - self._last.get(key, -_PAUSE) >= _PAUSE:
            self._last[key] = now
            self.say(
                f"{key} {job.trial.title()}: epoch {record.epoch}/{job.trial.config.epochs}, "
                f"acc {record.test_acc:.2f} %, {record.images_per_second:,.0f} images/s"
            )


def _outcome(record: TrialRecord) -> str:
    if record.state is not State.FINISHED:
        return f"{record.state}: {record.error}"
    best = f"best acc {record.acc:.2f} % in epoch {record.epoch}" if record.epoch else f"acc {record.acc:.2f} %"
    return f"finished, {best}, last {record.last_acc:.2f} %"
