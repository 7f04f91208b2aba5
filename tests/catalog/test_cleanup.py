"""Cleaning a storage: what can be removed is found, what is in use stays, nothing is removed while a launch runs."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import stored_launch
from click.testing import CliRunner, Result
from launch_events import ignore

from orchestrator.catalog import cleanup
from orchestrator.catalog.cleanup import GarbageKind, find, free
from orchestrator.cli import cli
from orchestrator.errors import KdctlError, LeaseLost, StorageError
from orchestrator.launch import launch, plan_study
from orchestrator.records import State, TableKey, TrialRecord
from orchestrator.results import store
from orchestrator.storage.backend import MARKER, Entry, Folder
from orchestrator.storage.layout import Storage, encode_key, write_json
from orchestrator.storage.leases import EXPIRES, Lease, acquire

DONE, OPEN, GONE, TEACHER = "d" * 12, "0" * 12, "a" * 12, "e" * 12
USED, UNUSED = (TableKey(TEACHER, "logits", padding, True, 50) for padding in (1, 2))
NEVER = {f"trials/{DONE}/weights.safetensors", f"trials/{OPEN}/weights.safetensors", "datasets/digits-0.safetensors"}
HOURS_AGO = time.time() - 2 * cleanup.STALE


def row(trial_id: str, state: State, weights_bytes: int | None = None) -> TrialRecord:
    facts: dict[str, Any] = dict.fromkeys(TrialRecord.__slots__)
    facts |= dict.fromkeys(("method", "dataset", "student", "study", "kdctl_version"), "x")
    facts |= {"recipe": {}, "no": 1, "nepoch": 1, "lr": 0.1, "batch_size": 1, "seed": 0, "resumed": 0}
    facts |= {"start_time": datetime.now(UTC), "trial_id": trial_id, "state": state, "weights_bytes": weights_bytes}
    return TrialRecord(**facts)


@pytest.fixture
def empty(tmp_path: Path) -> Storage:
    """A storage that holds nothing yet."""
    storage = Storage.at(tmp_path / "runs")
    storage.prepare()
    return storage


@pytest.fixture
def full(empty: Storage) -> Storage:
    """A storage with a file of every kind, and others that must stay."""
    fill(empty)
    return empty


def fill(storage: Storage) -> None:
    write = storage.backend.write
    for name in NEVER:
        write(name, b"kept")
    for trial_id, state in ((DONE, State.FINISHED), (OPEN, State.STOPPED)):
        store.write_trial(storage, row(trial_id, state, 4))
        write(storage.trial_epochs(trial_id), b"kept")
    for trial_id in (DONE, OPEN, GONE):
        for epoch in (1, 2, 10):
            write(storage.checkpoint(trial_id, epoch, 0), b"state")
    write(storage.weights(GONE), b"weights")
    write(storage.trial_epochs(GONE), b"epochs")
    for key in (USED, UNUSED):
        write(storage.table(key), b"outputs")
        write(storage.table_facts(key), b"{}")
    remember(storage, {OPEN: encode_key(USED), DONE: encode_key(UNUSED), GONE: None})


def remember(storage: Storage, trials: object) -> None:
    write_json(storage, storage.plan("0" * 12), {"study": "x", "trials": trials})


def folder(storage: Storage) -> Path:
    assert isinstance(storage.backend, Folder)
    return storage.backend.root


def listed(storage: Storage) -> set[str]:
    return {entry.name for entry in storage.backend.list_files(".")}


def by_kind(pieces: list[cleanup.Garbage]) -> dict[GarbageKind, list[str]]:
    return {kind: [p.entry.name for p in pieces if p.kind is kind] for kind in {piece.kind for piece in pieces}}


def age(storage: Storage, name: str, modified: float = HOURS_AGO) -> str:
    os.utime(folder(storage) / name, (modified, modified))
    return name


EXPECTED = {
    GarbageKind.FINISHED: [f"checkpoints/{DONE}/{epoch:06d}-00000000.checkpoint" for epoch in (1, 2, 10)],
    GarbageKind.OLD: [f"checkpoints/{OPEN}/000001-00000000.checkpoint"],
    GarbageKind.ORPHAN: [
        *(f"checkpoints/{GONE}/{epoch:06d}-00000000.checkpoint" for epoch in (1, 2, 10)),
        f"trials/{GONE}/weights.safetensors",
        f"results/epochs/{GONE}.parquet",
    ],
    GarbageKind.TABLE: [f"teachers/{TEACHER}/logits-p2-flip-n50.json", f"teachers/{TEACHER}/logits-p2-flip-n50.npy"],
}


# Finding.


def test_what_can_go_is_found_by_kind(full: Storage) -> None:
    before = listed(full)
    assert by_kind(find(full)) == EXPECTED
    assert listed(full) == before


def test_nothing_is_found_in_a_storage_that_is_not_there(tmp_path: Path) -> None:
    assert find(Storage.at(tmp_path / "runs")) == free(Storage.at(tmp_path / "runs")) == []
    assert list(tmp_path.iterdir()) == []


def test_a_finished_trial_with_damaged_weights_counts_as_unfinished(full: Storage) -> None:
    full.backend.write(full.weights(DONE), b"cut")
    found = by_kind(find(full))
    assert GarbageKind.FINISHED not in found and GarbageKind.TABLE not in found  # it is trained again, with its table
    assert found[GarbageKind.OLD] == [f"checkpoints/{trial_id}/000001-00000000.checkpoint" for trial_id in (OPEN, DONE)]


def test_a_trial_with_a_damaged_row_counts_as_unfinished(full: Storage) -> None:
    full.backend.write(full.trial_row(DONE), b"half a row")
    assert not {GarbageKind.FINISHED, GarbageKind.TABLE} & set(by_kind(find(full)))


def test_half_of_a_table_is_found_even_if_a_plan_uses_it(full: Storage) -> None:
    other = TableKey(TEACHER, "pooled", 0, False, 9)
    full.backend.delete(full.table(USED))
    full.backend.write(full.table(other), b"outputs")
    assert by_kind(find(full))[GarbageKind.HALF] == [full.table_facts(USED), full.table(other)]


def test_without_a_plan_no_table_is_in_use(full: Storage) -> None:
    full.backend.delete(full.plan("0" * 12))
    assert len(by_kind(find(full))[GarbageKind.TABLE]) == 4


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"trials": 3}', b'{"trials": {"a": {"x": 1}}}', b"\xff"])
def test_a_damaged_plan_is_reported_before_anything_is_removed(full: Storage, content: bytes) -> None:
    full.backend.write(full.plan("0" * 12), content)
    before = listed(full)
    for act in (find, free):
        with pytest.raises(StorageError, match="plans/0+.json is damaged; expected .*; launch the study again"):
            act(full)
    assert listed(full) == before


STUDY = """\
study: tiny
recipe: {epochs: 1, limit_train: 64, limit_test: 50, batch_size: 32, crop_padding: 0, flip: false}
experiments:
  - {method: logit, dataset: digits, student: resnet_32_8, teacher: resnet_32_8, teacher_cache: table}
