"""Checkpoints: saved states are restored, the newest undamaged file is used, and any damaged file is skipped."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from orchestrator import losses, models
from orchestrator.data import tensors
from orchestrator.errors import StorageError
from orchestrator.losses.base import Shapes
from orchestrator.models.base import Classifier
from orchestrator.records import EpochRecord, TrialConfig, view_count
from orchestrator.storage.backend import Folder
from orchestrator.storage.layout import Storage
from orchestrator.teachers.outputs import TableTeacher, no_teacher
from orchestrator.training import loop
from orchestrator.training.checkpoints import drop_checkpoints, restore_checkpoint, save_checkpoint
from orchestrator.training.seeds import build_seeded
from orchestrator.training.state import TrainingState

CPU = torch.device("cpu")
ID = "0123456789ab"
MakeConfig = Callable[..., TrialConfig]
EPOCH = EpochRecord(1, 0.05, 2.0, 1.5, None, 50.0, 1.25, 60.0, None, 3.0, 1000.0)


@functools.cache
def built(seed: int) -> Classifier:
    return build_seeded(lambda: models.build("resnet_32_8", 10), seed, CPU)


def small(seed: int) -> Classifier:
    return copy.deepcopy(built(seed))  # hundreds are asked for


@dataclass(frozen=True)
class Saved:
    """A storage with the checkpoints of one trial."""

    storage: Storage
    config: TrialConfig

    def fresh(self, seed: int = 7) -> TrainingState:
        return TrainingState.start(small(seed), losses.build("base"), self.config)

    def save(self, epoch: int, images: int, seed: int = 0) -> TrainingState:
        """Saves a state that was never trained, but has a momentum, at this position."""
        state = self.fresh(seed)
        for parameter in state.model.parameters():
            state.optimizer.state[parameter]["momentum_buffer"] = parameter.detach() * 2
        state.sums.add_(torch.tensor([math.pi, math.e, 0.1, 7.0], dtype=torch.float64))
        state.epoch, state.images, state.seconds, state.with_teacher = epoch, images, images / 7, bool(images % 2)
        save_checkpoint(self.storage, ID, state, [replace(EPOCH, epoch=number) for number in range(1, epoch)])
        return state

    def restore(self, state: TrainingState) -> tuple[list[EpochRecord] | None, list[str]]:
        """The restored epochs, and the notes about damage."""
        notes: list[str] = []
        return restore_checkpoint(self.storage, ID, state, notes.append), notes

    def names(self) -> list[str]:
        return [entry.name for entry in self.storage.backend.list_files(self.storage.checkpoints(ID))]

    def restore_damaged(self) -> list[str]:
        """The notes about damaged checkpoints, none of which is restored: a state stays as it was."""
        state = self.fresh()
        found, notes = self.restore(state)
        assert found is None
        assert_same(state, self.fresh())
        assert state.optimizer.state == {}
        return notes


def assert_same(one: TrainingState, other: TrainingState) -> None:
    first, second = one.tensors(), other.tensors()
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert position(one) == position(other)


def position(state: TrainingState) -> tuple[int, int, float, bool, str, str | None]:
    return state.epoch, state.images, state.seconds, state.with_teacher, state.compute_dtype, state.teacher_mode


@pytest.fixture
def saved(tmp_path: Path, make_config: MakeConfig) -> Saved:
    """No checkpoint yet."""
    storage = Storage.at(tmp_path / "runs")
    storage.prepare()
    return Saved(storage, make_config())


# Round trips.


def test_a_saved_state_is_restored(saved: Saved) -> None:
    state, again = saved.save(3, 65), saved.fresh()
    assert saved.restore(again) == ([replace(EPOCH, epoch=1), replace(EPOCH, epoch=2)], [])
    assert_same(again, state)
    assert position(again) == (3, 65, 65 / 7, True, "float32", None)


def test_compute_dtype_and_teacher_mode_are_restored(saved: Saved) -> None:
    state, again = saved.fresh(), saved.fresh()
    state.compute_dtype, state.teacher_mode = "bfloat16", "table"
    save_checkpoint(saved.storage, ID, state, [])
    assert saved.restore(again) == ([], [])
    assert (again.compute_dtype, again.teacher_mode) == ("bfloat16", "table")


def test_a_checkpoint_of_an_earlier_version_is_restored(saved: Saved) -> None:
    whole, state, again = parts(saved), saved.fresh(), saved.fresh()
    saved.restore(state)
    older = {
        name.replace("optimizer.momentum_buffer.model.", "momentum."): each for name, each in whole.tensors.items()
    }
    assert older.keys() != whole.tensors.keys()
    (name,) = saved.names()
    saved.storage.backend.write(name, replace(whole, tensors=older).file())
    assert saved.restore(again)[1] == []
    assert_same(again, state)


def test_without_a_checkpoint_a_state_is_fresh(saved: Saved) -> None:
    assert saved.restore_damaged() == []


def test_a_training_that_has_not_begun_is_saved_too(saved: Saved) -> None:
    save_checkpoint(saved.storage, ID, saved.fresh(1), [])
    state = saved.fresh()
    assert saved.restore(state) == ([], [])
    assert_same(state, saved.fresh(1))


FLOATS = st.floats()
EPOCHS = st.builds(
    EpochRecord,
    **{name: FLOATS for name in EpochRecord.__slots__ if name not in ("epoch", "kd_loss", "val_acc")},
    epoch=st.just(1),
    kd_loss=st.none() | FLOATS,
    val_acc=st.none() | FLOATS,
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EPOCHS, max_size=3), st.integers(0, 10**8 - 1), st.floats(0, 1e9), st.booleans())
@example([replace(EPOCH, test_loss=math.nan, lr=1)], 0, 5e-324, True)
def test_every_digit_is_restored(
    saved: Saved, epochs: list[EpochRecord], images: int, seconds: float, with_teacher: bool
) -> None:
    records = [replace(record, epoch=number) for number, record in enumerate(epochs, 1)]
    state, again = saved.fresh(), saved.fresh()
    state.epoch, state.images, state.seconds, state.with_teacher = len(epochs) + 1, images, seconds, with_teacher
    drop_checkpoints(saved.storage, ID)
    save_checkpoint(saved.storage, ID, state, records)
    found, notes = saved.restore(again)
    assert repr(found) == repr(records) and notes == []  # as a NaN is not equal to itself
    assert position(again) == position(state)


# The last has a parameter, and a teacher in a table.
@pytest.mark.parametrize(("method", "ema"), [("base", 0.0), ("base", 0.9), ("ctkd", 0.0)])
def test_training_resumes_from_a_file_as_if_it_had_not_stopped(
    storage: Storage, make_config: MakeConfig, method: str, ema: float
) -> None:
    config = make_config(epochs=3, limit_train=64, batch_size=24, method=method, ema=ema)
    images, shapes = tensors.load(config, storage, CPU), Shapes(10, 64, (16, 16, 32, 64))
    table = torch.randn(view_count(config.crop_padding, config.flip), 64, 10).half()
    teacher = no_teacher if method == "base" else TableTeacher(table, "logits")

    def start(seed: int) -> TrainingState:
        return TrainingState.start(small(seed), losses.build(method, (shapes, shapes)), config)

    def timeless(records: list[EpochRecord]) -> list[EpochRecord]:
        return [replace(record, seconds=0.0, images_per_second=0.0) for record in records]

    whole = start(0)
    records = list(loop.train(whole, images, config, teacher))
    state, found, notes = start(0), [], list[str]()
    calls = iter(range(1000))

    def check() -> None:
        if next(calls) % 3 == 2:
            raise KeyboardInterrupt

    while state.epoch <= config.epochs:
        try:
            for record in loop.train(state, images, config, teacher, check):
                found.append(record)
        except KeyboardInterrupt:
            save_checkpoint(storage, ID, state, found)
            state = start(1)
            found = restore_checkpoint(storage, ID, state, notes.append)
    assert timeless(found) == timeless(records) and notes == []
    assert_same(state, whole)
    if method == "ctkd":
        assert (state.tensors()["loss.theta"] != 1).all()  # it was trained


# Which checkpoint is used, and which are kept.


def test_the_newest_is_used_and_two_are_kept(saved: Saved) -> None:
    for position in ((1, 32), (1, 96), (2, 0), (2, 128), (10, 5)):
        saved.save(*position)
        state = saved.fresh()
        saved.restore(state)
        assert (state.epoch, state.images) == position
    assert saved.names() == [saved.storage.checkpoint(ID, 2, 128), saved.storage.checkpoint(ID, 10, 5)]
    saved.save(10, 5, seed=3)  # the same position again
    assert len(saved.names()) == 2
    drop_checkpoints(saved.storage, ID)
    assert saved.names() == [] and saved.restore_damaged() == []


def test_damaged_checkpoints_do_not_displace_good_checkpoints(saved: Saved) -> None:
    """A training that starts again must not lose its own checkpoints to two later, damaged ones."""
    for position in ((8, 0), (9, 0)):
        saved.storage.backend.write(saved.storage.checkpoint(ID, *position), b"damaged")
    for position in ((1, 32), (1, 64), (2, 32)):
        saved.save(*position)
        state = saved.fresh()
        assert saved.restore(state)[1] == []
        assert (state.epoch, state.images) == position
    assert saved.names() == [saved.storage.checkpoint(ID, 1, 64), saved.storage.checkpoint(ID, 2, 32)]


def test_trials_only_delete_their_own_checkpoints(saved: Saved) -> None:
    saved.save(2, 0)
    other = "ba9876543210"
    save_checkpoint(saved.storage, other, saved.fresh(), [])
    drop_checkpoints(saved.storage, other)
    assert len(saved.names()) == 1


@pytest.mark.parametrize("method", ["write", "delete", "list_files"])
def test_a_failed_write_keeps_the_earlier_checkpoints(
    saved: Saved, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    for position in ((1, 32), (1, 64)):
        saved.save(*position)
    before = {name: saved.storage.backend.read(name) for name in saved.names()}

    def failing(*given: Any) -> Any:
        raise StorageError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, method, failing)
        with pytest.raises(StorageError, match="no room"):
            saved.save(1, 96)
    assert before.items() <= {name: saved.storage.backend.read(name) for name in saved.names()}.items()
    state = saved.fresh()
    found, notes = saved.restore(state)
    assert found == [] and notes == [] and state.images == (64 if method == "write" else 96)


def test_a_storage_that_cannot_be_read_is_not_damage(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    saved.save(1, 32)

    def failing(*given: Any) -> Any:
        raise StorageError("gone for a while")

    monkeypatch.setattr(Folder, "read", failing)
    with pytest.raises(StorageError, match="gone for a while"):
        saved.restore(saved.fresh())


# Damage.


@dataclass(frozen=True)
class Whole:
    """The parts of a checkpoint, which `file` joins with a right digest."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor]

    def file(self) -> bytes:
        return signed(json.dumps(self.facts).encode() + b"\n" + save(self.tensors))


