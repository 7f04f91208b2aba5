"""Weights files as people have them: what is loaded from them, and the messages about files that do not fit."""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from orchestrator import models
from orchestrator.cli import cli
from orchestrator.errors import KdctlError, StudyError, TeacherError
from orchestrator.execution.attempt import Job, TrialNotice, run_trial
from orchestrator.launch import plan_study
from orchestrator.models.base import Classifier
from orchestrator.records import State
from orchestrator.storage.layout import Storage
from orchestrator.teachers import weights

CPU = torch.device("cpu")
Saved = dict[str, Any]


def fresh(seed: int, model: str = "resnet_32_8", classes: int = 10) -> Classifier:
    torch.manual_seed(seed)
    return models.build(model, classes)


MODEL = fresh(0)
STATE: Saved = MODEL.state_dict()
OTHER: Saved = fresh(1).state_dict()
LARGE: Saved = fresh(2, "resnet_32_20", 100).state_dict()


def load(path: Path) -> Classifier:
    return weights.load_weights(path, "resnet_32_8", 10, CPU)


def prefixed(prefix: str, state: Saved = STATE) -> Saved:
    return {prefix + name: tensor for name, tensor in state.items()}


def turned(convert: Callable[[torch.Tensor], Any]) -> Saved:
    return {name: convert(tensor) if tensor.is_floating_point() else tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize("beginning", [b"\x80", b"PK", b"x"])
def test_safetensors_may_begin_like_another_format(tmp_path: Path, beginning: bytes) -> None:
    # They begin with the length of their header, in bytes: a multiple of 8.
    file = tmp_path / "weights.safetensors"
    save_file(STATE, file, {"note": ""})
    first = int.from_bytes(file.read_bytes()[:8], "little")
    more = next(size for size in range(0, 2**16, 8) if (first + size).to_bytes(8, "little").startswith(beginning))
    save_file(STATE, file, {"note": "-" * more})
    assert file.read_bytes().startswith(beginning)
    assert torch.equal(load(file).fc.weight, STATE["fc.weight"])


ACCEPTED: dict[str, Any] = {
    "with an epoch": {"model": STATE, "epoch": 240, "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}}},
    "any key": {"checkpoint": {"whatever": STATE}, "best": 93.1},
    "DataParallel": {"state_dict": prefixed("module."), "arch": "resnet"},
    "compiled": prefixed("_orig_mod."),
    "both": prefixed("module._orig_mod."),
    "both, the other way": prefixed("_orig_mod.module."),
    "compiled within": {name.replace("layer1.", "layer1._orig_mod."): tensor for name, tensor in STATE.items()},
    "Lightning": {"state_dict": {**prefixed("net."), "criterion.weight": torch.ones(3)}, "global_step": 7},
    "a state and the number of its epoch": {**STATE, "epoch": 3},
    "NumPy": {name: tensor.numpy() for name, tensor in STATE.items()},
    "NumPy by column": {name: np.array(tensor.numpy(), order="F") for name, tensor in STATE.items()},
    "NumPy, another byte order": turned(lambda tensor: tensor.numpy().astype(">f8")),
    "a NumPy scalar with it": {"net": STATE, "acc": np.float64(93.1), "mean": np.ones(3)},
    "float64": turned(torch.Tensor.double),
    "parameters": OrderedDict((name, nn.Parameter(value) if value.dim() else value) for name, value in STATE.items()),
    "by column": turned(lambda tensor: tensor.transpose(0, -1).contiguous().transpose(0, -1)),
    "shared": {"model": STATE, "state_dict": STATE, "ema": {name: tensor.clone() for name, tensor in STATE.items()}},
    "student and another teacher": {"student": STATE, "teacher": LARGE},
}  # fmt: skip


@pytest.mark.parametrize("kind", ACCEPTED)
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before 1.6"])
def test_checkpoints_as_people_have_them(tmp_path: Path, kind: str, is_zip: bool) -> None:
    torch.save(ACCEPTED[kind], tmp_path / "t.pth", _use_new_zipfile_serialization=is_zip)
    found = load(tmp_path / "t.pth").state_dict()
    assert all(torch.equal(tensor, found[name]) and found[name].dtype == tensor.dtype for name, tensor in STATE.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save(turned(lambda tensor: tensor.to(dtype)), tmp_path / "t.pth")
    found = load(tmp_path / "t.pth").state_dict()
    assert all(
        torch.equal(found[name], tensor.to(dtype).to(tensor.dtype)) for name, tensor in STATE.items() if tensor.dim()
    )


@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_zip: bool) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
        torch.save(STATE, tmp_path / "t.pth", _use_new_zipfile_serialization=is_zip)
    assert torch.equal(load(tmp_path / "t.pth").fc.weight, MODEL.fc.weight)


def test_safetensors_with_a_prefix_and_npz(tmp_path: Path) -> None:
    save_file(prefixed("module."), tmp_path / "t.safetensors")
    np.savez(tmp_path / "t.npz", **{name: tensor.numpy() for name, tensor in STATE.items()})
    for name in ("t.safetensors", "t.npz"):
        assert torch.equal(load(tmp_path / name).fc.weight, MODEL.fc.weight)


def bytes_of(content: Any, **options: Any) -> bytes:
    sink = io.BytesIO()
    torch.save(content, sink, **options)
    return sink.getvalue()


def script() -> bytes:
    sink = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), sink)
    return sink.getvalue()


