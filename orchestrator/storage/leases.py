"""Leases: which launch trains what, among launches that share a storage, on one machine or several.

A holder writes a claim, a file of its own, and touches it every few seconds. A process that wants it writes one too,
then lists: where another live claim stands, it takes its own back. Of two that come at once the one who lists last
sees the other, so that at most one stays; both may go, and try again. This needs no lock and no exchange of values,
which buckets do not offer, only that a listing shows what was written before. A claim that its holder has not touched
for `EXPIRES` seconds by the clock of the storage is dead, as is one of a process of this machine that is gone.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache

from orchestrator import codec
from orchestrator.errors import LeaseLost, StorageError
from orchestrator.machine import processes
from orchestrator.records import TableKey
from orchestrator.storage.backend import Entry
from orchestrator.storage.layout import Storage

BEAT = 2.0  # seconds between two touches
LAUNCH = "launch-"  # what the names of launches' own leases begin with
EXPIRES = 30.0  # seconds without one after which a claim is dead
_SECOND_LOOK = 2.5 * BEAT  # seconds
_TRIES = 5  # for two that come at once, and both go


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a lease: enough to find out whether it still runs, if it ran on this machine."""

    host: str
    machine: str  # boot id and process namespace, which pids mean something in
    pid: int
    started: str  # when the process started, as a pid is used again
    owner: str

    def is_gone(self) -> bool:
        """Whether it ran on this machine and is not there any more."""
        if self.machine != _machine():
            return False
        started = processes.read_start_time(self.pid)
        return started != self.started and (started is not None or not processes.exists(self.pid))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@lru_cache(maxsize=1)
def _machine() -> str:
    # Where nobody knows what pids mean something in, claims die by age alone.
    return processes.read_boot_id() or f"{socket.gethostname()} {secrets.token_hex(8)}"


