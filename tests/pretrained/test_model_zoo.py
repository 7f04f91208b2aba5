"""Checkpoints of the field's model zoo: they fit the models here, and their stated accuracies are compared."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator import models
from orchestrator.errors import TeacherError
from orchestrator.execution.attempt import Job, TrialNotice, run_trial
from orchestrator.launch import plan_study
from orchestrator.pretrained.weight_files import find_stated_accuracy
from orchestrator.records import State, TrialRecord
from orchestrator.storage.layout import Storage
from orchestrator.teachers import weights

CPU = torch.device("cpu")

# SHA-256 over the sorted names and shapes of the state dicts for 100 classes, taken from RepDistiller's models.
ZOO = {
    "resnet_32_8": "99cb0c0b2ea3c613",
    "resnet_32_14": "629933907d5744ff",
    "resnet_32_20": "0386434ca6f34c26",
    "resnet_32_32": "9e5592f61f0020a8",
    "resnet_32_44": "df3dce284c7a26b4",
    "resnet_32_56": "fa692cabb2e3a217",
    "resnet_32_110": "9ca5a9542fb3a343",
    "resnet_8x4": "b2ead61a142ef3af",
    "resnet_32x4": "99154b2aea1aeb59",
    "resnet_50": "d5367c1bcc2c22ea",
    "wrn_16_1": "b4de1d786e12f08a",
    "wrn_16_2": "2266f04469bf5dd9",
    "wrn_40_1": "01abc5646d8c075c",
    "wrn_40_2": "595ec0db20d1ca1c",
    "vgg_8": "7f85b8479109415f",
    "vgg_11": "6053995f63325762",
    "vgg_13": "5778ceb5832ef6a7",
    "vgg_16": "0729229b18559f53",
    "vgg_19": "e27ccb5da4f3ad9e",
    "mobilenet_v2": "54501c9a7e317631",
    "shufflenet_v1": "1282e767b3e9c6cd",
    "shufflenet_v2": "9b7750ae03289b13",
}


@pytest.mark.parametrize("model", ZOO)
def test_names_and_shapes_are_those_of_the_zoo(model: str) -> None:
    with torch.device("meta"):
        state = models.build(model, 100).state_dict()
    text = "\n".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(state.items()))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == ZOO[model]


def checkpoint(model: str, prefix: str = "") -> dict[str, Any]:
    torch.manual_seed(0)
    state = {prefix + name: tensor for name, tensor in models.build(model, 100).state_dict().items()}
    momentum = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.05}]}
    return {"epoch": 240, "model": state, "best_acc": torch.tensor([75.61]), "optimizer": momentum}


ONE_OF_EACH = [
    *("resnet_32_20", "resnet_8x4", "wrn_16_2", "vgg_8"),
    *("resnet_50", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2"),
]


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("model", ONE_OF_EACH)
def test_a_checkpoint_of_each_family_loads(model: str, prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "ckpt_epoch_240.pth"
    content = checkpoint(model, prefix)
    torch.save(content, path)
    found = weights.load_weights(path, model, 100, CPU).state_dict()
    assert [prefix + name for name in found] == list(content["model"])
    assert all(torch.equal(found[name], content["model"][prefix + name]) for name in found)


@pytest.mark.parametrize("model", ONE_OF_EACH)
def test_a_checkpoint_fits_only_if_it_has_every_tensor_and_no_other(model: str, tmp_path: Path) -> None:
    content, path = checkpoint(model), tmp_path / "ckpt_epoch_240.pth"
    *_, weight, bias = content["model"]
    lacking = {**content, "model": {name: tensor for name, tensor in content["model"].items() if name != bias}}
    more = {**content, "model": {**content["model"], "extra.weight": torch.ones(3)}}
    reshaped = {**content, "model": {**content["model"], weight: torch.ones(100, 3)}}
    for changed, reason in (
        (lacking, f"{bias} is missing"),
        (more, "extra.weight is unknown"),
        (reshaped, f"{weight} has shape (100, 3), expected"),
    ):
        torch.save(changed, path)
        with pytest.raises(TeacherError) as caught:
            weights.load_weights(path, model, 100, CPU)
        assert f"does not fit {model} with 100 classes (compared ['model']): {reason}" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"model": {}, "accuracy": torch.tensor(75.5)}, ("accuracy", 75.5)),
        ({"best_acc": torch.tensor([76.25]), "accuracy": 75.5}, ("accuracy", 75.5)),
        ({"best_acc": torch.tensor([76.25], dtype=torch.float64)}, ("best_acc", 76.25)),
        ({"best_acc1": 0.75}, ("best_acc1", 75.0)),
        ({"best_acc": torch.ones(3), "best_acc1": float("nan")}, None),
        ({"best_acc": "75.5", "accuracy": -1}, None),
        ({"best_acc": True}, None),
        ({"fc.bias": torch.ones(3)}, None),
        ([75.5], None),
    ],
)
def test_the_accuracy_that_a_file_states(content: Any, expected: tuple[str, float] | None) -> None:
    assert find_stated_accuracy(content) == expected


STUDY = """\
study: zoo
recipe: {epochs: 1, limit_train: 128, milestones: []}
experiments:
  - {method: st, dataset: digits, student: resnet_32_8, teacher: {model: resnet_32_8, weights: t.pth}}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: Storage) -> Any:
    """Tests the weights in t.pth as a launch does; returns the notices, the row and the log."""
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(STUDY)

    def test_weights(stated: float | Tensor, *settings: str) -> tuple[list[str], TrialRecord, str]:
        torch.manual_seed(0)
        torch.save({"epoch": 240, "model": models.build("resnet_32_8", 10).state_dict(), "accuracy": stated}, "t.pth")
        trial = plan_study("study.yaml", settings=settings).trials[0]
        path = str(Path("t.pth").absolute())
        *reports, row = run_trial(Job(trial, 1, "zoo", storage.backend.address, 1, path, None, None))
        assert isinstance(row, TrialRecord) and row.state is State.FINISHED
        notices = [report.text for report in reports if isinstance(report, TrialNotice)]
        return notices, row, storage.backend.read(storage.log(trial.trial_id)).decode()

    return test_weights


def test_the_measured_accuracy_is_shown_next_to_the_stated_one(run: Any) -> None:
    notices, row, log = run(torch.tensor([93.1]))
    shown = f"these weights reach {row.acc:.2f} % on test images; their file states accuracy 93.10 %"
    assert f"warning: {shown}" in notices and shown in log
    notices, row, log = run(row.acc + 0.4)
    assert not any("states" in notice for notice in notices)
    assert f"reach {row.acc:.2f} % on test images; their file states accuracy {row.acc + 0.4:.2f} %" in log


def test_a_part_of_the_test_images_is_not_held_against_the_file(run: Any) -> None:
    notices, _, log = run(93.1, "recipe.limit_test=50")
    assert not any("states" in notice for notice in notices) and "their file states accuracy 93.10 %" in log