resources: {gpus_per_trial: 0}
"""


def test_a_study_file_keeps_its_tables(empty: Storage, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    plan = plan_study(tmp_path / "study.yaml", folder(empty))
    (key,) = (trial.table for trial in plan.trials if trial.table)
    for name in (empty.table(key), empty.table_facts(key)):
        empty.backend.write(name, b"outputs")
    assert len(find(empty)) == 2 and find(empty, [plan]) == []
    assert free(empty, [plan]) == [] and len(free(empty)) == 2


def test_the_plan_of_an_ensemble_keeps_the_tables_of_its_members(empty: Storage, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        STUDY.replace("teacher: resnet_32_8", "teacher: {mean: [resnet_32_8, resnet_32_14]}")
    )
    plan = plan_study(tmp_path / "study.yaml", folder(empty))
    (keys,) = (trial.tables() for trial in plan.trials if trial.table)
    for key in keys:
        for name in (empty.table(key), empty.table_facts(key)):
            empty.backend.write(name, b"outputs")
    assert len(keys) == 3 and len(find(empty)) == 6
    stored_launch.remember(empty, list(plan.trials))
    assert find(empty) == []


@pytest.mark.parametrize(
    "name",
    [
        "checkpoints/0/000001-00000000.checkpoint",
        f"checkpoints/{GONE}/best.checkpoint",
        f"checkpoints/{GONE}/1-1.checkpoint",
        f"checkpoints/{GONE}/sub/000001-00000000.checkpoint",
        f"trials/{GONE}/notes.txt",
        f"trials/{GONE.upper()}/weights.safetensors",
        f"results/epochs/{GONE}.csv",
        f"teachers/{TEACHER}/notes.json",
        f"teachers/{TEACHER}/logits-p01-flip-n50.npy",
        "teachers/mine/logits-p1-flip-n50.npy",
        f"{GONE}/weights.safetensors",
        "README.md",
    ],
)
def test_a_foreign_file_stays(empty: Storage, name: str) -> None:
    empty.backend.write(name, b"somebody's")
    assert find(empty) == free(empty) == []
    assert name in listed(empty)


def test_nothing_outside_is_removed_whatever_a_file_contains(full: Storage, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "000001-00000000.checkpoint").write_bytes(b"somebody's")
    (folder(full) / "checkpoints" / ("f" * 12)).symlink_to(outside)
    remember(full, {OPEN: {**encode_key(USED), "teacher_id": "../../../outside"}})
    free(full)
    assert [path.name for path in outside.iterdir()] == ["000001-00000000.checkpoint"]


def test_results_behind_a_link_are_rows_too(full: Storage, tmp_path: Path) -> None:
    shutil.move(folder(full) / "results", tmp_path / "elsewhere")
    (folder(full) / "results").symlink_to(tmp_path / "elsewhere")
    assert by_kind(find(full)) == EXPECTED


# Leftovers.


@pytest.mark.parametrize(
    ("parent", "is_ours"),
    [
        *[("", True), ("leases/", True), ("plans/", True), ("datasets/", True), ("results/trials/", True)],
        *[(f"{kind}/{GONE}/", True) for kind in ("trials", "teachers", "checkpoints")],
        *[("results/epochs/", True), ("other/", False), (".venv/trials/", False), (f"trials/{GONE}/sub/", False)],
    ],
)
def test_unfinished_files_go_when_they_are_old(empty: Storage, parent: str, is_ours: bool) -> None:
    for name in ("old", "young"):
        path = folder(empty) / f"{parent}.part-{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    old = age(empty, f"{parent}.part-old")
    assert by_kind(find(empty)) == ({GarbageKind.PART: [old]} if is_ours else {})
    assert len(free(empty)) == is_ours
    assert (folder(empty) / f"{parent}.part-young").exists() and (folder(empty) / old).exists() is not is_ours


def dead_claim(storage: Storage, resource: str) -> str:
    """A claim of an earlier process that had the same id as this one."""
    lease = Lease(storage, resource, None)
    assert lease.try_claim()
    facts = json.loads(storage.backend.read(lease.claim))
    write_json(storage, lease.claim, {**facts, "started": "1"})
    return lease.claim


def test_claims_of_the_dead_go_and_those_of_the_living_stay(empty: Storage) -> None:
    gone = dead_claim(empty, "launch-gone")
    foreign = Lease(empty, "trial-b", None)
    assert foreign.try_claim()
    facts = json.loads(empty.backend.read(foreign.claim))
    write_json(empty, foreign.claim, {**facts, "machine": "another"})
    age(empty, foreign.claim, time.time() - EXPIRES - 5)
    for number, content in enumerate((b"damaged, and young", b"[]", b"{}", b"3")):
        empty.backend.write(f"{empty.leases}/odd~{number}.json", content)
    with acquire(empty, "trial-c") or pytest.fail() as held:
        assert by_kind(find(empty)) == {GarbageKind.CLAIM: [gone, foreign.claim]}
        assert by_kind(free(empty)) == {GarbageKind.CLAIM: [gone, foreign.claim]}
        assert {*(f"{empty.leases}/odd~{number}.json" for number in range(4)), held.claim} <= listed(empty)


def test_a_damaged_claim_goes_when_it_is_old(empty: Storage) -> None:
    empty.backend.write(f"{empty.leases}/odd~1.json", b"damaged")
    age(empty, f"{empty.leases}/odd~1.json")
    assert len(free(empty)) == 1


def test_the_clock_is_that_of_the_storage(empty: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "read_clock", lambda backend: time.time() + 2 * cleanup.STALE)
    (folder(empty) / ".part-x").touch()
    assert by_kind(find(empty)) == {GarbageKind.PART: [".part-x"]}
    monkeypatch.undo()
    assert abs(cleanup.read_clock(empty.backend) - time.time()) < 5
    assert {path.name for path in folder(empty).iterdir() if path.is_file()} == {MARKER, ".part-x"}


def test_a_storage_that_keeps_nothing_has_no_clock(empty: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Folder, "stat", lambda self, name: None)
    with pytest.raises(StorageError, match="is not there after it was written; expected .*; fix it"):
        cleanup.read_clock(empty.backend)


# Removing.


def test_what_was_found_is_removed_and_nothing_else(full: Storage) -> None:
    before = listed(full)
    freed = free(full)
    assert by_kind(freed) == EXPECTED
    assert listed(full) == before - {piece.entry.name for piece in freed}
    assert listed(full) >= NEVER and find(full) == free(full) == []


def test_a_folder_that_is_no_storage_is_refused(full: Storage) -> None:
    full.backend.delete(MARKER)
    before = listed(full)
    with pytest.raises(StorageError, match="is no storage of kdctl, its .* missing; expected .*--storage"):
        free(full)
    assert listed(full) == before


def test_nothing_goes_while_a_launch_is_live(full: Storage) -> None:
    with acquire(full, "launch-abc") or pytest.fail():
        before = listed(full)
        with pytest.raises(
            KdctlError, match=rf"is in use: process {os.getpid()} on .* runs a launch; .*; wait"
        ) as caught:
            free(full)
        assert listed(full) == before and caught.value.exit_code == 2
        assert by_kind(find(full)) == EXPECTED  # to look is allowed
    assert free(full)


def test_two_cleans_never_run_at_once(full: Storage) -> None:
    with acquire(full, "clean") or pytest.fail():
        before = listed(full)
        with pytest.raises(KdctlError, match=rf"another clean \(process {os.getpid()} on .*\) .*; wait"):
            free(full)
        assert listed(full) == before
    assert free(full)


def test_files_of_a_trial_that_somebody_holds_stay(full: Storage) -> None:
    table = f"table-{TEACHER}-{UNUSED.name}"
    with acquire(full, f"trial-{GONE}") or pytest.fail(), acquire(full, table) or pytest.fail():
        assert set(by_kind(free(full))) == {GarbageKind.FINISHED, GarbageKind.OLD}
    assert set(by_kind(free(full))) == {GarbageKind.ORPHAN, GarbageKind.TABLE}


def meanwhile(monkeypatch: pytest.MonkeyPatch, resource: str, act: Callable[[], object]) -> None:
    """Lets something happen between the listing and the moment when the lease of a file is taken."""

    def acquire_late(storage: Storage, requested: str) -> Lease | None:
        if requested == resource:
            act()
        return acquire(storage, requested)

    monkeypatch.setattr(cleanup, "acquire", acquire_late)


def test_a_trial_that_has_a_row_by_now_is_left_alone(full: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    new = row(GONE, State.RUNNING)
    meanwhile(monkeypatch, f"trial-{GONE}", lambda: store.write_trial(full, new))
    assert GarbageKind.ORPHAN not in by_kind(free(full))
    assert set(EXPECTED[GarbageKind.ORPHAN]) <= listed(full)


def test_a_file_that_was_written_again_is_left_alone(full: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> None:
        full.backend.write(full.table(UNUSED), b"other outputs")

    meanwhile(monkeypatch, f"table-{TEACHER}-{UNUSED.name}", build)
    assert by_kind(free(full))[GarbageKind.TABLE] == [full.table_facts(UNUSED)]
    assert full.table(UNUSED) in listed(full)


def test_a_launch_that_starts_ends_the_freeing(full: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[Lease | None] = []
    meanwhile(monkeypatch, f"trial-{OPEN}", lambda: launches.append(acquire(full, "launch-abc")))
    with pytest.raises(KdctlError, match=r"is in use: .* \(2 of 11 files were freed, the rest is as it was\)"):
        free(full)
    for lease in launches:
        assert lease
        lease.release()
    monkeypatch.undo()
    assert set(by_kind(free(full))) < set(EXPECTED)


def test_a_launch_that_saw_the_facts_finds_the_table(full: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    delete, launches = Folder.delete, []

    def launch_first(self: Folder, name: str) -> None:
        if name == full.table_facts(UNUSED):
            launches.append(acquire(full, "launch-abc"))  # it has read them, and is about to open the table
        delete(self, name)

    monkeypatch.setattr(Folder, "delete", launch_first)
    with pytest.raises(KdctlError, match=r"is in use: .* \(1 of 11 files"):
        free(full)
    assert full.table(UNUSED) in listed(full) and full.table_facts(UNUSED) not in listed(full)
    launches[0].release()


def test_a_clean_that_loses_its_lease_ends(full: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(self: Lease) -> None:
        raise LeaseLost("taken over")

    monkeypatch.setattr(Lease, "check", lose)
    before = listed(full)
    with pytest.raises(LeaseLost, match="0 of 11 files"):
        free(full)
    assert listed(full) == before


def test_what_cannot_be_removed_is_reported_and_nothing_else_is_lost(
    full: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete = Folder.delete

    def refuse(self: Folder, name: str) -> None:
        if name.endswith(".npy"):
            raise StorageError(f"{name} cannot be written (Permission denied); fix the folder")
        delete(self, name)

    monkeypatch.setattr(Folder, "delete", refuse)
    with pytest.raises(StorageError, match=r"p2-flip-n50.npy cannot be .*fix the folder \(1 of 11 files were freed"):
        free(full)
    assert listed(full) >= NEVER and not [name for name in listed(full) if name.startswith("leases/")]
    monkeypatch.undo()
    assert set(by_kind(free(full))) == {GarbageKind.FINISHED, GarbageKind.OLD, GarbageKind.ORPHAN, GarbageKind.HALF}


def test_a_bucket_is_freed_too(s3_address: str) -> None:
    storage = Storage.at(s3_address)
    storage.prepare()
    fill(storage)
    assert by_kind(free(storage)) == EXPECTED
    assert listed(storage) >= NEVER and find(storage) == []


def test_a_launch_builds_again_what_was_removed(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    where = folder(storage)
    assert launch(tmp_path / "study.yaml", storage=where, inline=True, on_event=ignore).is_complete
    assert set(by_kind(free(storage))) == {GarbageKind.TABLE}  # the study is finished, so nobody uses it any more
    again = launch(
        tmp_path / "study.yaml", storage=where, inline=True, on_event=ignore, settings=["experiments[0].seed=7"]
    )
    assert again.is_complete and len(list(storage.list_tables())) == 1


# The command.


def clean(storage: Storage, *words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["clean", "--storage", str(folder(storage)), *map(str, words)])


def test_the_command_shows_and_then_frees(full: Storage) -> None:
    before = listed(full)
    preview = clean(full)
    assert preview.exit_code == 0 and listed(full) == before
    assert [line.split("  ")[0] for line in preview.stdout.splitlines()] == [
        "what",
        "checkpoints of finished trials",
        "checkpoints before the last 2 of unfinished trials",
        "checkpoints, weights and epochs without a trial",
        "teacher tables that no plan uses",
        "in all",
    ]
    assert preview.stdout.splitlines()[-1].split() == ["in", "all", "11", "57", "B"]
    assert preview.stderr == "nothing was deleted; add --yes to delete these files\n"
    done = clean(full, "--yes")
    assert (done.exit_code, done.stdout, done.stderr) == (0, preview.stdout, "deleted 11 files, 57 B\n")
    assert clean(full).stderr == "" and len(listed(full)) == len(before) - 11


def test_the_command_speaks_json(full: Storage) -> None:
    for words, freed in (([], False), (["--yes"], True)):
        facts = json.loads(clean(full, "--json", *words).stdout)
        assert (facts["freed"], facts["bytes"], len(facts["files"])) == (freed, 57, 11)
        first = {"kind": "finished_checkpoints", "name": EXPECTED[GarbageKind.FINISHED][0], "bytes": 5}
        assert first in facts["files"]


def test_the_command_takes_study_files(full: Storage, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    assert clean(full, tmp_path / "study.yaml").exit_code == 0
    assert isinstance(clean(full, tmp_path / "nowhere.yaml").exception, KdctlError)


def test_times_are_compared_to_the_second(full: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Folder.stat

    def coarse(self: Folder, name: str) -> Entry | None:
        found = entry(self, name)
        return found and Entry(name, found.size, found.modified - 0.9)

    monkeypatch.setattr(Folder, "stat", coarse)
    assert by_kind(free(full)) == EXPECTED
