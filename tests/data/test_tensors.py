"""Datasets: canonical order and digest, digits, both layouts of CIFAR, every kind of damage, and what a trial loads."""

from __future__ import annotations

import hashlib
import http.client
import io
import itertools
import os
import pickle
import tracemalloc
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file
from torchvision import datasets as torchvision_datasets

from orchestrator.data import order, tensors
from orchestrator.data._cifar_layouts import LAYOUTS
from orchestrator.data._decode import decode
from orchestrator.data.order import Labels, Pixels
from orchestrator.data.prepare import prepare_dataset
from orchestrator.data.registry import DATASETS, NamedDataset
from orchestrator.errors import DataError
from orchestrator.records import TrialConfig
from orchestrator.storage.layout import Storage

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


@settings(max_examples=50)
@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=30), seed=st.integers(0, 2**32), twins=st.booleans())
def test_canonical_order_does_not_depend_on_the_order_of_reading(labels: list[int], seed: int, twins: bool) -> None:
    pixels, numbers = random_split(labels, seed=seed)
    if twins:  # one image several times over, under several labels
        pixels[:] = pixels[0]
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    before = order.sort_splits({"train": (pixels, numbers)})["train"]
    after = order.sort_splits({"train": (pixels[shuffled], numbers[shuffled])})["train"]
    assert same(before, after)
    assert pairs(before) == pairs((pixels, numbers))  # no image is lost or has another label


def pairs(split: Arrays) -> Counter[tuple[bytes, int]]:
    return Counter((image.tobytes(), int(label)) for image, label in zip(*split, strict=True))


@settings(max_examples=20)
@given(classes=st.integers(1, 5), each=st.integers(1, 6), seed=st.integers(0, 2**32))
def test_every_prefix_contains_all_classes_equally_often(classes: int, each: int, seed: int) -> None:
    split = random_split(list(range(classes)) * each, seed=seed)
    _, labels = order.sort_splits({"test": split})["test"]
    for count in range(1, len(labels) + 1):
        found = np.bincount(labels[:count], minlength=classes)
        assert found.max() - found.min() <= 1


@settings(max_examples=30)
@given(split=st.sampled_from(["train", "test"]), entry=st.integers(0, 5), bit=st.integers(0, 7), of_label=st.booleans())
def test_digest_depends_on_every_bit(split: str, entry: int, bit: int, of_label: bool) -> None:
    splits = {"train": random_split([0, 1, 2, 0, 1, 2]), "test": random_split([0, 1, 2, 2, 1, 0], seed=1)}
    before = order.digest(splits)
    pixels, labels = splits[split]
    if of_label:
        labels[entry] ^= 1 << bit
    else:
        pixels[entry, 1, 0, 2] ^= 1 << bit
    assert order.digest(splits) != before
    assert len(before) == 12


# Digits.


def stored_split(storage: Storage, split: str, name: str = "cifar10") -> Arrays:
    arrays = stored(storage, name)
    return arrays[f"{split}.pixels"].transpose(0, 2, 3, 1), arrays[f"{split}.labels"]


def stored(storage: Storage, name: str = "digits") -> dict[str, Any]:
    return load_file(storage.backend.local_path(storage.dataset(name, DATASETS[name].digest)))


def test_digits_in_the_storage_match_their_facts(digits_storage: Storage) -> None:
    arrays, facts = stored(digits_storage), DATASETS["digits"]
    for split, count in (("train", 1297), ("test", 500)):
        pixels, labels = arrays[f"{split}.pixels"], arrays[f"{split}.labels"]
        assert pixels.shape == (count, 3, 8, 8) and pixels.dtype == np.uint8
        assert labels.shape == (count,) and labels.dtype == np.int64
        assert set(labels.tolist()) == set(range(10))
        assert (pixels == pixels[:, :1]).all()
        assert len(np.unique(pixels)) == 17 and pixels.max() == 255
        assert np.bincount(labels[:100]).tolist() == [10] * 10
    splits = {split: stored_split(digits_storage, split, "digits") for split in ("train", "test")}
    assert order.digest(splits) == facts.digest


def test_digits_are_all_digits_of_scikit_learn(digits_storage: Storage) -> None:
    from sklearn.datasets import load_digits

    raw = load_digits()
    expected = pairs((np.rint(raw.images * 255 / 16).astype(np.uint8), raw.target))
    arrays = stored(digits_storage)
    found = [pairs((arrays[f"{split}.pixels"][:, 0], arrays[f"{split}.labels"])) for split in ("train", "test")]
    assert found[0] + found[1] == expected
    assert not found[0] & found[1]  # no test image is trained on


