"""The results: the published schema, exact round trips, and readers that never see half a file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from orchestrator import losses, records
from orchestrator.errors import StorageError
from orchestrator.records import EpochRecord, Failure, State, TrialRecord
from orchestrator.results import store
from orchestrator.storage.layout import Storage

PUBLISHED = [
    "no",
    "method",
    "dataset",
    "student",
    "teacher",
    "start_time",
    "acc",
    "epoch",
    "nepoch",
    "lr",
    "batch_size",
]
TRIALS = [
    *PUBLISHED,
    *[
        "trial_id",
        "study",
        "state",
        "error",
        "failure",
        "seed",
        "last_acc",
        "selected_acc",
        "top5",
        "teacher_id",
        "teacher_acc",
        "agreement",
        "params",
    ],
    *[
        "seconds",
        "images_per_second",
        "device",
        "host",
        "recipe",
        "kdctl_version",
        "torch_version",
        "ray_version",
        "git_commit",
        "end_time",
        "resumed",
        "weights_bytes",
        "weights_sha256",
        "threads",
    ],
]
EPOCHS = [
    "trial_id",
    "epoch",
    "lr",
    "train_loss",
    "ce_loss",
    "kd_loss",
    "train_acc",
    "test_loss",
    "test_acc",
    "val_acc",
    "seconds",
    "images_per_second",
]
TYPES = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "timestamp": pa.timestamp("us", "UTC")}

VALUES: dict[type, st.SearchStrategy[Any]] = {
    str: st.text(st.characters(codec="utf-8"), max_size=20),
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False),
    datetime: st.datetimes(timezones=st.just(UTC)),
    State: st.sampled_from(State),
    Failure: st.sampled_from(Failure),
    type(None): st.none(),
    Mapping: st.fixed_dictionaries({}, optional={"epochs": st.integers(), "lr": st.floats(0), "a new key": st.text()}),
}


def records_of(kind: type) -> st.SearchStrategy[Any]:
    """Records with any value that the types of their fields allow."""
    hints = get_type_hints(kind).items()
    return st.builds(kind, **{name: st.one_of(*map(values_of, options(hint))) for name, hint in hints})


def options(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of others the type alone."""
    return get_args(hint) if isinstance(hint, UnionType) else (hint,)


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    return VALUES[get_origin(kind) or kind]


def trial(trial_id: str = "0123456789ab", state: State = State.FINISHED, acc: float = 92.5) -> TrialRecord:
    """A row whose accuracies are all the same number."""
    empty: dict[str, Any] = dict.fromkeys(TRIALS)
    start = datetime(2024, 1, 2, 3, 4, 5, 6, UTC)
    filled = {"trial_id": trial_id, "state": state, "acc": acc, "last_acc": acc, "top5": acc, "start_time": start}
    return TrialRecord(**empty | filled | {"recipe": {}, "resumed": 0, "weights_bytes": len(WEIGHTS)})


WEIGHTS = save({"fc.bias": torch.arange(10.0), "fc.weight": torch.zeros(10, 64)})
EPOCH = EpochRecord(1, 0.1, 2.0, 1.5, None, 50.0, 1.25, 60.0, None, 3.0, 1000.0)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """A prepared storage without a dataset."""
    storage = Storage.at(tmp_path / "runs")
    storage.prepare()
    return storage


