"""A user's own images from a function: what is measured, when the function is called, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from orchestrator.cli import cli
from orchestrator.data import order
from orchestrator.data.prepare import prepare_dataset
from orchestrator.errors import DataError, StudyError
from orchestrator.own_code import datasets
from orchestrator.own_code.source import CodeKind, read_own_code
from orchestrator.results.store import read_trials
from orchestrator.storage.layout import Storage
from orchestrator.study.plan import Plan, make_plan
from orchestrator.study.reader import load_study

IMAGES = """
import numpy as np
from pathlib import Path

HERE = Path(__file__).parent
LABELS = np.array([0, 1, 2, 0, 1, 2, 0])

def make(split, *shape, seed=0):
    with open(HERE / "calls", "a") as calls:
        calls.write(split + "\\n")
    random = np.random.default_rng([seed, split == "test"])
    return random.integers(0, 256, (len(LABELS), *shape), dtype=np.uint8)
"""
STUDY = """
study: own
recipe: {epochs: 1, batch_size: 4, milestones: [], flip: false, crop_padding: 1}
experiments:
  - {method: base, dataset: ./my_data.py:load, student: resnet_32_8}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the test's own for measurements."""
    monkeypatch.setenv("KDCTL_CACHE", str(tmp_path / "cache"))


def write(folder: Path, body: str, study: str = STUDY) -> Path:
    """A file whose function `load` has this body, and a study file that names it."""
    folder.mkdir(exist_ok=True)
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    (folder / "my_data.py").write_text(f"{IMAGES}\ndef load(split):\n{indented}")
    file = folder / "study.yaml"
    file.write_text(study)
    return file


def measure(folder: Path, body: str) -> datasets.CodeDataset:
    write(folder, body)
    code = read_own_code(folder / "my_data.py", "load", CodeKind.DATASET)
    return datasets.measure(code, anew=False, on_start=lambda: None)


def plan_of(file: Path, *, open_inputs: bool = True) -> Plan:
    return make_plan(load_study(file, open_inputs=open_inputs))


