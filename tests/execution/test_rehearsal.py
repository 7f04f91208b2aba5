"""What `kdctl check` finds in a user's own loss before any training."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import KdctlError
from orchestrator.execution import rehearsal
from orchestrator.study.plan import make_plan
from orchestrator.study.reader import load_study

HEAD = "def f(student, labels, teacher, progress):\n    "
GOOD = "(student.logits - teacher.logits).square().mean()"
STATE = """
class f:
    def __init__(self): self.count = 0
    def __call__(self, student, labels, teacher, progress):
        self.count += 1
        return self.count * (student.logits - teacher.logits).square().mean()
"""
BUFFER = """
import torch
class f(torch.nn.Module):
    def __init__(self, student, teacher):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.scale = torch.nn.Parameter(torch.ones(student.classes))
    def forward(self, student, labels, teacher, progress):
        self.count += 1
        return self.count * (self.scale * student.logits - teacher.logits).square().mean()
"""

MAPS = f"needs = ('maps',)\n{HEAD}return (student.maps[1] - teacher.maps[1]).square().mean()"
DETACHED = f"{HEAD}return (student.logits.detach() - teacher.logits).square().mean()"
ROUGH = f"{HEAD}return {GOOD} * (1 + (teacher.logits * 2**14 % 1).sum())"


def rehearse(folder: Path, text: str) -> None:
    (folder / "own.py").write_text(text)
    path = folder / "s.yaml"
    path.write_text(
        "study: s\nexperiments:\n- method: ./own.py:f\n  dataset: digits\n  student: resnet_32_8\n"
        "  teacher: resnet_32_8\n"
    )
    rehearsal.rehearse(make_plan(load_study(path)).trials[-1].config)


@pytest.mark.parametrize("text", [f"{HEAD}return {GOOD}", BUFFER, MAPS])
def test_a_good_loss_passes(tmp_path: Path, text: str) -> None:
    rehearse(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEAD}return student.logit", r"own.py, line 2, in f \(`return student.logit`\): AttributeError"),
        (f"{HEAD}return (student.maps[1] - teacher.maps[1]).mean()", "teacher.maps is not available; a loss gets"),
        (f"{HEAD}return {GOOD} * float('nan')", "own:f: its total is nan for random images; expected a finite number"),
        (DETACHED, "has no gradient with respect to the student, which would learn from the labels"),
        (
            f"{HEAD}student.logits.add_(1)\n    return {GOOD}",
            "own:f: it changes the student's outputs in place; work",
        ),
        (
            STATE,
            "own:f: after a checkpoint it continues with other numbers: it draws random numbers, as dropout does,",
        ),
        (f"import torch\n{HEAD}return {GOOD} * torch.rand(())", "own:f: after a checkpoint it continues with other"),
        (ROUGH, "own:f: its total is .* with a live teacher, and .* with the float16 outputs of a table"),
    ],
)
def test_a_mistake_is_found_before_training(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(KdctlError, match=message):
        rehearse(tmp_path, text)


def test_a_loss_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "_LIMIT", 1)
    with pytest.raises(KdctlError, match=r"own.py, line 2, in f .*TimeoutError: .* longer than 1 seconds"):
        rehearse(tmp_path, f"{HEAD}while True: pass")


NET = """
from torch import nn
def build(num_classes):
    stem = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*stem, nn.Linear(8, num_classes))
"""


def rehearse_net(folder: Path, method: str, text: str = NET) -> None:
    (folder / "net.py").write_text(text)
    path = folder / "s.yaml"
    teacher = "" if method == "base" else "\n  teacher: resnet_32_8"
    path.write_text(
        f"study: s\nexperiments:\n- method: {method}\n  dataset: digits\n  student: ./net.py:build{teacher}\n"
    )
    rehearsal.rehearse(make_plan(load_study(path)).trials[-1].config)


@pytest.mark.parametrize("method", ["base", "dkd", "rkd", "cc"])
def test_a_model_of_the_user_passes(tmp_path: Path, method: str) -> None:
    rehearse_net(tmp_path, method)


@pytest.mark.parametrize(
    ("method", "text", "message"),
    [
        ("at", NET, "method at compares feature maps, and net:build gives none; give it a method `embed`"),
        ("{logit: {match: pooled}}", NET, "resnet_32_8 cannot teach net:build: match: pooled compares"),
        ("base", NET.replace("nn.ReLU()", "nn.Dropout()"), "net:build: after a checkpoint|base: after a checkpoint"),
    ],
)
def test_a_model_that_does_not_fit_is_explained(tmp_path: Path, method: str, text: str, message: str) -> None:
    with pytest.raises(KdctlError, match=message):
        rehearse_net(tmp_path, method, text)