# CIFAR, as a small fake dataset.


@dataclass(frozen=True)
class Fake:
    """A small dataset that stands in for one of CIFAR, and where its files are."""

    name: str
    facts: NamedDataset
    splits: dict[str, Arrays]
    folder: Path

    @property
    def layout(self) -> Path:
        return self.folder / LAYOUTS[self.name].python

    def write_parquet(self, kind: str = "PNG") -> None:
        """Two training shards and a test shard, as on the Hugging Face hub."""
        for split, shards in (("train", 2), ("test", 1)):
            pixels, labels = self.splits[split]
            for shard in range(shards):
                rows = [
                    {"img": {"bytes": encoded(image, kind), "path": None}, LAYOUTS[self.name].columns[0]: int(label)}
                    for image, label in zip(pixels[shard::shards], labels[shard::shards], strict=True)
                ]
                write_rows(self.folder / self.name / f"{split}-{shard:05}-of-{shards:05}.parquet", rows)

    def write_torchvision(self, root: Path) -> None:
        """The batches of `files` in torchvision's layout."""
        folder = root / self.layout.name
        folder.mkdir(parents=True, exist_ok=True)
        for name, raw in self.files().items():
            (folder / name).write_bytes(raw)

    def files(self) -> dict[str, bytes]:
        """Batches like the published ones: two of training images, one of test images."""
        (pixels, labels), test = self.splits["train"], self.splits["test"]
        batches = {"train": (pixels[:12], labels[:12]), "more": (pixels[12:], labels[12:]), "test": test}
        return {file: python2(self.batch(*split)) for file, split in batches.items()}

    def batch(self, pixels: Pixels, labels: Labels) -> dict[bytes, Any]:
        """The content that is pickled in one file."""
        rows = pixels.transpose(0, 3, 1, 2).reshape(len(labels), -1)
        names = [b"image_s_%06d.png" % number for number in range(len(labels))]
        key = b"labels" if self.name == "cifar10" else b"fine_labels"
        return {b"batch_label": b"a batch", key: labels.tolist(), b"data": rows, b"filenames": names}


@dataclass(frozen=True)
class Opcodes:
    """A part of a pickle that is written unchanged."""

    raw: bytes


def python2(value: object) -> bytes:
    """A pickle of plain values and arrays, as cPickle of Python 2 wrote it at protocol 2."""
    return b"\x80\x02" + written(value, itertools.count(1)) + b"."


def written(value: object, memo: Iterator[int]) -> bytes:
    def each(values: Iterable[object]) -> bytes:
        return b"".join(written(one, memo) for one in values)

    match value:
        case Opcodes():
            return value.raw
        case bytes():
            return written_bytes(value) + keep(memo)
        case tuple():
            return b"(" + each(value) + b"t" + keep(memo)
        case list():
            return b"]" + keep(memo) + b"(" + each(value) + b"e"
        case dict():
            return b"}" + keep(memo) + b"(" + each(itertools.chain(*value.items())) + b"u"
        case np.ndarray():
            by_column = value.flags.f_contiguous and not value.flags.c_contiguous
            return array((1, value.shape, Opcodes(dtype(value, memo)), by_column, value.tobytes("A")), memo)
        case _:
            return {"None": b"N", "True": b"\x88", "False": b"\x89"}.get(str(value)) or written_int(value)


def keep(memo: Iterator[int]) -> bytes:
    number = next(memo)
    return b"q" + bytes([number]) if number < 256 else b"r" + number.to_bytes(4, "little")


def written_bytes(value: bytes) -> bytes:
    return (b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + len(value).to_bytes(4, "little")) + value


def written_int(value: object) -> bytes:
    assert isinstance(value, int)
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if abs(value) < 2**31:
        return b"J" + value.to_bytes(4, "little", signed=True)
    return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


def dtype(values: NDArray[Any], memo: Iterator[int]) -> bytes:
    name, order = values.dtype.str.strip("|<").encode(), b"|" if values.dtype.itemsize == 1 else b"<"
    made = b"cnumpy\ndtype\n" + written((name, 0, 1), memo) + b"R"
    return made + written((3, order, None, None, None, -1, -1, 0), memo) + b"b"


