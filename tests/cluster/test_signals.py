"""Signals: the first requests a stop, the second ends the process, and afterwards everything is as before."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from orchestrator.cluster.signals import handle_stops

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Prints each request to stop, and continues.
STUBBORN = """
import signal
from orchestrator.cluster.signals import handle_stops
with handle_stops(lambda name: print(name, flush=True)):
    print("ready", flush=True)
    while True:
        signal.pause()
"""


@contextmanager
def stubborn() -> Iterator[subprocess.Popen[str]]:
    """A process that continues after the first signal."""
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("first", NUMBERS)
@pytest.mark.parametrize("second", NUMBERS)
def test_the_second_signal_ends_at_once(first: signal.Signals, second: signal.Signals) -> None:
    with stubborn() as process:
        process.send_signal(first)
        assert process.stdout and process.stdout.readline() == f"{first.name}\n"
        process.send_signal(second)
        if second is signal.SIGHUP:  # a terminal that closes sends it several times, and is not in a hurry
            process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert process.stdout.read() == ""


@pytest.mark.parametrize("first", NUMBERS)
def test_a_closed_terminal_never_ends_at_once(first: signal.Signals) -> None:
    requests: list[str] = []
    with handle_stops(requests.append):
        for number in (first, signal.SIGHUP, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert requests == [first.name]


@pytest.mark.parametrize("ignored", NUMBERS)
def test_what_was_ignored_at_the_start_stays_ignored(ignored: signal.Signals) -> None:
    before = signal.signal(ignored, signal.SIG_IGN)  # as after `nohup`, or a shell's `&`
    requests: list[str] = []
    try:
        with handle_stops(requests.append):
            os.kill(os.getpid(), ignored)
            assert requests == []
            other = next(number for number in NUMBERS if number != ignored)
            os.kill(os.getpid(), other)
            assert requests == [other.name]
        assert signal.getsignal(ignored) is signal.SIG_IGN
    finally:
        signal.signal(ignored, before)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_requests_a_stop(number: signal.Signals) -> None:
    requests: list[str] = []
    with handle_stops(requests.append):
        assert requests == []
        os.kill(os.getpid(), number)
        assert requests == [number.name]


def test_the_earlier_handlers_are_back_afterwards() -> None:
    received: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in NUMBERS}
    try:
        with pytest.raises(LookupError), handle_stops(lambda name: None):
            raise LookupError
        for number in NUMBERS:
            os.kill(os.getpid(), number)
        assert received == list(NUMBERS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_of_several_in_a_row_each_receives_its_first_signal() -> None:
    requests: list[str] = []
    for number, _ in itertools.product(NUMBERS, range(2)):
        with handle_stops(requests.append):
            os.kill(os.getpid(), number)
    assert requests == ["SIGINT", "SIGINT", "SIGTERM", "SIGTERM", "SIGHUP", "SIGHUP"]


def test_in_another_thread_nothing_changes() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    handlers: list[object] = []

    def work() -> None:
        with handle_stops(lambda name: None):
            handlers.extend(signal.getsignal(number) for number in NUMBERS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == before


SUPERVISED = """
import os, signal, sys
from orchestrator.cluster import launch_supervisor
if launch_supervisor.is_supervised():
    launch_supervisor.follow_parent()
    from orchestrator.cluster.signals import handle_stops
    requests = []
    with handle_stops(lambda name: (requests.append(name), print(name, flush=True))):
        print("ready", os.getpid(), flush=True)
        while not requests:
            signal.pause()
        print("written", sys.stdin.readline(), flush=True)
"""


def test_a_signal_to_a_launch_and_to_its_supervisor_counts_once() -> None:
    # As Ray does to stop a job: every process of it gets a SIGTERM, and the supervisor passes its own on.
    command = [sys.executable, "-c", SUPERVISED]
    start = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "KDCTL_SUPERVISOR": str(os.getpid())}
    with subprocess.Popen(command, env=environment, **start) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout.readline().startswith("ready")
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "SIGTERM\n"
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate("the checkpoint\n")
            assert (process.returncode, out) == (0, "written the checkpoint\n\n")
        finally:
            process.kill()
