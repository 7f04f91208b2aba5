"""What a launch remembers with nothing to train, and what it says of `precision: auto`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from orchestrator import launch
from orchestrator.execution.job import Job
from orchestrator.monitor.events import Event, EventKind, TrialStarted
from orchestrator.monitor.launch_events import with_precision
from orchestrator.records import State, TrialConfig
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.study import stored_studies
from orchestrator.study.plan import PlannedTrial, make_plan
from orchestrator.study.reader import load_study

STUDY = "study: s\nexperiments:\n- {method: base, dataset: digits, student: resnet_32_8, seed: [0, 1]}\n"


def test_what_auto_chose_is_said_once_a_choice(make_config: Callable[..., TrialConfig]) -> None:
    heard: list[Event] = []
    on_event = with_precision(heard.append)
    trial = PlannedTrial("0123456789ab", "student", make_config(precision="auto"), None, "new", None, None)
    begun = TrialStarted("h", 7, "cpu, 1 threads", 1, None, None, compute_dtype="bfloat16")
    for facts in (begun, begun, replace(begun, compute_dtype="float32"), replace(begun, compute_dtype=None)):
        on_event(Event(EventKind.STARTED, "", trial, facts))
    fixed = replace(trial, config=make_config(precision="float32"))
    with_precision(heard.append)(Event(EventKind.STARTED, "", fixed, begun))
    assert [event.text for event in heard if event.kind is EventKind.NOTE] == [
        "precision auto: convolutions in bfloat16 on cpu, 1 threads",
        "precision auto: convolutions in float32 on cpu, 1 threads",
    ]


def test_a_launch_with_nothing_to_train_is_remembered(tmp_path: Path) -> None:
    file, storage = tmp_path / "s.yaml", Storage.at(tmp_path / "runs")
    file.write_text(STUDY)
    storage.prepare()
    for no, trial in enumerate(make_plan(load_study(file)).trials, 1):
        row = Job(trial, no, "s", "", 1, None, None, None).row(State.FINISHED)
        storage.backend.write(storage.weights(trial.trial_id), b"weights")
        store.write_trial(storage, replace(row, weights_bytes=7))
    for settings, count in (((), 2), (("experiments[0].seed=1",), 1)):
        outcome = launch.launch(
            file, storage=tmp_path / "runs", settings=settings, inline=True, on_event=lambda event: None
        )
        found = stored_studies.find(storage, "s")
        assert outcome.is_complete and outcome.trained == 0
        assert (len(found.members), found.launched.settings, found.launched.commit) == (count, settings, None)
