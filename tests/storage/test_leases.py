"""Leases: one holder at a time, whoever is killed, stopped or on another machine, and whatever a claim contains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator.errors import LeaseLost, StorageError
from orchestrator.storage import leases
from orchestrator.storage.backend import Folder
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Lease, acquire, wait_for

FAST = "leases.EXPIRES, leases.BEAT = 1.0, 0.1"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """A prepared storage without a dataset."""
    storage = Storage.at(tmp_path / "runs")
    storage.prepare()
    return storage


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that expire within a second, as those of `holding` do."""
    monkeypatch.setattr(leases, "EXPIRES", 1.0)
    monkeypatch.setattr(leases, "BEAT", 0.1)


def taken(storage: Storage, resource: str, follows: str | None = None) -> Lease:
    """A lease that nobody holds yet."""
    lease = acquire(storage, resource, follows)
    assert lease
    return lease


def claims(storage: Storage) -> list[str]:
    """What is claimed."""
    return sorted(
        entry.name.rpartition("/")[2].partition("~")[0] for entry in storage.backend.list_files(storage.leases)
    )


def until(condition: Callable[[], object]) -> None:
    """Waits; the time limit of a test ends what never comes."""
    while not condition():
        time.sleep(0.01)


# Holds a resource; answers each line of input with the result of a check.
HOLDER = """
import sys
from orchestrator.storage import leases
from orchestrator.errors import LeaseLost
from orchestrator.storage.layout import Storage
{settings}
lease = leases.acquire(Storage.at(sys.argv[1]), sys.argv[2])
print(lease.claim if lease else None, flush=True)
for line in sys.stdin:
    try:
        lease.check()
        print("kept", flush=True)
    except LeaseLost as error:
        print(error, flush=True)
"""


