"""A short campaign of faults; the long one is `make chaos`, and its outcome is in docs/reliability.md."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from chaos import KINDS, STUDY, Campaign, Tally, numbers, table

from orchestrator.results import store
from orchestrator.storage.layout import Storage

pytestmark = [
    pytest.mark.timeout(290),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc"),
]
SHORT = STUDY.replace("epochs: 12", "epochs: 8").replace("limit_train: 600", "limit_train: 200")


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """A campaign against a small study, the same one in every run of the tests."""
    return Campaign(tmp_path_factory.mktemp("chaos"), seed=1, study=SHORT)


def can_mount(folder: Path) -> bool:
    """Whether this user may mount a small disk."""
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        return False
    return subprocess.run(["umount", str(folder)], check=False).returncode == 0


@pytest.mark.parametrize(
    ("kind", "faults"),
    [("inline launcher KILL", 2), ("cut checkpoint", 2), ("full disk", 1), ("all KILL", 1)],
)
def test_faults_cost_nothing(kind: str, faults: int, campaign: Campaign, tmp_path: Path) -> None:
    if kind == "full disk" and not can_mount(tmp_path):
        pytest.skip("only root may mount a small disk to fill")
    tally = campaign.run(kind, faults)
    assert tally.injected >= faults and tally.studies
    assert tally.is_clean, table(campaign.tallies)


def test_a_difference_is_found(campaign: Campaign) -> None:
    storage = Storage.at(campaign.folder / "undisturbed")
    (row, *_) = store.read_trials(storage)
    before = numbers(storage.backend.address)
    epochs = [epoch for epoch in store.read_epochs(storage) if epoch["trial_id"] == row.trial_id]
    assert f"{row.trial_id} epoch {len(epochs)} test_acc" in before
    storage.backend.delete(storage.trial_epochs(row.trial_id))
    assert len(before.keys() - numbers(storage.backend.address).keys()) > 5 * len(epochs)


def test_the_table_adds_up() -> None:
    lost = Tally(injected=2, resumed=1, trials_lost=1)
    assert not lost.is_clean and Tally(injected=2, resumed=2, studies=1).is_clean
    text = table({"a": lost, "b": Tally(injected=3)})
    assert text.splitlines()[-1] == "| **all** | 5 | 1 | 0 | 1 | 0 | 0 | 0 | 0 | 0 | 0 |"
    assert len(KINDS) == len(set(KINDS)) == 16
