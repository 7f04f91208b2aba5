"""What a report's intervals and corrected p values are worth, in simulated studies whose truth is known.

python bench/intervals.py

docs/report.md has the tables that this prints.
"""

from __future__ import annotations

import numpy as np
from scipy.special import stdtr, stdtrit

from orchestrator.results.evidence.comparisons import SIGNIFICANCE, compute_p, correct_holm
from orchestrator.results.summary import Statistic

REPEATS = 100_000  # intervals for each figure
STUDIES = 4_000  # studies for each figure
SHARES = (0.0, 0.1, 0.5, 1.0)  # variance between teachers, in units of that of one paired difference
LAYOUTS = ((3, 1), (5, 1), (10, 1), (3, 3), (10, 3), (3, 0), (10, 0))  # seeds and teachers; 0: one for each seed
FAMILIES = ((2, 3), (4, 3), (4, 5), (7, 5))  # methods beside base, and seeds


def simulate_coverage(seeds: int, teachers: int, share: float, repeats: int = REPEATS) -> float:
    """How often the 95 % interval of a difference to base contains the mean over all teachers, which is 0.

    A student's accuracy is normal around its teacher's effect, which is normal as well; `base` has no teacher. Half of
    the variance of a paired difference is that of `base`. Where each seed has all teachers, a seed counts once.
    """
    draw = np.random.default_rng(1)
    own = teachers == 0
    effects = draw.normal(0, share**0.5, (repeats, seeds if own else 1, 1 if own else teachers))
    students = draw.normal(0, 0.5**0.5, (repeats, seeds, effects.shape[2]))
    differences = (effects + students).mean(axis=2) - draw.normal(0, 0.5**0.5, (repeats, seeds))
    half = stdtrit(seeds - 1, 0.975) * differences.std(axis=1, ddof=1) / seeds**0.5
    return float((abs(differences.mean(axis=1)) <= half).mean())


def compute_coverage(seeds: int, share: float) -> float:
    """The same with one teacher, as a formula: the mean of n differences is sqrt(1 + n·share) times as wide."""
    return 1 - 2 * float(stdtr(seeds - 1, -stdtrit(seeds - 1, 0.975) / (1 + seeds * share) ** 0.5))


def simulate_false_findings(methods: int, seeds: int, studies: int = STUDIES) -> tuple[float, float]:
    """How often a study in which nothing differs shows a difference: from single p values, and from corrected ones."""
    draw = np.random.default_rng(2)
    single = corrected = 0
    for _ in range(studies):
        accuracies = draw.normal(0, 1, (methods + 1, seeds))
        p_values = [
            compute_p(Statistic.over((accuracies[a] - accuracies[b]).tolist())) or 0.0
            for a in range(methods + 1)
            for b in range(a)
        ]
        single += min(p_values) <= SIGNIFICANCE
        corrected += min(correct_holm(p_values, len(p_values))) <= SIGNIFICANCE
    return single / studies, corrected / studies


def describe_layout(seeds: int, teachers: int) -> str:
    """A study's seeds and teachers in words."""
    taught = "a teacher each" if not teachers else "one teacher" if teachers == 1 else f"{teachers} teachers for all"
    return f"{seeds} seeds, {taught}"


def describe_size(methods: int, seeds: int) -> str:
    """A study's methods and seeds in words."""
    return f"{methods} methods and base, {seeds} seeds"


def coverage_table(repeats: int = REPEATS) -> str:
    """One line for each layout, one column for each share."""
    lines = ["| study | " + " | ".join(f"{share:g}" for share in SHARES) + " |", "|---|" + "---|" * len(SHARES)]
    for layout in LAYOUTS:
        cells = " | ".join(f"{simulate_coverage(*layout, share, repeats):.2f}" for share in SHARES)
        lines.append(f"| {describe_layout(*layout)} | {cells} |")
    return "\n".join(lines)


def false_finding_table(studies: int = STUDIES) -> str:
    """One line for each size of a study."""
    lines = ["| study | comparisons | uncorrected | corrected |", "|---|---|---|---|"]
    for methods, seeds in FAMILIES:
        single, corrected = simulate_false_findings(methods, seeds, studies)
        count = (methods + 1) * methods // 2
        lines.append(f"| {describe_size(methods, seeds)} | {count} | {single:.2f} | {corrected:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(coverage_table(), false_finding_table(), sep="\n\n")
