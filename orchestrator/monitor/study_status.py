"""The status of a study: what runs, what waits for what, and what failed. The events of a launch keep it up to date."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from datetime import UTC, datetime

from orchestrator.monitor.events import Event, EventKind, LaunchStarted, LaunchTotals, TrialStarted
from orchestrator.monitor.trial_status import FINAL, Stage, TrialStatus, stage_at_rest
from orchestrator.records import EpochRecord, TrialRecord
from orchestrator.study.short_names import short_ids
from orchestrator.study.stored_studies import Member


class StudyStatus:
    """A study and the status of each of its trials, in the order of the plan."""

    def __init__(self, study: str, executor: str, members: Iterable[Member], since: datetime) -> None:
        self.study = study
        self.executor = executor
        self.since = since  # when the launch started
        self.ended: datetime | None = None  # when it ended; None while it runs
        self.is_running = True
        self.host: str | None = None  # the machine of the launch, if known
        self.preparing: str | None = None  # what the launch is doing before its first trial
        self.most_running = 0  # the largest number of trials that ran at the same time
        self.trials: dict[str, TrialStatus] = {}
        self._students: dict[str, list[TrialStatus]] = defaultdict(list)
        for no, member in enumerate(members, 1):
            trial = TrialStatus(no, member, Stage.FINISHED if member.is_cached else Stage.QUEUED)
            self.trials[member.trial_id] = trial
            for awaited in member.waits_for:
                self._students[awaited].append(trial)
        self.short_ids = short_ids(self.trials)  # unique within the study
        self.queue(self.trials.values())

    @classmethod
    def of_launch(cls, event: Event) -> StudyStatus:
        """The status of a launch that starts with this event."""
        assert isinstance(event.facts, LaunchStarted), "the first event of a launch"
        status = cls(event.facts.study, event.facts.executor, event.facts.members, event.time)
        status.leave_out(event.facts.left)
        return status

    # Changes.

    def apply(self, event: Event) -> None:
        """Applies an event of the launch. Events about trials of other studies change nothing."""
        self.preparing = self._preparing(event)
        if event.kind is EventKind.END:
            self.is_running, self.ended = False, event.time
            if isinstance(event.facts, LaunchTotals):
                self._stop_all()
        trial = self.trials.get(event.trial.trial_id) if event.trial else None
        if trial:
            trial.log_name = event.log_name or trial.log_name
            self._apply_to_trial(trial, event)

    def _preparing(self, event: Event) -> str | None:
        if event.kind is EventKind.PREPARING:
            return event.text
        return self.preparing if event.trial is None and event.kind is not EventKind.END else None

    def _apply_to_trial(self, trial: TrialStatus, event: Event) -> None:
        facts = event.facts
        if isinstance(facts, TrialStarted):
            trial.start(facts, event.time)
            self.note_running()
        elif isinstance(facts, EpochRecord):
            progress = trial.progress.after(facts.epoch, facts.test_acc, facts.seconds, facts.images_per_second)
            trial.advance(progress, event.time)
            self.note_running()
        elif isinstance(facts, TrialRecord):
            trial.take_row(facts, stage_at_rest(facts.state), event.time)
            self.queue(self._students.get(facts.trial_id, ()))
        elif event.kind in (EventKind.RETRY, EventKind.ELSEWHERE):
            stage = Stage.RETRYING if event.kind is EventKind.RETRY else Stage.ELSEWHERE
            trial.wait(stage, event.text, event.time)

    def _stop_all(self) -> None:
        for trial in self.in_stage(Stage.RUNNING, Stage.RETRYING):
            trial.stage = Stage.STOPPED

    def queue(self, trials: Iterable[TrialStatus]) -> None:
        """Decides for each of these trials that has not started whether it waits for its teacher or is queued."""
        for trial in trials:
            if trial.stage in (Stage.QUEUED, Stage.WAITING):
                trial.stage = Stage.WAITING if self._awaited_by(trial) else Stage.QUEUED

    def leave_out(self, trial_ids: Collection[str]) -> None:
        """Marks the trials that the launch does not try: they failed before, or depend on a trial that did."""
        left = set(trial_ids)
        for trial_id in left & self.trials.keys():
            trial = self.trials[trial_id]
            trial.stage = Stage.FAILED if left.isdisjoint(trial.member.waits_for) else Stage.SKIPPED

    def note_running(self, count: int = 0) -> None:
        """Notes that `count` trials ran at the same time, or as many as are running now."""
        self.most_running = max(self.most_running, count or len(self.in_stage(Stage.RUNNING)))

    # Queries.

    def in_stage(self, *stages: Stage) -> list[TrialStatus]:
        """The trials in these stages, in the order of the plan."""
        return [trial for trial in self.trials.values() if trial.stage in stages]

    def counts(self) -> dict[Stage, int]:
        """The number of trials in each stage, without zeros."""
        found = Counter(trial.stage for trial in self.trials.values())
        return {stage: found[stage] for stage in Stage if found[stage]}

    def students_of(self, teacher_id: str | None) -> list[TrialStatus]:
        """The trials with this teacher, or this member, in the order of the plan."""
        return self._students.get(teacher_id or "", [])

    def share_done(self) -> float:
        """The share of the study's epochs that is done, from 0 to 1; all epochs of a trial that has ended count."""
        done = total = 0
        for trial in self.trials.values():
            epochs = max(1, trial.member.epochs)
            total += epochs
            done += epochs if trial.stage in FINAL else min(trial.progress.epoch, epochs)
        return done / total if total else 1.0

    def awaited_teachers(self) -> list[tuple[TrialStatus, int]]:
        """Each teacher that trials are waiting for, with the number of these trials."""
        found = Counter(
            teacher.member.trial_id for trial in self.in_stage(Stage.WAITING) for teacher in self._awaited_by(trial)
        )
        return [(self.trials[teacher_id], count) for teacher_id, count in found.items()]

    def _awaited_by(self, trial: TrialStatus) -> list[TrialStatus]:
        """The trials that this one waits for and that are not finished."""
        known = [self.trials[awaited] for awaited in trial.member.waits_for if awaited in self.trials]
        return [teacher for teacher in known if teacher.stage is not Stage.FINISHED]

    def count_cached(self) -> int:
        """The number of trials that were finished before the launch."""
        return sum(trial.member.is_cached for trial in self.trials.values())

    def count_tables(self) -> tuple[int, int]:
        """The number of trials that found their teacher's table, and of those that had to build it."""
        hits = [trial.is_hit for trial in self.trials.values()]
        return hits.count(True), hits.count(False)

    def seconds_since_start(self, now: datetime | None = None) -> float:
        """Seconds since the launch started, until now or until its end."""
        return ((self.ended or now or datetime.now(UTC)) - self.since).total_seconds()
