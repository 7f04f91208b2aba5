"""Datasets: canonical order and digest, digits, both layouts of CIFAR, every kind of damage, and what a trial loads."""

from __future__ import annotations

import hashlib
import http.client
import io
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file
from torchvision import datasets as torchvision_datasets

from orchestrator import data
from orchestrator.data import Labels, Pixels
from orchestrator.datasets import DATASETS, Dataset
from orchestrator.errors import DataError
from orchestrator.records import TrialConfig
from orchestrator.storage import Storage

CPU = torch.device("cpu")
MakeConfig = Callable[..., TrialConfig]
Arrays = tuple[Pixels, Labels]
Row = dict[str, Any]


def random_split(labels: list[int], side: int = 2, seed: int = 0) -> Arrays:
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), side, side, 3), dtype=np.uint8)
    return pixels, np.array(labels, np.int64)


def same(first: Arrays, second: Arrays) -> bool:
    return np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])


# The canonical order and the digest.


@settings(max_examples=50, deadline=None)
@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=30), seed=st.integers(0, 2**32), twins=st.booleans())
def test_canonical_order_does_not_depend_on_the_order_of_reading(labels: list[int], seed: int, twins: bool) -> None:
    pixels, numbers = random_split(labels, seed=seed)
    if twins:  # one image several times over, under several labels
        pixels[:] = pixels[0]
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    before = data.canonical({"train": (pixels, numbers)})["train"]
    after = data.canonical({"train": (pixels[shuffled], numbers[shuffled])})["train"]
    assert same(before, after)
    assert pairs(before) == pairs((pixels, numbers))  # none lost, none given another label


def pairs(split: Arrays) -> Counter[tuple[bytes, int]]:
    return Counter((image.tobytes(), int(label)) for image, label in zip(*split, strict=True))


@settings(max_examples=20, deadline=None)
@given(classes=st.integers(1, 5), each=st.integers(1, 6), seed=st.integers(0, 2**32))
def test_every_prefix_holds_every_class_alike(classes: int, each: int, seed: int) -> None:
    split = random_split(list(range(classes)) * each, seed=seed)
    _, labels = data.canonical({"test": split})["test"]
    for count in range(1, len(labels) + 1):
        found = np.bincount(labels[:count], minlength=classes)
        assert found.max() - found.min() <= 1


@settings(max_examples=30, deadline=None)
@given(split=st.sampled_from(["train", "test"]), entry=st.integers(0, 5), bit=st.integers(0, 7), of_label=st.booleans())
def test_digest_sees_every_bit(split: str, entry: int, bit: int, of_label: bool) -> None:
    splits = {"train": random_split([0, 1, 2, 0, 1, 2]), "test": random_split([0, 1, 2, 2, 1, 0], seed=1)}
    before = data.digest(splits)
    pixels, labels = splits[split]
    if of_label:
        labels[entry] ^= 1 << bit
    else:
        pixels[entry, 1, 0, 2] ^= 1 << bit
    assert data.digest(splits) != before
    assert len(before) == 12


# Digits.


def stored(storage: Storage, name: str = "digits") -> dict[str, Any]:
    return load_file(storage.dataset(name, DATASETS[name].digest))


def test_digits_in_the_storage_are_what_their_facts_say(digits_storage: Storage) -> None:
    arrays, facts = stored(digits_storage), DATASETS["digits"]
    for split, count in (("train", 1297), ("test", 500)):
        pixels, labels = arrays[f"{split}.pixels"], arrays[f"{split}.labels"]
        assert pixels.shape == (count, 3, 8, 8) and pixels.dtype == np.uint8
        assert labels.shape == (count,) and labels.dtype == np.int64
        assert set(labels.tolist()) == set(range(10))
        assert (pixels == pixels[:, :1]).all()
        assert len(np.unique(pixels)) == 17 and pixels.max() == 255
        assert np.bincount(labels[:100]).tolist() == [10] * 10
    splits = {
        split: (arrays[f"{split}.pixels"].transpose(0, 2, 3, 1), arrays[f"{split}.labels"])
        for split in ("train", "test")
    }
    assert data.digest(splits) == facts.digest


def test_digits_are_all_of_scikit_learns(digits_storage: Storage) -> None:
    from sklearn.datasets import load_digits

    raw = load_digits()
    wanted = pairs((np.rint(raw.images * 255 / 16).astype(np.uint8), raw.target))
    arrays = stored(digits_storage)
    found = [pairs((arrays[f"{split}.pixels"][:, 0], arrays[f"{split}.labels"])) for split in ("train", "test")]
    assert found[0] + found[1] == wanted
    assert not found[0] & found[1]  # no test image is trained on


# CIFAR, by a small likeness.


