"""A user's own images: what is measured, what is refused by name, and a complete study on them."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from orchestrator import codec
from orchestrator.cli import cli
from orchestrator.data import folder as image_folder
from orchestrator.data import order
from orchestrator.data.folder import measure
from orchestrator.data.prepare import prepare_dataset
from orchestrator.errors import DataError, StudyError
from orchestrator.results.store import read_trials
from orchestrator.storage.layout import Storage
from orchestrator.study.plan import Plan, make_plan
from orchestrator.study.reader import load_study


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own for measurements."""
    monkeypatch.setenv("KDCTL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_folder(root: Path, classes: int = 2, size: tuple[int, int] = (8, 8), seed: int = 0) -> Path:
    """Random images, 6 of each class to train on and 2 to test on."""
    random = np.random.default_rng(seed)
    for split, count in (("train", 6), ("test", 2)):
        for label in range(classes):
            (root / split / f"class{label}").mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / f"class{label}" / f"{number}.png")
    return root


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "flowers")


def some_image(root: Path) -> Path:
    return root / "train" / "class1" / "3.png"


# What is measured.


def test_the_facts_are_those_of_the_images(flowers: Path) -> None:
    found = measure(flowers, None)
    facts = found.facts
    assert (facts.classes, facts.train, facts.test, facts.side) == (2, 12, 4, 8)
    assert found.name == f"flowers-{facts.digest[:8]}"
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted((flowers / "train").rglob("*.png"))]) / 255
    np.testing.assert_allclose(facts.mean, pixels.mean((0, 1, 2)), atol=5.1e-5)
    np.testing.assert_allclose(facts.std, pixels.std((0, 1, 2)), atol=5.1e-5)


def test_labels_are_those_of_torchvisions_image_folder(flowers: Path) -> None:
    splits = measure(flowers, None).read()
    theirs = ImageFolder(str(flowers / "train"))
    pixels = np.stack([np.asarray(image) for image, _ in theirs])
    expected = order.sort_images(pixels, np.array([label for _, label in theirs], np.int64))
    assert all(np.array_equal(ours, own) for ours, own in zip(splits["train"], expected, strict=True))


@pytest.mark.parametrize("size", [(20, 13), (13, 20), (8, 8), (9, 31), (5, 4)])
def test_images_are_resized_as_torchvision_does(tmp_path: Path, size: tuple[int, int]) -> None:
    root = make_folder(tmp_path / "photos", size=size)
    resize = transforms.Compose([transforms.Resize(8), transforms.CenterCrop(8)])
    theirs = [(np.asarray(resize(image)), label) for image, label in ImageFolder(str(root / "train"))]
    expected = order.sort_images(np.stack([image for image, _ in theirs]), np.array([label for _, label in theirs]))
    found = measure(root, 8).read()["train"]
    assert np.array_equal(found[0], expected[0])


def test_the_same_images_elsewhere_are_the_same_and_another_image_is_not(flowers: Path, tmp_path: Path) -> None:
    first = measure(flowers, None)
    shutil.copytree(flowers, tmp_path / "elsewhere" / "flowers")
    (tmp_path / "elsewhere" / "flowers" / "test").rename(tmp_path / "elsewhere" / "flowers" / "val")
    assert measure(tmp_path / "elsewhere" / "flowers", None) == first
    change(some_image(flowers))
    other = measure(flowers, None)
    assert other.facts.digest != first.facts.digest and other.name != first.name


def change(path: Path) -> None:
    image = Image.open(path).convert("RGB")
    image.putpixel((0, 0), tuple(255 - value for value in image.getpixel((0, 0))))  # type: ignore[union-attr, arg-type]
    image.save(path)


def test_images_are_read_once_until_a_file_changes(flowers: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folder, "_MIN_AGE", -1.0)
    first = measure(flowers, None)
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "_read", None)
        assert measure(flowers, None) == first
    (kept,) = (cache / "image-folders").iterdir()
    kept.write_text("{}")
    assert measure(flowers, None) == first
    change(some_image(flowers))
    assert measure(flowers, None) != first


def test_a_measurement_of_files_that_just_changed_is_not_kept(flowers: Path, cache: Path) -> None:
    os.utime(some_image(flowers), (time.time() + 100,) * 2)
    measure(flowers, None)
    assert not (cache / "image-folders").exists()


def test_images_that_change_after_they_were_measured_are_not_prepared(flowers: Path, tmp_path: Path) -> None:
    found = measure(flowers, None)
    change(some_image(flowers))
    storage = Storage.at(tmp_path / "runs")
    storage.prepare()
    with pytest.raises(DataError, match=r"changed after they were measured: .*; launch again"):
        prepare_dataset(found, None, storage)


def test_a_channel_without_contrast_does_not_divide_by_zero(flowers: Path) -> None:
    for path in flowers.rglob("*.png"):
        pixels = np.array(Image.open(path))
        pixels[..., 2] = 7
        Image.fromarray(pixels).save(path)
    assert measure(flowers, None).facts.std[2] == 1.0


