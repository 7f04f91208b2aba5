"""The storage: names below its root, files that are whole or not there, locks that die with their holder."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import filelock
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import StorageError
from orchestrator.records import TableKey
from orchestrator.storage import Storage, key_facts, read_json, replacing, write_json

KEY = TableKey("0123456789ab", "logits", 4, True, 50_000)
TRIAL_IDS = st.text("0123456789abcdef", min_size=12, max_size=12)
KEYS = st.builds(
    TableKey,
    teacher_id=TRIAL_IDS,
    answers=st.sampled_from(["logits", "pooled"]),
    crop_padding=st.integers(0, 40),
    flip=st.booleans(),
    images=st.integers(1, 50_000),
)


@contextmanager
def child(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another Python that runs `code`; it is past its first line of output, and killed at the end."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


# Whole or not at all.


def test_replacing_puts_the_new_file_in_place(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    for text in ("first", "second"):
        with replacing(path) as part:
            part.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as part:
        part.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_text("old")
    code = """
import sys
from pathlib import Path
from orchestrator.storage import replacing
with replacing(Path(sys.argv[1])) as part:
    part.write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
"""
    with child(code, path) as process:
        process.kill()
        process.wait()
    assert path.read_text() == "old"
    assert [rest.name for rest in tmp_path.glob("[!.]*")] == ["rows.parquet"]
    assert len(os.listdir(tmp_path)) == 2, "the half-written file, under a name that readers pass over"
    assert list(tmp_path.glob("*.parquet")) == [path]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_json(tmp_path / "file", 1)
        after = os.umask(mask)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask
    assert after == mask, "the process's umask is as it was"


def test_a_full_disk_is_a_storage_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    # A limit on the size of files fails a write halfway, as a full disk does; it must not bind this process.
    code = """
