"""The sentences of a study: each verdict in words, no claim beyond the corrected evidence, and how far they go."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reported import row, teacher
from test_comparisons import STUDY, make_study, make_sweep

from orchestrator.records import State, TrialRecord
from orchestrator.results.evidence import conclusions
from orchestrator.results.evidence.comparisons import MAX_GROUPS, Verdict, compare_settings
from orchestrator.results.evidence.conclusions import Conclusions
from orchestrator.results.paper_table import build_paper_table
from orchestrator.results.summary import group_tables


def conclude(rows: Iterable[TrialRecord]) -> Conclusions:
    rows = list(rows)
    return conclusions.conclude(rows, build_paper_table(rows).names)


def answer(rows: Iterable[TrialRecord]) -> list[str]:
    return list(conclude(rows).answers)


BASE = (90.0, 91.0, 92.0)


def make_pair(*differences: float) -> list[TrialRecord]:
    """`base`, and `st` with these differences to it."""
    return make_study({"base": BASE, "st": [acc + more for acc, more in zip(BASE, differences, strict=False)]})


@pytest.mark.parametrize(
    ("differences", "sentence"),
    [
        ((3.0, 3.2, 3.4), "On ResNet8, st is better than base by 3.20 points [2.70, 3.70], n = 3."),
        ((-3.0, -3.2, -3.4), "On ResNet8, st is worse than base by 3.20 points [2.70, 3.70], n = 3."),
        ((0.5, -1.0, 1.0), "On ResNet8, st (+0.2 points [−2.4, +2.8], n = 3) is not shown to differ from base."),
        (
            (1.0, 1.0, 1.0),
            "On ResNet8, st (+1.00 points, n = 3) has the same difference to base with every seed, which cannot be "
            "tested.",
        ),
        (
            (0.0, 0.0, 0.0),
            "On ResNet8, st (0.00 points, n = 3) has the same difference to base with every seed, which cannot be "
            "tested.",
        ),
        (
            (3.0,),
            "On ResNet8, st (+3.00 points, n = 1) has a single seed in common with base, which shows nothing.",
        ),
    ],
)
def test_each_verdict_has_its_sentence(differences: tuple[float, ...], sentence: str) -> None:
    assert answer(make_pair(*differences)) == [sentence]


def test_a_study_answers_what_is_better_than_base_and_what_is_best() -> None:
    found = conclude([teacher(), *make_study(STUDY)])
    assert found.answers == (
        "On ResNet8, st is better than base by 10.8 points [9.3, 12.2], n = 5, and logit by 9.94 points [9.45, 10.43], "
        "n = 5; kd (+0.38 points [−0.27, +1.03], n = 5) is not shown to differ from base.",
        "On ResNet8, the highest mean is that of st; kd is worse than st by 10.4 points [9.0, 11.7], n = 5; logit "
        "(−0.8 points [−2.2, +0.5], n = 5) is not shown to differ from st; logit is better than kd by 9.56 points "
        "[8.52, 10.60], n = 5.",
    )
    assert found.scope == (
        "Differences are percentage points of test accuracy after the last epoch: the mean over n seeds that both "
        "have, with its 95 % interval.",
        "All students of a pair have one teacher, so an interval covers other seeds of the students, and says nothing "
        "about other teachers.",
        "Of 6 comparisons, one in twenty would show a difference by luck alone, so better and worse are said only "
        "after Holm's correction: the chance that any of it is luck is at most 5 %.",
    )


def test_what_only_a_single_test_would_show_is_no_finding() -> None:
    # p is about 0.047 for st; of two methods, three tests are made.
    rows = make_study({"base": BASE, "logit": (90.5, 90.0, 93.0), "st": (92.0, 94.3, 96.6)})
    [first, second] = answer(rows)
    assert "st (+3.3 points [+0.1, +6.5], n = 3) would differ from base as the only comparison, but not after" in first
    assert "(corrected p = 0.1" in first and "better" not in first + second


def test_of_many_uncorrected_differences_the_greatest_is_said() -> None:
    noise = (-1.0, 0.0, 1.0)
    sweep = make_sweep(
        [[acc + 3 + number / 10 + more for acc, more in zip(BASE, noise, strict=True)] for number in range(9)]
    )
    [first, _] = answer([*make_study({"base": BASE}), *sweep])
    assert first.startswith(
        "On ResNet8, 9 settings, most of all st (temperature = 9) (+3.8 points [+1.3, +6.3], n = 3), would differ from "
        "base as the only comparison, but not after the correction for all (corrected p ≥ "
    )


def test_without_base_what_is_missing_is_said() -> None:
    without = [one for one in make_study(STUDY) if one.method != "base"]
    first, second = answer(without)
    assert (
        first == "On ResNet8, whether distillation helps cannot be said, as the study has no base for logit, st and kd."
    )
    assert second.startswith("On ResNet8, the highest mean is that of st; kd is worse than st by")
    rows = make_study({"base": BASE}) + [row(900 + seed, "st", 92.0, seed=seed) for seed in (7, 8)]
    assert answer(rows) == [
        "On ResNet8, whether distillation helps cannot be said, as no finished run of base has a seed of st."
    ]


def test_without_anything_to_compare_the_mean_is_said() -> None:
    found = conclude(make_study({"base": BASE}))
    assert found.answers == (
        "On ResNet8, base reaches 91.0 ± 1.0 % (n = 3) after the last epoch; there is nothing to compare it with.",
    )
    assert found.scope == ()


@pytest.mark.parametrize("rows", [[], [row(1, state=State.RUNNING)], [row(1, "st", None, state=State.FAILED)]])
def test_before_a_run_has_finished_there_is_no_answer(rows: list[TrialRecord]) -> None:
    assert conclude(rows) == Conclusions(("No run has finished yet, so there is no answer.",))


def test_many_settings_are_counted() -> None:
    draw = random.Random(5)
    sweep = make_sweep([[acc + 5 + draw.gauss(number, 0.1) for acc in BASE] for number in range(MAX_GROUPS + 4)])
    first, second = answer([*make_study({"base": BASE}), *sweep])
    assert first.startswith("On ResNet8, 12 settings are better than base, most of all st (temperature = 12) by 16.")
    assert second == (
        "On ResNet8, st (temperature = 12) has the highest of 12 means; so many settings are not compared with each "
        "other: launch the best few again with new seeds, as a study of their own."
    )


def test_the_best_of_many_without_base_is_compared_with_each() -> None:
    draw = random.Random(5)
    values = [[90 + draw.gauss(0, 0.01) for _ in range(4)] for _ in range(MAX_GROUPS + 1)]
    values[3] = [99.0, 99.01, 99.0, 99.02]
    missing, second = answer(make_sweep(values))
    assert missing.endswith("as the study has no base for 9 settings.")
    assert second.startswith(
        "On ResNet8, the highest mean is that of st (temperature = 4); 8 settings are worse than st (temperature = 4), "
        "most of all st (temperature = "
    )
    assert "Of 36 comparisons" in conclude(make_sweep(values)).scope[-1]


def test_pairs_are_told_apart() -> None:
    rows = make_study(STUDY) + make_study({"st": STUDY["st"]}, teacher="resnet_32_56")
    rows += make_study(STUDY, student="resnet_32_14") + make_study(STUDY, dataset="cifar10")
    places = [sentence.partition(", ")[0] for sentence in answer(rows)]
    assert sorted(set(places)) == [
        "On ResNet14 (Digits)",
        "On ResNet8 (Cifar10)",
        "On ResNet8 taught by ResNet20 (Digits)",
        "On ResNet8 taught by ResNet56 (Digits)",
    ]


def test_the_scope_depends_on_the_teachers_of_each_pair() -> None:
    own = [row(100 + seed, "st", 93.0 + seed**2, seed=seed, teacher_id=f"{seed}") for seed in (0, 1, 2)]
    bases = make_study({"base": BASE})
    assert conclude([*bases, *own]).scope[1] == (
        "Each seed has a teacher of its own, so an interval covers other seeds and other teachers."
    )
    shared = [row(200 + no, "st", 93.0 + no, seed=no % 3, teacher_id=f"{no % 2}") for no in range(6)]
    assert conclude([*bases, *shared]).scope[1].startswith("Students with different seeds share teachers, so")
    other = make_study(STUDY, student="resnet_32_14")
    scope = conclude([*bases, *own, *other]).scope
    assert scope[1].startswith("On ResNet8, each seed has") and scope[2].startswith("On ResNet14, all students of")


@settings(max_examples=60)
@given(st.randoms(use_true_random=False))
def test_no_sentence_claims_more_than_the_comparisons(draw: random.Random) -> None:
    methods = draw.sample(("base", "logit", "st", "kd", "at"), draw.randint(1, 5))
    values = (89.0, 90.0, 90.5, 93.0)
    accuracies = {method: draw.choices(values, k=draw.randint(1, 4)) for method in methods}
    family, found = compare_settings(group_tables(make_study(accuracies))), conclude(make_study(accuracies))
    text = " ".join(found.answers)
    shown = {each.verdict for each in family.contrasts}
    assert ("better than" in text or "worse than" in text) == bool(shown & {Verdict.BETTER, Verdict.WORSE})
    assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in found.answers + found.scope)
    assert " -" not in text and "+-" not in text and "  " not in text  # true minus signs