def file(storage: Storage, name: str) -> Path:
    """The path of a stored file, whether it exists or not."""
    return Path(storage.backend.address, name)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A storage that every example of a test writes to."""
    storage = Storage.at(tmp_path_factory.mktemp("results"))
    storage.prepare()
    return storage


# The schema.


def test_the_columns_are_the_published_ones(storage: Storage) -> None:
    store.write_trial(storage, trial())
    store.write_epochs(storage, "0123456789ab", [EPOCH])
    assert pq.read_schema(file(storage, storage.trial_row("0123456789ab"))).names == TRIALS
    assert pq.read_schema(file(storage, storage.trial_epochs("0123456789ab"))).names == EPOCHS
    assert TRIALS[:11] == PUBLISHED


def test_types_do_not_depend_on_the_values(storage: Storage) -> None:
    store.write_trial(storage, trial())
    store.write_epochs(storage, "0123456789ab", [])
    for name, columns in (
        (storage.trial_row("0123456789ab"), store.TRIAL_COLUMNS),
        (storage.trial_epochs("0123456789ab"), store.EPOCH_COLUMNS),
    ):
        schema = pq.read_schema(file(storage, name))
        assert schema.types == [TYPES[kind] for kind, _ in columns.values()]
        assert schema.metadata[b"kdctl_schema"] == store.SCHEMA_VERSION.encode()


WHOLE_NUMBERS = {"no", "epoch", "nepoch", "batch_size", "seed", "params", "resumed", "weights_bytes", "threads"}
TIMES = {"start_time", "end_time"}
TEXTS = {
    *("method", "dataset", "student", "teacher", "trial_id", "study", "state", "error", "failure", "teacher_id"),
    *("device", "host", "recipe", "kdctl_version", "torch_version", "ray_version", "git_commit", "weights_sha256"),
}


@pytest.mark.parametrize("columns", [store.TRIAL_COLUMNS, store.EPOCH_COLUMNS])
def test_the_types_of_the_columns_stay(columns: dict[str, tuple[str, str]]) -> None:
    named = {
        **dict.fromkeys(WHOLE_NUMBERS, "int"),
        **dict.fromkeys(TIMES, "timestamp"),
        **dict.fromkeys(TEXTS, "string"),
    }
    assert {name: kind for name, (kind, _) in columns.items()} == {name: named.get(name, "float") for name in columns}
    assert all(meaning for _, meaning in columns.values())


def test_the_meanings_follow_the_registries() -> None:
    assert store.TRIAL_COLUMNS["method"][1] == f"how it was trained: {records.list_names(losses.METHODS)}"
    assert store.TRIAL_COLUMNS["state"][1] == "running, stopped, finished, failed or skipped"


# Round trips.


@settings(max_examples=50)
@given(records_of(TrialRecord))
def test_a_trial_round_trips(shared: Storage, record: TrialRecord) -> None:
    record = replace(record, trial_id="0123456789ab")
    store.write_trial(shared, record)
    assert store.read_trial(shared, "0123456789ab") == record
    assert store.read_trials(shared) == [record]


@settings(max_examples=50)
@given(st.lists(records_of(EpochRecord), max_size=4))
def test_epochs_round_trip(shared: Storage, epochs: list[EpochRecord]) -> None:
    store.write_epochs(shared, "ab", iter(epochs))
    assert store.read_epochs(shared) == [{"trial_id": "ab", **asdict(epoch)} for epoch in epochs]


def test_trials_are_read_in_the_order_of_the_given_ids(storage: Storage) -> None:
    for trial_id in ("b", "c", "a"):
        store.write_trial(storage, trial(trial_id))
        store.write_epochs(storage, trial_id, [EPOCH])
    assert [record.trial_id for record in store.read_trials(storage)] == ["a", "b", "c"]
    ids = ["c", "unknown", "a"]
    assert [record.trial_id for record in store.read_trials(storage, ids)] == ["c", "a"]
    assert [row["trial_id"] for row in store.read_epochs(storage, ids)] == ["c", "a"]
    assert list(store.read_states(storage, ids)) == ["c", "a"]
    assert store.read_trials(storage, []) == []


def test_a_storage_that_was_never_used_is_empty(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path / "missing")
    assert store.read_trials(storage) == store.read_epochs(storage) == []
    assert store.read_states(storage) == {}
    assert store.read_trial(storage, "0123456789ab") is None


def test_a_row_of_an_older_version_lacks_columns(storage: Storage) -> None:
    old = pq.read_table(written(storage, trial())).drop_columns(["host", "top5"])
    pq.write_table(old, file(storage, storage.trial_row("0123456789ab")))
    assert store.read_trial(storage, "0123456789ab") == trial_without(trial(), "host", "top5")


def written(storage: Storage, record: TrialRecord) -> Path:
    """The file of a row, with the row in it."""
    store.write_trial(storage, record)
    return file(storage, storage.trial_row(record.trial_id))


def trial_without(record: TrialRecord, *names: str) -> TrialRecord:
    """The row with null in some columns."""
    nothing: dict[str, Any] = dict.fromkeys(names)
    return replace(record, **nothing)


# States and damage.


def test_states(storage: Storage) -> None:
    states = dict(zip("abcde", State, strict=True))
    for trial_id, state in states.items():
        store.write_trial(storage, trial(trial_id, state))
        storage.backend.write(storage.weights(trial_id), WEIGHTS)
    assert store.read_states(storage) == states


@pytest.mark.parametrize(
    "weights",
    [None, b"", WEIGHTS[:-1], WEIGHTS[:20], WEIGHTS + b"!"],
    ids=["gone", "empty", "cut off", "cut in its header", "too long"],
)
def test_a_finished_trial_without_whole_weights_is_not_done(storage: Storage, weights: bytes | None) -> None:
    store.write_trial(storage, trial("a"))
    if weights is not None:
        storage.backend.write(storage.weights("a"), weights)
    assert store.read_states(storage) == {"a": State.RUNNING}


@pytest.mark.parametrize("size", [None, 0, -1, len(WEIGHTS) - 1, 2**62])
def test_a_finished_row_of_other_weights_is_not_done(storage: Storage, size: int | None) -> None:
    storage.backend.write(storage.weights("a"), WEIGHTS)
    store.write_trial(storage, replace(trial("a"), weights_bytes=size))
    assert store.read_states(storage) == {"a": State.RUNNING}


def test_a_row_of_a_version_without_that_column_is_not_done(storage: Storage) -> None:
    storage.backend.write(storage.weights("a"), WEIGHTS)
    path = written(storage, trial("a"))
    pq.write_table(pq.read_table(path).drop_columns(["weights_bytes", "failure"]), path)
    assert store.read_states(storage) == {"a": State.RUNNING}
    assert store.read_trial(storage, "a") == trial_without(trial("a"), "weights_bytes")


def without_state(raw: bytes) -> bytes:
    """A Parquet file with other content."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"trial_id": ["a"]}), sink)
    return bytes(sink.getvalue())


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "cut off": lambda raw: raw[:-1],
    "something else": without_state,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_row_is_not_done_and_named(storage: Storage, damage: str) -> None:
    path = written(storage, trial("a"))
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    store.write_trial(storage, trial("b", State.FAILED))
    assert store.read_states(storage) == {"a": State.RUNNING, "b": State.FAILED}
    with pytest.raises(StorageError) as caught:
        store.read_trials(storage)
    assert str(path) in str(caught.value)
    assert "launch" in str(caught.value)
    assert [record.trial_id for record in store.read_trials(storage, ["b"])] == ["b"]