def _clock() -> float:
    """Seconds, which pass also while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _this_process() -> Holder:
    pid = os.getpid()
    return Holder(socket.gethostname(), _machine(), pid, processes.read_start_time(pid) or "?", secrets.token_hex(8))


_DAMAGED = Holder("?", "?", 0, "?", "?")  # somebody's, until it is old


class Lease:
    """A resource that this process holds, kept alive by a thread until `release`; made by `acquire`.

    `follows` is the lease of the launch that this one works for.
    """

    def __init__(self, storage: Storage, resource: str, follows: str | None) -> None:
        self._storage = storage
        self._resource = resource
        self._follows = follows
        self._me = _this_process()
        self._touched = _clock()
        self._woke = float("-inf")  # when it last claimed the resource again, after a pause
        self._ended = threading.Event()
        self._guard = threading.Lock()
        self.is_lost = False  # somebody else may hold the resource by now
        self.is_orphaned = False  # the launch that it works for has ended, or asks to stop

    def check(self) -> None:
        """Asks the storage. Raises LeaseLost where somebody else may hold the resource by now.

        To be called before something is written that only the holder may write.
        """
        self._beat()
        if self.is_lost:
            raise LeaseLost(f"{self._resource} was taken over by another launch while this process stood still")

    def release(self) -> None:
        """Gives the resource back."""
        self._ended.set()
        with self._guard, suppress(StorageError):  # a claim that cannot be removed dies by age
            self._storage.backend.delete(self.claim)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def claim(self) -> str:
        """The name of its file."""
        return self._storage.claim(self._resource, self._me.owner)

    def try_claim(self) -> bool:
        """Claims the resource; False where another live claim stands."""
        facts = codec.encode(self._me) | {"follows": self._follows}
        claimed_at = _clock()
        self._storage.backend.write(self.claim, json.dumps(facts).encode())
        if self.find_holder(self._resource):
            self._storage.backend.delete(self.claim)
            return False
        self._touched = claimed_at  # not before the others were looked at: a beat that only touches looks at none
        return True

    def start_heartbeat(self) -> Lease:
        """Starts the thread that touches the claim."""
        threading.Thread(target=self._keep_alive, name=f"lease-{self._resource}", daemon=True).start()
        return self

    def find_holder(self, resource: str) -> Holder | None:
        """The other holder of a resource, if any. Dead claims to it are removed."""
        return self._holder(resource, self._claims())

    def find_holders(self, prefix: str) -> dict[str, Holder]:
        """Every resource whose name has this prefix and that another process holds; dead claims to such are removed."""
        claims = self._claims()
        names = {name for name in map(_resource, claims) if name.startswith(prefix)}
        found = {name: self._holder(name, claims) for name in sorted(names)}
        return {name: holder for name, holder in found.items() if holder}

    def sweep(self) -> None:
        """Removes every dead claim."""
        self.find_holders("")

    def evict(self, resource: str) -> None:
        """Takes a resource away from those who work for this lease; they notice at their next beat."""
        for name in self._claims():
            if _resource(name) == resource:
                with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
                    if json.loads(self._storage.backend.read(name))["follows"] == self._resource:
                        self._storage.backend.delete(name)

    def _claims(self) -> dict[str, Entry]:
        return {entry.name: entry for entry in self._storage.backend.list_files(self._storage.leases)}

    def _holder(self, resource: str, claims: dict[str, Entry]) -> Holder | None:
        for name, entry in claims.items():
            if _resource(name) == resource and name != self.claim:
                found = _read(self._storage, name)
                if found and self._is_alive(found, entry, claims):
                    return found
                self._storage.backend.delete(name)
        return None

    def _is_alive(self, holder: Holder, entry: Entry, claims: dict[str, Entry]) -> bool:
        mine = claims.get(self.claim)
        if mine is None:  # it was taken from us; whatever else stands there is none of ours
            return True
        # Both times are the storage's, so that no machine's clock needs to be right; ours is at most a beat old.
        return not holder.is_gone() and mine.modified - entry.modified <= EXPIRES

    def _keep_alive(self) -> None:
        while not self._ended.wait(BEAT) and not self.is_lost:
            # A beat that fails is not yet a loss: the storage may be back before the claim is dead.
            with suppress(StorageError):
                self._beat()

    def _claim_again(self) -> None:
        """After a pause the claim may have been taken for dead: only a new one says whose the resource is."""
        self._storage.backend.delete(self.claim)
        self._me = _this_process()
        self._woke = _clock()
        self.is_lost = not self.try_claim()

    def _beat(self) -> None:
        with self._guard:
            if self._ended.is_set() or self.is_lost:
                return
            now = _clock()
            if now - self._touched > EXPIRES / 2:
                self._claim_again()
                return
            is_there = self._storage.backend.touch(self.claim)
            if is_there and _clock() - now > EXPIRES / 2:
                self._claim_again()  # so slow a touch may have come too late, or have brought back what was removed
                return
            if not is_there and self._resource.startswith(LAUNCH):
                self._claim_again()  # nobody else wants it, and without it the workers of the launch would stop
                return
            self.is_lost = not is_there
            self._touched = now
            # After a pause the launch, which perhaps stood still too, has two beats to say that it lives.
            if self._follows and not self.is_lost and now - self._woke > 2 * BEAT:
                self.is_orphaned = self.find_holder(self._follows) is None


def trial_resource(trial_id: str) -> str:
    """The resource that a process holds while it trains a trial or writes its row."""
    return f"trial-{trial_id}"


def table_resource(key: TableKey) -> str:
    """The resource that a process holds while it builds a teacher table."""
    return f"table-{key.teacher_id}-{key.name}"


def acquire(storage: Storage, resource: str, follows: str | None = None) -> Lease | None:
    """The lease of a resource, or None where a live process holds it. Raises StorageError."""
    for turn in range(_TRIES):
        lease = Lease(storage, resource, follows)
        try:
            if lease.try_claim():
                return lease.start_heartbeat()
        except StorageError:
            lease.release()  # or the claim would stand for nobody until it is old
            raise
        if turn + 1 < _TRIES:  # of two that came at once, and both went, one comes back first
            time.sleep(random.uniform(0.02, 0.05) * 2**turn)  # noqa: S311
    return None


@contextmanager
def wait_for(storage: Storage, resource: str, check: Callable[[], None]) -> Iterator[Lease]:
    """Holds a resource, after those who hold it now; `check` is called while it waits, and may raise."""
    while (lease := acquire(storage, resource)) is None:
        check()
        time.sleep(random.uniform(0.3, 0.7))  # noqa: S311 - not all waiting processes should retry at once
    with lease:
        yield lease


def list_holders(storage: Storage, dead: set[tuple[str, float]] | None = None) -> dict[str, Holder]:
    """Every resource and its holder, for readers: writes nothing, and leaves dead claims in place.

    Without a claim of its own a reader does not know the time of the storage. Where by the clock of this machine a
    claim is dead, and nobody knows of its process, a second look tells whether it is touched still. A caller that polls
    keeps in `dead` which claims were not, so that the same one costs a second look once. Raises StorageError.
    """
    known = set() if dead is None else dead
    first = {name: claim for name, claim in _seen(storage).items() if (name, claim[1].modified) not in known}
    doubtful = [name for name, (_, entry) in first.items() if abs(time.time() - entry.modified) > EXPIRES]
    again = first
    if doubtful:
        time.sleep(_SECOND_LOOK)
        again = _seen(storage)
    found = {}
    for name, (holder, entry) in again.items():
        if (name, entry.modified) in known:
            continue
        if name not in doubtful or name not in first or entry.modified != first[name][1].modified:
            found[_resource(name)] = holder
        else:
            known.add((name, entry.modified))
    return found


def _seen(storage: Storage) -> dict[str, tuple[Holder, Entry]]:
    """Every claim of which the process may be alive."""
    found = {}
    for entry in storage.backend.list_files(storage.leases):
        holder = _read(storage, entry.name)
        if holder and not holder.is_gone():
            found[entry.name] = holder, entry
    return found


def _resource(name: str) -> str:
    return name.rpartition("/")[2].partition("~")[0]


def _read(storage: Storage, name: str) -> Holder | None:
    try:
        facts = json.loads(storage.backend.read(name))
        found = codec.decode(Holder, {name: facts[name] for name in Holder.__slots__})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return _DAMAGED
    return found if found.pid > 0 else _DAMAGED