# Other files, and images that become RGB.


def test_hidden_files_and_other_files_are_ignored(flowers: Path) -> None:
    before = measure(flowers, None)
    for name in (".DS_Store", "train/.DS_Store", "train/class0/.DS_Store", "train/class0/Thumbs.db", "README.txt"):
        (flowers / name).write_bytes(b"something else")
    (flowers / "train" / ".ipynb_checkpoints").mkdir()
    assert measure(flowers, None) == before


def test_upper_case_and_nested_folders_and_links_are_read(flowers: Path) -> None:
    before = measure(flowers, None)
    one, two = sorted((flowers / "train" / "class0").iterdir())[:2]
    one.rename(one.with_suffix(".PNG"))
    (flowers / "more" / "below").mkdir(parents=True)
    two.rename(flowers / "more" / "below" / "two.png")
    (flowers / "train" / "class0" / "linked").symlink_to(flowers / "more")
    (flowers / "more" / "round").symlink_to(flowers / "train" / "class0")
    assert measure(flowers, None) == before


MODES = ["L", "LA", "P", "1", "RGBA", "CMYK"]


@pytest.mark.parametrize("mode", MODES)
def test_other_modes_become_rgb(flowers: Path, mode: str) -> None:
    path = some_image(flowers)
    image = Image.open(path).convert(mode)
    target = path.with_suffix(".jpg") if mode == "CMYK" else path
    path.unlink()
    image.save(target)
    assert measure(flowers, None).facts.train == 12


def test_a_palette_with_transparency_becomes_rgb(flowers: Path) -> None:
    path = some_image(flowers)
    image = Image.open(path).convert("P")
    image.save(path, transparency=bytes(range(256)))
    assert measure(flowers, None).facts.train == 12


# What is refused, each with one message.


