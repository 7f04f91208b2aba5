"""Signals: the first one asks, the second one ends, and afterwards everything is as before."""

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

# Says what it is asked, and lives on.
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
    """A process that goes on after the first signal."""
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
def test_a_terminal_that_closes_is_not_in_a_hurry(first: signal.Signals) -> None:
    asked: list[str] = []
    with handle_stops(asked.append):
        for number in (first, signal.SIGHUP, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert asked == [first.name]


@pytest.mark.parametrize("ignored", NUMBERS)
def test_what_was_ignored_at_the_start_stays_ignored(ignored: signal.Signals) -> None:
    before = signal.signal(ignored, signal.SIG_IGN)  # as after `nohup`, or a shell's `&`
    asked: list[str] = []
    try:
        with handle_stops(asked.append):
            os.kill(os.getpid(), ignored)
            assert asked == []
            other = next(number for number in NUMBERS if number != ignored)
            os.kill(os.getpid(), other)
            assert asked == [other.name]
        assert signal.getsignal(ignored) is signal.SIG_IGN
    finally:
        signal.signal(ignored, before)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_asks(number: signal.Signals) -> None:
    asked: list[str] = []
    with handle_stops(asked.append):
        assert asked == []
        os.kill(os.getpid(), number)
        assert asked == [number.name]


def test_the_earlier_handlers_are_back_afterwards() -> None:
    heard: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: heard.append(number)) for number in NUMBERS}
    try:
        with pytest.raises(LookupError), handle_stops(lambda name: None):
            raise LookupError
        for number in NUMBERS:
            os.kill(os.getpid(), number)
        assert heard == list(NUMBERS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_one_after_another_each_hears_its_first() -> None:
    asked: list[str] = []
    for number, _ in itertools.product(NUMBERS, range(2)):
        with handle_stops(asked.append):
            os.kill(os.getpid(), number)
    assert asked == ["SIGINT", "SIGINT", "SIGTERM", "SIGTERM", "SIGHUP", "SIGHUP"]


def test_in_another_thread_nothing_changes() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    seen: list[object] = []

    def work() -> None:
        with handle_stops(lambda name: None):
            seen.extend(signal.getsignal(number) for number in NUMBERS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == before


SUPERVISED = """
import os, signal, sys
from orchestrator.cluster import supervisor
if supervisor.is_supervised():
    supervisor.follow_parent()
    from orchestrator.cluster.signals import handle_stops
    asked = []
    with handle_stops(lambda name: (asked.append(name), print(name, flush=True))):
        print("ready", os.getpid(), flush=True)
        while not asked:
            signal.pause()
        print("written", sys.stdin.readline(), flush=True)
"""


def test_who_signals_a_launch_and_its_supervisor_means_it_once() -> None:
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