def test_damaged_epochs_are_named(storage: Storage) -> None:
    storage.backend.write(storage.trial_epochs("a"), b"PAR1")
    with pytest.raises(StorageError, match=r"epochs/a\.parquet is not a complete Parquet file"):
        store.read_epochs(storage)


def test_epochs_by_column_are_those_by_row(storage: Storage) -> None:
    epochs = [EpochRecord(n, 0.1, 1.0, 1.0, None, 50.0, 0.5, 40.0 + n, None, 1.0, 9.0) for n in (1, 2)]
    store.write_epochs(storage, "a", epochs)
    store.write_epochs(storage, "b", epochs[:1])
    found = store.read_epoch_columns(storage, ["a", "b", "none"], ["epoch", "test_acc"])
    assert found == {"a": {"epoch": [1, 2], "test_acc": [41.0, 42.0]}, "b": {"epoch": [1], "test_acc": [41.0]}}
    file(storage, storage.trial_epochs("b")).write_bytes(b"no Parquet")
    with pytest.raises(StorageError, match=r"b\.parquet is not a complete Parquet file"):
        store.read_epoch_columns(storage, ["a", "b"], ["epoch"])


def test_a_row_without_rows_is_not_done(storage: Storage) -> None:
    path = written(storage, trial("a"))
    pq.write_table(pq.read_table(path)[:0], path)
    assert store.read_states(storage) == {"a": State.RUNNING}
    assert store.read_trials(storage) == []


@pytest.mark.parametrize(("column", "value"), [("state", "odd"), ("failure", "odd"), ("state", None), ("failure", "")])
def test_a_row_of_another_kind_is_named(storage: Storage, column: str, value: str | None) -> None:
    path = written(storage, trial("a"))
    table = pq.read_table(path)
    at = table.column_names.index(column)
    pq.write_table(table.set_column(at, column, pa.array([value], pa.string())), path)
    with pytest.raises(StorageError, match=r"a\.parquet holds a damaged row \(.+\); launch its study again"):
        store.read_trials(storage)


COLUMNS: list[pa.Array] = [
    pa.array([b"\xff\xfe"], pa.binary()),
    pa.array([[1, 2]]),
    pa.array([{"a": 1}]),
    pa.array([10**30], pa.decimal128(38)),
    pa.array([1], pa.timestamp("ms", "UTC")),
    pa.array([2**62], pa.duration("s")),
    pa.array([1], pa.timestamp("us", "Nowhere/Else")),
    pa.array([True]),
    pa.array([2.5]),
    pa.array(["text"]),
    pa.array([None], pa.null()),
    pa.array(["x"]).dictionary_encode(),
]