def array(state: object, memo: Iterator[int]) -> bytes:
    """An array with a given state."""
    made_of = (Opcodes(b"cnumpy\nndarray\n"), (0,), b"b")
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n"
    return reconstruct + written(made_of, memo) + b"R" + written(state, memo) + b"b"


def encoded(image: Pixels, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    return file.getvalue()


def write_rows(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def make_fake(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    splits = {"train": random_split([*range(10)] * 2, 32), "test": random_split([*range(10)], 32, seed=1)}
    digest = order.digest(order.sort_splits(splits))
    facts = replace(DATASETS[name], classes=10, train=20, test=10, digest=digest)
    fake = Fake(name, facts, splits, folder)
    monkeypatch.setitem(DATASETS, name, facts)
    builder = getattr(torchvision_datasets, name.upper())
    sums = {file: hashlib.md5(raw).hexdigest() for file, raw in fake.files().items()}
    monkeypatch.setattr(builder, "train_list", [[file, sums[file]] for file in ("train", "more")])
    monkeypatch.setattr(builder, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(DOWNLOAD, no_network)
    return fake


DOWNLOAD = "torchvision.datasets.utils.download_and_extract_archive"


def no_network(*args: Any, **options: Any) -> None:
    raise AssertionError("nothing may be downloaded here")


@pytest.fixture(params=["cifar10", "cifar100"])
def fake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return make_fake(request.param, tmp_path / "data", monkeypatch)


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return make_fake("cifar10", tmp_path / "data", monkeypatch)


@pytest.fixture
def empty(tmp_path: Path) -> Storage:
    return prepared(tmp_path / "runs")


def prepared(folder: Path) -> Storage:
    storage = Storage.at(folder)
    storage.prepare()
    return storage


def test_both_layouts_give_the_same_images(fake: Fake, tmp_path: Path) -> None:
    found = []
    for layout in ("PNG", "WEBP", "torchvision"):
        part = replace(fake, folder=tmp_path / layout / "data")
        part.write_torchvision(part.folder) if layout == "torchvision" else part.write_parquet(layout)
        storage = prepared(tmp_path / layout / "runs")
        prepare_dataset(fake.name, part.folder, storage)
        found.append(storage.backend.read(storage.dataset(fake.name, fake.facts.digest)))
        for split, expected in order.sort_splits(fake.splits).items():
            assert same(stored_split(storage, split, fake.name), expected)
    assert found[0] == found[1] == found[2]


def refused(fake: Fake, storage: Storage, *words: str) -> None:
    """Asserts that preparing fails with a message of these words and a fix, and leaves nothing in the storage."""
    with pytest.raises(DataError) as caught:
        prepare_dataset(fake.name, fake.folder, storage)
    message = str(caught.value)
    for word in (*words, "put", f"{fake.layout.name}/", f"{fake.name}/train-*.parquet"):
        assert word in message
    assert storage.backend.list_files("datasets") == storage.backend.list_unfinished() == []


def shard(fake: Fake, split: str = "train") -> Path:
    return sorted((fake.folder / fake.name).glob(f"{split}-*"))[0]


@pytest.mark.parametrize("size", [0, 3, 200, -1, -20])
def test_cut_off_shard(cifar10: Fake, empty: Storage, size: int) -> None:
    cifar10.write_parquet()
    path = shard(cifar10)
    path.write_bytes(path.read_bytes()[:size])
    refused(cifar10, empty, str(path), "is not a complete Parquet file")


@pytest.mark.parametrize("split", ["train", "test"])
def test_split_without_shards(cifar10: Fake, empty: Storage, split: str) -> None:
    cifar10.write_parquet()
    for path in (cifar10.folder / "cifar10").glob(f"{split}-*"):
        path.unlink()
    refused(cifar10, empty, str(cifar10.folder / "cifar10"), f"there is no {split}-*.parquet")


def change_image(row: Row, raw: object) -> None:
    row["img"]["bytes"] = raw


BROKEN_ROWS: dict[str, tuple[Callable[[Row], object], str]] = {
    "small image": (
        lambda row: change_image(row, encoded(np.zeros((16, 24, 3), np.uint8))),
        "is 24×16, expected 32×32",
    ),
    "no image": (lambda row: change_image(row, b"nothing of the kind"), "cannot be decoded"),
    "empty image": (lambda row: change_image(row, b""), "cannot be decoded"),
    "cut-off image": (lambda row: change_image(row, row["img"]["bytes"][:500]), "cannot be decoded"),
    "null image": (lambda row: change_image(row, None), "something other than image bytes"),
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


def bomb(width: int, height: int) -> bytes:
    """A PNG of 100 bytes whose header states this size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    header = chunk(b"IHDR", width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_000, 10_000, 20_000, 2**31 - 1])
def test_an_image_takes_no_more_memory_than_its_bytes(cifar10: Fake, empty: Storage, side: int) -> None:
    cifar10.write_parquet()
    rows = pq.read_table(shard(cifar10)).to_pylist()
    change_image(rows[3], bomb(side, side))
    write_rows(shard(cifar10), rows)
    # Pillow refuses some itself, and warns of smaller ones, which is an error in tests.
    tracemalloc.start()
    try:
        refused(cifar10, empty, str(shard(cifar10)), "an image in it")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_an_image_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def popen(*args: object, **options: object) -> None:
        raise AssertionError("Pillow starts a program")

    monkeypatch.setattr("subprocess.Popen", popen)
    monkeypatch.setattr("subprocess.check_call", popen)
    raw = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(raw)).size == (32, 32)  # Pillow itself could read it
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode(raw, 32)


@settings(max_examples=200)
@given(
    kind=st.sampled_from(["PNG", "WEBP", "BMP", "JPEG"]),
    damage=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=4),
    kept=st.floats(0, 1),
)
def test_a_damaged_image_is_refused_or_an_image(kind: str, damage: list[tuple[int, int]], kept: float) -> None:
    raw = bytearray(encoded(random_split([0], 32)[0][0], kind))
    for place, byte in damage:
        raw[place % len(raw)] = byte
    try:
        pixels = decode(bytes(raw[: int(kept * len(raw))]), 32)
    except ValueError as error:
        assert str(error).startswith(("is ", "cannot be decoded"))
    else:
        assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8


BROKEN_COLUMNS: dict[str, Callable[[Row], Row]] = {
    "other label column": lambda row: {"img": row["img"], "coarse_label": row["label"]},
    "no image column": lambda row: {"label": row["label"]},
    "flat pixels": lambda row: {"img": [0] * 3072, "label": row["label"]},
    "two image columns": lambda row: {"image": row["img"], "img": row["label"], "label": row["label"]},
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
    "label out of range": (lambda rows: rows[0].update(label=99), "found 11 classes from 0 to 99, expected 0 to 9"),
    "negative label": (lambda rows: rows[0].update(label=-1), "from -1 to 9, expected 0 to 9"),
    "one too few": (lambda rows: rows.pop(), "found images of shape (19, 32, 32, 3), expected (20, 32, 32, 3)"),
    "one twice": (lambda rows: rows.append(rows[0]), "found images of shape (21, 32, 32, 3)"),
    "labels exchanged": (
        lambda rows: [rows[0].update(label=rows[1]["label"]), rows[1].update(label=rows[0]["label"] - 2)],
        "cifar10",
    ),
    "changed pixel": (lambda rows: change_pixel(rows[0]), "these images are not the published ones: found digest"),
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


# CIFAR in torchvision's layout: pickles, which must not run any code.


@pytest.mark.parametrize("file", ["train", "more", "test"])
@pytest.mark.parametrize("damage", [None, b"", b"changed"], ids=["missing", "empty", "changed"])
def test_damaged_batches(fake: Fake, empty: Storage, file: str, damage: bytes | None) -> None:
    fake.write_torchvision(fake.folder)
    path = fake.layout / file
    path.unlink() if damage is None else path.write_bytes(damage)
    refused(fake, empty, str(fake.layout), "a file is missing or damaged", file)


def test_changed_batches_are_not_unpickled(fake: Fake, empty: Storage, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    fake.write_torchvision(fake.folder)
    (fake.layout / "train").write_bytes(pickle.dumps(Evil()))
    refused(fake, empty, str(fake.layout), "train has the MD5")
    assert not (tmp_path / "executed").exists()


def test_the_fake_pickle_loads_like_one_of_python_2(fake: Fake) -> None:
    pixels, labels = fake.splits["test"]
    expected = fake.batch(pixels, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns that numpy.core is an old name
        found = pickle.loads(fake.files()["test"], encoding="bytes")
    assert found.pop(b"data").tobytes() == expected.pop(b"data").tobytes()
    assert found == expected


def test_class_names_are_not_read(fake: Fake, empty: Storage) -> None:
    fake.write_torchvision(fake.folder)
    (fake.layout / "meta").write_bytes(b"nobody reads this")
    prepare_dataset(fake.name, fake.folder, empty)
    assert stored(empty, fake.name)["train.labels"].shape == (20,)


def accepted(fake: Fake, monkeypatch: pytest.MonkeyPatch, raw: bytes) -> Path:
    """The layout with another first file, whose MD5 is the expected one."""
    fake.write_torchvision(fake.folder)
    builder = getattr(torchvision_datasets, fake.name.upper())
    monkeypatch.setattr(builder, "train_list", [["train", hashlib.md5(raw).hexdigest()], *builder.train_list[1:]])
    path = fake.layout / "train"
    path.write_bytes(raw)
    return path


def call_opcodes(module: str, name: str, argument: bytes) -> bytes:
    """Opcodes that call a function, as pickle writes them for `__reduce__`."""
    return f"c{module}\n{name}\n".encode() + written((argument,), itertools.count(1)) + b"R"


HOSTILE: dict[str, Callable[[Path], bytes]] = {
    "posix.system": lambda path: call_opcodes("posix", "system", b"touch %s" % bytes(path)),
    "os.system": lambda path: call_opcodes("os", "system", b"touch %s" % bytes(path)),
    "builtins.eval": lambda path: call_opcodes("builtins", "eval", b"open('%s', 'w')" % bytes(path)),
    "builtins.exec": lambda path: call_opcodes("builtins", "exec", b"open('%s', 'w').close()" % bytes(path)),
    "subprocess.getoutput": lambda path: b"csubprocess\ngetoutput\n(Vtouch %s\ntR" % bytes(path),
    "os.mkdir": lambda path: b"(U%c%sios\nmkdir\n" % (len(bytes(path)), bytes(path)),  # the opcode INST
    "os.makedirs": lambda path: b"\x8c\x02os\x8c\x08makedirs\x93" + written((bytes(path),), itertools.count(1)) + b"R",
}

PLACES: dict[str, Callable[[Fake, Opcodes], object]] = {
    "whole": lambda fake, evil: evil,
    "value": lambda fake, evil: {**fake.batch(*fake.splits["train"]), b"batch_label": evil},
    "list": lambda fake, evil: {b"labels": [1, [2, evil]]},
    "key": lambda fake, evil: {evil: 1},
    "state": lambda fake, evil: {b"data": Opcodes(array((1, (1, 3072), evil, False, b""), itertools.count(1)))},
    "whole state": lambda fake, evil: {b"data": Opcodes(array(evil, itertools.count(1)))},
    "after the end": lambda fake, evil: Opcodes(written({}, itertools.count(1)) + b"0" + evil.raw),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_runs_nothing(
    cifar10: Fake, empty: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    executed = tmp_path / "executed"
    raw = python2(PLACES[place](cifar10, Opcodes(HOSTILE[name](executed))))
    path = accepted(cifar10, monkeypatch, raw)
    refused(cifar10, empty, str(path), f"it names '{name}'")
    assert not executed.exists()
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        pickle.loads(raw, encoding="bytes")
    assert executed.exists()  # so the pickle is hostile


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_object_of_any_protocol_runs_nothing(
    cifar10: Fake, empty: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    path = accepted(cifar10, monkeypatch, pickle.dumps({"data": [Evil()]}, protocol))
    refused(cifar10, empty, str(path), "it names 'posix.system', which no batch needs and kdctl never loads")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["load", "loads", "ndarray.tofile", "fromfile", "memmap", "DataSource", "frombuffer"])
@pytest.mark.parametrize("module", ["numpy", "numpy.core.multiarray", "numpy._core.multiarray"])
def test_not_even_numpy_is_called(
    cifar10: Fake, empty: Storage, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    path = accepted(cifar10, monkeypatch, python2(Opcodes(call_opcodes(module, name, b"/dev/null"))))
    refused(cifar10, empty, str(path), f"it names '{module}.{name}'")


Batch = dict[bytes, Any]


def narrow(batch: Batch) -> Batch:
    return {**batch, b"data": batch[b"data"][:, 1:].copy()}


def with_state(batch: Batch, *state: object) -> Batch:
    return {**batch, b"data": Opcodes(array(state, itertools.count(1)))}


U1 = Opcodes(b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR")
BROKEN_BATCHES: dict[str, tuple[Callable[[Batch], object], str]] = {
    "a list": (lambda batch: [batch], "found list, expected a dict"),
    "an array alone": (lambda batch: batch[b"data"], "found _Part, expected a dict"),
    "empty": (lambda batch: {}, "its data is not a complete array"),
    "data of text": (lambda batch: {**batch, b"data": b"images"}, "its data is not a complete array"),
    "data in a list": (lambda batch: {**batch, b"data": [0] * 3072}, "its data is not a complete array"),
    "wide numbers": (
        lambda batch: {**batch, b"data": batch[b"data"].astype("<i2")},
        "its data is not a complete array",
    ),
    "signed numbers": (
        lambda batch: {**batch, b"data": batch[b"data"].astype("i1")},
        "its data is not a complete array",
    ),
    "one axis": (lambda batch: {**batch, b"data": batch[b"data"].ravel()}, "its data is not a complete array"),
    "three axes": (lambda batch: {**batch, b"data": batch[b"data"][None]}, "its data is not a complete array"),
    "array without a state": (lambda batch: with_state(batch), "its data is not a complete array"),
    "narrow images": (narrow, "found an array of shape (12, 3071), expected rows of 3,072"),
    "no images": (lambda batch: {**batch, b"data": batch[b"data"][:0]}, "found an array of shape (0, 3072)"),
    "negative shape": (lambda batch: with_state(batch, 1, (-1, 3072), U1, False, b"x" * 3072), "shape (-1, 3072)"),
    "too few bytes": (lambda batch: with_state(batch, 1, (12, 3072), U1, False, b"x" * 3072), "cannot reshape"),
    "too large a shape": (lambda batch: with_state(batch, 1, (2**60, 3072), U1, False, b""), "is not a batch"),
    "objects": (
        lambda batch: with_state(batch, 1, (12, 3072), U1, False, [None] * 36864),
        "its data is not a complete array",
    ),
    "no labels": (lambda batch: {b"data": batch[b"data"]}, "its labels are not a list of whole numbers"),
    "labels in words": (lambda batch: {**batch, b"labels": [b"cat"] * 12}, "its labels are not a list"),
    "labels of truth": (lambda batch: {**batch, b"labels": [True] * 12}, "its labels are not a list"),
    "labels in an array": (lambda batch: {**batch, b"labels": np.zeros(12, np.uint8)}, "its labels are not a list"),
    "few labels": (lambda batch: {**batch, b"labels": [0] * 11}, "found 11 labels for 12 images"),
    "a huge label": (lambda batch: {**batch, b"labels": [2**100] * 12}, "is not a batch of CIFAR images"),
    "other labels": (lambda batch: {**batch, b"labels": [99] * 12}, "classes from 2 to 99, expected 0 to 9"),
}


@pytest.mark.parametrize("kind", BROKEN_BATCHES)
def test_broken_batch(cifar10: Fake, empty: Storage, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    damage, words = BROKEN_BATCHES[kind]
    pixels, labels = cifar10.splits["train"]
    accepted(cifar10, monkeypatch, python2(damage(cifar10.batch(pixels[:12], labels[:12]))))
    refused(cifar10, empty, words)


@pytest.mark.parametrize(
    "raw",
    [
        b"r\xff\xff\xff\xff",  # stores an object under a number that needs 64 GB
        b"p4294967295\n",
        b"p-1\n",
        b"\x8e" + (2**40).to_bytes(8, "little"),  # bytes of a terabyte
        b"\x96" + (2**36).to_bytes(8, "little"),
        b"T\xff\xff\xff\x7f",
        b"\x95" + (2**62).to_bytes(8, "little"),
    ],
)
def test_a_number_in_a_batch_takes_no_memory(
    cifar10: Fake, empty: Storage, monkeypatch: pytest.MonkeyPatch, raw: bytes
) -> None:
    path = accepted(cifar10, monkeypatch, b"\x80\x02}" + raw + b".")
    refused(cifar10, empty, str(path), "is not a batch of CIFAR images")


def test_rows_may_be_stored_by_column(cifar10: Fake, empty: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = cifar10.splits["train"]
    batch = cifar10.batch(pixels[:12], labels[:12])
    raw = python2({**batch, b"data": np.asfortranarray(batch[b"data"])})
    assert raw != python2(batch)
    accepted(cifar10, monkeypatch, raw)
    prepare_dataset("cifar10", cifar10.folder, empty)
    assert same(stored_split(empty, "train"), order.sort_splits(cifar10.splits)["train"])


Damage = Callable[[bytes], bytes]


def cut(share: float) -> Damage:
    return lambda raw: raw[: int(share * len(raw))]


def flipped(place: int, bit: int) -> Damage:
    """One bit changed, near the start or the end, where a batch holds more than pixels."""

    def damage(raw: bytes) -> bytes:
        changed = bytearray(raw)
        changed[place % len(raw)] ^= 1 << bit
        return bytes(changed)

    return damage


CUTS = st.floats(0, 1, exclude_max=True).map(cut)
FLIPS = st.builds(flipped, st.integers(-300, 400) | st.integers(-30_000, 30_000), st.integers(0, 7))


@settings(max_examples=40)
@given(damage=CUTS | FLIPS, file=st.sampled_from(["train", "more", "test"]))
def test_damage_is_always_noticed(damage: Damage, file: str) -> None:
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as place:
        fake = make_fake("cifar10", Path(place) / "data", patch)
        fake.write_torchvision(fake.folder)
        path = fake.layout / file
        path.write_bytes(damage(path.read_bytes()))
        refused(fake, prepared(Path(place) / "runs"), "a file is missing or damaged", f"{file} has the MD5")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=CUTS | FLIPS | st.tuples(FLIPS, FLIPS).map(lambda both: lambda raw: both[1](both[0](raw))))
def test_damage_without_a_checksum_is_refused_or_changes_nothing(
    cifar10: Fake, empty: Storage, monkeypatch: pytest.MonkeyPatch, damage: Damage
) -> None:
    whole = cifar10.files()["train"]
    accepted(cifar10, monkeypatch, damage(whole))
    try:
        prepare_dataset("cifar10", cifar10.folder, empty)
    except DataError:
        return
    assert len(damage(whole)) == len(whole)  # what is cut off is always refused
    assert same(stored_split(empty, "train"), order.sort_splits(cifar10.splits)["train"])
    empty.backend.delete(empty.dataset("cifar10", cifar10.facts.digest))


def test_no_data_folder(cifar10: Fake, empty: Storage) -> None:
    with pytest.raises(DataError, match="cifar10 needs a data folder; name it with --data DIR or in KDCTL_DATA"):
        prepare_dataset("cifar10", None, empty)


ERRORS = [
    URLError("no route to host"),
    RuntimeError("File not found or corrupted."),
    OSError(28, "No space left on device"),
    EOFError(),
    http.client.IncompleteRead(b"", 7),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_failing_download(cifar10: Fake, empty: Storage, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(url: str, folder: str, filename: str, md5: str) -> None:
        (Path(folder) / filename).write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(DOWNLOAD, download)
    refused(cifar10, empty, str(cifar10.folder), "could not be downloaded", str(error).partition("\n")[0])
    assert not list(cifar10.folder.iterdir())


def test_download(cifar10: Fake, empty: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, folder: str, filename: str, md5: str) -> None:
        assert url.endswith(f"/{filename}") and filename == "cifar-10-python.tar.gz" and len(md5) == 32
        cifar10.write_torchvision(Path(folder))

    monkeypatch.setattr(DOWNLOAD, download)
    prepare_dataset("cifar10", cifar10.folder, empty)
    assert same(stored_split(empty, "train"), order.sort_splits(cifar10.splits)["train"])
    assert list(cifar10.folder.iterdir()) == [cifar10.layout]


def test_prepare_reads_nothing_the_second_time(cifar10: Fake, empty: Storage) -> None:
    cifar10.write_parquet()
    prepare_dataset("cifar10", cifar10.folder, empty)
    path = empty.backend.local_path(empty.dataset("cifar10", cifar10.facts.digest))
    before = path.stat()
    for file in (cifar10.folder / "cifar10").iterdir():
        file.unlink()
    for folder in (cifar10.folder, None):
        prepare_dataset("cifar10", folder, empty)
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_ino == before.st_ino


def test_unwritable_data_folder(cifar10: Fake, empty: Storage, tmp_path: Path) -> None:
    cifar10.folder.write_text("a file where a folder should be")
    refused(cifar10, empty, str(cifar10.folder), "could not be downloaded")


# The images that a trial loads.


def test_limits(storage: Storage, make_config: MakeConfig) -> None:
    complete = tensors.load(make_config(limit_train=None, limit_test=None), storage, CPU)
    assert (len(complete.train), complete.val, len(complete.test)) == (1297, None, 500)
    some = tensors.load(make_config(limit_train=128, limit_test=100), storage, CPU)
    fewer = tensors.load(make_config(limit_train=50, limit_test=10), storage, CPU)
    for small, large, count in ((some, complete, 128), (fewer, some, 50)):
        assert len(small.train) == count
        assert torch.equal(small.train.pixels, large.train.pixels[:count])
        assert torch.equal(small.train.labels, large.train.labels[:count])
        assert torch.equal(small.test.pixels, large.test.pixels[: len(small.test)])
    assert fewer.test.labels.bincount().tolist() == [1] * 10
    assert some.train.pixels.dtype == torch.uint8 and some.train.labels.dtype == torch.int64


def test_holdout_is_the_rest_of_the_training_images(storage: Storage, make_config: MakeConfig) -> None:
    complete = tensors.load(make_config(), storage, CPU)
    split = tensors.load(make_config(holdout=28), storage, CPU)
    assert split.val is not None
    assert (len(split.train), len(split.val)) == (100, 28)
    assert torch.equal(torch.cat([split.train.pixels, split.val.pixels]), complete.train.pixels)
    assert torch.equal(torch.cat([split.train.labels, split.val.labels]), complete.train.labels)
    images = torch.cat([split.train.pixels, split.val.pixels]).flatten(1)
    assert len(torch.unique(images, dim=0)) == 128  # so no image is in both
    assert torch.equal(split.test.pixels, complete.test.pixels)


def test_normalise(storage: Storage, make_config: MakeConfig) -> None:
    images = tensors.load(make_config(limit_train=None), storage, CPU)
    normal = images.normalise(images.train.pixels)
    assert normal.dtype == torch.float32
    # The facts give mean and deviation to four decimals.
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(3), atol=3e-4, rtol=0)
    torch.testing.assert_close(normal.std((0, 2, 3)), torch.ones(3), atol=3e-4, rtol=0)


def test_the_last_images_stay_on_their_device(storage: Storage, make_config: MakeConfig) -> None:
    one, other = (tensors.load(make_config(limit_train=limit), storage, CPU) for limit in (100, 50))
    assert one.train.pixels.data_ptr() == other.train.pixels.data_ptr()
    assert tensors._cache_of(CPU) is tensors._cache_of(torch.device("cpu"))
    assert tensors._cache_of(CPU) is not tensors._cache_of(torch.device("cuda", 1))


def test_load_without_prepare(tmp_path: Path, make_config: MakeConfig) -> None:
    with pytest.raises(DataError, match="is missing; launch the study again"):
        tensors.load(make_config(), Storage.at(tmp_path), CPU)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 330), byte=st.integers(0, 255))
def test_load_of_a_file_with_another_header(storage: Storage, place: int, byte: int) -> None:
    name = storage.dataset("digits", DATASETS["digits"].digest)
    raw = bytearray(storage.backend.read(name))
    was, raw[place] = raw[place], byte
    storage.backend.write(name, bytes(raw))
    try:
        tensors._load_all("digits", name, storage, CPU)
    except DataError as error:
        assert "is damaged" in str(error)
    finally:
        raw[place] = was
        storage.backend.write(name, bytes(raw))


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b'{"train.pixels":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
        b'{"train.pixels":{"dtype":"F99","shape":[0],"data_offsets":[0,0]}}',
        b"[" * 100_000,
    ],
)
def test_load_of_a_file_of_something_else(storage: Storage, make_config: MakeConfig, text: bytes) -> None:
    name = storage.dataset("digits", DATASETS["digits"].digest)
    storage.backend.write(name, len(text).to_bytes(8, "little") + text)
    with pytest.raises(DataError, match=r"digits-.*\.safetensors is damaged .*; remove it"):
        tensors.load(make_config(), storage, CPU)


@pytest.mark.parametrize("size", [0, 100, -1])
def test_load_of_a_damaged_file(storage: Storage, make_config: MakeConfig, size: int) -> None:
    path = storage.backend.local_path(storage.dataset("digits", DATASETS["digits"].digest))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"digits-.*\.safetensors is damaged .*; remove it"):
        tensors.load(make_config(), storage, CPU)
