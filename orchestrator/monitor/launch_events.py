"""The events with which a launch starts and ends, and what every listener of a launch needs."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from orchestrator.monitor.events import Event, EventKind, EventListener, LaunchStarted, LaunchTotals, TrialStarted
from orchestrator.records import State, TrialRecord
from orchestrator.study import stored_studies
from orchestrator.study.plan import Plan
from orchestrator.study.stored_studies import Launch


def start_event(plan: Plan, launched: Launch) -> Event:
    """The first event of a launch."""
    members = stored_studies.members(plan)
    finished = sum(member.is_cached for member in members)
    text = f"study {plan.study}: {len(members):,} trials"
    if finished:
        text = f"{finished} of {len(members)} trials are finished in this storage and not trained again"
    return Event(EventKind.LAUNCH, text, facts=LaunchStarted(plan.study, launched.executor, members, launched.left))


def end_event(plan: Plan, rows: Sequence[TrialRecord], since: datetime) -> Event:
    """The last event of a launch that started at `since`, from the rows of its study."""
    counted = Counter(row.state for row in rows)
    states = {state: counted[state] for state in State if counted[state]}
    seconds = (datetime.now(UTC) - since).total_seconds()
    counts = ", ".join(f"{count:,} {state}" for state, count in states.items()) or "none started"
    text = f"study {plan.study}: of {len(plan.trials):,} trials {counts}; this launch took {seconds:,.0f} s"
    return Event(EventKind.END, text, facts=LaunchTotals(states, seconds))


def one_at_a_time(on_event: EventListener) -> EventListener:
    """The same listener for several threads: it gets one event at a time."""
    turn = threading.Lock()

    def send_in_turn(event: Event) -> None:
        with turn:
            on_event(event)

    return send_in_turn


def with_precision(on_event: EventListener) -> EventListener:
    """The same listener, which also gets a note of what `precision: auto` chose, once for each choice."""
    found: set[str] = set()

    def send_precision(event: Event) -> None:
        on_event(event)
        facts = event.facts
        if not isinstance(facts, TrialStarted) or not event.trial or event.trial.config.precision != "auto":
            return
        if facts.compute_dtype and facts.compute_dtype not in found:
            found.add(facts.compute_dtype)
            on_event(Event(EventKind.NOTE, f"precision auto: convolutions in {facts.compute_dtype} on {facts.device}"))

    return send_precision
