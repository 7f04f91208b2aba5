"""CIFAR as people have it: archives, the hub's layouts, other columns, the binary version; missing files are named."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_tensors import Fake, cifar10, empty, fake, prepared, refused, same, shard, stored_split

from orchestrator.data import _cifar_layouts, order
from orchestrator.data._cifar_layouts import LAYOUTS
from orchestrator.data.prepare import prepare_dataset
from orchestrator.doctor import CheckLevel, examine
from orchestrator.errors import DataError
from orchestrator.storage.layout import Storage

__all__ = ["cifar10", "empty", "fake"]  # fixtures

ARCHIVE = {"cifar10": "cifar-10-python", "cifar100": "cifar-100-python"}


def assert_read(fake: Fake, folder: Path, tmp_path: Path) -> None:
    """Asserts that a data folder gives the images of the fake dataset, and that `doctor` finds them."""
    storage = prepared(tmp_path / "runs")
    assert next(f for f in examine(str(tmp_path / "none"), folder) if f.check == fake.name).level is CheckLevel.OK
    prepare_dataset(fake.name, folder, storage)
    for split, expected in order.sort_splits(fake.splits).items():
        assert same(stored_split(storage, split, fake.name), expected)


def pack(path: Path, files: dict[str, bytes], mode: str = "w:gz", folder: str = "any-folder") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, raw in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return path


def pack_all(fake: Fake, folder: Path | None = None, suffix: str = ".tar.gz") -> Path:
    mode = "w" if suffix == ".tar" else "w:gz"
    return pack((folder or fake.folder) / f"{ARCHIVE[fake.name]}{suffix}", fake.files(), mode)


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar"])
def test_a_complete_archive_is_read_without_unpacking(fake: Fake, tmp_path: Path, suffix: str) -> None:
    path = pack_all(fake, suffix=suffix)
    assert_read(fake, fake.folder, tmp_path)
    assert list(fake.folder.iterdir()) == [path]


def test_an_archive_in_the_folder_of_the_dataset(fake: Fake, tmp_path: Path) -> None:
    pack_all(fake, fake.folder / fake.name)
    assert_read(fake, fake.folder, tmp_path)


@pytest.mark.parametrize("size", [0, 10, 400, -1000])
def test_an_archive_that_is_cut_off_is_named(cifar10: Fake, empty: Storage, size: int) -> None:
    path = pack_all(cifar10)
    path.write_bytes(path.read_bytes()[:size])
    refused(cifar10, empty, str(path), "damaged or cut off")


def test_an_archive_without_a_file_is_named(cifar10: Fake, empty: Storage) -> None:
    files = cifar10.files()
    del files["more"]
    path = pack(cifar10.folder / "cifar-10-python.tar.gz", files)
    refused(cifar10, empty, str(path), "it has no more")


def test_an_archive_writes_nowhere_and_follows_no_link(cifar10: Fake, tmp_path: Path) -> None:
    path = pack_all(cifar10, suffix=".tar")
    with tarfile.open(path, "a") as archive:
        for name, kind, target in (("../../escaped", tarfile.REGTYPE, ""), ("test", tarfile.SYMTYPE, "/etc/passwd")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    assert_read(cifar10, cifar10.folder, tmp_path)
    assert not (tmp_path / "escaped").exists() and list(cifar10.folder.iterdir()) == [path]


def test_of_several_copies_a_complete_one_is_used(cifar10: Fake, tmp_path: Path) -> None:
    cifar10.write_torchvision(cifar10.folder)
    (cifar10.layout / "more").unlink()  # as if unpacking was interrupted
    cifar10.write_parquet()
    shard(cifar10).write_bytes(b"damaged")
    pack_all(cifar10)
    assert_read(cifar10, cifar10.folder, tmp_path)


def test_all_damaged_copies_are_named(cifar10: Fake, empty: Storage) -> None:
    cifar10.write_torchvision(cifar10.folder)
    (cifar10.layout / "more").unlink()
    path = pack_all(cifar10)
    path.write_bytes(b"")
    refused(cifar10, empty, str(cifar10.layout), f"\n{path} is damaged")


# The binary version.


@pytest.mark.parametrize("is_packed", [True, False])
def test_the_binary_version(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_packed: bool) -> None:
    files = {"train": ["a.bin", "b.bin"], "test": ["c.bin"]}
    layout = replace(LAYOUTS[fake.name], binary_files=files)
    monkeypatch.setitem(LAYOUTS, fake.name, layout)  # type: ignore[misc]
    head = layout.binary_labels
    splits = [tuple(part[:12] for part in fake.splits["train"]), tuple(part[12:] for part in fake.splits["train"])]
    files = {
        f"{name}.bin": b"".join(
            bytes([7] * (head - 1)) + bytes([label]) + image.transpose(2, 0, 1).tobytes()
            for image, label in zip(*split, strict=True)
        )
        for name, split in zip("abc", [*splits, fake.splits["test"]], strict=True)
    }
    target = fake.folder / layout.binary
    if is_packed:
        pack(fake.folder / f"{ARCHIVE[fake.name].removesuffix('-python')}-binary.tar.gz", files)
    else:
        target.mkdir(parents=True)
        for name, raw in files.items():
            (target / name).write_bytes(raw)
    assert_read(fake, fake.folder, tmp_path)
    if not is_packed:
        (target / "b.bin").write_bytes(b"half")
        with pytest.raises(DataError, match=r"the train files are not complete \([\d,]+ bytes\)"):
            prepare_dataset(fake.name, fake.folder, prepared(tmp_path / "again"))


# The hub's layouts.

LOCATIONS: dict[str, tuple[str, str]] = {  # where the shards are, and what --data names
    "plain_text": ("data/{name}/plain_text", "data"),
    "a folder of its own": ("data/{name}/{name}", "data"),
    "data": ("data/{name}/data", "data"),
    "the folder itself": ("{name}", "{name}"),
    "the folder of a clone": ("clone-7/plain_text", "clone-7"),
    "a cache of the hub": ("data/datasets--uoft-cs--{name}/snapshots/0123abcd/plain_text", "data"),
    "the home of the hub": ("data/hub/datasets--uoft-cs--{name}/snapshots/0123abcd/{name}", "data"),
    "one dataset of a cache": ("datasets--uoft-cs--{name}/snapshots/0123abcd/plain_text", "datasets--uoft-cs--{name}"),
    "a snapshot": ("x/snapshots/0123abcd/plain_text", "x/snapshots/0123abcd"),
}


@pytest.mark.parametrize("kind", LOCATIONS)
def test_shards_where_the_hub_puts_them(fake: Fake, tmp_path: Path, kind: str) -> None:
    fake.write_parquet()
    target, folder = (tmp_path / text.format(name=fake.name) for text in LOCATIONS[kind])
    parts = list((fake.folder / fake.name).iterdir())
    target.mkdir(parents=True, exist_ok=True)
    for path in parts:
        path.rename(target / path.name)
    assert_read(fake, folder, tmp_path)
    other = {"cifar10": "cifar100", "cifar100": "cifar10"}[fake.name]
    assert _cifar_layouts.find(other, folder) == []  # not mistaken for the other dataset


def test_shards_as_the_hub_converts_them(cifar10: Fake, tmp_path: Path) -> None:
    cifar10.write_parquet()
    for split in ("train", "test"):
        for number, path in enumerate(sorted((cifar10.folder / "cifar10").glob(f"{split}-*"))):
            target = cifar10.folder / "cifar10" / "plain_text" / split / f"{number:04}.parquet"
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    assert_read(cifar10, cifar10.folder, tmp_path)


def test_copies_next_to_shards_are_not_read(cifar10: Fake, tmp_path: Path) -> None:
    cifar10.write_parquet()
    path = shard(cifar10)
    for name in (f"._{path.name}", path.name.replace(".", " (1)."), path.name.replace(".", ".sync-conflict-20260101.")):
        path.with_name(name).write_bytes(path.read_bytes())
    assert_read(cifar10, cifar10.folder, tmp_path)


def test_a_missing_shard_is_named(cifar10: Fake, empty: Storage) -> None:
    cifar10.write_parquet()
    shard(cifar10).unlink()
    refused(cifar10, empty, str(cifar10.folder / "cifar10"), "train-00000-of-00002.parquet is missing")
    found = next(f for f in examine(empty.backend.address, cifar10.folder) if f.check == "cifar10")
    assert found.level is CheckLevel.WARNING and "but train-00000-of-00002.parquet is missing" in found.found


def test_shards_of_several_downloads_are_named(cifar10: Fake, empty: Storage) -> None:
    cifar10.write_parquet()
    shard(cifar10).with_name("train-00000-of-00001.parquet").write_bytes(shard(cifar10).read_bytes())
    refused(cifar10, empty, "the train shards of several downloads are mixed: train-00000-of-00001.parquet, train-")


# Columns.

Row = dict[str, Any]


def pixels_of(raw: bytes) -> Any:
    from PIL import Image

    return np.array(Image.open(io.BytesIO(raw)))


COLUMNS: dict[str, Callable[[Row, str], Row]] = {
    "image": lambda row, label: {"image": row["img"], label: row[label]},
    "plural": lambda row, label: {"img": row["img"], f"{label}s": row[label]},
    "bare label": lambda row, label: {"img": row["img"], "label": row[label]},
    "raw bytes": lambda row, label: {"image": row["img"]["bytes"], label: row[label]},
    "pixels": lambda row, label: {"image": pixels_of(row["img"]["bytes"]).tolist(), label: row[label]},
    "more columns": lambda row, label: {"id": 7, "image": row["img"], "coarse": 3, label: row[label]},
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_other_columns(fake: Fake, tmp_path: Path, kind: str) -> None:
    fake.write_parquet()
    for path in (fake.folder / fake.name).iterdir():
        rows = [COLUMNS[kind](row, LAYOUTS[fake.name].columns[0]) for row in pq.read_table(path).to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows), path)
    assert_read(fake, fake.folder, tmp_path)


def test_the_existing_columns_are_listed(cifar10: Fake, empty: Storage) -> None:
    cifar10.write_parquet()
    rows = [{"picture": row["img"], "class": row["label"]} for row in pq.read_table(shard(cifar10)).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows), shard(cifar10))
    words = "has the columns picture, class; expected img or image with the images, and label or labels with the labels"
    refused(cifar10, empty, str(shard(cifar10)), words)


def test_paths_instead_of_images_are_refused(cifar10: Fake, empty: Storage) -> None:
    cifar10.write_parquet()
    table = pq.read_table(shard(cifar10))
    paths = pa.array([f"{number}.png" for number in range(len(table))])
    pq.write_table(table.set_column(table.column_names.index("img"), "img", paths), shard(cifar10))
    refused(cifar10, empty, "has img of type string", "expected encoded images")


def test_the_message_lists_the_content_of_a_folder_without_a_copy(
    cifar10: Fake, empty: Storage, monkeypatch: Any
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", fail)
    cifar10.folder.mkdir()
    for name in ("cifar-10-python.zip", "notes.txt"):
        (cifar10.folder / name).touch()
    refused(cifar10, empty, "which contains cifar-10-python.zip, notes.txt, and could not be downloaded (no network)")
