"""The doctor: every check finds what is wrong, says what to do, raises nothing and leaves nothing behind."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import warnings
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from orchestrator import doctor
from orchestrator.cli import cli
from orchestrator.data._cifar_layouts import LAYOUTS
from orchestrator.data.registry import DATASETS
from orchestrator.doctor import CheckLevel, CheckResult, examine, is_fit
from orchestrator.errors import StorageError
from orchestrator.machine import folders
from orchestrator.storage.backend import MARKER, Folder
from orchestrator.storage.layout import Storage

MACHINE = ["python", "torch", "gpu", "cpu", "memory", "ray", "shared memory", "temporary folder"]
MACHINE += ["user folder", "Ray's token"]
OF_STORAGE = ["storage", "free space", "clock", "files", "digits", "cifar10", "cifar100"]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU, whatever it has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "_has_driver", lambda: False)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A storage that holds nothing yet."""
    Storage.at(tmp_path / "runs").prepare()
    return tmp_path / "runs"


def found(name: str, storage: Path | str, folder: Path = Path("nowhere")) -> CheckResult:
    checks = {**doctor._of_machine(), **doctor._of_storage(str(storage), folder)}
    checks["storage"] = lambda: doctor._storage(str(storage))
    return doctor._run_check(name, checks[name])


def listed(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def free_space(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1e12, 0, free))


# All together.


def test_everything_is_checked_and_nothing_is_left_behind(empty: Path) -> None:
    before = listed(empty)
    results = examine(str(empty), Path("nowhere"))
    assert [result.check for result in results] == MACHINE + OF_STORAGE
    assert is_fit(results) and listed(empty) == before
    assert [result.check for result in results if result.level is CheckLevel.WARNING] == ["cifar10", "cifar100"]
    assert all(bool(result.fix) is (result.level is not CheckLevel.OK) for result in results)


def test_a_storage_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    results = examine(str(tmp_path / "a" / "runs"), Path("nowhere"))
    assert is_fit(results) and list(tmp_path.iterdir()) == []
    (storage,) = (result for result in results if result.check == "storage")
    assert storage.found.startswith(f"does not exist yet, a launch will create it; in {tmp_path} a file was written")


