"""CIFAR-10 and CIFAR-100, from the files that the user has or downloaded: torchvision reads them here alone."""

from __future__ import annotations

import hashlib
import http.client
import lzma
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from orchestrator import parquet
from orchestrator.data import _cifar_layouts, order
from orchestrator.data._cifar_batches import parse_batch
from orchestrator.data._cifar_layouts import LAYOUTS, Copy
from orchestrator.data._decode import decode
from orchestrator.data.order import Labels, Pixels, Splits
from orchestrator.data.registry import DATASETS
from orchestrator.errors import DataError
from orchestrator.machine import proxies
from orchestrator.text import first_line

_LARGEST = 200_000_000  # bytes of a file in an archive; CIFAR's largest has 155 million


def read(dataset: str, folder: Path | None) -> Splits:
    """Reads CIFAR from the first complete copy in a folder; downloads it if there is no copy. Raises DataError."""
    if folder is None:
        raise DataError(f"{dataset} needs a data folder; name it with --data DIR or in KDCTL_DATA")
    copies = _cifar_layouts.find(dataset, folder)
    if not copies:
        _download(dataset, folder)
        copies = _cifar_layouts.find(dataset, folder)
    faults = []
    for copy in copies:
        try:
            splits = order.sort_splits(_read(copy, dataset))
            order.check(dataset, DATASETS[dataset], splits, _describe_fix(dataset))
            return splits
        except DataError as error:
            faults.append(str(error))
    raise DataError("\n".join(faults))


def locate(dataset: str, folder: Path) -> tuple[str, str]:
    """The copy that a launch would read, or what to do if none is complete. Only looks at file names."""
    copies = _cifar_layouts.find(dataset, folder)
    if copies and not copies[0].lacks:
        return f"{copies[0]}; a launch checks and prepares it", ""
    found = f"neither in the storage nor in {folder}, {_cifar_layouts.describe_folder(folder)}"
    if copies:
        found = f"{copies[0]}, but {copies[0].lacks}"
    return found, (
        f"a launch downloads it where there is a network; else put {_cifar_layouts.describe_expected(dataset)}, into "
        "the folder that --data or KDCTL_DATA names"
    )


def _describe_fix(dataset: str) -> str:
    return (
        f"put complete files there ({_cifar_layouts.describe_expected(dataset)}), or remove them and launch where "
        "there is a network, which downloads them"
    )


def _read(copy: Copy, name: str) -> Splits:
    if copy.lacks:
        raise DataError(f"{copy.path}: {copy.lacks}; {_describe_fix(name)}")
    if copy.kind == "parquet":
        return {split: _read_shards(paths, name) for split, paths in copy.shards.items()}
    if copy.kind == "binary":
        return _read_binary(name, copy.path)
    return _read_torchvision(name, copy.path)


def _read_shards(paths: Sequence[Path], name: str) -> tuple[Pixels, Labels]:
    parts, labels, side = [], [], DATASETS[name].side
    for path in paths:
        try:
            images, found = parquet.read_images(path, LAYOUTS[name].columns)
            if isinstance(images, list):
                # One after another: images are so small that threads, which pass on a lock, took twice as long.
                images = np.stack([decode(raw, side) for raw in images])
            parts.append(images)
        except parquet.UnreadableFile as error:
            raise DataError(f"{path}: {error}; {_describe_fix(name)}") from None
        except ValueError as error:
            raise DataError(f"{path}: an image in it {error}; {_describe_fix(name)}") from None
        labels += found
    if len({part.shape[1:] for part in parts}) > 1:
        raise DataError(f"{paths[0].parent}: its shards have images of several sizes; {_describe_fix(name)}")
    return np.concatenate(parts), np.array(labels, np.int64)


