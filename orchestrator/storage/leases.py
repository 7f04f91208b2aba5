"""Leases: which launch trains which trial, among launches that share a storage, on one machine or several.

A process that wants a resource writes a claim, a file of its own, and then lists all claims. If another live claim to
the resource exists, it deletes its own; otherwise it holds the resource, and touches the claim every few seconds. If
two processes claim a resource at once, the one that lists last sees the other's claim, so at most one holds it; both
may give up and try again. This needs no lock and no compare-and-swap, which buckets do not offer, only listings that
show every earlier write. A claim is dead if its holder has not touched it for `EXPIRES` seconds by the clock of the
storage, or if its process ran on this machine and has ended.
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

BEAT = 2.0  # seconds between two touches of a claim
LAUNCH = "launch-"  # the prefix of the resource that each launch itself holds
EXPIRES = 30.0  # seconds without a touch after which a claim is dead
_SECOND_LOOK = 2.5 * BEAT  # seconds
_TRIES = 5  # because two processes that claim a resource at once may both give up


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a lease, with what is needed to find out whether it still runs on this machine."""

    host: str
    machine: str  # boot id and process namespace, in which the pid is valid
    pid: int
    started: str  # when the process started, because pids are reused
    owner: str

    def is_gone(self) -> bool:
        """Whether the process ran on this machine and has ended."""
        if self.machine != _read_machine_id():
            return False
        started = processes.read_start_time(self.pid)
        return started != self.started and (started is not None or not processes.exists(self.pid))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@lru_cache(maxsize=1)
def _read_machine_id() -> str:
    # If the system has no boot id, pids cannot be compared, and claims die by age alone.
    return processes.read_boot_id() or f"{socket.gethostname()} {secrets.token_hex(8)}"


def _read_clock() -> float:
    """Seconds on a clock that also runs while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _describe_this_process() -> Holder:
    pid = os.getpid()
    return Holder(
        socket.gethostname(), _read_machine_id(), pid, processes.read_start_time(pid) or "?", secrets.token_hex(8)
    )


_DAMAGED = Holder("?", "?", 0, "?", "?")  # of a claim that cannot be read; it counts until it expires


class Lease:
    """A resource that this process holds until `release`; a thread keeps it alive. Use `acquire` to get one.

    `follows` is the resource of the launch that this process works for.
    """

    def __init__(self, storage: Storage, resource: str, follows: str | None) -> None:
        self._storage = storage
        self._resource = resource
        self._follows = follows
        self._me = _describe_this_process()
        self._touched = _read_clock()
        self._woke = float("-inf")  # when it last claimed the resource again, after a pause
        self._ended = threading.Event()
        self._guard = threading.Lock()
        self.is_lost = False  # another process may hold the resource by now
        self.is_orphaned = False  # the launch that this process works for has ended, or gave up its lease

    def check(self) -> None:
        """Checks the claim in the storage. Raises LeaseLost if another process may hold the resource by now.

        Call it before writing anything that only the holder may write.
        """
        self._beat()
        if self.is_lost:
            raise LeaseLost(f"{self._resource} was taken over by another launch while this process was suspended")

    def release(self) -> None:
        """Releases the resource."""
        self._ended.set()
        with self._guard, suppress(StorageError):  # a claim that cannot be deleted expires
            self._storage.backend.delete(self.claim)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def claim(self) -> str:
        """The name of the claim's file."""
        return self._storage.claim(self._resource, self._me.owner)

    def try_claim(self) -> bool:
        """Claims the resource; False if another live claim to it exists."""
        facts = codec.encode(self._me) | {"follows": self._follows}
        claimed_at = _read_clock()
        self._storage.backend.write(self.claim, json.dumps(facts).encode())
        if self.find_holder(self._resource):
            self._storage.backend.delete(self.claim)
            return False
        self._touched = claimed_at  # only now, because a beat touches the claim without a check for others
        return True

    def start_heartbeat(self) -> Lease:
        """Starts the thread that touches the claim."""
        threading.Thread(target=self._keep_alive, name=f"lease-{self._resource}", daemon=True).start()
        return self

    def find_holder(self, resource: str) -> Holder | None:
        """The holder of a resource, other than this process, if any. Deletes dead claims to it."""
        return self._find_live(resource, self._list_claims())

    def find_holders(self, prefix: str) -> dict[str, Holder]:
        """Every resource with this prefix that another process holds. Deletes dead claims to such resources."""
        claims = self._list_claims()
        names = {name for name in map(_parse_resource, claims) if name.startswith(prefix)}
        found = {name: self._find_live(name, claims) for name in sorted(names)}
        return {name: holder for name, holder in found.items() if holder}

    def sweep(self) -> None:
        """Deletes every dead claim."""
        self.find_holders("")

    def evict(self, resource: str) -> None:
        """Takes a resource away from processes that work for this launch; they notice at their next beat."""
        for name in self._list_claims():
            if _parse_resource(name) == resource:
                with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
                    if json.loads(self._storage.backend.read(name))["follows"] == self._resource:
                        self._storage.backend.delete(name)

    def _list_claims(self) -> dict[str, Entry]:
        return {entry.name: entry for entry in self._storage.backend.list_files(self._storage.leases)}

    def _find_live(self, resource: str, claims: dict[str, Entry]) -> Holder | None:
        for name, entry in claims.items():
            if _parse_resource(name) == resource and name != self.claim:
                found = _read(self._storage, name)
                if found and self._is_alive(found, entry, claims):
                    return found
                self._storage.backend.delete(name)
        return None

    def _is_alive(self, holder: Holder, entry: Entry, claims: dict[str, Entry]) -> bool:
        mine = claims.get(self.claim)
        if mine is None:  # our claim was deleted, so every other claim counts
            return True
        # Both times are of the storage's clock, so no machine's clock needs to be right; ours is at most a beat old.
        return not holder.is_gone() and mine.modified - entry.modified <= EXPIRES

    def _keep_alive(self) -> None:
        while not self._ended.wait(BEAT) and not self.is_lost:
            # A failed beat is not yet a loss: the storage may be reachable again before the claim is dead.
            with suppress(StorageError):
                self._beat()

    def _claim_again(self) -> None:
        """Makes a new claim after a pause, because other processes may have taken the old one for dead."""
        self._storage.backend.delete(self.claim)
        self._me = _describe_this_process()
        self._woke = _read_clock()
        self.is_lost = not self.try_claim()

    def _beat(self) -> None:
        with self._guard:
            if self._ended.is_set() or self.is_lost:
                return
            now = _read_clock()
            if now - self._touched > EXPIRES / 2:
                self._claim_again()
                return
            is_there = self._storage.backend.touch(self.claim)
            if is_there and _read_clock() - now > EXPIRES / 2:
                self._claim_again()  # so slow a touch may have been too late, or recreated a deleted claim
                return
            if not is_there and self._resource.startswith(LAUNCH):
                self._claim_again()  # no other process claims it, and without it the workers of the launch would stop
                return
            self.is_lost = not is_there
            self._touched = now
            # After a pause the launch, which may have been suspended too, has two beats to touch its claim.
            if self._follows and not self.is_lost and now - self._woke > 2 * BEAT:
                self.is_orphaned = self.find_holder(self._follows) is None