import resource, sys
from pathlib import Path
from orchestrator.errors import StorageError
from orchestrator.storage import write_json
print("ready", flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_json(Path(sys.argv[1]), "x" * 100_000)
except StorageError as error:
    print(error)
"""
    with child(code, path) as process:
        message, _ = process.communicate()
    assert message.startswith(f"{path} cannot be written (")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


# Targets that cannot be written.


def test_a_file_where_a_folder_should_be_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "trials").write_text("a file")
    storage = Storage(tmp_path)
    with pytest.raises(StorageError, match="weights.safetensors cannot be written"):
        write_json(storage.weights("0123456789ab"), 1)
    assert (tmp_path / "trials").read_text() == "a file"


def test_a_folder_where_the_file_should_be_is_a_storage_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    (path / "inner").mkdir(parents=True)
    with pytest.raises(StorageError, match="cannot be written"):
        write_json(path, 1)
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_where_the_locks_should_be_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("a file")
    with pytest.raises(StorageError, match=r"x\.lock cannot be written"), Storage(tmp_path).lock("x"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_a_storage_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="Permission denied"):
            write_json(tmp_path / "file", 1)
        with pytest.raises(StorageError, match="Permission denied"):
            Storage(tmp_path).prepare()
    finally:
        tmp_path.chmod(0o700)


def test_prepare_makes_the_folders_and_nothing_else(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "runs")
    storage.prepare()
    storage.prepare()
    assert {path for path in storage.root.rglob("*") if not path.is_dir()} == set()
    assert storage.trial_rows().is_dir()
    assert storage.epoch_rows().is_dir()


def test_prepare_says_what_it_got_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "runs"
    with pytest.raises(StorageError) as caught:
        Storage(root).prepare()
    assert str(caught.value) == (
        f"storage {str(root)!r} cannot be written (Not a directory); wanted a folder with room that you may write; "
        "free it, or name another with --storage"
    )
    assert caught.value.exit_code == 2


# Locks.


def is_free(storage: Storage, name: str) -> bool:
    """Whether another holder could take a lock right now."""
    try:
        with filelock.FileLock(storage.root / "locks" / f"{name}.lock", timeout=0):
            return True
    except filelock.Timeout:
        return False


def test_a_lock_is_held_for_its_block_alone(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with pytest.raises(RuntimeError), storage.lock("x"):
        assert not is_free(storage, "x")
        with storage.lock("y"):  # each name is a lock of its own
            pass
        raise RuntimeError
    assert is_free(storage, "x")


def test_a_lock_excludes_others_until_its_holder_is_killed(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    code = """
import sys
from pathlib import Path
from orchestrator.storage import Storage
with Storage(Path(sys.argv[1])).lock("x"):
    print("ready", flush=True)
    sys.stdin.read()
"""
    with child(code, tmp_path) as process:
        assert not is_free(storage, "x")
        process.kill()
        process.wait()
        assert is_free(storage, "x")
    with storage.lock("x"):
        assert not is_free(storage, "x")


def test_two_processes_take_turns_in_a_lock(tmp_path: Path) -> None:
    rounds = 200
    counter = tmp_path / "counter"
    counter.write_text("0")
    code = """
import sys
from pathlib import Path
from orchestrator.storage import Storage
root, rounds = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.read()
for _ in range(rounds):
    with Storage(root).lock("x"):
        (root / "counter").write_text(str(int((root / "counter").read_text()) + 1))
"""
    with child(code, tmp_path, rounds) as first, child(code, tmp_path, rounds) as second:
        for process in (first, second):
            assert process.stdin
            process.stdin.close()  # both are up, now they race
        assert (first.wait(), second.wait()) == (0, 0)
    assert int(counter.read_text()) == 2 * rounds


# Tables and names.


def write_table(storage: Storage, key: TableKey) -> None:
    """What stands for a whole table, for those who only list them."""
    write_json(storage.table(key), "the array")
    write_json(storage.table_facts(key), {"key": key_facts(key)})


def test_tables_lists_every_whole_table(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    assert list(storage.tables()) == []
    keys = {KEY, replace(KEY, answers="pooled"), replace(KEY, teacher_id="ba9876543210", flip=False)}
    for key in keys:
        write_table(storage, key)
    assert len(list(storage.tables())) == len(keys)
    assert set(storage.tables()) == keys


def test_tables_passes_over_a_table_without_facts_and_facts_without_a_table(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    write_json(storage.table(KEY), "built, but not checked to the end")
    assert list(storage.tables()) == []
    write_table(storage, KEY)
    storage.table(KEY).unlink()
    assert list(storage.tables()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "{}", '{"key": 1}', '{"key": {"teacher_id": "a"}}', "\0"])
def test_tables_passes_over_damaged_facts(tmp_path: Path, text: str) -> None:
    storage = Storage(tmp_path)
    write_table(storage, KEY)
    storage.table_facts(KEY).write_text(text)
    assert list(storage.tables()) == []


@settings(deadline=None)
@given(KEYS, TRIAL_IDS)
def test_every_path_lies_below_the_root(key: TableKey, trial_id: str) -> None:
    storage = Storage(Path("storage"))
    paths = [
        storage.table(key),
        storage.table_facts(key),
        storage.weights(trial_id),
        storage.trial_row(trial_id),
        storage.trial_epochs(trial_id),
        storage.dataset("digits", trial_id),
    ]
    assert len(set(paths)) == len(paths)
    for path in paths:
        assert path.resolve().is_relative_to(storage.root.resolve())
        assert not path.name.startswith("."), "a name that readers would pass over"


@settings(deadline=None)
@given(KEYS, KEYS)
def test_two_tables_of_one_teacher_never_share_a_name(first: TableKey, second: TableKey) -> None:
    second = replace(second, teacher_id=first.teacher_id)
    assert (first.name == second.name) == (first == second)
    assert (Storage(Path()).table(first) == Storage(Path()).table(second)) == (first == second)


@settings(deadline=None)
@given(KEYS)
def test_a_key_is_one_view_for_each_flip_and_offset(key: TableKey) -> None:
    offsets = range(-key.crop_padding, key.crop_padding + 1)
    assert key.views == len(offsets) ** 2 * len([False, True][: 1 + key.flip])


# JSON.


def test_json_round_trip(tmp_path: Path) -> None:
    data = {"b": [1, 2.5, None, "ü"], "a": {"nested": True}}
    write_json(tmp_path / "file", data)
    assert read_json(tmp_path / "file") == data
    assert (tmp_path / "file").read_text().endswith("}\n")


def test_missing_or_damaged_json_reads_as_none(tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(b"\xff{")
    assert read_json(tmp_path / "damaged") is None
    assert read_json(tmp_path / "missing") is None
    assert read_json(tmp_path) is None