def count_calls(folder: Path) -> int:
    """How many times the images were made: each time for two splits."""
    calls = (folder / "calls").read_text().split() if (folder / "calls").exists() else []
    assert calls == ["train", "test"] * (len(calls) // 2)
    return len(calls) // 2


def made(split: str, *shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng([0, split == "test"]).integers(0, 256, (7, *shape), dtype=np.uint8)


# What is measured.

ARRAYS = "return make(split, 8, 8, 3), LABELS"
SAME = {
    "arrays": ARRAYS,
    "tensors": "import torch\nreturn torch.from_numpy(make(split, 8, 8, 3)), torch.from_numpy(LABELS)",
    "a list of images": "return list(make(split, 8, 8, 3)), LABELS.tolist()",
    "items": "return list(zip(make(split, 8, 8, 3), LABELS.tolist()))",
    "Pillow images": "from PIL import Image\n"
    "return [(Image.fromarray(image), label) for image, label in zip(make(split, 8, 8, 3), LABELS)]",
    "small integers": "return make(split, 8, 8, 3), LABELS.astype(np.uint8)",
}


@pytest.mark.parametrize("form", SAME)
def test_every_form_gives_the_same_images(tmp_path: Path, form: str) -> None:
    found = measure(tmp_path / "own", SAME[form])
    labels = np.array([0, 1, 2, 0, 1, 2, 0])
    expected = {split: order.sort_images(made(split, 8, 8, 3), labels) for split in ("train", "test")}
    for split, (pixels, numbers) in found.read().items():
        assert np.array_equal(pixels, expected[split][0]) and np.array_equal(numbers, expected[split][1])
    assert (found.facts.classes, found.facts.train, found.facts.test, found.facts.side) == (3, 7, 7, 8)
    assert found.facts.digest == order.digest(expected)
    np.testing.assert_allclose(found.facts.mean, made("train", 8, 8, 3).mean((0, 1, 2)) / 255, atol=5.1e-5)
    assert found.name == f"my_data-load-{found.facts.digest[:8]}"


@pytest.mark.parametrize("body", ["return make(split, 8, 8), LABELS", "return make(split, 8, 8)[..., None], LABELS"])
def test_grey_images_have_their_channel_three_times(tmp_path: Path, body: str) -> None:
    pixels, _ = measure(tmp_path / "own", body).read()["train"]
    assert pixels.shape == (7, 8, 8, 3)
    assert np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(pixels[..., 0], pixels[..., 2])
    assert sorted(map(bytes, pixels[..., 0])) == sorted(map(bytes, made("train", 8, 8)))


def test_a_palette_becomes_its_colours(tmp_path: Path) -> None:
    body = "from PIL import Image\nreturn [Image.fromarray(i).convert('P') for i in make(split, 8, 8, 3)], LABELS"
    assert measure(tmp_path / "own", body).read()["test"][0].shape == (7, 8, 8, 3)


# When the function is called.


def test_looking_calls_the_function_once_until_its_file_is_edited(tmp_path: Path) -> None:
    file = write(tmp_path / "own", ARRAYS)
    first = plan_of(file, open_inputs=False)
    assert plan_of(file, open_inputs=False).trials == first.trials and count_calls(file.parent) == 1
    write(file.parent, f"# a comment\n{ARRAYS}")
    assert plan_of(file, open_inputs=False).trials == first.trials, "the images are the same"
    assert count_calls(file.parent) == 2
    write(file.parent, ARRAYS.replace("3)", "3, seed=1)"))
    changed = plan_of(file, open_inputs=False)
    assert changed.trials[0].trial_id != first.trials[0].trial_id


def test_planning_a_launch_calls_the_function_each_time_as_what_it_reads_may_have_changed(tmp_path: Path) -> None:
    body = "seed = int((HERE / 'seed').read_text())\nreturn make(split, 8, 8, 3, seed=seed), LABELS"
    file = write(tmp_path / "own", body)
    (file.parent / "seed").write_text("0")
    first = plan_of(file)
    (file.parent / "seed").write_text("1")
    second = plan_of(file)
    assert first.trials[0].trial_id != second.trials[0].trial_id
    assert plan_of(file, open_inputs=False).trials == second.trials, "the newer measurement is kept"


def test_a_function_in_an_equal_file_elsewhere_reads_the_files_beside_it(tmp_path: Path) -> None:
    body = "seed = int((HERE / 'seed').read_text())\nreturn make(split, 8, 8, 3, seed=seed), LABELS"
    found = []
    for name in ("one", "two"):
        file = write(tmp_path / name, body)
        (file.parent / "seed").write_text(str(len(found)))
        found.append(plan_of(file).trials[0].trial_id)
    assert found[0] != found[1]


def test_images_that_differ_each_time_are_not_prepared(tmp_path: Path) -> None:
    found = measure(tmp_path / "own", "import secrets\nreturn make(split, 8, 8, 3, seed=secrets.randbits(60)), LABELS")
    storage = Storage.at(tmp_path / "runs")
    storage.prepare()
    with pytest.raises(DataError, match=r"my_data.py: its images changed after they were measured"):
        prepare_dataset(found, None, storage)
    assert not list(storage.backend.list_files("datasets"))


def test_the_images_of_a_folder_and_of_a_function_are_one_dataset(tmp_path: Path) -> None:
    from PIL import Image

    file = write(tmp_path / "own", ARRAYS, STUDY.replace("./my_data.py:load", "[{folder: images}, ./my_data.py:load]"))
    for split in ("train", "test"):
        for index, (image, label) in enumerate(zip(made(split, 8, 8, 3), [0, 1, 2, 0, 1, 2, 0], strict=True)):
            (file.parent / "images" / split / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file.parent / "images" / split / str(label) / f"{index}.png")
    (trial,) = plan_of(file).trials
    assert trial.config.dataset.startswith("images-")


def test_the_plan_as_json_names_the_file_and_leaves_its_text_out(tmp_path: Path) -> None:
    data = plan_of(write(tmp_path / "own", ARRAYS)).to_json()
    ((digest, own),) = data["folders"].items()
    assert own["path"].endswith("my_data.py") and own["facts"]["digest"] == digest
    assert "np.array" not in str(data)


# What is refused.

PAIRS = "expected a pair of arrays, images and labels, or a dataset of (image, label) items"
REFUSED = {
    "return None": f'my_data.py: load("train") returned NoneType; {PAIRS}',
    "return {}": f'my_data.py: load("train") returned dict; {PAIRS}',
    "return iter([])": f'load("train") returned list_iterator; {PAIRS}',
    "return [1, 2, 3]": 'load("train") item 0 is int; expected (image, label)',
    "return []": 'load("train") returned no images',
    "return make(split, 8, 8, 3)[:0], LABELS[:0]": 'load("train") returned no images',
    "return make(split, 8, 8, 3) / 255, LABELS": "images: found float64; expected uint8, 0 to 255; return them as they "
    "were stored, without a transform",
    "return make(split, 3, 8, 8), LABELS": "images: found shape [7, 3, 8, 8]; expected [N, S, S, 3] or [N, S, S]",
    "return make(split, 8, 9, 3), LABELS": "found shape [7, 8, 9, 3]",
    "return [make(split, 8, 8, 3)[0], make(split, 9, 9, 3)[0]], [0, 1]": "image 1 is 9×9, and the first one 8×8",
    "return make(split, 8, 8, 3), LABELS[:-1]": "labels: found int64 of shape [6] for 7 images",
    "return make(split, 8, 8, 3), LABELS / 1": "labels: found float64 of shape [7]",
    "return make(split, 8, 8, 3), [[1], [2, 3]]": "labels: found list, which is no array",
    "return make(split, 8, 8, 3), LABELS - 1": "found the label -1; expected the numbers of classes, from 0",
    "return make(split, 8, 8, 3), LABELS * 2": "the largest training label is 4, but no training image has the label 1",
    "return make(split, 8, 8, 3), LABELS * 0": "all training labels are 0; expected at least two classes",
    "return make(split, 8, 8, 3), LABELS + (split == 'test')": "a test image has the label 3, but the training labels "
    "end at 2",
    "return make(split, *[8 + (split == 'test')] * 2), LABELS": "images of train and test are 8×8 and 9×9",
    "raise KeyError(split)": "my_data.py, line 15, in load (`raise KeyError(split)`): KeyError: 'train'",
    "import nothing_like_it": "ModuleNotFoundError: No module named 'nothing_like_it'",
    "raise SystemExit(3)": "SystemExit: 3",
}


@pytest.mark.parametrize("body", REFUSED)
def test_images_that_cannot_be_used_are_refused_by_name(tmp_path: Path, body: str) -> None:
    file = write(tmp_path / "own", body)
    with pytest.raises(StudyError) as caught:
        load_study(file)
    (fault,) = caught.value.faults
    assert REFUSED[body] in fault.message and (fault.line, fault.column) == (5, 29)


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ("./my_data.py", "found ./my_data.py alone; add the class or function in it"),
        ("./my_data.py:other", "my_data.py defines no class or function other; it defines make, load"),
        ("./my_data.py:make", 'make("train") item 0 is uint8; expected (image, label)'),
        ("./missing.py:load", "missing.py cannot be read (No such file or directory)"),
        ("./two.py:load", "two.py, line 1: load takes split, folder; expected one parameter without a default, the "
                          "split, `train` or `test`; write `def load(split):`"),
    ],
)  # fmt: skip
def test_a_function_that_cannot_be_called_is_refused_by_name(tmp_path: Path, study: str, message: str) -> None:
    file = write(tmp_path / "own", ARRAYS, STUDY.replace("./my_data.py:load", study))
    (file.parent / "two.py").write_text("def load(split, folder): ...\n")
    with pytest.raises(StudyError) as caught:
        load_study(file)
    (fault,) = caught.value.faults
    assert (message or 'make("train") returned ndarray item 0') in fault.message or message is None


# A complete study.


def run(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, [*words])


def test_a_study_is_launched_and_read_without_calling_the_function_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "own", ARRAYS)
    monkeypatch.chdir(file.parent)
    done = run(file.parent, "launch", "study.yaml", "--inline")
    assert done.exit_code == 0, done.output
    assert "reading the images that load in my_data.py returns" in done.output
    called = count_calls(file.parent)
    (row,) = read_trials(Storage.at(file.parent / "runs"))
    assert row.dataset.startswith("my_data-load-") and row.acc is not None
    shown = run(file.parent, "results", "study.yaml", "--storage", "runs")
    assert shown.exit_code == 0 and row.dataset in shown.output, shown.output
    assert count_calls(file.parent) == called


def test_a_relaunch_without_the_file_is_not_needed_to_read_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "own", ARRAYS)
    monkeypatch.chdir(file.parent)
    assert run(file.parent, "launch", "study.yaml", "--inline").exit_code == 0
    (file.parent / "my_data.py").unlink()
    shown = run(file.parent, "results", "own", "--storage", "runs")
    assert shown.exit_code == 0 and "my_data-load-" in shown.output, shown.output
