"""Where a study stands, from its storage alone: for who watches a launch of another machine, or one that has ended."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, TypeVar

from orchestrator.errors import StorageError
from orchestrator.monitor.study_status import Stage, StudyStatus, TrialStatus
from orchestrator.records import State, TrialRecord
from orchestrator.results import store
from orchestrator.storage import leases
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Holder, trial_resource
from orchestrator.study.stored_studies import StoredStudy

_Found = TypeVar("_Found")
_AT_REST = {State.FAILED: Stage.FAILED, State.SKIPPED: Stage.SKIPPED, State.STOPPED: Stage.STOPPED}


@dataclass(frozen=True, slots=True)
class _Epochs:
    """What the epochs of a trial say: the last one, the best accuracy, how many there are, and their seconds."""

    last: Mapping[str, Any]
    acc: float
    count: int
    seconds: float


class Follower:
    """Looks at a study again and again, and reads what changed alone."""

    def __init__(self, storage: Storage, study: StoredStudy) -> None:
        self.study = study
        self._storage = storage
        self._ids = [member.trial_id for member in study.members]
        self._stamps: dict[str, tuple[float, int]] = {}
        self._rows: dict[str, TrialRecord] = {}
        self._epochs: dict[str, _Epochs] = {}
        self._dead: set[tuple[str, float]] = set()  # claims of launches that are gone
        self._most = 0

    def look(self) -> StudyStatus:
        """Where the study stands now. Raises StorageError where the storage cannot be read."""
        held = leases.held(self._storage, self._dead)  # before the rows: who ends meanwhile has its row by then
        for row in self._read(store.read_trials, self._changed(self._storage.trial_rows, self._ids)):
            self._rows[row.trial_id] = row
        alive = [trial_id for trial_id in self._ids if not self._is_finished(trial_id)]
        grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for epoch in self._read(store.read_epochs, self._changed(self._storage.epoch_rows, alive)):
            grouped[epoch["trial_id"]].append(epoch)
        for trial_id, epochs in grouped.items():
            acc, seconds = max(epoch["test_acc"] for epoch in epochs), sum(epoch["seconds"] for epoch in epochs)
            self._epochs[trial_id] = _Epochs(epochs[-1], acc, len(epochs), seconds)
        return self._board(held)

    def _is_finished(self, trial_id: str) -> bool:
        row = self._rows.get(trial_id)
        return row is not None and row.state is State.FINISHED

    def _changed(self, folder: str, trial_ids: Collection[str]) -> list[str]:
        """The trials of which a file is not as it was at the last look."""
        wanted, found = set(trial_ids), []
        for entry in self._storage.backend.list_files(folder):
            trial_id = PurePosixPath(entry.name).stem
            stamp = entry.modified, entry.size
            if (
                trial_id in wanted
                and entry.name == f"{folder}/{trial_id}.parquet"
                and self._stamps.get(entry.name) != stamp
            ):
                self._stamps[entry.name] = stamp
                found.append(trial_id)
        return found

    def _read(self, read: Callable[[Storage, Collection[str]], list[_Found]], trial_ids: list[str]) -> list[_Found]:
        """What there is of these trials; one damaged file does not hide the others."""
        try:
            return read(self._storage, trial_ids) if trial_ids else []
        except StorageError:
            found: list[_Found] = []
            for trial_id in trial_ids:
                try:
                    found += read(self._storage, [trial_id])
                except StorageError:  # the next look tries it again
                    for folder in (self._storage.trial_rows, self._storage.epoch_rows):
                        self._stamps.pop(f"{folder}/{trial_id}.parquet", None)
            return found

    def _board(self, held: Mapping[str, Holder]) -> StudyStatus:
        launched = self.study.launched
        board = StudyStatus(self.study.name, launched.executor, self.study.members, launched.since)
        board.host = launched.host
        board.is_running = launched.resource in held
        for standing in board.trials.values():  # teachers come first, so that students know how theirs stand
            self._put(board, standing, held.get(trial_resource(standing.member.trial_id)))
        if board.is_running:
            board.leave(launched.left)
        for standing in board.at(Stage.QUEUED, Stage.WAITING):
            board.await_turn(standing)
        board.ended = None if board.is_running else self._ended()
        self._most = max(self._most, len(board.at(Stage.RUNNING)), _overlap(self._done(launched.since)))
        board.see_running(self._most)
        return board

    def _put(self, board: StudyStatus, standing: TrialStatus, holder: Holder | None) -> None:
        row, epochs = self._rows.get(standing.member.trial_id), self._epochs.get(standing.member.trial_id)
        standing.stage = Stage.QUEUED  # what was finished before the launch may have been lost since
        if row and row.state is State.FINISHED:
            _finish(board, standing, row)
            return
        if epochs:
            standing.epoch, standing.acc, standing.last = epochs.last["epoch"], epochs.acc, epochs.last["test_acc"]
            standing.speed = epochs.last["images_per_second"]
            standing.measured, standing.seconds = epochs.count, epochs.seconds
        if holder:
            standing.stage, standing.host = Stage.RUNNING, holder.host
            standing.device = row.device if row else None
        elif row:
            board.put(standing, row, self._stage(board, row))

    def _stage(self, board: StudyStatus, row: TrialRecord) -> Stage:
        """Where a trial stands that nobody trains, and that is not finished."""
        if board.is_running and row.state is State.RUNNING and row.error:
            return Stage.RETRYING  # see `inline_executor.TrialController`
        is_of_now = row.end_time is not None and row.end_time >= self.study.launched.since
        if not board.is_running or (is_of_now and row.state is not State.STOPPED):
            return _AT_REST.get(row.state, Stage.LOST)
        return Stage.QUEUED  # the launch will try it again

    def _done(self, since: datetime) -> list[TrialRecord]:
        return [row for row in self._rows.values() if row.end_time and row.end_time >= since]

    def _ended(self) -> datetime | None:
        """When the last trial of the launch ended: launches themselves leave no trace."""
        return max((row.end_time for row in self._done(self.study.launched.since) if row.end_time), default=None)


def _finish(board: StudyStatus, standing: TrialStatus, row: TrialRecord) -> None:
    board.put(standing, row, Stage.FINISHED)
    if row.seconds and standing.member.epochs:
        standing.measured, standing.seconds = standing.member.epochs, row.seconds
        if row.end_time and not row.resumed:
            standing.over = max(0.0, (row.end_time - row.start_time).total_seconds() - row.seconds)


def _overlap(rows: Sequence[TrialRecord]) -> int:
    """How many of them ran at a time."""
    rows = [row for row in rows if not row.resumed]  # the others began in an earlier launch
    turns = [(row.start_time, 1) for row in rows] + [(row.end_time or row.start_time, -1) for row in rows]
    most = now = 0
    for _, step in sorted(turns):
        now += step
        most = max(most, now)
    return most