def without(part: str) -> Saved:
    return {name: tensor for name, tensor in STATE.items() if part not in name}


def renamed(old: str, new: str, state: Saved = STATE) -> Saved:
    return {name.replace(old, new): tensor for name, tensor in state.items()}


def doubled() -> Saved:
    """Twice as many channels, and an unchanged last layer."""
    return {
        name: tensor.repeat_interleave(2, 0) if tensor.dim() and "fc" not in name else tensor
        for name, tensor in STATE.items()
    }


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "two states": (
        lambda: {"model": STATE, "ema": OTHER},
        r"2 different states that fit: \['model'\], \['ema'\]; save",
    ),
    "two prefixes": (
        lambda: {**prefixed("student."), **prefixed("teacher.", OTHER)},
        r"names that begin with student\..*names that begin with teacher\.|teacher\..*student\.",
    ),
    "arguments": (
        lambda: {"model": STATE, "args": argparse.Namespace(lr=0.1)},
        r"holds argparse\.Namespace besides its tensors.*torch\.load\('t\.pth', 'cpu', weights_only=False\)\['model'\]",
    ),
    "a pickled model": (
        lambda: MODEL,
        r"pickled model of class orchestrator\.models\.resnet\.ResNet, .*\.state_dict\(\)",
    ),
    "a model in a mapping": (
        lambda: {"net": nn.DataParallel(MODEL)},
        r"pickled model of class torch\.nn\.parallel\S+DataParallel",
    ),
    "another depth": (
        lambda: fresh(0, "resnet_32_20").state_dict(),
        r"weights of resnet_32_20, not resnet_32_8: layer1\.1…layer1\.2, layer2\S+, layer3\S+ are extra; give",
    ),
    "other classes": (
        lambda: fresh(0, classes=100).state_dict(),
        r": it is built for 100 classes, the dataset has 10 \(.*\); give",
    ),
    "depth and classes": (
        lambda: {"model": prefixed("module.", LARGE)},
        r"\(compared \['model'\]\): these .* are extra; it is built for 100",
    ),
    "shortcuts without weights": (
        lambda: without("downsample"),
        r": its shortcuts have no convolution \(option A .*layer2\.0, layer3\.0 \(downsample, option B\); give",
    ),
    "other names": (
        lambda: renamed("downsample", "shortcut", renamed("fc.", "linear.")),
        r": some layers have other names: rename shortcut to downsample, linear to fc; give",
    ),
    "other widths": (doubled, r": its stages have 32, 64, 128 channels, expected 16, 32, 64; give"),
    "ImageNet": (
        lambda: torchvision.models.resnet18(num_classes=10).state_dict(),
        r"convolution is 7×7, as in ResNets for ImageNet, expected 3×3; it has layer4, expected 3 stages; ",
    ),
    "bottlenecks": (
        lambda: torchvision.models.resnet50().state_dict(),
        r"layer4, .*blocks of three convolutions, .* 1,000 classes",
    ),
    "another family": (
        lambda: fresh(0, "wrn_10_1", 100).state_dict(),
        r"its stages are block1, block2, block3, expected layer1, layer2, layer3; it is built for 100 .*; give",
    ),
    "uneven stages": (
        lambda: {name: t for name, t in LARGE.items() if "layer3.2" not in name},
        r"have 3, 3, 2 blocks, expected 1 each",
    ),
    "not finite": (
        lambda: {**STATE, "fc.bias": torch.full((10,), 1e300, dtype=torch.float64)},
        r"fc\.bias is not finite",
    ),
    "no tensor of numbers": (
        lambda: {**STATE, "fc.bias": torch.zeros(10, dtype=torch.complex64)},
        r"fc\.bias is not a dense tensor",
    ),
    "odd arrays": (lambda: {**STATE, "fc.bias": np.array(["a"] * 10)}, r"fc\.bias is not a dense tensor of numbers"),
    "TorchScript": (script, r"is a TorchScript archive.*torch\.jit\.load\('t\.pth', 'cpu'\)\.state_dict\(\)"),
    "another protocol": (lambda: bytes_of(STATE, pickle_protocol=4), r"a protocol other than 2"),
    "cut off": (lambda: bytes_of(STATE)[:-900], r"its archive is cut off or damaged\); copy or download it again"),
    "cut off, old": (
        lambda: bytes_of(STATE, _use_new_zipfile_serialization=False)[:-900],
        r"complete PyTorch checkpoint \(.*; copy or",
    ),
    "web page": (lambda: b"\n<!DOCTYPE html><html>", "is a web page, not weights"),
    "pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:",
        "is a Git LFS pointer.*git lfs pull",
    ),
    "empty": (lambda: b"", "is empty; copy or download it again"),
    "archive": (lambda: b"\x1f\x8b\x08\x00", "is a gzip archive; unpack it"),
    "tar": (lambda: bytes(257) + b"ustar\x0000", "is a tar archive; unpack it"),
    "text": (lambda: b"Not Found", r"is text, not weights \(it begins with 'Not Found'\)"),
}


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_does_not_fit_is_explained(tmp_path: Path, kind: str) -> None:
    make, words = REFUSED[kind]
    content, path = make(), tmp_path / "t.pth"
    path.write_bytes(content if isinstance(content, bytes) else bytes_of(content))
    with pytest.raises(TeacherError, match=words) as caught:
        load(path)
    assert str(caught.value).startswith(str(path)) and "more;" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("wrn_16_2", r": these are weights of wrn_16_2, not wrn_10_2: block1\.1, block2\.1, block3\.1 are extra; give"),
        ("wrn_10_1", r": its stages have 16, 32, 64 channels, expected 32, 64, 128; give"),
        (
            "resnet_32_14",
            r": it has another architecture: its stages are layer1, layer2, layer3, expected block1, .*; give",
        ),
        ("resnet_32_20", r" with 10 classes: these are weights of resnet_32_20 with 10 classes; give"),
        ("vgg_11", r": these are weights of vgg_11 with 10 classes; give"),
    ],
)
def test_weights_of_a_wide_network_are_explained_too(tmp_path: Path, model: str, words: str) -> None:
    torch.save(fresh(0, model).state_dict(), tmp_path / "t.pth")
    with pytest.raises(TeacherError, match=words):
        weights.load_weights(tmp_path / "t.pth", "wrn_10_2", 10, CPU)
    loaded = weights.load_weights(tmp_path / "t.pth", model, 10, CPU)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in fresh(0, model).state_dict().items())