@pytest.mark.parametrize("column", ["state", "failure", "weights_bytes", "start_time", "acc", "trial_id"])
@pytest.mark.parametrize("kind", range(len(COLUMNS)), ids=lambda kind: str(COLUMNS[kind].type))
def test_a_column_of_another_type_is_damage(storage: Storage, column: str, kind: int) -> None:
    storage.backend.write(storage.weights("a"), WEIGHTS)
    path = written(storage, trial("a"))
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(column), column, COLUMNS[kind]), path)
    assert store.read_states(storage)["a"] in (State.RUNNING, State.FINISHED)
    if COLUMNS[kind].type == TYPES[store.TRIAL_COLUMNS[column][0]] and column not in ("state", "failure", "trial_id"):
        assert len(store.read_trials(storage)) == 1
    else:
        with pytest.raises(StorageError, match=r"a\.parquet "):
            store.read_trials(storage)


@pytest.mark.parametrize(
    "text",
    [
        *(None, "", "{", "[]", "7", '{"teacher": 3}', '{"epochs": "x"}', '{"milestones": 4}', '{"weights": 5}'),
        *('{"options": []}', '{"teacher": {"lr": true}}', "[" * 100_000),
    ],
)
def test_a_damaged_recipe_is_named_and_trained_again(storage: Storage, text: str | None) -> None:
    storage.backend.write(storage.weights("a"), WEIGHTS)
    path = written(storage, trial("a"))
    assert store.read_states(storage) == {"a": State.FINISHED}
    table = pq.read_table(path)
    at = table.column_names.index("recipe")
    pq.write_table(table.set_column(at, "recipe", pa.array([text], pa.string())), path)
    with pytest.raises(StorageError, match=r"a\.parquet holds a damaged row \(its recipe is damaged: .*launch"):
        store.read_trials(storage)
    assert store.read_states(storage) == {"a": State.RUNNING}, "so that the next launch writes the row again"


def test_settings_of_a_later_kdctl_are_kept(storage: Storage) -> None:
    recipe = {"epochs": 2, "momentum": None, "optimizer": {"name": "lion"}, "teacher": None}
    store.write_trial(storage, replace(trial("a"), recipe=recipe))
    assert store.read_trials(storage)[0].recipe == recipe


def test_a_time_that_no_calendar_has_is_damage(storage: Storage) -> None:
    path = written(storage, trial("a"))
    table = pq.read_table(path)
    at = table.column_names.index("start_time")
    pq.write_table(table.set_column(at, "start_time", pa.array([2**62], pa.timestamp("us", "UTC"))), path)
    with pytest.raises(StorageError, match=r"a\.parquet is not a complete Parquet file"):
        store.read_trials(storage)


@dataclass(frozen=True)
class Damage:
    """Bytes changed, then the end cut off."""

    flips: list[tuple[float, int]]
    kept: float

    def __call__(self, raw: bytes) -> bytes:
        changed = bytearray(raw)
        for position, bit in self.flips:
            changed[int(position * (len(raw) - 1))] ^= 1 << bit
        return bytes(changed[: len(changed) - int((1 - self.kept) * len(changed))])


FLIPS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), max_size=3)
DAMAGES = st.builds(Damage, FLIPS, st.just(1.0) | st.floats(0, 1)) | st.binary(max_size=99).map(
    lambda new: lambda _: new
)


@settings(max_examples=200)
@given(damage=DAMAGES, is_row=st.booleans())
def test_damage_is_a_storage_error_or_changes_nothing(
    shared: Storage, damage: Callable[[bytes], bytes], is_row: bool
) -> None:
    shared.backend.write(shared.weights("a"), WEIGHTS)
    store.write_trial(shared, trial("a"))
    store.write_epochs(shared, "a", [EPOCH] * 3)

    def read() -> list[dict[str, Any]]:
        rows = store.read_trials(shared, ["a"]) if is_row else ()
        return [row.to_row() for row in rows] if is_row else store.read_epochs(shared, ["a"])

    name = shared.trial_row("a") if is_row else shared.trial_epochs("a")
    raw, before = shared.backend.read(name), read()
    shared.backend.write(name, damage(raw))
    assert set(store.read_states(shared, ["a"])) == {"a"}
    try:
        after = read()
    except StorageError as error:
        assert str(error).startswith(shared.backend.describe(name))
        return
    assert len(damage(raw)) == len(raw)
    assert [set(row) for row in after] == [set(row) for row in before]
    # Pages have checksums; Parquet's footer has none, and may send a reader to another page of the same type.
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    if damage(raw)[footer:] == raw[footer:]:
        pairs = [(row[key], old[key]) for row, old in zip(after, before, strict=True) for key in old]
        assert all(new in (old, None) for new, old in pairs)


# Readers.