def _read_torchvision(name: str, source: Path) -> Splits:
    """Reads the batches of torchvision's layout, which are pickles, each after a comparison with its published MD5."""
    from torchvision import datasets

    builder = getattr(datasets, LAYOUTS[name].builder)  # for its lists of files; it reads them with a bare pickle.load
    side = DATASETS[name].side
    read_file = _open_files(source, {file for file, _ in (*builder.train_list, *builder.test_list)}, name)
    splits = {}
    for split, listed in (("train", builder.train_list), ("test", builder.test_list)):
        batches = [_read_batch(source / file, read_file(file), md5, name, 3 * side * side) for file, md5 in listed]
        rows, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        splits[split] = (rows.reshape(-1, 3, side, side).transpose(0, 2, 3, 1), labels)
    return splits


def _read_binary(name: str, source: Path) -> Splits:
    """Reads the files of the binary version: for each image its labels, then its red, green and blue pixels."""
    layout, side = LAYOUTS[name], DATASETS[name].side
    head = layout.binary_labels
    read_file = _open_files(source, {file for files in layout.binary_files.values() for file in files}, name)
    width = head + 3 * side * side
    splits = {}
    for split, names in layout.binary_files.items():
        raw = b"".join(read_file(file) for file in names)
        if len(raw) % width:
            raise DataError(f"{source}: the {split} files are not complete ({len(raw):,} bytes); {_describe_fix(name)}")
        rows = np.frombuffer(raw, np.uint8).reshape(-1, width)
        pixels = rows[:, head:].reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
        splits[split] = (pixels, rows[:, head - 1].astype(np.int64))
    return splits


def _open_files(source: Path, files: set[str], name: str) -> Callable[[str], bytes]:
    """A function from a file name to its content, in a folder or in an archive; nothing is extracted to disk."""
    unpacked = None if source.is_dir() else _unpack(source, files, name)

    def read_file(file: str) -> bytes:
        try:
            if unpacked is None:
                return (source / file).read_bytes()
            return unpacked[file]
        except (OSError, KeyError) as error:
            reason = f"it has no {file}" if isinstance(error, KeyError) else first_line(error)
            raise DataError(f"{source}: a file is missing or damaged ({reason}); {_describe_fix(name)}") from None

    return read_file


def _unpack(archive: Path, files: set[str], name: str) -> dict[str, bytes]:
    """Reads some files of an archive into memory; their keys are file names without folders."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                file = PurePosixPath(member.name).name
                if member.isreg() and file in files and member.size <= _LARGEST:
                    stream = tar.extractfile(member)
                    found[file] = stream.read() if stream else b""
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise DataError(
            f"{archive} is damaged or cut off ({first_line(error)}); download it again, or {_describe_fix(name)}"
        ) from None
    return found


def _read_batch(path: Path, raw: bytes, md5: str, name: str, width: int) -> tuple[Pixels, Labels]:
    found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if found != md5:
        reason = f"{path.name} has the MD5 {found}, expected {md5}"
        raise DataError(f"{path.parent}: a file is missing or damaged ({reason}); {_describe_fix(name)}")
    try:
        return parse_batch(raw, width)
    except Exception as error:  # a damaged pickle raises errors of a dozen types
        raise DataError(f"{path} is not a batch of CIFAR images ({first_line(error)}); {_describe_fix(name)}") from None


def _download(name: str, folder: Path) -> None:
    """Downloads with torchvision into a temporary folder, then moves the complete dataset into place."""
    from torchvision import datasets
    from torchvision.datasets.utils import download_and_extract_archive

    layout = LAYOUTS[name].python
    # Not instantiated: that would read the batches with a bare pickle.load.
    builder = getattr(datasets, LAYOUTS[name].builder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as part:
            download_and_extract_archive(builder.url, part, filename=builder.filename, md5=builder.tgz_md5)
            shutil.move(Path(part) / layout, folder / layout)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:
        raise DataError(
            f"{name} is not in {folder}, {_cifar_layouts.describe_folder(folder)}, and could not be downloaded"
            f"{proxies.through(builder.url)} ({first_line(error)}); put it there by hand: "
            f"{_cifar_layouts.describe_expected(name)}"
        ) from None