def signed(payload: bytes) -> bytes:
    """A file with the right digest of any content."""
    return b"kdctl-checkpoint-1 " + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


def parts(saved: Saved) -> Whole:
    saved.save(2, 32)
    (name,) = saved.names()
    _, facts, tensors = saved.storage.backend.read(name).split(b"\n", 2)
    return Whole(json.loads(facts), load(tensors))


def test_the_parts_give_the_same_file(saved: Saved) -> None:
    whole = parts(saved)
    (name,) = saved.names()
    assert whole.file() == saved.storage.backend.read(name)


def fact(name: str, *values: object) -> list[Callable[[Whole], bytes]]:
    return [lambda whole, value=value: replace(whole, facts={**whole.facts, name: value}).file() for value in values]


def without(name: str) -> Callable[[Whole], bytes]:
    return lambda whole: replace(whole, facts={key: value for key, value in whole.facts.items() if key != name}).file()


def tensor(name: str, *values: Tensor | None) -> list[Callable[[Whole], bytes]]:
    def changed(whole: Whole, value: Tensor | None) -> bytes:
        tensors = {**whole.tensors, name: value}
        return replace(whole, tensors={key: found for key, found in tensors.items() if found is not None}).file()

    return [lambda whole, value=value: changed(whole, value) for value in values]