@contextmanager
def holding(storage: Storage, resource: str, settings: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a resource."""
    command = [sys.executable, "-c", HOLDER.format(settings=settings), storage.backend.address, resource]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            assert process.stdout.readline().startswith(f"leases/{resource}~")
            yield process
        finally:
            process.kill()


def request_check(process: subprocess.Popen[str]) -> str:
    """Makes a holder check its lease; returns the result."""
    assert process.stdin and process.stdout
    process.stdin.write("check\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


# One holder.


def test_one_holds_and_the_next_gets_none(storage: Storage) -> None:
    first = taken(storage, "x")
    assert acquire(storage, "x") is None
    assert claims(storage) == ["x"]
    first.check()
    with taken(storage, "y"):  # each resource is a lease of its own
        assert claims(storage) == ["x", "y"]
    first.release()
    assert claims(storage) == []
    with taken(storage, "x") as again:
        again.check()


def test_it_is_released_after_an_error(storage: Storage) -> None:
    with pytest.raises(RuntimeError), taken(storage, "x"):
        raise RuntimeError
    taken(storage, "x").release()


def test_a_name_with_the_same_beginning_is_another_resource(storage: Storage) -> None:
    with taken(storage, "trial-a"), taken(storage, "trial"), taken(storage, "trial-ab"):
        assert claims(storage) == ["trial", "trial-a", "trial-ab"]


def test_releasing_twice_is_once(storage: Storage) -> None:
    first = taken(storage, "x")
    first.release()
    second = taken(storage, "x")
    first.release()
    second.check()
    second.release()


def test_waiting_ends_after_the_holder_and_calls_the_check_meanwhile(storage: Storage) -> None:
    first = taken(storage, "x")
    observed = []

    def check() -> None:
        observed.append(claims(storage))
        first.release()

    with wait_for(storage, "x", check):
        assert acquire(storage, "x") is None
    assert observed == [["x"]] and claims(storage) == []


def test_what_the_check_of_a_wait_raises_ends_it(storage: Storage) -> None:
    def check() -> None:
        raise KeyboardInterrupt

    with taken(storage, "x") as first:
        with pytest.raises(KeyboardInterrupt), wait_for(storage, "x", check):
            raise AssertionError("two holders")
        first.check()
    assert claims(storage) == []


# Enters and leaves a resource over and over; every step is a line of one log, written at once.
RACER = """
import os, sys
from orchestrator.storage.leases import wait_for
from orchestrator.storage.layout import Storage
storage, log = Storage.at(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)
print("ready", flush=True)
sys.stdin.read()
for turn in range(int(sys.argv[3])):
    with wait_for(storage, "x", lambda: None):
        os.write(log, f"enter {os.getpid()}\\n".encode())
        os.fsync(log)
        os.write(log, f"leave {os.getpid()}\\n".encode())
"""


def race(storage: Storage, log: Path, racers: int, rounds: int, act: Callable[[list[int]], None]) -> list[int]:
    """Lets processes race for a resource; `act` is given their ids once they do. Returns those who held it in turn."""
    log.touch()
    command = [sys.executable, "-c", RACER, storage.backend.address, str(log), str(rounds)]
    with ExitStack() as stack:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        processes = [stack.enter_context(subprocess.Popen(command, **pipes)) for _ in range(racers)]
        for process in processes:
            assert process.stdout and process.stdout.readline() == b"ready\n"
        for process in processes:
            assert process.stdin
            process.stdin.close()  # all are up, now they race
        act([process.pid for process in processes])
        for process in processes:
            process.wait()
    held, turns = None, []
    for line in log.read_text().splitlines():
        step, pid = line.split()
        if step == "enter":
            assert held is None or process_is_dead(processes, held), "two hold it at a time"
            held = int(pid)
            turns.append(held)
        else:
            assert held == int(pid)
            held = None
    return turns


def process_is_dead(processes: list[subprocess.Popen[bytes]], pid: int) -> bool:
    return any(process.pid == pid and process.returncode == -signal.SIGKILL for process in processes)


def test_in_a_race_one_holds_it_at_a_time_and_all_get_it(storage: Storage, tmp_path: Path) -> None:
    pids: list[int] = []
    turns = race(storage, tmp_path / "log", racers=5, rounds=4, act=pids.extend)
    assert sorted(turns) == sorted(pids * 4)
    assert claims(storage) == []


def test_a_race_continues_without_those_that_are_killed(storage: Storage, tmp_path: Path) -> None:
    log, pids = tmp_path / "log", []

    def act(racers: list[int]) -> None:
        pids.extend(racers)
        for pid in racers[:2]:
            until(lambda pid=pid: f"enter {pid}\n" in log.read_text())
            os.kill(pid, signal.SIGKILL)

    turns = race(storage, log, racers=4, rounds=6, act=act)
    for pid in pids[2:]:
        assert turns.count(pid) == 6
    lease = taken(storage, "y")
    lease.sweep()
    assert claims(storage) == ["y"]


# Holders that die, are suspended, or are on another machine.


def test_a_killed_process_frees_it_at_once(storage: Storage) -> None:
    with holding(storage, "x") as process:
        assert acquire(storage, "x") is None
        process.kill()
        # Not yet waited for, the process has an entry in /proc still, though it has ended.
        until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        with taken(storage, "x"):
            assert claims(storage) == ["x"]
        process.wait()
        with holding(storage, "x"):
            assert acquire(storage, "x") is None
        taken(storage, "x").release()


def test_a_suspended_process_loses_it(storage: Storage, fast: None) -> None:
    with holding(storage, "x", FAST) as process:
        assert request_check(process) == "kept"
        process.send_signal(signal.SIGSTOP)
        found: list[Lease] = []
        until(lambda: found or found.extend(filter(None, [acquire(storage, "x")])))
        process.send_signal(signal.SIGCONT)
        assert request_check(process) == "x was taken over by another launch while this process was suspended"
        assert request_check(process) == "x was taken over by another launch while this process was suspended"
        found[0].check()
        assert claims(storage) == ["x"]
        found[0].release()
        assert "taken over" in request_check(process), "what is lost stays lost"


def test_a_suspended_process_continues_if_nobody_took_it(storage: Storage, fast: None) -> None:
    with holding(storage, "x", FAST) as process:
        process.send_signal(signal.SIGSTOP)
        (claim,) = storage.backend.list_files(storage.leases)

        def is_dead() -> bool:
            storage.backend.write("now", b"")
            now = storage.backend.stat("now")
            return bool(now and now.modified - claim.modified > 2 * leases.EXPIRES)

        until(is_dead)
        process.send_signal(signal.SIGCONT)
        assert request_check(process) == "kept"
        assert acquire(storage, "x") is None


def elsewhere(storage: Storage, resource: str, age: float, **changes: Any) -> str:
    """The claim of a process on another machine, last touched `age` seconds ago."""
    holder = replace(leases._describe_this_process(), machine="another", pid=1, **changes)
    return claim_of(storage, resource, json.dumps(asdict(holder)), age)


def claim_of(storage: Storage, resource: str, text: str | bytes, age: float) -> str:
    """A claim with the given content, last touched `age` seconds ago."""
    name = storage.claim(resource, "00ff")
    storage.backend.write(name, text.encode() if isinstance(text, str) else text)
    grow_old(storage, name, age)
    return name


def grow_old(storage: Storage, name: str, age: float) -> None:
    path = storage.backend.local_path(name)
    moment = path.stat().st_mtime - age
    os.utime(path, (moment, moment))


def test_a_process_of_another_machine_lives_as_long_as_its_claim_is_touched(storage: Storage) -> None:
    name = elsewhere(storage, "x", leases.EXPIRES - 10)
    assert acquire(storage, "x") is None
    grow_old(storage, name, 5)
    assert acquire(storage, "x") is None
    assert storage.backend.stat(name)
    storage.backend.touch(name)
    assert acquire(storage, "x") is None
    grow_old(storage, name, leases.EXPIRES + 1)
    with taken(storage, "x"):
        assert storage.backend.stat(name) is None


def test_a_process_that_nobody_may_see_is_not_taken_for_dead(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    me = leases._describe_this_process()
    unseen = replace(me, pid=2**22 + 1)  # more than Linux counts
    assert not me.is_gone() and unseen.is_gone() and replace(me, started="1").is_gone()
    assert not replace(unseen, machine="another").is_gone()

    def kill(pid: int, number: int) -> None:
        raise PermissionError("of another user")

    monkeypatch.setattr(os, "kill", kill)
    assert not unseen.is_gone()
    assert replace(me, started="1").is_gone(), "its number is used again"


# A launch and its workers.


def test_a_follower_sees_that_its_launch_has_ended(storage: Storage) -> None:
    launch = taken(storage, "launch-1")
    with taken(storage, "trial", "launch-1") as trial:
        trial.check()
        assert not trial.is_orphaned
        launch.release()
        trial.check()
        assert trial.is_orphaned and not trial.is_lost


def test_a_follower_sees_by_itself_that_its_launch_was_killed(storage: Storage, fast: None) -> None:
    with holding(storage, "launch-1") as process, taken(storage, "trial", "launch-1") as trial:
        trial.check()
        assert not trial.is_orphaned
        process.kill()
        until(lambda: trial.is_orphaned)


def test_after_a_pause_of_the_machine_nobody_is_an_orphan(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a laptop is closed and opened again."""
    launch, trial = Lease(storage, "launch-1", None), Lease(storage, "trial", "launch-1")
    assert launch.try_claim() and trial.try_claim()
    slept = 100 * leases.EXPIRES
    for lease in (launch, trial):
        grow_old(storage, lease.claim, slept)
    start = leases._read_clock()
    monkeypatch.setattr(leases, "_read_clock", lambda: start + slept)
    for _ in range(3):  # the trial is up before the launch
        trial.check()
    assert not trial.is_orphaned
    launch.check()
    monkeypatch.setattr(leases, "_read_clock", lambda: start + slept + 3 * leases.BEAT)
    trial.check()
    assert not trial.is_orphaned
    launch.release()
    trial.check()
    assert trial.is_orphaned


def test_holders_are_those_of_other_leases(storage: Storage) -> None:
    with taken(storage, "launch-1") as launch, taken(storage, "trial-a"), taken(storage, "trial-b"):
        elsewhere(storage, "trial-c", 1, host="far")
        elsewhere(storage, "trial-d", leases.EXPIRES + 1)
        found = launch.find_holders("trial-")
        assert list(found) == ["trial-a", "trial-b", "trial-c"]
        assert str(found["trial-a"]) == f"process {os.getpid()} on {found['trial-a'].host}"
        assert str(found["trial-c"]) == "process 1 on far"
        assert launch.find_holders("launch-") == {}, "its own is nobody else's"
        assert launch.find_holder("trial-b") and launch.find_holder("trial-d") is None
        assert claims(storage) == ["launch-1", "trial-a", "trial-b", "trial-c"], "dead claims are gone"


def test_sweep_removes_only_dead_claims(storage: Storage) -> None:
    with holding(storage, "killed") as process, taken(storage, "launch-1") as launch, taken(storage, "live"):
        process.kill()
        process.wait()
        elsewhere(storage, "far", 1)
        elsewhere(storage, "old", leases.EXPIRES + 1)
        launch.sweep()
        assert claims(storage) == ["far", "launch-1", "live"]


# Damage.

FACTS = asdict(leases._describe_this_process())
DAMAGED = [
    "",
    "{",
    "[]",
    "7",
    "null",
    "[" * 100_000,
    '{"host": "a"}',
    json.dumps(list(FACTS.values())),
    "\0",
    "1" * 5000,
]
VALUES: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.integers() | st.floats() | st.text(max_size=6)
) | st.sampled_from(
    [[1], {"a": 1}, "self", "1/../self", "\0", "/", 2**40, 2**70, 10**4000, -os.getpid(), FACTS["machine"]]
)
NEARLY = st.fixed_dictionaries({name: VALUES | st.just(value) for name, value in FACTS.items()})


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(DAMAGED) | NEARLY.map(json.dumps) | st.binary(max_size=50))
@example(json.dumps({**FACTS, "pid": "self"}))
@example(json.dumps({**FACTS, "pid": "\0"}))
@example(json.dumps({**FACTS, "pid": 2**70}))
@example(json.dumps({**FACTS, "pid": True}))
@example(json.dumps({**FACTS, "pid": -1}))
@example(json.dumps({**FACTS, "host": ["\x1b"]}))
def test_a_damaged_claim_counts_until_it_is_old(storage: Storage, text: str | bytes) -> None:
    lease = Lease(storage, "mine", None)
    assert lease.try_claim()
    name = claim_of(storage, "x", text, 0)
    found = lease.find_holder("x")
    # If a claim is complete and names a process of this machine, the system knows whether that is alive.
    assert (found is not None) == (storage.backend.stat(name) is not None)
    assert found is not None or FACTS["machine"] in json.loads(text)["machine"]
    claim_of(storage, "x", text, leases.EXPIRES + 1)
    assert lease.find_holder("x") is None
    assert storage.backend.stat(name) is None
    lease.release()