def by_duckdb(storage: Storage) -> list[dict[str, Any]]:
    """With SQL over a glob.

    DuckDB reads a file more than once. If it was replaced in between, DuckDB raises an error; the query is repeated.
    """
    for _ in range(20):
        with suppress(duckdb.Error), duckdb.connect() as connection:
            table = connection.sql(
                f"SELECT * FROM read_parquet('{file(storage, storage.trial_rows)}/*.parquet')"
            ).to_arrow_table()
            return list(table.to_pylist())
    raise AssertionError("DuckDB cannot read the rows")


def by_pyarrow(storage: Storage) -> list[dict[str, Any]]:
    """The folder as one table."""
    return list(pq.read_table(file(storage, storage.trial_rows)).to_pylist())


def by_pandas(storage: Storage) -> list[dict[str, Any]]:
    """The folder as a frame, its numbers and times as Python's own."""
    frame = pd.read_parquet(file(storage, storage.trial_rows), dtype_backend="pyarrow")
    return list(pa.Table.from_pandas(frame, preserve_index=False).to_pylist())


def by_kdctl(storage: Storage) -> list[dict[str, Any]]:
    """With kdctl's own reader."""
    return [record.to_row() for record in store.read_trials(storage)]


READERS = (by_duckdb, by_pyarrow, by_pandas, by_kdctl)


def leave_part(storage: Storage) -> None:
    """What a process that is killed while it writes a row leaves behind."""
    name = storage.trial_row("killed")
    with storage.backend.stage(name) as part:
        left = part
    storage.backend.delete(name)
    left.write_bytes(b"PAR1 half")
    assert [entry.name for entry in storage.backend.list_unfinished()] == [f"{storage.trial_rows}/{left.name}"]


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_gives_the_same_rows(storage: Storage, reader: Callable[[Storage], list[dict[str, Any]]]) -> None:
    rows = [trial("a", acc=100 / 3), trial("b", State.RUNNING, 0.1 + 0.2)]
    for row in rows:
        store.write_trial(storage, row)
    leave_part(storage)
    found = sorted(reader(storage), key=lambda row: str(row["trial_id"]))
    assert found == [row.to_row() for row in rows]
    assert list(found[0]) == TRIALS
    assert list(store.read_states(storage)) == ["a", "b"]


# Writes rows again and again until its input ends. Each row has one number in three columns.
WRITER = """
import sys, threading
from test_store import trial
from orchestrator.results import store
from orchestrator.records import State
from orchestrator.storage.layout import Storage
storage, ended = Storage.at(sys.argv[1]), threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
written = 0
while not ended.is_set():
    for name in "abcd":
        store.write_trial(storage, trial(name, State.RUNNING, written / 7))
    written += 1
    if written == 1:
        print("ready", flush=True)
print(written)
"""


def test_nobody_reads_half_a_file_while_rows_are_rewritten(storage: Storage) -> None:
    command = [sys.executable, "-c", WRITER, storage.backend.address]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    ) as writer:
        assert writer.stdout
        try:
            assert writer.stdout.readline() == "ready\n"
            contents = {check_rows(reader(storage)) for reader in READERS * 15}
            count, _ = writer.communicate()
        finally:
            writer.kill()
    assert len(contents) > 1, "the rows changed while they were read"
    assert int(count) > len(contents) // 4


def check_rows(rows: list[dict[str, Any]]) -> tuple[float, ...]:
    """The number of each row, after a check that the rows are whole."""
    assert sorted(row["trial_id"] for row in rows) == list("abcd")
    assert all(row["acc"] == row["last_acc"] == row["top5"] for row in rows)
    return tuple(row["acc"] for row in rows)


def test_a_full_disk_is_a_storage_error_and_leaves_the_old_row(storage: Storage) -> None:
    store.write_trial(storage, trial("a", State.RUNNING))
    # The limit on the size of files would hold for this whole process, so there is another one.
    code = """
import resource, sys
from test_store import trial
from orchestrator.results import store
from orchestrator.errors import StorageError
from orchestrator.storage.layout import Storage
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    store.write_trial(Storage.at(sys.argv[1]), trial("a"))
except StorageError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, storage.backend.address]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    assert "a.parquet cannot be written (" in done.stdout
    assert store.read_trials(storage) == [trial("a", State.RUNNING)]
    assert len(list(file(storage, storage.trial_rows).iterdir())) == 1


def test_a_row_under_the_name_of_another_trial_is_damage(storage: Storage) -> None:
    path = written(storage, trial("a"))
    path.rename(path.with_name("b.parquet"))
    with pytest.raises(StorageError, match=r"b\.parquet holds rows of another trial"):
        store.read_trials(storage)
