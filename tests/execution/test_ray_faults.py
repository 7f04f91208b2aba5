"""A launch on Ray whose worker and whose Ray processes are killed, one after the other: no trial is lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from launches import finish_inline, kill_gcs, kill_raylet, kill_trainers, launch, make_folder

from orchestrator.records import State
from orchestrator.results import store
from orchestrator.storage.layout import Storage

pytestmark = [
    pytest.mark.timeout(290),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc"),
]

EPOCHS = 200  # so that the trial is met three times while it trains
# Columns that depend on a clock, a launch or the executor; all others must be exactly equal.
MAY_DIFFER = {"seconds", "images_per_second", "start_time", "end_time", "ray_version", "resumed", "error"}


def numbers(folder: Path) -> list[str]:
    """Every row of both tables, as text so that a NaN equals itself."""
    storage = Storage.at(folder / "runs")
    rows = [{name: getattr(row, name) for name in row.__slots__} for row in store.read_trials(storage)]
    rows += store.read_epochs(storage)
    return [repr({name: value for name, value in row.items() if name not in MAY_DIFFER}) for row in rows]


def test_a_killed_worker_a_dead_raylet_and_a_dead_gcs_cost_no_trial(
    digits_storage: Storage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = make_folder(digits_storage, tmp_path_factory.mktemp("launch"), EPOCHS)
    events = [
        (": epoch 1/", kill_trainers(folder)),
        ("resumes in epoch", kill_raylet),
        ("resumes in epoch", kill_gcs),
    ]
    launched = launch(folder, "--max-concurrent", "1", events=events)
    assert launched.code == 0, launched.stderr
    assert "its worker process was lost; retried in 5 s from its last checkpoint (1 of 2)" in launched.stderr
    assert "Ray was lost (its processes died); starting again in 1 s from the last checkpoints" in launched.stderr
    # Ray's library ends the launch with code 1, unless the launch notices the dead process first.
    assert re.search(r"Ray was lost \((its processes died|its library .*)\); starting again in 2 s", launched.stderr)
    assert launched.left == set() and launched.stdout.count("Parquet:") == 1
    rows = store.read_trials(Storage.at(folder / "runs"))
    assert [row.state for row in rows] == [State.FINISHED] * 3
    assert max(row.resumed for row in rows) >= 3

    undisturbed = make_folder(digits_storage, tmp_path_factory.mktemp("undisturbed"), EPOCHS)
    finish_inline(undisturbed)
    assert numbers(folder) == numbers(undisturbed)
