"""The metrics of a launch: a literal table of them, and a meter that computes their values from the launch's events."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from orchestrator.monitor.eta import estimate
from orchestrator.monitor.events import Event, TrialStarted
from orchestrator.monitor.study_status import StudyStatus
from orchestrator.monitor.trial_status import Stage
from orchestrator.records import EpochRecord
from orchestrator.study.plan import PlannedTrial

PREFIX = "ray_"  # Ray puts it before every name

# A series that is no longer updated stays for three of Ray's reports, 30 s in a cluster that kdctl did not start. For
# at least that long `kdctl_trial_running` is 0 for a trial that has ended.
_END_PERIOD = timedelta(seconds=60)

_STUDY = ("study",)
_TRIAL = ("study", "trial_id", "trial", "method", "dataset", "student", "teacher", "seed")


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of Prometheus: gauge or counter, its unit, its labels, and what it means."""

    kind: str
    unit: str
    labels: tuple[str, ...]
    meaning: str


METRICS: Mapping[str, Metric] = {
    "kdctl_trials": Metric("gauge", "trials", (*_STUDY, "state"), "number of trials of the study in each state"),
    "kdctl_remaining_seconds": Metric(
        "gauge", "seconds", (*_STUDY, "bound"),
        "time until the launch ends: at least (`low`) and at most about (`high`); absent if unknown",
    ),
    "kdctl_table_hits_total": Metric("counter", "trials", _STUDY, "students that found their teacher's table"),
    "kdctl_table_misses_total": Metric(
        "counter", "trials", _STUDY, "students that had to build their teacher's table"
    ),
    "kdctl_trial_running": Metric(
        "gauge", "0 or 1", _TRIAL, "1 while the trial is being trained, 0 for a minute after it, then absent"
    ),
    "kdctl_epoch": Metric("gauge", "epochs", _TRIAL, "epochs that the trial has completed"),
    "kdctl_epochs": Metric("gauge", "epochs", _TRIAL, "epochs of the trial in total"),
    "kdctl_epoch_duration_seconds": Metric("gauge", "seconds", _TRIAL, "the last epoch, training and evaluation"),
    "kdctl_test_accuracy_percent": Metric("gauge", "percent", _TRIAL, "test accuracy after the last epoch"),
    "kdctl_train_loss": Metric("gauge", "loss", _TRIAL, "mean training loss over the images of the last epoch"),
    "kdctl_images_per_second": Metric("gauge", "images/s", _TRIAL, "training speed in the last epoch"),
    "kdctl_gpu_memory_bytes": Metric(
        "gauge", "bytes", _TRIAL,
        "GPU memory that PyTorch has reserved in the trial's process; absent without a GPU",
    ),
}  # fmt: skip


class Sample(NamedTuple):
    """A value of a metric."""

    name: str
    labels: dict[str, str]
    value: float


def label(text: str) -> str:
    """A label's value in ASCII, as Ray requires: `←` becomes `<-`, ` ·` becomes `,`, other characters their escape."""
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
    """The values of all metrics except GPU memory, from the events of a launch.

    Only running trials have their own series, so that a study of thousands of trials does not have thousands of series.
    """

    def __init__(self, launch_event: Event) -> None:
        self._status = StudyStatus.of_launch(launch_event)
        self._running: dict[str, _Running] = {}
        self._ended: dict[str, tuple[dict[str, str], datetime]] = {}
        self._hits: Counter[bool] = Counter()  # whether a table existed → how often

    def apply(self, event: Event) -> None:
        """Applies an event of the launch."""
        self._status.apply(event)
        facts, trial = event.facts, event.trial
        if trial and isinstance(facts, TrialStarted):
            if facts.is_hit is not None:
                self._hits[facts.is_hit] += 1
            self._running[trial.trial_id] = _Running(labels_of(self._status.study, trial), None)
            self._ended.pop(trial.trial_id, None)
        elif trial and isinstance(facts, EpochRecord) and trial.trial_id in self._running:
            self._running[trial.trial_id] = self._running[trial.trial_id]._replace(last=facts)
        for trial_id in list(self._running):  # the end of a launch ends them all
            if self._status.trials[trial_id].stage is not Stage.RUNNING:
                self._ended[trial_id] = self._running.pop(trial_id).labels, event.time

    def counters(self) -> list[Sample]:
        """The counters since the start of the launch."""
        own = {"study": label(self._status.study)}
        return [
            Sample("kdctl_table_hits_total", own, self._hits[True]),
            Sample("kdctl_table_misses_total", own, self._hits[False]),
        ]

    def gauges(self, now: datetime) -> list[Sample]:
        """All gauges at this moment (UTC)."""
        self._ended = {key: (labels, end) for key, (labels, end) in self._ended.items() if now - end < _END_PERIOD}
        found = [*self._of_study(now)]
        for trial_id, running in self._running.items():
            found += self._of_trial(trial_id, running)
        found += (Sample("kdctl_trial_running", labels, 0) for labels, _ in self._ended.values())
        return [sample for sample in found if math.isfinite(sample.value)]

    def _of_study(self, now: datetime) -> Iterator[Sample]:
        own = {"study": label(self._status.study)}
        counts = self._status.counts()
        for stage in Stage:
            yield Sample("kdctl_trials", {**own, "state": str(stage)}, counts.get(stage, 0))
        eta = estimate(self._status, now)
        if eta is None:
            return
        if eta.low or eta.high is not None:
            yield Sample("kdctl_remaining_seconds", {**own, "bound": "low"}, eta.low)
        if eta.high is not None:
            yield Sample("kdctl_remaining_seconds", {**own, "bound": "high"}, eta.high)

    def _of_trial(self, trial_id: str, running: _Running) -> Iterator[Sample]:
        trial, last = self._status.trials[trial_id], running.last
        yield Sample("kdctl_trial_running", running.labels, 1)
        yield Sample("kdctl_epoch", running.labels, trial.progress.epoch)
        yield Sample("kdctl_epochs", running.labels, trial.member.epochs)
        if last:
            yield Sample("kdctl_epoch_duration_seconds", running.labels, last.seconds)
            yield Sample("kdctl_test_accuracy_percent", running.labels, last.test_acc)
            yield Sample("kdctl_train_loss", running.labels, last.train_loss)
            yield Sample("kdctl_images_per_second", running.labels, last.images_per_second)