@dataclass(frozen=True)
class Fake:
    """A small dataset that stands in for one of CIFAR, and where its files are."""

    name: str
    facts: Dataset
    splits: dict[str, Arrays]
    folder: Path

    @property
    def layout(self) -> Path:
        return self.folder / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[self.name]

    def write_parquet(self, kind: str = "PNG") -> None:
        """Two training shards and a test shard, as on the Hugging Face hub."""
        for split, shards in (("train", 2), ("test", 1)):
            pixels, labels = self.splits[split]
            for shard in range(shards):
                rows = [
                    {"img": {"bytes": encoded(image, kind), "path": None}, self.facts.label: int(label)}
                    for image, label in zip(pixels[shard::shards], labels[shard::shards], strict=True)
                ]
                write_rows(self.folder / self.name / f"{split}-{shard:05}-of-{shards:05}.parquet", rows)

    def write_torchvision(self, root: Path) -> None:
        """The pickled batches of `files` in torchvision's layout."""
        folder = root / self.layout.name
        folder.mkdir(parents=True)
        for name, raw in self.files().items():
            (folder / name).write_bytes(raw)

    def files(self) -> dict[str, bytes]:
        key = "labels" if self.name == "cifar10" else "fine_labels"
        batches = {}
        for split, (pixels, labels) in self.splits.items():
            rows = pixels.transpose(0, 3, 1, 2).reshape(len(labels), -1)
            batches[split] = pickle.dumps({"data": rows, key: labels.tolist()})
        return {**batches, "meta": pickle.dumps({"names": [str(number) for number in range(10)]})}


