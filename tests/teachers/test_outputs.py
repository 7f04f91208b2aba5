"""The cached teacher: table against live outputs, what the checks find, how tables are built, and weights files."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import multiprocessing.synchronize
import os
import pickle
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from epochs import batches_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor

from orchestrator import losses, models
from orchestrator.data import tensors
from orchestrator.data.tensors import Data
from orchestrator.errors import DivergedError, TeacherError
from orchestrator.losses.base import TeacherOutputs
from orchestrator.models.base import Classifier
from orchestrator.models.family import Widths
from orchestrator.records import TableKey, TrialConfig
from orchestrator.storage.layout import Storage, read_json, write_json
from orchestrator.storage.leases import wait_for
from orchestrator.teachers import _chunks, outputs, tables, weights
from orchestrator.teachers.outputs import HostTable, LiveTeacher, TableTeacher
from orchestrator.training import loop
from orchestrator.training.batches import Teacher
from orchestrator.training.seeds import build_seeded
from orchestrator.training.state import TrainingState

CPU = torch.device("cpu")
HALF = 2.0**-11  # the rounding to float16, relative
MakeConfig = Callable[..., TrialConfig]


@dataclass(frozen=True)
class Taught:
    """A trained teacher in a storage, and the images of its students."""

    storage: Storage
    config: TrialConfig
    model: Classifier
    data: Data

    def key(self, answers: str = "logits", flip: bool = False, padding: str = "reflect") -> TableKey:
        return TableKey(self.config.trial_id(), answers, 1, flip, 128, padding)

    def open(self, key: TableKey) -> TableTeacher:
        return tables.open_table(key, self.config, self.data, self.storage, CPU)

    def path(self, key: TableKey) -> Path:
        """The file of a table."""
        return self.storage.backend.local_path(self.storage.table(key))

    def state_size(self, key: TableKey) -> None:
        """Writes the current size of a table into its facts."""
        name = self.storage.table_facts(key)
        write_json(self.storage, name, {**read_json(self.storage, name), "bytes": self.path(key).stat().st_size})

    def verify(self, key: TableKey) -> float:
        return tables.verify(key, self.config, self.data, self.storage, CPU)


def fresh(seed: int = 0) -> Classifier:
    return build_seeded(lambda: models.build("resnet_32_8", 10), seed, CPU)


@pytest.fixture(scope="module")
def trained(digits_storage: Storage, make_config: MakeConfig) -> Classifier:
    config = make_config(epochs=2)
    model = fresh()
    images = tensors.load(config, digits_storage, CPU)
    list(loop.train(TrainingState.start(model, losses.build("base"), config), images, config, outputs.no_teacher))
    return model.eval().requires_grad_(False)


@pytest.fixture
def taught(storage: Storage, make_config: MakeConfig, trained: Classifier) -> Taught:
    config = make_config(epochs=2)
    weights.save_weights(trained, storage, config.trial_id())
    return Taught(storage, config, trained, tensors.load(config, storage, CPU))


# The table.


@pytest.mark.parametrize("answers", ["logits", "pooled"])
@pytest.mark.parametrize(("flip", "padding"), [(False, "reflect"), (True, "reflect"), (True, "zero")])
def test_table_has_the_outputs_of_the_teacher(taught: Taught, answers: str, flip: bool, padding: str) -> None:
    key = taught.key(answers, flip, padding)
    table, live = taught.open(key), LiveTeacher(taught.model, (answers,))
    assert table.table.shape == (key.views, 128, {"logits": 10, "pooled": 64}[answers])
    assert table.table.dtype == torch.float16
    config = replace(taught.config, flip=flip, padding=padding)
    for epoch in (1, 2, 3):
        for batch in batches_of(taught.data, config, epoch):
            stored, computed = table(batch), live(batch)
            assert names(stored) == names(computed) == {"index", answers}
            found, expected = getattr(stored, answers), getattr(computed, answers)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, rtol=HALF, atol=1e-5)
            assert not found.requires_grad and not expected.requires_grad


def names(found: TeacherOutputs) -> set[str]:
    """The names of the outputs that exist."""
    return {name for name in found.__slots__ if hasattr(found, name)}


def test_live_teacher_is_in_eval_mode(taught: Taught) -> None:
    model = weights.load_teacher(taught.config, taught.storage, CPU)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = batches_of(taught.data, taught.config)[0]
    found = LiveTeacher(model, ("logits", "maps"))(batch)
    expected = taught.model.embed(batch.images)
    assert torch.equal(found.logits, expected.logits) and names(found) == {"index", "logits", "maps"}
    assert torch.equal(found.index, batch.index)
    assert all(torch.equal(one, other) for one, other in zip(found.maps, expected.maps, strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert names(outputs.no_teacher(batch)) == set()


@pytest.mark.parametrize(
    ("method", "options"), [("logit", {}), ("logit", {"match": "pooled"}), ("logit", {"ce_weight": 0.0}), ("st", {})]
)
def test_a_student_of_the_table_equals_a_student_of_the_live_teacher(
    taught: Taught, make_config: MakeConfig, method: str, options: dict[str, Any]
) -> None:
    config = make_config(method=method, epochs=2, seed=5, lr=0.001)  # a small lr, so that rounding errors do not grow
    (answers,) = losses.METHODS[method].needs({**losses.METHODS[method].defaults(), **options})

    def losses_of(teacher: Teacher) -> list[tuple[float, float, float | None]]:
        records = loop.train(
            TrainingState.start(fresh(5), losses.build(method, **options), config), taught.data, config, teacher
        )
        return [(record.train_loss, record.ce_loss, record.kd_loss) for record in records]

    live = losses_of(LiveTeacher(taught.model, (answers,)))
    table = losses_of(taught.open(taught.key(answers)))
    for first, second in zip(live, table, strict=True):
        assert second == pytest.approx(first, rel=2e-3)
    # Outputs for other views are another teacher, and the tolerance is small enough to notice.
    other = TableTeacher(taught.open(taught.key(answers)).table.roll(3, 0), answers)
    assert losses_of(other)[-1] != pytest.approx(live[-1], rel=2e-3)


def other_image(table: Tensor) -> None:
    table[4] = table[4].roll(1, 0)


def other_view(table: Tensor) -> None:
    table[[2, 6]] = table[[6, 2]]


def corrupted_block(table: Tensor) -> None:
    table[3, 64:] += 0.05  # too little to notice by eye, but far above the rounding


def no_numbers(table: Tensor) -> None:
    table[0] = torch.nan


def never_written(table: Tensor) -> None:
    table[8] = 0


def too_large(table: Tensor) -> None:
    table[5] = torch.inf


DAMAGES = [other_image, other_view, corrupted_block, no_numbers, never_written, too_large]


@pytest.mark.parametrize("answers", ["logits", "pooled"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_compare_finds_damage(taught: Taught, answers: str, damage: Callable[[Tensor], None]) -> None:
    key = taught.key(answers)
    table = taught.open(key).table.clone()
    assert tables.compare(table, key, taught.model, taught.data) < 0.01
    damage(table)
    with pytest.raises(TeacherError, match=rf"table {key.name} of teacher {key.teacher_id}: \d+ of 1000 sampled"):
        tables.compare(table, key, taught.model, taught.data)


def test_compare_samples_different_pairs_every_time(taught: Taught, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    key = taught.key()
    table = taught.open(key).table
    draw = secrets.randbits

    def record(bits: int) -> int:
        seeds.append(draw(bits))
        return seeds[-1]

    monkeypatch.setattr(secrets, "randbits", record)
    for _ in range(3):
        tables.compare(table, key, taught.model, taught.data)
    assert len(set(seeds)) == 3


def test_wrong_table_is_not_kept(taught: Taught, monkeypatch: pytest.MonkeyPatch) -> None:
    key = taught.key()
    compute = tables._ChunkOutputs.compute
    monkeypatch.setattr(tables._ChunkOutputs, "compute", lambda *given: bytes(len(compute(*given))))
    with pytest.raises(TeacherError, match="are not the teacher's"):
        taught.open(key)
    assert taught.storage.backend.list_files("teachers") == taught.storage.backend.list_unfinished() == []


def test_outputs_beyond_float16_are_refused_with_a_fix(taught: Taught) -> None:
    loud = fresh()
    with torch.no_grad():
        loud.fc.bias.fill_(1e5)
    weights.save_weights(loud, taught.storage, taught.config.trial_id())
    with pytest.raises(TeacherError, match="set teacher_cache: live"):
        taught.open(taught.key())
    assert taught.storage.backend.list_files("teachers") == taught.storage.backend.list_unfinished() == []


def test_verify_repeats_the_check(taught: Taught) -> None:
    key = taught.key()
    taught.open(key)
    assert 0 < taught.verify(key) < 0.01
    assert list(taught.storage.list_tables()) == [key]
    facts = read_json(taught.storage, taught.storage.table_facts(key))
    assert 0 < facts["largest_difference"] < 0.01
    table = np.load(taught.path(key), mmap_mode="r+")
    table[:, ::2] += 1
    table.flush()
    with pytest.raises(TeacherError, match="are not the teacher's"):
        taught.verify(key)


def test_verify_notices_other_weights(taught: Taught) -> None:
    key = taught.key()
    taught.open(key)
    weights.save_weights(fresh(1), taught.storage, key.teacher_id)
    with pytest.raises(TeacherError, match="was not made from this teacher; remove it"):
        taught.verify(key)


def test_verify_of_a_table_without_teacher(taught: Taught) -> None:
    key = taught.key()
    taught.open(key)
    taught.storage.backend.delete(taught.storage.weights(key.teacher_id))
    with pytest.raises(TeacherError, match=r"weights\.safetensors is missing; launch the study again"):
        taught.verify(key)


FACTS: list[tuple[str, object]] = [
    ("format", 0),
    ("dtype", "float32"),
    ("shape", [9, 128, 11]),
    ("weights", "0" * 64),
    ("model", "resnet_32_14"),
    ("dataset_digest", "0" * 12),
    ("mean", [0.0] * 3),
    ("std", [1.0] * 3),
    ("key", None),
]


@pytest.mark.parametrize(("name", "value"), FACTS)
def test_other_facts_are_another_table(taught: Taught, name: str, value: object) -> None:
    key = taught.key()
    taught.open(key)
    path = taught.storage.table_facts(key)
    facts = read_json(taught.storage, path)
    assert facts["made_from"][name] != value
    facts["made_from"][name] = value
    write_json(taught.storage, path, facts)
    with pytest.raises(TeacherError, match="was not made from this teacher"):
        taught.verify(key)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"made_from": 1}', None])
def test_a_table_with_damaged_facts_is_built_again(taught: Taught, text: str | None) -> None:
    key = taught.key()
    taught.open(key)
    backend, name = taught.storage.backend, taught.storage.table_facts(key)
    backend.delete(name) if text is None else backend.write(name, text.encode())
    assert list(taught.storage.list_tables()) == []
    with pytest.raises(TeacherError, match="was not made from this teacher"):
        taught.verify(key)
    taught.open(key)  # builds it again
    assert taught.verify(key) < 0.01


WRONG: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fewer views": lambda table: table[:-1],
    "fewer images": lambda table: table[:, :-1],
    "fewer classes": lambda table: table[..., :-1],
    "one class": lambda table: table[..., :1],
    "one class for all": lambda table: table[..., 0],
    "all in a row": lambda table: table.reshape(-1),
    "other numbers": lambda table: table.astype(np.float32),
    "other byte order": lambda table: table.astype(">f2"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_table_of_another_shape(taught: Taught, wrong: str) -> None:
    key = taught.key()
    taught.open(key)
    path = taught.path(key)
    np.save(path, WRONG[wrong](np.load(path)))
    taught.state_size(key)
    for attempt in (taught.verify, taught.open):
        with pytest.raises(TeacherError, match=rf"{re.escape(str(path))} is damaged \(found .*expected float16"):
            attempt(key)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:5],
        lambda raw: raw[:60],
        lambda raw: raw[:128],
        lambda raw: raw[:-1],
        lambda raw: b"PK\x03\x04" + raw[4:],  # NumPy would read it as an .npz
        lambda raw: raw[:20] + b"(" + raw[21:],
        lambda raw: raw[:11] + b"b" + raw[12:],
        lambda raw: pickle.dumps(np.zeros(3)),
    ],
)
def test_damaged_table_is_an_error_with_a_fix(taught: Taught, damage: Callable[[bytes], bytes]) -> None:
    key = taught.key()
    taught.open(key)
    path = taught.path(key)
    path.write_bytes(damage(path.read_bytes()))
    taught.state_size(key)
    for attempt in (taught.verify, taught.open):
        with pytest.raises(TeacherError, match=f"{re.escape(str(path))} is damaged .*; remove it"):
            attempt(key)
    path.unlink()  # as the message advises
    taught.open(key)
    assert taught.verify(key) < 0.01


@pytest.mark.parametrize("size", [0, 60, 128, -1, None])
def test_a_table_of_another_size_is_built_again(taught: Taught, size: int | None) -> None:
    key = taught.key()
    taught.open(key)
    name = taught.storage.table(key)
    raw = taught.storage.backend.read(name)
    taught.storage.backend.write(name, raw[:size] if size is not None else raw + b"!")
    with pytest.raises(TeacherError, match="was not made from this teacher; remove it"):
        taught.verify(key)
    taught.open(key)  # builds it again
    assert taught.verify(key) < 0.01


def stamp(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


def test_table_is_built_once(taught: Taught) -> None:
    key = taught.key()
    first = taught.open(key)
    facts = taught.storage.backend.local_path(taught.storage.table_facts(key))
    before = stamp(taught.path(key)), stamp(facts)
    again = taught.open(key)
    assert (stamp(taught.path(key)), stamp(facts)) == before
    assert torch.equal(first.table, again.table)
    again.table.zero_()  # changes a private copy of the pages
    assert torch.equal(taught.open(key).table, first.table)


def test_other_weights_build_it_again(taught: Taught) -> None:
    key = taught.key()
    before = taught.open(key).table.clone()
    weights.save_weights(fresh(1), taught.storage, key.teacher_id)
    assert not torch.allclose(taught.open(key).table, before, atol=1e-2)
    assert taught.verify(key) < 0.01


def test_the_check_is_called_while_waiting_and_while_building(taught: Taught) -> None:
    key = taught.key()

    def check() -> None:
        raise KeyboardInterrupt

    with wait_for(taught.storage, f"table-{key.teacher_id}-{key.name}", check), pytest.raises(KeyboardInterrupt):
        tables.open_table(key, taught.config, taught.data, taught.storage, CPU, check)
    with pytest.raises(KeyboardInterrupt):  # also while it builds
        tables.open_table(key, taught.config, taught.data, taught.storage, CPU, check)
    assert taught.storage.backend.list_files("teachers") == taught.storage.backend.list_unfinished() == []
    taught.open(key)


def open_at_once(
    barrier: multiprocessing.synchronize.Barrier,
    log: Path,
    key: TableKey,
    config: TrialConfig,
    storage: Storage,
    pause: float = 0.0,
) -> None:
    """The work of each of several processes; every slice that it builds leaves a file."""
    torch.set_num_threads(1)
    _chunks.CHUNK = 200
    compute = tables._ChunkOutputs.compute

    def log_and_compute(self: tables._ChunkOutputs, start: int, end: int) -> bytes:
        (log / f"{start}-{end}-{os.getpid()}").touch()
        time.sleep(pause)  # so that a kill interrupts it
        return compute(self, start, end)

    tables._ChunkOutputs.compute = log_and_compute  # type: ignore[method-assign]
    images = tensors.load(config, storage, CPU)
    barrier.wait(60)
    table = tables.open_table(key, config, images, storage, CPU)
    assert table.table.shape == (9, 128, 10)


def start_processes(taught: Taught, log: Path, count: int, pause: float = 0.0) -> list[BaseProcess]:
    """Processes that have started to open the table."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count + 1)  # this process must keep it until all have started
    given = (barrier, log, taught.key(), taught.config, taught.storage, pause)
    processes = [context.Process(target=open_at_once, args=given) for _ in range(count)]
    for process in processes:
        process.start()
    barrier.wait(60)
    return processes