def trial_resource(trial_id: str) -> str:
    """The resource that a process holds while it trains a trial or writes its row."""
    return f"trial-{trial_id}"


def table_resource(key: TableKey) -> str:
    """The resource that a process holds while it builds a teacher table."""
    return f"table-{key.teacher_id}-{key.name}"


def acquire(storage: Storage, resource: str, follows: str | None = None) -> Lease | None:
    """The lease of a resource; None if a live process holds it. Raises StorageError."""
    for attempt in range(_TRIES):
        lease = Lease(storage, resource, follows)
        try:
            if lease.try_claim():
                return lease.start_heartbeat()
        except StorageError:
            lease.release()  # otherwise the claim would block the resource until it expires
            raise
        if attempt + 1 < _TRIES:  # of two that came at once, and both went, one comes back first
            time.sleep(random.uniform(0.02, 0.05) * 2**attempt)  # noqa: S311
    return None


@contextmanager
def wait_for(storage: Storage, resource: str, check: Callable[[], None]) -> Iterator[Lease]:
    """Waits until a resource is free, and holds it; calls `check` while it waits, which may raise."""
    while (lease := acquire(storage, resource)) is None:
        check()
        time.sleep(random.uniform(0.3, 0.7))  # noqa: S311 - not all waiting processes should retry at once
    with lease:
        yield lease


def list_holders(storage: Storage, dead: set[tuple[str, float]] | None = None) -> dict[str, Holder]:
    """Every resource and its holder, for readers: writes nothing, and leaves dead claims in place.

    Without a claim of its own, a reader does not know the time of the storage. If a claim is dead by the clock of this
    machine, and its process cannot be checked, a second listing shows whether it is still touched. A caller that polls
    passes the same set as `dead` each time, so that each dead claim costs one such wait. Raises StorageError.
    """
    known = set() if dead is None else dead
    first = {name: claim for name, claim in _list_live(storage).items() if (name, claim[1].modified) not in known}
    doubtful = [name for name, (_, entry) in first.items() if abs(time.time() - entry.modified) > EXPIRES]
    second = first
    if doubtful:
        time.sleep(_SECOND_LOOK)
        second = _list_live(storage)
    found = {}
    for name, (holder, entry) in second.items():
        if (name, entry.modified) in known:
            continue
        if name not in doubtful or name not in first or entry.modified != first[name][1].modified:
            found[_parse_resource(name)] = holder
        else:
            known.add((name, entry.modified))
    return found


def _list_live(storage: Storage) -> dict[str, tuple[Holder, Entry]]:
    """Every claim whose process may be alive."""
    found = {}
    for entry in storage.backend.list_files(storage.leases):
        holder = _read(storage, entry.name)
        if holder and not holder.is_gone():
            found[entry.name] = holder, entry
    return found


def _parse_resource(name: str) -> str:
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