def save_animation(path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, r"flowers: there is no such folder; name the folder that has train/"),
    "a file": (lambda root: (shutil.rmtree(root), root.write_text("x")), r"flowers: it is not a folder; name"),
    "no train": (lambda root: shutil.rmtree(root / "train"), r"has folder test, and no train/; expected train/CLASS"),
    "no test": (lambda root: shutil.rmtree(root / "test"), r"has folder train, and no test/; expected train/CLASS"),
    "classes alone": (
        lambda root: (
            shutil.move(root / "train", root.parent / "t"),
            shutil.rmtree(root),
            shutil.move(root.parent / "t", root),
        ),
        r"has folders class0, class1, and no train/; expected",
    ),
    "one class": (
        lambda root: [shutil.rmtree(root / split / "class1") for split in ("train", "test")],
        r"has folder class0; expected .*, at least two",
    ),
    "no class": (
        lambda root: [shutil.rmtree(root / "train" / name) for name in ("class0", "class1")],
        r"train has no folder; expected .*, at least two",
    ),
    "other classes": (
        lambda root: (root / "test" / "class1").rename(root / "test" / "cat"),
        r"different classes: folder class1 only in train, folder cat only in test; give both",
    ),
    "a class without images": (
        lambda root: [path.unlink() for path in (root / "train" / "class1").iterdir()],
        r"class1 has no image; expected files that end in \.png, .*; add some, or remove",
    ),
    "no image": (lambda root: some_image(root).write_bytes(b"text"), r"3\.png cannot be decoded .*; replace the file"),
    "empty": (lambda root: some_image(root).write_bytes(b""), r"3\.png cannot be decoded .*; replace the file"),
    "cut off": (
        lambda root: some_image(root).write_bytes(some_image(root).read_bytes()[:-60]),
        r"3\.png cannot be decoded .*; replace",
    ),
    "another size": (
        lambda root: Image.new("RGB", (9, 9)).save(some_image(root)),
        r"0\.png is 8×8, .*3\.png is 9×9; write `dataset: \{folder: PATH, size: 8\}`",
    ),
    "no square": (
        lambda root: Image.new("RGB", (9, 8)).save(some_image(root)),
        r"3\.png is 9×8, expected a square; write `dataset: \{folder: PATH, size: 32\}`",
    ),
    "16 bits": (
        lambda root: Image.fromarray(np.zeros((8, 8), np.uint16)).save(some_image(root)),
        r"3\.png has the mode I;16, expected 8 bits per channel; save it as an RGB PNG",
    ),
    "animation": (
        lambda root: save_animation(some_image(root).with_suffix(".webp")),
        r"3\.webp has 2 frames, expected a still image",
    ),
    "another format": (
        lambda root: Image.new("RGB", (8, 8)).save(some_image(root).with_suffix(".TIFF")),
        r"3\.TIFF has a format that kdctl does not read; expected \.png",
    ),
    "huge": (
        lambda root: Image.new("1", (9000, 9000)).save(some_image(root)),
        r"3\.png is 9000×9000, more than 64 megapixels; make it smaller",
    ),
    "a broken link": (
        lambda root: (some_image(root).unlink(), some_image(root).symlink_to("nowhere")),
        r"3\.png cannot be read \(No such file",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_folder_that_cannot_be_used_is_one_message(flowers: Path, kind: str) -> None:
    damage, message = BROKEN[kind]
    damage(flowers)
    with pytest.raises(DataError, match=message):
        measure(flowers, None)
    with pytest.raises(StudyError, match=message) as caught:
        load_study(write_study(flowers.parent))
    assert [fault.path for fault in caught.value.faults] == ["experiments[0].dataset[1]", "experiments[1].dataset[0]"]


# In a study.


STUDY = """
study: own
recipe: {epochs: 1, batch_size: 4, crop_padding: 1, holdout: 2, precision: float32}
experiments:
  - {method: base, dataset: DATASETS, student: resnet_32_8, limit_train: 8}
  - {method: logit, dataset: [{folder: flowers}], student: resnet_32_8, teacher: resnet_32_8, limit_train: 8}
"""


def write_study(folder: Path, datasets: str = "[digits, {folder: flowers}]") -> Path:
    path = folder / "study.yaml"
    path.write_text(STUDY.replace("DATASETS", datasets))
    return path


def ids(plan: Plan) -> list[str]:
    return [trial.trial_id for trial in plan.trials]


def test_a_study_mixes_names_and_folders(flowers: Path) -> None:
    plan = make_plan(load_study(write_study(flowers.parent)))
    assert len(plan.trials) == 3
    (found,) = plan.folders.values()
    assert Path(found.path) == flowers
    assert {trial.config.dataset for trial in plan.trials} == {"digits", found.name}
    assert plan.to_json()["folders"] == {found.facts.digest: codec.encode(found)}


def test_where_the_folder_is_changes_no_id(flowers: Path, tmp_path: Path) -> None:
    before = make_plan(load_study(write_study(tmp_path)))
    other = tmp_path / "other"
    other.mkdir()
    shutil.move(flowers, other / "roses")
    study = write_study(other)
    study.write_text(study.read_text().replace("folder: flowers", f"folder: {other / 'roses'}"))
    assert ids(make_plan(load_study(study))) == ids(before)
    change(some_image(other / "roses"))
    assert ids(make_plan(load_study(study)))[1:] != ids(before)[1:]


def test_folders_with_the_same_images_are_one_dataset(flowers: Path) -> None:
    shutil.copytree(flowers, flowers.parent / "copy")
    plan = make_plan(load_study(write_study(flowers.parent, "[{folder: flowers}, {folder: copy}]")))
    assert len(plan.trials) == len(set(ids(plan))) == 2
    assert any("in this list twice" in warning for warning in plan.warnings)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("{folder: flowers, side: 8}", "found a mapping with folder, side; expected folder, and size"),
        ("{size: 8}", "found a mapping with size; expected folder"),
        ("{folder: flowers, size: 0}", "a whole number from 1 to 4,096"),
        ("{folder: 3}", "the path of a folder"),
        ("flowers", "write {folder: PATH}"),
        ("./flowers", "write {folder: ./flowers}"),
    ],
)
def test_a_dataset_that_is_neither_a_name_nor_a_folder(flowers: Path, dataset: str, message: str) -> None:
    with pytest.raises(StudyError, match=re.escape(message)):
        load_study(write_study(flowers.parent, dataset))


def test_limits_and_padding_follow_the_folder(flowers: Path) -> None:
    study = write_study(flowers.parent)
    with pytest.raises(StudyError) as caught:
        load_study(study, ["recipe.crop_padding=8", "recipe.holdout=8", "experiments[1].limit_train=13"])
    for words in ("has 8 pixels a side", "has 12 such images", "8 of 8 training images"):
        assert words in str(caught.value)


def test_a_study_of_two_and_three_classes_is_trained_and_read(
    flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "three" / "flowers", classes=3, seed=1)
    study = write_study(tmp_path, "[{folder: flowers}, {folder: three/flowers}]")
    for _ in range(2):  # the second time nothing is trained
        done = CliRunner().invoke(cli, ["launch", str(study), "--inline"])
        assert done.exit_code == 0, done.output
    two, three = (measure(tmp_path / name, None).name for name in ("flowers", "three/flowers"))
    for words in (["results", "own"], ["status", "own"], ["query", "FROM trials"], ["results", str(study)]):
        found = CliRunner().invoke(cli, words)
        assert found.exit_code == 0, found.output
        assert two in found.output and three in found.output
    report = CliRunner().invoke(cli, ["report", "own"])
    assert report.exit_code == 0, report.output
    assert two in Path("report.html").read_text()
    assert {row.top5 for row in read_trials(Storage.at("runs"))} == {100.0}  # fewer than five classes