def test_several_processes_build_each_slice_once(taught: Taught, tmp_path: Path) -> None:
    log = tmp_path / "builds"
    log.mkdir()
    processes = start_processes(taught, log, 3, pause=0.05)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    starts = sorted(int(path.name.split("-")[0]) for path in log.iterdir())
    assert starts == list(range(0, 9 * 128, 200))
    assert taught.verify(taught.key()) < 0.01
    names = [entry.name for entry in taught.storage.backend.list_files("teachers")]
    assert names == sorted([taught.storage.table(taught.key()), taught.storage.table_facts(taught.key())])


def test_a_killed_build_resumes(taught: Taught, tmp_path: Path) -> None:
    log = tmp_path / "builds"
    log.mkdir()
    (process,) = start_processes(taught, log, 1, pause=0.2)
    while len(list(log.iterdir())) < 4:  # then three slices exist, and the fourth is being built
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    kept = [entry for entry in taught.storage.backend.list_files("teachers") if entry.name.endswith(".slice")]
    assert len(kept) == 3
    before = len(list(log.iterdir()))
    (again,) = start_processes(taught, log, 1)
    again.join(60)
    assert again.exitcode == 0
    assert len(list(log.iterdir())) - before == 6 - 3
    assert taught.verify(taught.key()) < 0.01