def epoch(**changes: object) -> Callable[[Whole], bytes]:
    return fact("epochs", [{**asdict(EPOCH), **changes}])[0]


def bare(payload: bytes) -> Callable[[Whole], bytes]:
    return lambda whole: signed(payload)


def header(text: bytes) -> Callable[[Whole], bytes]:
    """Right facts, then tensors with this header."""
    return lambda whole: signed(json.dumps(whole.facts).encode() + b"\n" + len(text).to_bytes(8, "little") + text)


DEEP = b"[" * 100_000
BUFFER = "optimizer.momentum_buffer.model.fc.bias"
HOSTILE: list[Callable[[Whole], bytes]] = [
    *fact("trial_id", "ba9876543210", None, 7, [ID], "\x1b[31m" * 10**5),
    *fact("epoch", 1, 3, 0, -1, 2.0, "2", None, [], True, math.nan, math.inf, 10**4000),
    *fact("images", -1, 1.0, "0", None, math.nan, math.inf, {}),
    *fact("seconds", math.nan, math.inf, -math.inf, -1.0, "0", None, 0, [1]),
    *fact("with_teacher", None, 0, 1, "yes", []),
    *fact("arithmetic", None, 32, "float64", "", ["float32"]),
    *fact("asked", 1, "", "maybe", ["table"]),
    *fact("threads", 0, -1, 2.0, "2", True, [], {}),
    *fact("epochs", [], None, 7, "ab", {}, {"a": 1}, [[]], [None], [{}], ["epoch"], [asdict(EPOCH)] * 2),
    *map(without, ("trial_id", "epoch", "images", "seconds", "with_teacher", "arithmetic", "asked", "epochs")),
    *(epoch(**{name: value}) for name in ("lr", "train_loss", "seconds") for value in (None, "1", [], {}, True)),
    *(epoch(**changes) for changes in ({"epoch": 2}, {"epoch": 1.0}, {"epoch": True}, {"later": 1}, {"kd_loss": "x"})),
    *tensor("model.fc.bias", None, torch.zeros(11), torch.zeros(1), torch.zeros(()), torch.zeros(10).double()),
    *tensor(BUFFER, None, torch.zeros(11), torch.zeros(10).half()),
    *tensor("momentum.fc.bias", torch.zeros(10), torch.zeros(11)),
    *tensor("optimizer.exp_avg.model.fc.bias", torch.zeros(10)),
    *tensor("sums", None, torch.zeros(4), torch.zeros(5).double(), torch.zeros(0).double()),
    *tensor("model.fc2.bias", torch.zeros(10)),
    *tensor("optimizer.momentum_buffer.model.bn1.running_mean", torch.zeros(16)),
    *tensor("", torch.zeros(1)),
    *map(bare, (b"", b"\n", b"{}\n", b"[]\n", b"null\n", b"7\n", b'"trial_id"\n', b"\xff\n", DEEP, DEEP + b"\n")),
    bare(b'{"trial_id":' * 50_000 + b"1" + b"}" * 50_000 + b"\n"),
    bare(b"1" * 5000 + b"\n"),
    *map(header, (b"", b"{", b"[]", b"null", b"{}", DEEP, b'{"sums":' * 50_000, b"\xff")),
    header(b'{"sums":{"dtype":"F64","shape":[4],"data_offsets":[0,32]}}'),
    header(b'{"sums":{"dtype":"F99","shape":[4],"data_offsets":[0,0]}}'),
    header(b'{"sums":{"dtype":"F64","shape":[0],"data_offsets":[0,0]}}'),
    header(b'{"sums":{"dtype":"F64","shape":[18446744073709551615,8],"data_offsets":[0,0]}}'),
    *(lambda whole, size=size: signed(json.dumps(whole.facts).encode() + b"\n" + size.to_bytes(8, "little") + b"{}")
      for size in (2**63, 2**64 - 1, 10**8, 3)),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_wrong_content_with_a_right_digest_is_skipped(saved: Saved, number: int) -> None:
    whole = parts(saved)
    (name,) = saved.names()
    saved.storage.backend.write(name, HOSTILE[number](whole))
    (notes,) = saved.restore_damaged()
    assert notes.startswith(f"checkpoint {saved.storage.backend.describe(name)} is damaged (")
    assert notes.endswith("); the one before it is used instead")
    assert len(notes) < 1000 and "\n" not in notes


def test_a_checkpoint_of_another_trial_is_skipped(saved: Saved) -> None:
    saved.save(2, 32)
    (name,) = saved.names()
    content = saved.storage.backend.read(name)
    other = saved.storage.checkpoint("ba9876543210", 2, 32)
    saved.storage.backend.write(other, content)
    notes: list[str] = []
    assert restore_checkpoint(saved.storage, "ba9876543210", saved.fresh(), notes.append) is None
    assert f"it belongs to trial '{ID}'" in notes[0]


def test_a_checkpoint_of_another_model_is_skipped(saved: Saved) -> None:
    state = TrainingState.start(models.build("resnet_32_14", 10), losses.build("base"), saved.config)
    save_checkpoint(saved.storage, ID, state, [])
    (notes,) = saved.restore_damaged()
    assert "is missing, unknown or of another shape" in notes


CUTS = st.floats(0, 1, exclude_max=True).map(lambda share: lambda raw: raw[: int(share * len(raw))])
POSITIONS = st.integers(0, 3000) | st.integers(-3000, -1) | st.integers(0, 2**20)


def flip(index: int, bit: int) -> Callable[[bytes], bytes]:
    def damage(raw: bytes) -> bytes:
        changed = bytearray(raw)
        changed[index % len(raw)] ^= 1 << bit
        return bytes(changed)

    return damage


FLIPS = st.builds(flip, POSITIONS, st.integers(0, 7))
NOISE = st.binary(max_size=200).map(lambda noise: lambda raw: noise)
TWICE = st.just(lambda raw: raw + raw) | st.just(lambda raw: raw + b"\0") | st.just(lambda raw: raw[1:])


@pytest.fixture
def two(saved: Saved) -> tuple[TrainingState, list[tuple[str, bytes]]]:
    """What the older of two checkpoints holds, and both files with their names."""
    before = saved.save(1, 32, seed=1)
    saved.save(2, 0, seed=2)
    return before, [(name, saved.storage.backend.read(name)) for name in saved.names()]


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damages=st.lists(CUTS | FLIPS | NOISE | TWICE, min_size=1, max_size=2))
@example([lambda raw: b""])
@example([lambda raw: raw[:-1]])
def test_the_checkpoint_before_a_damaged_one_is_used(
    saved: Saved, two: tuple[TrainingState, list[tuple[str, bytes]]], damages: list[Callable[[bytes], bytes]]
) -> None:
    before, (older, newer) = two
    saved.storage.backend.write(*older)
    saved.storage.backend.write(newer[0], damages[0](newer[1]))
    state = saved.fresh()
    found, notes = saved.restore(state)
    assert found == [] and len(notes) == 1 and saved.storage.backend.describe(newer[0]) in notes[0]
    assert_same(state, before)
    saved.storage.backend.write(older[0], damages[-1](older[1]))
    assert len(saved.restore_damaged()) == 2


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NUMBERS = st.integers(-1, 3) | st.floats() | JSON
NEARLY = st.fixed_dictionaries(
    {
        "trial_id": st.just(ID) | JSON,
        "epoch": NUMBERS,
        "images": NUMBERS,
        "seconds": NUMBERS,
        "with_teacher": st.booleans() | JSON,
        "arithmetic": st.just("float32") | JSON,
        "asked": st.just("live") | JSON,
        "threads": NUMBERS,
        "epochs": st.lists(st.fixed_dictionaries(dict.fromkeys(EpochRecord.__slots__, NUMBERS)), max_size=2) | JSON,
    }
)


@pytest.fixture
def one(saved: Saved) -> tuple[str, Whole]:
    """The name and the parts of the only checkpoint."""
    whole = parts(saved)
    (name,) = saved.names()
    return name, whole


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(facts=NEARLY | JSON)
def test_any_facts_are_skipped_or_a_position(saved: Saved, one: tuple[str, Whole], facts: Any) -> None:
    name, whole = one
    saved.storage.backend.write(name, replace(whole, facts=facts).file())
    state = saved.fresh()
    found, notes = saved.restore(state)
    if found is None:
        assert len(notes) == 1
        assert_same(state, saved.fresh())
        return
    assert notes == [] and state.epoch == len(found) + 1 and state.images >= 0 and 0 <= state.seconds < math.inf
    assert [record.epoch for record in found] == list(range(1, len(found) + 1))
    assert list(map(type, position(state))) == [int, int, float, bool]
