"""The metrics of a launch: a literal table of them, and a meter that knows their values from the launch's events."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from orchestrator.monitor.events import Event, TrialStarted
from orchestrator.monitor.study_status import Stage, StudyStatus
from orchestrator.records import EpochRecord
from orchestrator.study.plan import PlannedTrial

PREFIX = "ray_"  # what Ray puts before every name

# A series that is not told again stays for three reports of Ray's, 30 s in a cluster that is not kdctl's own. As long
# as that, `kdctl_trial_running` says of a trial that ended that it does not run.
_FAREWELL = timedelta(seconds=60)

_STUDY = ("study",)
_TRIAL = ("study", "trial_id", "trial", "method", "dataset", "student", "teacher", "seed")


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as Prometheus knows it: gauge or counter, what it counts, its labels, and what it means."""

    kind: str
    unit: str
    labels: tuple[str, ...]
    meaning: str


METRICS: Mapping[str, Metric] = {
    "kdctl_trials": Metric("gauge", "trials", (*_STUDY, "state"), "trials of the study in each state, the whole study"),
    "kdctl_remaining_seconds": Metric(
        "gauge", "seconds", (*_STUDY, "bound"),
        "until the launch ends: at least (`low`) and at most about (`high`); absent where nobody can say",
    ),
    "kdctl_table_hits_total": Metric("counter", "trials", _STUDY, "starts of students whose teacher's table was there"),
    "kdctl_table_misses_total": Metric(
        "counter", "trials", _STUDY, "starts of students whose teacher's table had to be built"
    ),
    "kdctl_trial_running": Metric(
        "gauge", "0 or 1", _TRIAL, "1 while the trial is trained, 0 for a minute after that, then absent"
    ),
    "kdctl_epoch": Metric("gauge", "epochs", _TRIAL, "epochs that the trial has ended"),
    "kdctl_epochs": Metric("gauge", "epochs", _TRIAL, "epochs that the trial has in all"),
    "kdctl_epoch_duration_seconds": Metric("gauge", "seconds", _TRIAL, "the last epoch, training and evaluation"),
    "kdctl_test_accuracy_percent": Metric("gauge", "percent", _TRIAL, "accuracy on the test images after that epoch"),
    "kdctl_train_loss": Metric("gauge", "loss", _TRIAL, "mean loss over the images of that epoch"),
    "kdctl_images_per_second": Metric("gauge", "images/s", _TRIAL, "speed of training in that epoch"),
    "kdctl_gpu_memory_bytes": Metric(
        "gauge", "bytes", _TRIAL,
        "what PyTorch holds of the GPU in the trial's process, told by that process; absent without a GPU",
    ),
}  # fmt: skip


class Sample(NamedTuple):
    """A value of a metric."""

    name: str
    labels: dict[str, str]
    value: float


def label(text: str) -> str:
    """A label's value as Ray takes it, which knows ASCII alone: `←` is `<-`, ` ·` is `,`, all else its escape."""
    return text.replace("←", "<-").replace(" ·", ",").encode("ascii", "backslashreplace").decode("ascii")


def labels_of(study: str, trial: PlannedTrial) -> dict[str, str]:
    """The labels of the metrics of one trial."""
    config = trial.config
    values = (
        study, trial.trial_id, trial.title(), config.method, config.dataset, config.student,
        config.teacher.student if config.teacher else "", str(config.seed),
    )  # fmt: skip
    return dict(zip(_TRIAL, map(label, values), strict=True))


class _Running(NamedTuple):
    labels: dict[str, str]
    last: EpochRecord | None


class Meter:
    """The values of every metric but the GPU's memory, from the events of a launch.

    Only what runs has series of its own, so that a study of thousands of trials does not have thousands of them.
    """

    def __init__(self, began: Event) -> None:
        self._board = StudyStatus.launched(began)
        self._running: dict[str, _Running] = {}
        self._ended: dict[str, tuple[dict[str, str], datetime]] = {}
        self._asked: Counter[bool] = Counter()  # whether a table was there → how often

    def take(self, event: Event) -> None:
        """Takes note of what happened."""
        self._board.take(event)
        facts, trial = event.facts, event.trial
        if trial and isinstance(facts, TrialStarted):
            if facts.is_hit is not None:
                self._asked[facts.is_hit] += 1
            self._running[trial.trial_id] = _Running(labels_of(self._board.study, trial), None)
            self._ended.pop(trial.trial_id, None)
        elif trial and isinstance(facts, EpochRecord) and trial.trial_id in self._running:
            self._running[trial.trial_id] = self._running[trial.trial_id]._replace(last=facts)
        for trial_id in list(self._running):  # the end of a launch ends them all
            if self._board.trials[trial_id].stage is not Stage.RUNNING:
                self._ended[trial_id] = self._running.pop(trial_id).labels, event.time

    def counters(self) -> list[Sample]:
        """The counters, since the launch began."""
        own = {"study": label(self._board.study)}
        return [
            Sample("kdctl_table_hits_total", own, self._asked[True]),
            Sample("kdctl_table_misses_total", own, self._asked[False]),
        ]

    def gauges(self, now: datetime) -> list[Sample]:
        """The gauges at this moment (UTC): every series that there is."""
        self._ended = {key: one for key, one in self._ended.items() if now - one[1] < _FAREWELL}
        found = [*self._of_study(now)]
        for trial_id, running in self._running.items():
            found += self._of_trial(trial_id, running)
        found += (Sample("kdctl_trial_running", labels, 0) for labels, _ in self._ended.values())
        return [sample for sample in found if math.isfinite(sample.value)]

    def _of_study(self, now: datetime) -> Iterator[Sample]:
        own = {"study": label(self._board.study)}
        counts = self._board.counts()
        for stage in Stage:
            yield Sample("kdctl_trials", {**own, "state": str(stage)}, counts.get(stage, 0))
        eta = self._board.eta(now)
        if eta is None:
            return
        if eta.low or eta.high is not None:
            yield Sample("kdctl_remaining_seconds", {**own, "bound": "low"}, eta.low)
        if eta.high is not None:
            yield Sample("kdctl_remaining_seconds", {**own, "bound": "high"}, eta.high)

    def _of_trial(self, trial_id: str, running: _Running) -> Iterator[Sample]:
        standing, last = self._board.trials[trial_id], running.last
        yield Sample("kdctl_trial_running", running.labels, 1)
        yield Sample("kdctl_epoch", running.labels, standing.epoch)
        yield Sample("kdctl_epochs", running.labels, standing.member.epochs)
        if last:
            yield Sample("kdctl_epoch_duration_seconds", running.labels, last.seconds)
            yield Sample("kdctl_test_accuracy_percent", running.labels, last.test_acc)
            yield Sample("kdctl_train_loss", running.labels, last.train_loss)
            yield Sample("kdctl_images_per_second", running.labels, last.images_per_second)