def test_slices_of_other_weights_are_not_used(taught: Taught, monkeypatch: pytest.MonkeyPatch) -> None:
    key = taught.key()
    monkeypatch.setattr(_chunks, "CHUNK", 200)
    with pytest.raises(Halt):
        tables.open_table(key, taught.config, taught.data, taught.storage, CPU, After(7))
    assert [entry.name for entry in taught.storage.backend.list_files("teachers") if entry.name.endswith(".slice")]
    weights.save_weights(fresh(1), taught.storage, key.teacher_id)
    taught.open(key)
    assert taught.verify(key) < 0.01
    assert len(taught.storage.backend.list_files("teachers")) == 2


def test_a_wide_teacher_has_a_wide_table(storage: Storage, make_config: MakeConfig) -> None:
    config = make_config(student="wrn_10_2")
    model = build_seeded(lambda: models.build(config.student, 10), 0, CPU)
    weights.save_weights(model, storage, config.trial_id())
    taught = Taught(storage, config, model, tensors.load(config, storage, CPU))
    key = taught.key("pooled")
    assert taught.open(key).table.shape == (9, 128, 128)
    assert taught.verify(key) < 0.01


@pytest.mark.timeout(60)
def test_outputs_of_another_width_than_stated_end_with_an_error(
    taught: Taught, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "widths", lambda name: Widths((16, 32, 63), 63))
    with pytest.raises(
        TeacherError, match=r"take 147,456 bytes, but table .* expects 126 for each.*teacher_cache: live"
    ):
        taught.open(taught.key("pooled"))


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: b"", lambda raw: raw + b"!"])
def test_a_slice_of_another_size_is_built_again(
    taught: Taught, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    key, backend = taught.key(), taught.storage.backend
    monkeypatch.setattr(_chunks, "CHUNK", 200)
    with pytest.raises(Halt):
        tables.open_table(key, taught.config, taught.data, taught.storage, CPU, After(7))
    for entry in backend.list_files("teachers"):
        backend.write(entry.name, damage(backend.read(entry.name)))
    taught.open(key)
    assert taught.verify(key) < 0.01


def test_a_slice_with_other_outputs_is_found_and_removed(taught: Taught, monkeypatch: pytest.MonkeyPatch) -> None:
    key, backend = taught.key(), taught.storage.backend
    monkeypatch.setattr(_chunks, "CHUNK", 200)
    with pytest.raises(Halt):
        tables.open_table(key, taught.config, taught.data, taught.storage, CPU, After(7))
    for entry in backend.list_files("teachers"):
        backend.write(entry.name, bytes(entry.size))
    with pytest.raises(TeacherError, match="are not the teacher's"):
        taught.open(key)
    assert backend.list_files("teachers") == backend.list_unfinished() == []
    taught.open(key)
    assert taught.verify(key) < 0.01


class Halt(Exception):
    """The exception of `After`."""


class After:
    """A check that stops after a number of calls."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise Halt


def test_a_table_on_the_host_equals_a_table_on_the_device(taught: Taught, make_config: MakeConfig) -> None:
    config = make_config(method="logit", epochs=3, batch_size=50)
    table = taught.open(taught.key())
    assert isinstance(table, TableTeacher)
    results = []
    for answers in (table, HostTable(table.table, "logits", CPU)):
        state = TrainingState.start(fresh(5), losses.build("logit"), config)
        stopped = loop.train(state, taught.data, config, answers, After(5))
        with pytest.raises(Halt):  # in the second epoch, from which the next run resumes
            list(stopped)
        trained = loop.train(state, taught.data, config, answers)
        records = [replace(record, seconds=0.0, images_per_second=0.0) for record in trained]
        results.append((records, {name: tensor.clone() for name, tensor in state.tensors().items()}))
    (first, weights), (second, others) = results
    assert first == second and len(first) == 2
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())


# Weights.

State = dict[str, Any]


def load(path: Path) -> Classifier:
    return weights.load_weights(path, "resnet_32_8", 10, CPU)


def assert_same(model: Classifier, state: State) -> None:
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


def test_saved_weights_are_loaded(trained: Classifier, storage: Storage) -> None:
    size, digest = weights.save_weights(trained, storage, "0123456789ab")
    path = storage.backend.local_path(storage.weights("0123456789ab"))
    assert (size, digest) == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    model = load(path)
    assert_same(model, trained.state_dict())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]


def test_plain_state_dict_loads_with_and_without_counters(trained: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    state = trained.state_dict()
    torch.save(state, path)
    assert_same(load(path), state)
    bare = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert len(bare) < len(state)
    torch.save(bare, path)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(load(path)(images), trained(images))


class Evil:
    """Creates a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_code_in_a_file_is_not_executed(tmp_path: Path, form: str) -> None:
    path, marker = tmp_path / "weights.pt", tmp_path / "executed"
    evil = {"fc.weight": Evil(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=form == "zip")
    refusal = "a protocol other than 2" if form == "pickle" else r"holds \w+\.mkdir besides its tensors"
    with pytest.raises(TeacherError, match=refusal):
        load(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(evil))
    assert marker.exists()  # it would have been executed


def narrow(state: State) -> None:
    state["fc.weight"] = state["fc.weight"][:5]


UNFIT: dict[str, tuple[Callable[[State], object], list[str]]] = {
    "missing": (lambda state: state.pop("bn1.weight"), ["bn1.weight is missing"]),
    "unknown": (lambda state: state.update({"fc2.bias": torch.zeros(2)}), ["fc2.bias is unknown"]),
    "renamed": (
        lambda state: state.update({"linear.bias": state.pop("fc.bias")}),
        ["fc.bias is missing", "linear.bias is unknown"],
    ),
    "shape": (narrow, ["fc.weight has shape (5, 64), expected (10, 64)"]),
    "nan": (lambda state: state["conv1.weight"].view(-1)[7:8].fill_(torch.nan), ["conv1.weight is not finite"]),
    "infinite": (lambda state: state["bn1.running_var"][:1].fill_(torch.inf), ["bn1.running_var is not finite"]),
    "empty": (lambda state: state.clear(), ["conv1.weight is missing", "more"]),
}


@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_weights_that_do_not_fit(trained: Classifier, tmp_path: Path, kind: str, form: str) -> None:
    change, words = UNFIT[kind]
    state = {name: tensor.clone().contiguous() for name, tensor in trained.state_dict().items()}
    change(state)
    path = tmp_path / "weights"
    torch.save(state, path) if form == "torch" else save_file(state, path)
    with pytest.raises(TeacherError) as caught:
        load(path)
    message = str(caught.value)
    for word in (str(path), "does not fit resnet_32_8 with 10 classes", *words, "give weights of that model"):
        assert word in message
    assert "num_batches_tracked is missing" not in message


def test_weights_of_another_model_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(models.build("resnet_32_14", 100).state_dict(), path)
    with pytest.raises(TeacherError, match=r"weights of resnet_32_14, not resnet_32_8: .* for 100 classes"):
        load(path)


def weights_file(model: Classifier, form: str) -> bytes:
    """The bytes of a weights file: safetensors, torch's zip, or what torch wrote before it."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if form == "safetensors":
        return save(state)
    sink = io.BytesIO()
    torch.save(state, sink, _use_new_zipfile_serialization=form == "torch")
    return sink.getvalue()


def flipped(raw: bytes, index: int, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[index % len(raw)] ^= 1 << bit
    return bytes(changed)


INDICES = st.integers(0, 9000) | st.integers(-9000, -1) | st.integers(0, 2**20)
FLIPS = st.lists(st.tuples(INDICES, st.integers(0, 7)), max_size=3)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(form=st.sampled_from(["safetensors", "torch", "old"]), flips=FLIPS, kept=st.just(1.0) | st.floats(0, 1))
def test_damaged_weights_are_a_teacher_error_or_weights(
    trained: Classifier, tmp_path: Path, form: str, flips: list[tuple[int, int]], kept: float
) -> None:
    path = tmp_path / "weights"
    raw = weights_file(trained, form)
    for index, bit in flips:
        raw = flipped(raw, index, bit)
    path.write_bytes(raw[: int(kept * len(raw))])
    try:
        model = load(path)
    except TeacherError as error:
        assert str(path) in str(error)
        return
    # No checksum of the formats is checked: a weight may differ in one bit, and still be a finite number.
    expected = trained.state_dict()
    wrong = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, expected[name])]
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert len(wrong) <= 2 * len(flips)
    assert [tensor.shape for tensor in model.state_dict().values()] == [tensor.shape for tensor in expected.values()]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(0, 2**64 - 1) | st.integers(0, 400), text=st.binary(max_size=60) | st.sampled_from([
    b"{}", b"[]", b"null", b"[" * 100_000, b'{"":' * 50_000, b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}',
    b'{"fc.bias":{"dtype":"F32","shape":[18446744073709551615,4],"data_offsets":[0,0]}}',
    b'{"fc.bias":{"dtype":"F4","shape":[10],"data_offsets":[0,5]}}12345',
    b'{"fc.bias":{"dtype":"F8_E8M0","shape":[10],"data_offsets":[0,10]}}1234567890',
]))  # fmt: skip
def test_any_header_is_a_teacher_error(tmp_path: Path, size: int, text: bytes) -> None:
    for length in (size, len(text), text.find(b"}}") + 2):
        (tmp_path / "weights").write_bytes(length.to_bytes(8, "little") + text)
        with pytest.raises(TeacherError):
            load(tmp_path / "weights")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=100), start=st.sampled_from([b"", b"PK", b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02"]))
def test_noise_is_a_teacher_error(tmp_path: Path, noise: bytes, start: bytes) -> None:
    (tmp_path / "weights").write_bytes(start + noise)
    with pytest.raises(TeacherError):
        load(tmp_path / "weights")


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e8m0fnu]
)
@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_weights_of_any_kind_are_a_teacher_error_or_finite(
    trained: Classifier, tmp_path: Path, dtype: torch.dtype, form: str
) -> None:
    state = {name: tensor.to(dtype).contiguous() for name, tensor in trained.state_dict().items()}
    path = tmp_path / "weights"
    torch.save(state, path) if form == "torch" else save_file(state, path)
    try:
        model = load(path)
    except TeacherError as error:
        assert str(path) in str(error)
    else:
        assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_a_tensor_that_is_larger_than_its_file_takes_no_memory(trained: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({**trained.state_dict(), "fc.bias": torch.zeros(1).expand(2**50)}, path)
    assert path.stat().st_size < 2**20
    with pytest.raises(TeacherError, match=r"fc\.bias has shape \(1125899906842624,\), expected \(10,\)"):
        load(path)


@pytest.mark.parametrize("form", ["safetensors", "torch"])
@pytest.mark.parametrize("kept", [0.0, 0.0001, 0.5, 0.999])
def test_cut_off_weights(trained: Classifier, tmp_path: Path, form: str, kept: float) -> None:
    path = tmp_path / "weights"
    raw = weights_file(trained, form)
    path.write_bytes(raw[: int(kept * len(raw))])
    with pytest.raises(TeacherError, match=f"{re.escape(str(path))} is .*copy or download it again"):
        load(path)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch 2.11 warns at every sparse tensor
@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        torch.zeros(3),
        {"epoch": 3},
        {"fc.bias": torch.zeros(10).to_sparse()},
        {"fc.bias": torch.zeros(10, device="meta")},
        {"fc.bias": torch.zeros(10, dtype=torch.complex64)},
    ],
    ids=["list", "tensor", "number", "sparse", "meta", "complex"],
)
def test_content_other_than_a_state_dict(tmp_path: Path, content: object) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(TeacherError, match="holds no dense tensors of numbers by name; save only model.state_dict"):
        load(path)


def test_no_weights(taught: Taught, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="nothing.pt is missing"):
        load(tmp_path / "nothing.pt")
    with pytest.raises(TeacherError, match="cannot be read"):
        load(tmp_path)
    taught.storage.backend.delete(taught.storage.weights(taught.config.trial_id()))
    with pytest.raises(TeacherError, match="is missing; launch the study again"):
        weights.load_teacher(taught.config, taught.storage, CPU)


def test_weights_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path / "runs")
    storage.prepare()
    model = models.build("resnet_32_8", 10)
    with torch.no_grad():
        next(model.parameters())[0] = torch.inf
    with pytest.raises(DivergedError, match=r"after the last epoch .* is not finite; try a smaller lr"):
        weights.save_weights(model, storage, "0" * 12)
    assert storage.backend.stat(storage.weights("0" * 12)) is None