@pytest.mark.parametrize("name", ["leases/odd", "leases/a/b~c.json", "leases/~.json", "leases/x~", "leases/~~~"])
def test_odd_files_among_claims_are_harmless(storage: Storage, name: str) -> None:
    storage.backend.write(name, b"?")
    with taken(storage, "y") as lease:
        lease.sweep()
        lease.find_holders("")
        assert storage.backend.stat(name)
        grow_old(storage, name, leases.EXPIRES + 5)
        lease.sweep()
        assert claims(storage)[-1:] == ["y"]


# A storage that fails.


class Failing:
    """Makes one method of every folder fail for a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        self.is_on = True
        works = getattr(Folder, method)

        def failing(*given: Any) -> Any:
            if self.is_on:
                raise StorageError("gone for a while")
            return works(*given)

        monkeypatch.setattr(Folder, method, failing)


@pytest.mark.parametrize("method", ["write", "list_files", "read"])
def test_a_lease_that_the_storage_does_not_give_leaves_no_claim(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    elsewhere(storage, "x", leases.EXPIRES + 1)
    failing = Failing(monkeypatch, method)
    with pytest.raises(StorageError, match="gone for a while"):
        acquire(storage, "x")
    failing.is_on = False
    with taken(storage, "x"):
        assert claims(storage) == ["x"]


@pytest.mark.parametrize("method", ["touch", "delete", "write", "list_files"])
def test_a_holder_that_returns_after_a_takeover_never_continues(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    first = Lease(storage, "x", None)
    assert first.try_claim()
    grow_old(storage, first.claim, 2 * leases.EXPIRES)
    start = leases._read_clock()
    with Lease(storage, "x", None) as second:
        assert second.try_claim()
        monkeypatch.setattr(leases, "_read_clock", lambda: start + 2 * leases.EXPIRES)
        failing = Failing(monkeypatch, method)
        for _ in range(3):  # the storage fails in the middle of it
            with pytest.raises((StorageError, LeaseLost)):
                first.check()
        failing.is_on = False
        for _ in range(3):
            with pytest.raises(LeaseLost):
                first.check()
        assert second.find_holder("x") is None
        assert claims(storage) == ["x"]


def test_a_short_failure_of_the_storage_is_harmless(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = taken(storage, "x")
    failing = Failing(monkeypatch, "touch")
    with pytest.raises(StorageError):
        lease.check()
    failing.is_on = False
    lease.check()
    assert not lease.is_lost
    lease.release()


def test_a_claim_that_somebody_removed_is_a_lost_lease(storage: Storage) -> None:
    lease = taken(storage, "x")
    storage.backend.delete(lease.claim)
    with pytest.raises(LeaseLost, match="x was taken over"):
        lease.check()
    lease.release()


def test_a_launch_whose_claim_was_removed_claims_again(storage: Storage) -> None:
    lease = taken(storage, "launch-x")
    with taken(storage, "y", "launch-x") as worker:
        storage.backend.delete(lease.claim)
        lease.check()
        worker.check()
        assert not lease.is_lost and storage.backend.stat(lease.claim) and not worker.is_orphaned
    lease.release()
    assert storage.backend.list_files(storage.leases) == []


def test_an_eviction_concerns_only_the_workers_of_a_launch(storage: Storage) -> None:
    with taken(storage, "launch-x") as lease, taken(storage, "trial-1", "launch-x") as mine:
        with taken(storage, "trial-2", "launch-other") as another:
            for resource in ("trial-1", "trial-2"):
                lease.evict(resource)
            another.check()
        with pytest.raises(LeaseLost, match="trial-1 was taken over"):
            mine.check()


def test_a_touch_that_took_too_long_is_a_pause(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = taken(storage, "x")
    before, touch = lease.claim, Folder.touch

    def slow(backend: Folder, name: str) -> bool:
        monkeypatch.setattr(leases, "_read_clock", lambda: time.monotonic() + leases.EXPIRES)
        return touch(backend, name)

    monkeypatch.setattr(Folder, "touch", slow)
    lease.check()
    assert lease.claim != before and storage.backend.stat(before) is None and storage.backend.stat(lease.claim)
    lease.release()
