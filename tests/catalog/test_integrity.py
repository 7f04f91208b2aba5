"""Foreign and missing files in a storage: every command warns about them, and the advice in the warning works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orchestrator.catalog import integrity
from orchestrator.cli import cli
from orchestrator.errors import StorageError
from orchestrator.launch import launch
from orchestrator.records import TableKey
from orchestrator.storage.layout import Storage

STUDY = """\
study: sound
recipe: {epochs: 1, limit_train: 128, limit_test: 100, milestones: [], batch_size: 64}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, seed: [0, 1]}
"""
ID = "0123456789ab"


@pytest.fixture
def here(tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a study, and the storage `runs` in which it is finished."""
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(STUDY)
    launch("s.yaml", inline=True, on_event=lambda event: None)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


def rows() -> list[Path]:
    return sorted(Path("runs/results/trials").glob("*.parquet"))


READERS = [
    ["results"], ["results", "s.yaml"], ["query", "SELECT count(*) AS n FROM trials"], ["report"], ["status"],
    ["plan", "s.yaml"], ["launch", "s.yaml", "--inline"], ["teachers"], ["clean"],
]  # fmt: skip


def test_foreign_files_are_named_once_and_change_nothing(here: Path) -> None:
    before = {tuple(words): run(*words).stdout for words in READERS}
    names = []
    for row in rows():
        for folder in ("trials", "epochs"):
            whole = Path("runs/results", folder, row.name)
            for name in (
                f"._{row.name}",
                f"{row.stem} (1).parquet",
                f"{row.name}.tmp",
                f"{row.stem} (conflicted copy).parquet",
            ):
                whole.with_name(name).write_bytes(b"" if name.startswith("._") else whole.read_bytes())
                names.append(f"results/{folder}/{name}")
    plan = next(Path("runs/plans").iterdir())
    for path in (
        plan.with_name(f"{plan.stem}.sync-conflict-20260101-120000-ABCDEFG.json"), Path("runs/leases/.DS_Store"),
        Path("runs/checkpoints/Thumbs.db"), Path("runs/teachers/._x.npy"), Path(f"runs/logs/{ID} 2.log"),
    ):  # fmt: skip
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(plan.read_bytes())
        names.append(path.relative_to("runs").as_posix())
    Path("runs/results/trials/x.parquet").mkdir()
    for words in READERS:
        done = run(*words)
        assert done.exit_code == 0, (words, done.output)
        assert done.stderr.count("not kdctl's and passed over") == 1, words
        if words[0] != "status":  # it prints the current time
            assert done.stdout == before[tuple(words)], words
    (text,) = integrity.find_foreign(Storage.at("runs"))
    assert f"{len(names)} files are" in text and f"and {len(names) - 8} more" in text
    assert "trial" in run("doctor").stdout and "not kdctl's" in run("doctor").stdout
    for name in names:
        Path("runs", name).unlink()
    assert integrity.find_missing(Storage.at("runs")) == []


def test_missing_epochs_are_named_and_the_advice_works(here: Path) -> None:
    first, second = (row.stem for row in rows())
    for row in rows():
        Path("runs/results/epochs", row.name).unlink()
    for words in (["results"], ["report"], ["status"], ["query", "FROM epochs"]):
        done = run(*words)
        assert (
            done.exit_code == 0 and f"trials {first}, {second} are finished, but the epochs are missing" in done.stderr
        )
    assert run("launch", "s.yaml", "--inline").exit_code == 0
    assert not list(Path("runs/results/epochs").iterdir())  # what is finished is not trained again
    row = re.search(r"remove (\S+) and launch its study", run("results").stderr)
    assert row
    before = run("query", "SELECT acc, last_acc FROM trials ORDER BY trial_id").stdout
    Path("runs", row[1]).unlink()
    assert run("launch", "s.yaml", "--inline").exit_code == 0
    assert Path(f"runs/results/epochs/{first}.parquet").exists()
    assert run("query", "SELECT acc, last_acc FROM trials ORDER BY trial_id").stdout == before
    assert f"trial {second} is finished" in run("results", "s.yaml").stderr


def test_missing_weights_are_named_and_the_advice_works(here: Path) -> None:
    trial_id = rows()[1].stem
    Path("runs/trials", trial_id, "weights.safetensors").unlink()
    for words in (["results"], ["report"], ["status"]):
        assert f"trial {trial_id} is finished, but the weights are missing (trials/{trial_id}/wei" in run(*words).stderr
    assert run("launch", "s.yaml", "--inline").exit_code == 0
    assert integrity.find_missing(Storage.at("runs")) == []


@pytest.mark.parametrize("content", [b"", b"PAR1 damaged"])
def test_damaged_files_are_named_and_the_advice_works(here: Path, content: bytes) -> None:
    row = rows()[0]
    row.write_bytes(content)
    for words in (["results"], ["query", "FROM trials"], ["report"]):
        assert "launch its study again, which trains this trial again" in str(run(*words).exception)
    assert run("launch", "s.yaml", "--inline").exit_code == 0
    assert run("results").exit_code == 0

    epochs = Path("runs/results/epochs", row.name)
    epochs.write_bytes(content)
    error = str(run("query", "FROM epochs").exception)
    assert (
        f"remove this file to continue without its curves, or also remove {row.absolute()} and launch its study"
        in error
    )
    epochs.unlink()
    assert run("query", "FROM epochs").exit_code == 0 and run("report").exit_code == 0
    row.unlink()
    assert run("launch", "s.yaml", "--inline").exit_code == 0
    assert epochs.exists() and integrity.find_missing(Storage.at("runs")) == []


def test_a_folder_in_place_of_a_row_is_named(here: Path) -> None:
    row = rows()[0]
    row.unlink()
    row.mkdir()
    for words in (["results", "s.yaml"], ["launch", "s.yaml", "--inline"]):
        error = run(*words).exception
        assert isinstance(error, StorageError) and f"{row.name} is a folder, expected a file; move it away" in str(
            error
        )
    row.rmdir()
    assert run("launch", "s.yaml", "--inline").exit_code == 0 and len(rows()) == 2


def test_every_name_that_a_storage_defines_is_ours() -> None:
    storage, key = Storage.at("runs"), TableKey(ID, "logits", 4, True, 50_000)
    names = (
        storage.weights(ID), storage.table(key), storage.table_facts(key), storage.table_slice(key, "0123abcd", 7),
        storage.dataset("cifar10", ID), storage.trial_row(ID), storage.trial_epochs(ID), storage.checkpoint(ID, 3, 128),
        storage.claim(f"trial-{ID}", "0123456789abcdef"), storage.plan(ID), storage.log(ID),
        storage.stop(f"launch-{ID}"), storage.copied(storage.trial_rows),
    )  # fmt: skip
    assert [name for name in names if not storage.is_ours(name)] == []
    assert {name.rpartition("/")[0].removesuffix(f"/{ID}") for name in names} == set(storage.folders)
