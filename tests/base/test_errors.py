"""Messages of errors: places, order, nothing that steers a terminal, and no secret."""

from __future__ import annotations

import pytest

from orchestrator import errors
from orchestrator.errors import MAX_SHOWN, Fault, KdctlError, StudyError
from orchestrator.records import Failure


def test_a_fault_names_its_place() -> None:
    assert str(Fault("a.yaml", 3, 7, "recipe.lr", "too big")) == "a.yaml:3:7: recipe.lr: too big"
    assert str(Fault("a.yaml", 3, 7, "", "too big")) == "a.yaml:3:7: too big"
    assert str(Fault("--set x=1", 0, 0, "x", "unknown")) == "--set x=1: x: unknown"


def test_control_characters_are_shown_not_obeyed() -> None:
    assert str(Fault("a.yaml", 1, 1, "\x1b[31m", "é is fine")) == "a.yaml:1:1: \\x1b[31m: é is fine"


def test_faults_mask_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "wJalr/XUtn+FEMI")
    fault = Fault("a.yaml", 1, 1, "wJalr/XUtn+FEMI", "wJalr/XUtn+FEMI")
    assert str(fault) == str(StudyError([fault])) == "a.yaml:1:1: ***: ***"


def test_faults_are_sorted_and_listed_once() -> None:
    late, early = Fault("a", 10, 1, "", "late"), Fault("a", 9, 1, "", "early")
    assert StudyError([late, early, late]).faults == (early, late)


def test_a_flood_of_faults_is_cut() -> None:
    error = StudyError(Fault("a", line, 1, "", "bad") for line in range(1, MAX_SHOWN + 51))
    assert len(error.faults) == MAX_SHOWN + 50
    assert str(error).splitlines()[-1] == "and 50 more; fix these first"
    assert len(str(error).splitlines()) == MAX_SHOWN + 1


# Classes.

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, KdctlError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_an_exit_code_and_a_class_of_failure(kind: type[KdctlError]) -> None:
    assert kind.exit_code not in (0, errors.EXIT_BUG)
    # What a worker or the memory lacks is never an error's word.
    assert Failure(kind.failure) and Failure(kind.failure).is_retried == (kind is errors.DeviceLost)


def test_errors_fail_a_trial_in_their_own_class() -> None:
    named = {kind.failure: kind.__name__ for kind in KINDS if kind.failure != "error"}
    assert named == {
        "data": "DataError",
        "storage": "StorageError",
        "teacher": "TeacherError",
        "diverged": "DivergedError",
        "device": "DeviceLost",
    }