@pytest.mark.parametrize(
    ("model", "found", "words"),
    [
        ("vgg_8", fresh(0, "vgg_8", 7).state_dict(), ": these are weights of vgg_8 with 7 classes; give"),
        ("vgg_8", STATE, "; it has another architecture: its stages are layer1, .*, expected layers of other names; "),
        (
            "resnet_50",
            torchvision.models.resnet50().state_dict(),
            ": some layers have other names: rename .*; its first convolution is 7×7, .* built for 1,000 classes",
        ),
        ("shufflenet_v1", STATE, ": some layers have other names: rename fc to linear; its first convolution is 3×3, "),
        ("mobilenet_v2", STATE, ": it has another architecture: "),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_other_families(tmp_path: Path, model: str, found: Saved, words: str) -> None:
    torch.save(found, tmp_path / "t.pth")
    with pytest.raises(TeacherError, match=words):
        weights.load_weights(tmp_path / "t.pth", model, 10, CPU)


def test_a_folder_and_an_archive_of_something_else(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("weights/t.pth", b"weights")
    with pytest.raises(TeacherError, match=r"zip archive of weights/t\.pth; unpack it"):
        load(tmp_path / "t.zip")
    with pytest.raises(TeacherError, match="cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize("state", [
    (1, (2**40,), None, False, b""), (1, (-1,), "f4", False, b"1234"), (1, (1,), "O8", False, b"12345678"), "nonsense",
])  # fmt: skip
def test_a_hostile_array_reaches_nothing_of_numpy(state: Any) -> None:
    from orchestrator.pretrained._formats import Part, select_tensors

    kind = Part(state[2], False, True) if isinstance(state, tuple) else None
    if kind:
        kind.__setstate__((3, "<", None, None, None, -1, -1, 0))
        state = (*state[:2], kind, *state[3:])
    part = Part(Part, (0,), b"b")
    part.__setstate__(state)
    assert select_tensors({"a": part}) == {"a": None}


# Before anything is trained, and again when the file is loaded.

STUDY = """\
study: w
recipe: {epochs: 1, limit_train: 128, limit_test: 100, milestones: []}
experiments:
  - method: st
    dataset: digits
    student: resnet_32_8
    teacher: {model: resnet_32_8, weights: t.pth}
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(STUDY)
    return Path("study.yaml")


def test_check_plan_and_launch_open_the_file(study: Path) -> None:
    from click.testing import CliRunner

    torch.save({"model": LARGE}, "t.pth")
    for command in (["check", "study.yaml"], ["plan", "study.yaml"], ["launch", "study.yaml", "--inline"]):
        error = CliRunner().invoke(cli, command).exception
        assert isinstance(error, KdctlError) and error.exit_code == 2
        assert str(error).startswith(
            "study.yaml:7:44: experiments[0].teacher.weights: t.pth does not fit resnet_32_8 with 10"
        )
        assert "these are weights of resnet_32_20" in str(error)
    assert not Path("runs").exists()
    torch.save({"model": STATE}, "t.pth")
    assert [trial.role for trial in plan_study(study).trials] == ["teacher", "student"]


def test_faults_of_weights_are_reported_with_all_others(study: Path) -> None:
    Path("t.pth").write_bytes(b"")
    with pytest.raises(StudyError) as caught:
        plan_study(study, settings=["recipe.epochs=-1"])
    assert len(caught.value.faults) == 2 and "t.pth is empty" in str(caught.value)


def test_a_command_that_only_reads_results_does_not_open_the_file(study: Path) -> None:
    Path("t.pth").write_bytes(b"damaged")
    code = (
        "import sys; from orchestrator.study.reader import load_study; load_study('study.yaml'); "
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "False"


def job(storage: Storage, path: Path, trial: Any) -> Job:
    return Job(trial, 1, "w", str(storage.backend.address), 1, str(path.absolute()), None, None)


def test_a_file_that_changed_after_the_plan_is_refused(study: Path, storage: Storage) -> None:
    torch.save(STATE, "t.pth")
    trial = plan_study(study).trials[0]
    torch.save(OTHER, "t.pth")
    *_, row = run_trial(job(storage, Path("t.pth"), trial))
    assert row.state is State.FAILED and re.search(r"t\.pth changed after the plan was made: its SHA-256", row.error)


def test_weights_no_better_than_guessing_are_warned_about(study: Path, storage: Storage) -> None:
    torch.save(STATE, "t.pth")
    reports = list(run_trial(job(storage, Path("t.pth"), plan_study(study).trials[0])))
    (notice,) = (report.text for report in reports if isinstance(report, TrialNotice))
    assert re.search(
        r"warning: these weights reach [\d.]+ % .* guessing would reach 10 %.*\(0\.3052, .*\(0\.3758", notice
    )
    assert reports[-1].state is State.FINISHED
