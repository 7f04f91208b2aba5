"""An author's repository: her loss next to the study file, with `models/` and `losses/` packages of her own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.records import State
from orchestrator.results import store
from orchestrator.storage.layout import Storage

KDCTL = str(Path(sys.executable).with_name("kdctl"))
FILES = {
    "study.yaml": """
study: hers
recipe: {epochs: 2, limit_train: 64, limit_test: 50, batch_size: 32, crop_padding: 1, flip: false, milestones: []}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8}
  - method: ["./my_loss.py:Relations", {"./my_loss.py:Relations": {scale: [1, 3]}, st: {temperature: 2}}]
    dataset: digits
    student: resnet_32_8
    teacher: resnet_32_8
resources: {gpus_per_trial: 0}
""",
    "my_loss.py": """
import torch
from losses import weigh
from models.head import Head

class Relations(torch.nn.Module):
    needs = ("pooled", "logits")

    def __init__(self, student, teacher, scale=1.0):
        super().__init__()
        self.head = Head(student.pooled, teacher.pooled)
        self.scale = scale

    def forward(self, student, labels, teacher, progress):
        distance = (self.head(student.pooled) - teacher.pooled).square().mean()
        return weigh(self.scale * distance, progress) + teacher.logits.mean() * 0
""",
    "models/__init__.py": "assert __name__ != 'models'\n",
    "models/head.py": "from torch import nn\nclass Head(nn.Linear):\n    pass\n",
    "losses/__init__.py": "from .weights import weigh\n",
    "losses/weights.py": "def weigh(term, progress):\n    return term * progress.epoch / progress.epochs\n",
    "setup.py": "raise SystemExit('never run')\n",
}


@pytest.fixture(scope="module")
def launched(digits_storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Her repository after a check and a launch, as she types them in it."""
    place = tmp_path_factory.mktemp("hers")
    for name, text in FILES.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    shutil.copytree(Path(digits_storage.backend.address, "datasets"), place / "runs" / "datasets")
    assert "study hers is valid, 4 trials" in run(place, "check", "study.yaml")
    run(place, "launch", "study.yaml", "--inline")
    return place


def run(folder: Path, *words: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ".", prepend=os.pathsep)
        done = subprocess.run([KDCTL, *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_her_loss_trains_alone_and_with_others(launched: Path) -> None:
    rows = store.read_trials(Storage.at(launched / "runs"))
    assert {row.state for row in rows} == {State.FINISHED}
    assert sorted(row.method for row in rows) == ["base", "my_loss:Relations", *["my_loss:Relations+st"] * 2]
    assert all(row.recipe["own_code"].keys() == {"my_loss:Relations"} for row in rows if row.teacher)
    epochs = store.read_epochs(Storage.at(launched / "runs"), [row.trial_id for row in rows if row.teacher])
    assert len(epochs) == 6 and all(epoch["kd_loss"] > 0 for epoch in epochs)
    assert "my_loss:Relations" in str(json.loads(run(launched, "results", "study.yaml", "--json")))


def test_the_storage_holds_no_line_of_it(launched: Path) -> None:
    held = b"".join(file.read_bytes() for file in (launched / "runs").rglob("*") if file.is_file())
    assert b"my_loss:Relations" in held
    code = "\n".join(text for name, text in FILES.items() if name != "study.yaml")
    assert not [line for line in code.splitlines() if len(line) > 20 and line.strip().encode() in held]


def test_only_training_and_check_run_it(launched: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(launched, tmp_path / "hers"))
    for name in ("my_loss.py", "models/head.py", "losses/__init__.py"):
        (place / name).write_text(f"raise SystemExit(77)\n{FILES[name]}")
    assert "4 trials of study hers: 3 new, 1 finished" in run(place, "plan", "study.yaml")
    run(place, "report", "hers")
    for name in ("my_loss.py", "study.yaml"):
        (place / name).unlink()
    assert "my_loss:Relations" in run(place, "results", "hers")