def test_what_needs_the_storage_is_not_tried_without_it(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    results = examine(str(tmp_path / "runs"), Path("nowhere"))[len(MACHINE) :]
    assert [result.check for result in results] == OF_STORAGE and not is_fit(results)
    assert "is a file, expected a folder" in results[0].found and "--storage" in results[0].fix
    assert {(result.level, result.found) for result in results[1:]} == {
        (CheckLevel.WARNING, "not checked, because the storage cannot be used")
    }


def test_an_error_becomes_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-of-mine")

    def fails() -> doctor.Result:
        raise LookupError("first \x1b[31m secret-of-mine\nsecond")

    result = doctor._run_check("x", fails)
    assert (result.level, result.found) == (CheckLevel.BAD, r"LookupError: first \x1b[31m ***")
    assert result.fix.startswith("fix the cause of this error")


@pytest.mark.parametrize("name", MACHINE + OF_STORAGE)
def test_no_check_raises(name: str, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **options: object) -> None:
        raise PermissionError("no")

    for place in ("_python", "_torch", "_gpu", "_cpu", "_memory", "_ray", "_shared_memory", "_temporary_folder"):
        monkeypatch.setattr(doctor, place, fails)
    for place in ("_own_folder", "_token"):
        monkeypatch.setattr(doctor, place, fails)
    for place in ("_nearest", "read_clock", "find_spec"):
        monkeypatch.setattr(doctor, place, fails)
    monkeypatch.setattr(Folder, "stat", fails)
    assert found(name, empty).level is CheckLevel.BAD and found(name, empty).fix


# The machine.


@pytest.mark.parametrize(("version", "level"), [((3, 10, 9), "bad"), ((3, 11, 0), "ok"), ((4, 0, 0), "ok")])
def test_an_old_python_is_bad(version: tuple[int, ...], level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    level_found, text, _ = doctor._python()
    assert level_found == level and f"Python {version[0]}.{version[1]}.{version[2]}" in text


def test_a_torch_that_cannot_be_imported_is_bad(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("torch", empty).found == f"torch {torch.__version__}"
    monkeypatch.setitem(sys.modules, "torch", None)
    assert found("torch", empty).level is CheckLevel.BAD and "cannot be imported" in found("torch", empty).found
    assert found("gpu", empty).level is CheckLevel.BAD  # and not an exception


def test_gpus_are_named_with_their_memory(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "device_count", lambda: 2)
    monkeypatch.setattr(cuda, "mem_get_info", lambda number: (70e9, 80e9))
    monkeypatch.setattr(cuda, "get_device_capability", lambda number: (9, 0) if number else (7, 5))
    monkeypatch.setattr(cuda, "get_device_name", lambda number: f"GPU {number}")
    one, two = found("gpu", empty).found.split("; ")
    assert (one, two) == (
        "GPU 0, 70.0 GB of 80.0 GB free, no bf16",
        "GPU 1, 70.0 GB of 80.0 GB free, bf16",
    )


def test_no_gpu_is_fine(empty: Path) -> None:
    assert found("gpu", empty) == CheckResult("gpu", CheckLevel.OK, "no GPU; training uses the CPU")


def test_a_driver_that_torch_cannot_use_is_a_warning(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def warns() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old\nand more", stacklevel=2)
        return False

    monkeypatch.setattr(doctor, "_has_driver", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    assert "it sees no GPU" in found("gpu", empty).found
    monkeypatch.setattr(torch.cuda, "is_available", warns)
    result = found("gpu", empty)
    assert result.level is CheckLevel.WARNING and "(The NVIDIA driver on your system is too old)" in result.found
    assert "CUDA_VISIBLE_DEVICES" in result.fix and "13.2" in result.fix
    monkeypatch.setattr(torch.version, "cuda", None)
    assert found("gpu", empty).fix == "install a torch with CUDA"


def test_a_driver_is_known_by_its_tool(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_driver = importlib.util.module_from_spec(doctor.__spec__)
    doctor.__spec__.loader.exec_module(has_driver)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert has_driver._has_driver()


def test_little_memory_is_a_warning(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("memory", empty).found.endswith("GB")
    monkeypatch.setattr(os, "sysconf", lambda name: 1000)
    result = found("memory", empty)
    assert result.level is CheckLevel.WARNING and result.found == "1 MB, expected 2.0 GB or more" and result.fix


def test_cores_are_those_that_may_be_used(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert found("cpu", empty).found == "2 cores of the machine's 64"
    monkeypatch.delattr(os, "sched_getaffinity")
    assert found("cpu", empty).found == "64 cores"


def test_ray_is_looked_for(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("ray", empty).found.startswith("Ray 2.")
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert found("ray", empty).level is CheckLevel.BAD and "--inline" in found("ray", empty).fix


def test_shared_memory_wants_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_SHARED", tmp_path / "none")
    assert doctor._shared_memory()[0] is CheckLevel.OK
    monkeypatch.setattr(folders, "_SHARED", tmp_path)
    free_space(monkeypatch, 64e6)
    level, text, fix = doctor._shared_memory()
    assert level is CheckLevel.WARNING and "64 MB free" in text and "--shm-size" in fix
    free_space(monkeypatch, 1e9)
    assert doctor._shared_memory()[0] is CheckLevel.OK


def test_the_temporary_folder_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_SOCKET", 1000)  # the folder of a test has a long path
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert doctor._temporary_folder()[0] is CheckLevel.OK
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "none"))
    assert doctor._temporary_folder()[0] is CheckLevel.OK, "Ray makes it"
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file" / "none"))
    bad = found("temporary folder", tmp_path)
    assert bad.level is CheckLevel.BAD and f"{tmp_path}/file/none, where Ray keeps" in bad.found
    assert "it is not a folder, and cannot be created" in bad.found and "RAY_TMPDIR" in bad.fix


def test_a_folder_of_ray_that_is_anothers_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> Any:
        if dir.name == "ray":
            raise PermissionError(13, "Permission denied")
        return (tmp_path / "file").open("w")

    (tmp_path / "ray").mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    text = found("temporary folder", tmp_path).found
    assert f"{tmp_path}/ray, where Ray keeps its logs and sockets, cannot be written (Permission denied)" in text


def test_the_path_of_a_socket_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(deep))
    bad = found("temporary folder", tmp_path)
    assert bad.level is CheckLevel.BAD and "Linux allows 107" in bad.found and "shorter" in bad.fix


# The storage.


def test_a_storage_is_tried_for_real(empty: Path) -> None:
    result = found("storage", empty)
    assert result.level is CheckLevel.OK
    assert result.found == (
        f"{empty}: a file was written, replaced, read and removed, a lease was taken and given back"
    )


def test_a_folder_without_the_marker(empty: Path) -> None:
    (empty / MARKER).unlink()
    assert found("storage", empty).found.startswith(f"{empty} is not a storage yet")
    (empty / "results" / "trials").mkdir(parents=True)
    (empty / "results" / "trials" / "0.parquet").touch()
    result = found("storage", empty)
    assert result.level is CheckLevel.WARNING and "has results, but its kdctl-storage.json is missing" in result.found
    assert not (empty / MARKER).exists()


def ignore(*args: object) -> None:
    """A write, a removal that does nothing."""


def refuse(self: Folder, name: str, *rest: object) -> None:
    raise StorageError(f"{name} cannot be written (Read-only file system); make room; and try again")


@pytest.mark.parametrize(
    ("method", "instead", "message", "fix"),
    [
        ("write", refuse, "cannot be written (Read-only file system); make room", "and try again"),
        (
            "read",
            lambda self, name: b"first",
            "does not hold what was written to it last",
            "use another with --storage",
        ),
        ("read", lambda self, name: b"", "does not hold what was written to it last", "use another"),
        ("delete", ignore, "still exists after it was deleted", "check the permissions of the storage"),
        ("touch", lambda self, name: False, "was taken over", "fix this, then check again"),
    ],
)
def test_a_storage_that_does_not_do_what_it_must_is_bad(
    empty: Path, monkeypatch: pytest.MonkeyPatch, method: str, instead: Callable[..., object], message: str, fix: str
) -> None:
    monkeypatch.setattr(Folder, method, instead)
    result = found("storage", empty)
    assert result.level is CheckLevel.BAD and message in result.found and fix in result.fix


def test_a_lease_that_is_never_given_is_bad(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "acquire", ignore)
    assert found("storage", empty).fix == "delete the files in leases/, then check again"


@pytest.mark.parametrize("address", ["ftp://x/y", "s3://", "s3://user:pass@bucket/x"])
def test_an_address_of_no_storage_is_bad(address: str) -> None:
    result = found("storage", address)
    assert result.level is CheckLevel.BAD and result.fix and "pass" not in result.found


@pytest.mark.parametrize(("free", "level"), [(0.4e9, "bad"), (0.6e9, "warning"), (4.9e9, "warning"), (5.1e9, "ok")])
def test_free_space_is_checked(empty: Path, monkeypatch: pytest.MonkeyPatch, free: float, level: str) -> None:
    free_space(monkeypatch, free)
    result = found("free space", empty)
    assert result.level == level and str(empty) in result.found
    assert ("kdctl clean" in result.fix) is (level != "ok")
    assert found("free space", empty / "a" / "b").level == level


@pytest.mark.parametrize(("drift", "level"), [(0, "ok"), (8, "ok"), (-8, "ok"), (12, "warning"), (-3600, "warning")])
def test_clocks_are_compared(empty: Path, monkeypatch: pytest.MonkeyPatch, drift: float, level: str) -> None:
    clock = doctor.read_clock
    monkeypatch.setattr(doctor, "read_clock", lambda place: clock(place) + drift)
    result = found("clock", empty)
    assert result.level == level and bool(result.fix) is (level != "ok")


def test_a_clock_that_was_never_set_is_bad(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "read_clock", lambda place: 3600.0)
    result = found("clock", empty)
    assert result.level is CheckLevel.BAD and "1970-01-01 01:00 UTC at the storage" in result.found


def test_a_bucket_is_tried_for_real(s3_address: str) -> None:
    assert "not a storage yet" in found("storage", s3_address).found
    storage = Storage.at(s3_address)
    storage.prepare()
    results = [found(name, s3_address) for name in OF_STORAGE]
    assert is_fit(results) and results[1].found == "unknown for a bucket"
    assert [entry.name for entry in storage.backend.list_files(".")] == [MARKER]


# Data.


def test_data_is_looked_for_in_the_storage_first(empty: Path, tmp_path: Path) -> None:
    assert found("digits", empty).found == "comes with scikit-learn"
    storage = Storage.at(empty)
    for name in DATASETS:
        storage.backend.write(storage.dataset(name, DATASETS[name].digest), b"prepared")
        assert found(name, empty).found == "prepared in the storage"


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_looked_for_in_both_layouts(name: str, empty: Path, tmp_path: Path) -> None:
    result = found(name, empty, tmp_path)
    assert result.level is CheckLevel.WARNING and f"neither in the storage nor in {tmp_path}" in result.found
    assert all(word in result.fix for word in ("downloads", "--data", "KDCTL_DATA", f"{name}/train-*.parquet"))
    (tmp_path / name).mkdir()
    (tmp_path / name / "train-0.parquet").touch()
    assert found(name, empty, tmp_path).found.endswith(
        f"{tmp_path / name} (1 train and 0 test shards), but there is no test-*.parquet"
    )
    (tmp_path / name / "test-0.parquet").touch()
    assert found(name, empty, tmp_path).level is CheckLevel.OK
    other = tmp_path / "other"
    (other / LAYOUTS[name].python).mkdir(parents=True)
    assert found(name, empty, other).level is CheckLevel.OK


def test_digits_without_scikit_learn_are_bad(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.data.digits.find_spec", lambda name: None)
    assert found("digits", empty).level is CheckLevel.BAD


# The command.


def test_the_command_prints_results_fixes_and_a_summary(empty: Path) -> None:
    done = CliRunner().invoke(cli, ["doctor", "--storage", str(empty), "--data", "nowhere"])
    table, fixes, summary = done.stdout.strip().split("\n\n")
    assert (done.exit_code, done.stderr) == (0, "")
    assert len(table.splitlines()) == 18 and table.startswith("result   check ")
    assert [line.split(":")[0] for line in fixes.splitlines()] == ["cifar10", "cifar100"]
    assert summary == "15 ok, 2 warnings, 0 bad: kdctl can train here"


def test_a_fix_of_several_checks_is_printed_once(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    _, fixes, summary = doctor.text(examine(str(tmp_path / "runs"), Path("nowhere"))).split("\n\n")
    names = "free space, clock, files, digits, cifar10, cifar100"
    assert fixes.splitlines()[-1] == f"{names}: fix the storage, then check again"
    assert summary == "10 ok, 6 warnings, 1 bad: fix what is bad first"


def test_the_command_ends_with_1_where_something_is_bad(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free_space(monkeypatch, 0.2e9)
    done = CliRunner().invoke(cli, ["doctor", "--storage", str(empty)])
    assert done.exit_code == 1 and done.stdout.endswith("1 bad: fix what is bad first\n")


def test_the_command_speaks_json(empty: Path) -> None:
    facts = json.loads(CliRunner().invoke(cli, ["doctor", "--storage", str(empty), "--json"]).stdout)
    assert facts["fit"] is True and [check["check"] for check in facts["checks"]] == MACHINE + OF_STORAGE
    assert all(set(check) == {"check", "verdict", "found", "cure"} for check in facts["checks"])
