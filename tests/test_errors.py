"""Messages of errors: places, order, and nothing that steers a terminal."""

from __future__ import annotations

from orchestrator.errors import MAX_SHOWN, Fault, StudyError
from orchestrator.suggest import nearest


def test_a_fault_names_its_place() -> None:
    assert str(Fault("a.yaml", 3, 7, "recipe.lr", "too big")) == "a.yaml:3:7: recipe.lr: too big"
    assert str(Fault("a.yaml", 3, 7, "", "too big")) == "a.yaml:3:7: too big"
    assert str(Fault("--set x=1", 0, 0, "x", "unknown")) == "--set x=1: x: unknown"


def test_control_characters_are_shown_not_obeyed() -> None:
    assert str(Fault("a.yaml", 1, 1, "\x1b[31m", "é is fine")) == "a.yaml:1:1: \\x1b[31m: é is fine"


def test_faults_are_sorted_and_told_once() -> None:
    late, early = Fault("a", 10, 1, "", "late"), Fault("a", 9, 1, "", "early")
    assert StudyError([late, early, late]).faults == (early, late)


def test_a_flood_of_faults_is_cut() -> None:
    error = StudyError(Fault("a", line, 1, "", "bad") for line in range(1, MAX_SHOWN + 51))
    assert len(error.faults) == MAX_SHOWN + 50
    assert str(error).splitlines()[-1] == "and 50 more; mend these first"
    assert len(str(error).splitlines()) == MAX_SHOWN + 1


def test_the_nearest_word_is_named_where_one_is_near() -> None:
    assert nearest("logitt", ("base", "logit")) == "did you mean logit?"
    assert nearest("LOGIT", ("base", "logit")) == "did you mean logit?"
    for word in ("qqqqqq", ["logit"], None, 3, "x" * 10**6):
        assert nearest(word, ("base", "logit")) == "choose one of them"
