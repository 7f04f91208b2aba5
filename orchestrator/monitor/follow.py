"""The status of a study from its storage alone: for a launch on another machine, or one that has ended."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, TypeVar

from orchestrator.errors import StorageError
from orchestrator.monitor.events import TrialStarted
from orchestrator.monitor.study_status import StudyStatus
from orchestrator.monitor.trial_status import Progress, Stage, TrialStatus, stage_at_rest
from orchestrator.records import State, TrialRecord
from orchestrator.results import store
from orchestrator.storage import leases
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Holder, trial_resource
from orchestrator.study import stored_studies
from orchestrator.study.stored_studies import StoredStudy

_Found = TypeVar("_Found")


class Follower:
    """Reads the status of a study again and again, and only the files that have changed."""

    def __init__(self, storage: Storage, study: StoredStudy) -> None:
        self.study = study
        self._storage = storage
        self._ids = [member.trial_id for member in study.members]
        self._stamps: dict[str, tuple[float, int]] = {}
        self._rows: dict[str, TrialRecord] = {}
        self._progress: dict[str, Progress] = {}
        self._dead: set[tuple[str, float]] = set()  # claims of launches that are gone
        self._most = 0  # the largest number of trials that ran at the same time

    def read_status(self) -> StudyStatus:
        """The status of the study now. Raises StorageError if the storage cannot be read."""
        # Leases are read before rows: a trial that ends in between has its row by then.
        held = leases.list_holders(self._storage, self._dead)
        for row in self._read(store.read_trials, self._changed(self._storage.trial_rows, self._ids)):
            self._rows[row.trial_id] = row
        unfinished = [trial_id for trial_id in self._ids if not self._is_finished(trial_id)]
        grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for epoch in self._read(store.read_epochs, self._changed(self._storage.epoch_rows, unfinished)):
            grouped[epoch["trial_id"]].append(epoch)
        for trial_id, epochs in grouped.items():
            self._progress[trial_id] = _progress(epochs)
        return self._status(held)

    def _is_finished(self, trial_id: str) -> bool:
        row = self._rows.get(trial_id)
        return row is not None and row.state is State.FINISHED

    def _changed(self, folder: str, trial_ids: Collection[str]) -> list[str]:
        """The trials whose file in a folder is new or has changed since the last call."""
        expected, found = set(trial_ids), []
        for entry in self._storage.backend.list_files(folder):
            trial_id = PurePosixPath(entry.name).stem
            stamp = entry.modified, entry.size
            if (
                trial_id in expected
                and entry.name == f"{folder}/{trial_id}.parquet"
                and self._stamps.get(entry.name) != stamp
            ):
                self._stamps[entry.name] = stamp
                found.append(trial_id)
        return found

    def _read(self, read: Callable[[Storage, Collection[str]], list[_Found]], trial_ids: list[str]) -> list[_Found]:
        """The rows of these trials; a damaged file does not hide those of other trials."""
        try:
            return read(self._storage, trial_ids) if trial_ids else []
        except StorageError:
            found: list[_Found] = []
            for trial_id in trial_ids:
                try:
                    found += read(self._storage, [trial_id])
                except StorageError:  # the next call tries it again
                    for folder in (self._storage.trial_rows, self._storage.epoch_rows):
                        self._stamps.pop(f"{folder}/{trial_id}.parquet", None)
            return found

    def _status(self, held: Mapping[str, Holder]) -> StudyStatus:
        launched = self.study.launched
        status = StudyStatus(self.study.name, launched.executor, self.study.members, launched.since)
        status.host = launched.host
        status.is_running = launched.resource in held
        for trial in status.trials.values():
            trial.stage = Stage.QUEUED  # a row that was there before the launch may have been lost since
            self._update(trial, held.get(trial_resource(trial.member.trial_id)), is_running=status.is_running)
        if status.is_running:
            status.leave_out(launched.left)
        else:
            status.ended = self._ended()
        status.queue(status.trials.values())
        running = len(status.in_stage(Stage.RUNNING))
        self._most = max(self._most, running, _most_at_once(self._rows_since(launched.since)))
        status.note_running(self._most)
        return status

    def _update(self, trial: TrialStatus, holder: Holder | None, *, is_running: bool) -> None:
        """Brings one trial up to date, by its row, its epochs and the holder of its lease."""
        row, progress = self._rows.get(trial.member.trial_id), self._progress.get(trial.member.trial_id)
        if row and row.state is State.FINISHED:
            trial.take_row(row, Stage.FINISHED)
            return
        if holder:
            trial.start(TrialStarted(holder.host, holder.pid, (row and row.device) or "", 1, None, None))
        if progress:
            trial.progress = progress
        if row and not holder:
            trial.take_row(row, self._stage(row, is_running=is_running))

    def _stage(self, row: TrialRecord, *, is_running: bool) -> Stage:
        """The stage of a trial that is not finished and that no launch is training."""
        if is_running and row.state is State.RUNNING and row.error:
            return Stage.RETRYING  # see `controller.TrialController`
        is_of_this_launch = row.end_time is not None and row.end_time >= self.study.launched.since
        if not is_running or (is_of_this_launch and row.state is not State.STOPPED):
            return stage_at_rest(row.state)
        return Stage.QUEUED  # the launch will try it again

    def _rows_since(self, since: datetime) -> list[TrialRecord]:
        return [row for row in self._rows.values() if row.end_time and row.end_time >= since]

    def _ended(self) -> datetime | None:
        """When the last trial of the launch ended; the storage does not record when a launch itself ends."""
        ends = [row.end_time for row in self._rows_since(self.study.launched.since) if row.end_time]
        return max(ends, default=None)


def follow(follower: Follower, storage: Storage) -> Iterator[StudyStatus]:
    """Yields the status of a study, read again for each item, until no launch of the study is running.

    A later launch of the same study is followed, too. Raises StorageError if the storage cannot be read.
    """
    while True:
        status = follower.read_status()
        study = follower.study if status.is_running else stored_studies.find(storage, follower.study.name)
        if study.launched.resource == follower.study.launched.resource:
            yield status
            if not status.is_running:
                return
        else:
            follower = Follower(storage, study)


def _progress(epochs: Sequence[Mapping[str, Any]]) -> Progress:
    found = Progress()
    for epoch in epochs:
        found = found.after(epoch["epoch"], epoch["test_acc"], epoch["seconds"], epoch["images_per_second"])
    return found


def _most_at_once(rows: Sequence[TrialRecord]) -> int:
    """The largest number of these trials that ran at the same time."""
    rows = [row for row in rows if not row.resumed]  # the others started in an earlier launch
    turns = [(row.start_time, 1) for row in rows] + [(row.end_time or row.start_time, -1) for row in rows]
    most = now = 0
    for _, step in sorted(turns):
        now += step
        most = max(most, now)
    return most