def encoded(image: Pixels, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    return file.getvalue()


def write_rows(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def make_fake(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    splits = {"train": random_split([*range(10)] * 2, 32), "test": random_split([*range(10)], 32, seed=1)}
    digest = data.digest(data.canonical(splits))
    facts = replace(DATASETS[name], classes=10, train=20, test=10, digest=digest)
    fake = Fake(name, facts, splits, folder)
    monkeypatch.setitem(DATASETS, name, facts)
    builder = getattr(torchvision_datasets, name.upper())
    sums = {file: hashlib.md5(raw).hexdigest() for file, raw in fake.files().items()}
    monkeypatch.setattr(builder, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(builder, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(builder, "meta", {"filename": "meta", "key": "names", "md5": sums["meta"]})
    monkeypatch.setattr(builder, "download", no_network)
    return fake


def no_network(self: Any) -> None:
    raise AssertionError("nothing may be downloaded here")


@pytest.fixture(params=["cifar10", "cifar100"])
def fake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return make_fake(request.param, tmp_path / "data", monkeypatch)


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return make_fake("cifar10", tmp_path / "data", monkeypatch)


@pytest.fixture
def empty(tmp_path: Path) -> Storage:
    storage = Storage(tmp_path / "runs")
    storage.prepare()
    return storage


def test_both_layouts_give_the_same_images(fake: Fake, tmp_path: Path) -> None:
    found = []
    for layout in ("PNG", "WEBP", "torchvision"):
        part = replace(fake, folder=tmp_path / layout / "data")
        part.write_torchvision(part.folder) if layout == "torchvision" else part.write_parquet(layout)
        storage = Storage(tmp_path / layout / "runs")
        found.append(data.prepare(fake.name, part.folder, storage).read_bytes())
        wanted = data.canonical(fake.splits)
        for split, (pixels, labels) in wanted.items():
            arrays = stored(storage, fake.name)
            assert same((arrays[f"{split}.pixels"].transpose(0, 2, 3, 1), arrays[f"{split}.labels"]), (pixels, labels))
    assert found[0] == found[1] == found[2]


def refused(fake: Fake, storage: Storage, *words: str) -> None:
    """Asserts that preparing fails with a message of these words and a cure, and leaves nothing in the storage."""
    with pytest.raises(DataError) as caught:
        data.prepare(fake.name, fake.folder, storage)
    message = str(caught.value)
    for word in (*words, "put", f"{fake.layout.name}/", f"{fake.name}/train-*.parquet"):
        assert word in message
    assert not list(storage.root.glob("datasets/*"))


def shard(fake: Fake, split: str = "train") -> Path:
    return sorted((fake.folder / fake.name).glob(f"{split}-*"))[0]


@pytest.mark.parametrize("size", [0, 3, 200, -1, -20])
def test_cut_off_shard(cifar10: Fake, empty: Storage, size: int) -> None:
    cifar10.write_parquet()
    path = shard(cifar10)
    path.write_bytes(path.read_bytes()[:size])
    refused(cifar10, empty, str(path), "is not a whole Parquet file")


@pytest.mark.parametrize("split", ["train", "test"])
def test_split_without_shards(cifar10: Fake, empty: Storage, split: str) -> None:
    cifar10.write_parquet()
    for path in (cifar10.folder / "cifar10").glob(f"{split}-*"):
        path.unlink()
    refused(cifar10, empty, str(cifar10.folder / "cifar10"), f"there is no {split}-*.parquet")


def change_image(row: Row, raw: object) -> None:
    row["img"]["bytes"] = raw


BROKEN_ROWS: dict[str, tuple[Callable[[Row], object], str]] = {
    "small image": (lambda row: change_image(row, encoded(np.zeros((16, 24, 3), np.uint8))), "is 24×16, wanted 32×32"),
    "no image": (lambda row: change_image(row, b"nothing of the kind"), "cannot be decoded"),
    "empty image": (lambda row: change_image(row, b""), "cannot be decoded"),
    "cut-off image": (lambda row: change_image(row, row["img"]["bytes"][:500]), "cannot be decoded"),
    "null image": (lambda row: change_image(row, None), "something else than image bytes"),
    "null label": (lambda row: row.update(label=None), "whole-number label"),
}


@pytest.mark.parametrize("kind", BROKEN_ROWS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_broken_row(cifar10: Fake, empty: Storage, kind: str, split: str) -> None:
    damage, words = BROKEN_ROWS[kind]
    cifar10.write_parquet()
    rows = pq.read_table(shard(cifar10, split)).to_pylist()
    damage(rows[3])
    write_rows(shard(cifar10, split), rows)
    refused(cifar10, empty, str(shard(cifar10, split)), words)


BROKEN_COLUMNS: dict[str, Callable[[Row], Row]] = {
    "other label column": lambda row: {"img": row["img"], "coarse_label": row["label"]},
    "no image column": lambda row: {"label": row["label"]},
    "bare image column": lambda row: {"img": row["img"]["bytes"], "label": row["label"]},
    "image column of another shape": lambda row: {"img": {"raw": row["img"]["bytes"]}, "label": row["label"]},
    "labels in words": lambda row: {**row, "label": "cat"},
    "fractional labels": lambda row: {**row, "label": 0.5},
}


@pytest.mark.parametrize("kind", BROKEN_COLUMNS)
def test_broken_columns(cifar10: Fake, empty: Storage, kind: str) -> None:
    cifar10.write_parquet()
    path = shard(cifar10)
    write_rows(path, [BROKEN_COLUMNS[kind](row) for row in pq.read_table(path).to_pylist()])
    refused(cifar10, empty, str(path), "label")


BROKEN_SPLITS: dict[str, tuple[Callable[[list[Row]], object], str]] = {
    "label out of range": (lambda rows: rows[0].update(label=99), "got 11 classes from 0 to 99, wanted 0 to 9"),
    "negative label": (lambda rows: rows[0].update(label=-1), "from -1 to 9, wanted 0 to 9"),
    "one too few": (lambda rows: rows.pop(), "got images of shape (19, 32, 32, 3), wanted (20, 32, 32, 3)"),
    "one twice": (lambda rows: rows.append(rows[0]), "got images of shape (21, 32, 32, 3)"),
    "labels exchanged": (
        lambda rows: [rows[0].update(label=rows[1]["label"]), rows[1].update(label=rows[0]["label"] - 2)],
        "cifar10",
    ),
    "changed pixel": (lambda rows: change_pixel(rows[0]), "these images are not Cifar10's: got digest"),
}


def change_pixel(row: Row) -> None:
    pixels = np.array(Image.open(io.BytesIO(row["img"]["bytes"])))
    pixels[7, 5, 1] ^= 1
    row["img"]["bytes"] = encoded(pixels)


@pytest.mark.parametrize("kind", BROKEN_SPLITS)
def test_broken_split(cifar10: Fake, empty: Storage, kind: str) -> None:
    damage, words = BROKEN_SPLITS[kind]
    cifar10.write_parquet()
    rows = pq.read_table(shard(cifar10)).to_pylist()
    damage(rows)
    write_rows(shard(cifar10), rows)
    refused(cifar10, empty, "cifar10", words)


@pytest.mark.parametrize("file", ["train", "test", "meta"])
@pytest.mark.parametrize("damage", [None, b"", b"changed"], ids=["missing", "empty", "changed"])
def test_damaged_batches(fake: Fake, empty: Storage, file: str, damage: bytes | None) -> None:
    fake.write_torchvision(fake.folder)
    path = fake.layout / file
    path.unlink() if damage is None else path.write_bytes(damage)
    refused(fake, empty, str(fake.layout), "a file is missing or damaged")


def test_changed_batches_are_not_unpickled(fake: Fake, empty: Storage, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    fake.write_torchvision(fake.folder)
    (fake.layout / "train").write_bytes(pickle.dumps(Evil()))
    refused(fake, empty, str(fake.layout))
    assert not (tmp_path / "executed").exists()


def test_no_data_folder(cifar10: Fake, empty: Storage) -> None:
    with pytest.raises(DataError, match="cifar10 needs a data folder; name it with --data DIR or in KDCTL_DATA"):
        data.prepare("cifar10", None, empty)


ERRORS = [
    URLError("no route to host"),
    RuntimeError("File not found or corrupted."),
    OSError(28, "No space left on device"),
    EOFError(),
    http.client.IncompleteRead(b"", 7),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_failing_download(cifar10: Fake, empty: Storage, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(self: Any) -> None:
        (Path(self.root) / "cifar-10-python.tar.gz").write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(torchvision_datasets.CIFAR10, "download", download)
    refused(cifar10, empty, str(cifar10.folder), "could not be downloaded", str(error).partition("\n")[0])
    assert not list(cifar10.folder.iterdir())


def test_download(cifar10: Fake, empty: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torchvision_datasets.CIFAR10, "download", lambda self: cifar10.write_torchvision(Path(self.root))
    )
    assert data.prepare("cifar10", cifar10.folder, empty).exists()
    assert list(cifar10.folder.iterdir()) == [cifar10.layout]


def test_prepare_reads_nothing_the_second_time(cifar10: Fake, empty: Storage) -> None:
    cifar10.write_parquet()
    path = data.prepare("cifar10", cifar10.folder, empty)
    before = path.stat()
    for file in (cifar10.folder / "cifar10").iterdir():
        file.unlink()
    for folder in (cifar10.folder, None):
        assert data.prepare("cifar10", folder, empty) == path
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_ino == before.st_ino


def test_unwritable_data_folder(cifar10: Fake, empty: Storage, tmp_path: Path) -> None:
    cifar10.folder.write_text("a file where a folder should be")
    refused(cifar10, empty, str(cifar10.folder), "could not be downloaded")


# What a trial loads.


def test_limits(storage: Storage, make_config: MakeConfig) -> None:
    whole = data.load(make_config(limit_train=None, limit_test=None), storage, CPU)
    assert (len(whole.train), whole.val, len(whole.test)) == (1297, None, 500)
    some = data.load(make_config(limit_train=128, limit_test=100), storage, CPU)
    fewer = data.load(make_config(limit_train=50, limit_test=10), storage, CPU)
    for small, large, count in ((some, whole, 128), (fewer, some, 50)):
        assert len(small.train) == count
        assert torch.equal(small.train.pixels, large.train.pixels[:count])
        assert torch.equal(small.train.labels, large.train.labels[:count])
        assert torch.equal(small.test.pixels, large.test.pixels[: len(small.test)])
    assert fewer.test.labels.bincount().tolist() == [1] * 10
    assert some.train.pixels.dtype == torch.uint8 and some.train.labels.dtype == torch.int64


def test_holdout_is_the_rest_of_the_training_images(storage: Storage, make_config: MakeConfig) -> None:
    whole = data.load(make_config(), storage, CPU)
    split = data.load(make_config(holdout=28), storage, CPU)
    assert split.val is not None
    assert (len(split.train), len(split.val)) == (100, 28)
    assert torch.equal(torch.cat([split.train.pixels, split.val.pixels]), whole.train.pixels)
    assert torch.equal(torch.cat([split.train.labels, split.val.labels]), whole.train.labels)
    images = torch.cat([split.train.pixels, split.val.pixels]).flatten(1)
    assert len(torch.unique(images, dim=0)) == 128  # so that none is in both
    assert torch.equal(split.test.pixels, whole.test.pixels)


def test_normalise(storage: Storage, make_config: MakeConfig) -> None:
    images = data.load(make_config(limit_train=None), storage, CPU)
    normal = images.normalise(images.train.pixels)
    assert normal.dtype == torch.float32
    # The facts give mean and deviation to four decimals.
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(3), atol=3e-4, rtol=0)
    torch.testing.assert_close(normal.std((0, 2, 3)), torch.ones(3), atol=3e-4, rtol=0)


def test_load_without_prepare(tmp_path: Path, make_config: MakeConfig) -> None:
    with pytest.raises(DataError, match="is missing; launch the study again"):
        data.load(make_config(), Storage(tmp_path), CPU)


@pytest.mark.parametrize("size", [0, 100, -1])
def test_load_of_a_damaged_file(storage: Storage, make_config: MakeConfig, size: int) -> None:
    path = storage.dataset("digits", DATASETS["digits"].digest)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"digits-.*\.safetensors is damaged .*; remove it"):
        data.load(make_config(), storage, CPU)
