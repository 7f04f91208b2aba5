"""The learning-rate schedules of the table: what each of them must do, and each computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.records import TrialConfig
from orchestrator.training import schedules
from orchestrator.training.schedules import SCHEDULES

MakeConfig = Callable[..., TrialConfig]


def compute_factors(config: TrialConfig, steps: int) -> list[float]:
    """The factors of all steps of a training with `steps` steps in an epoch."""
    schedule = schedules.build(config)
    return [schedule(step, steps) for step in range(config.epochs * steps)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_factor_is_from_0_to_1_and_reaches_1(make_config: MakeConfig, name: str) -> None:
    options = {"cosine": (("floor", 0.1), ("warmup", 2)), "linear": (("warmup", 2),), "steps": (("warmup", 2),)}
    found = compute_factors(
        make_config(schedule=name, epochs=9, milestones=(3, 6), schedule_options=options.get(name, ())), 5
    )
    assert min(found) >= 0 and max(found) == 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_option_reaches_it(make_config: MakeConfig, name: str) -> None:
    for option in SCHEDULES[name].options:
        changed = make_config(schedule=name, epochs=4, schedule_options=((option, 1),))
        assert compute_factors(changed, 3) != compute_factors(make_config(schedule=name, epochs=4), 3)


@given(
    milestones=st.lists(st.integers(1, 9), unique=True, max_size=3).map(sorted).map(tuple),
    gamma=st.floats(0.01, 1),
    steps=st.integers(1, 7),
)
def test_milestones(make_config: MakeConfig, milestones: tuple[int, ...], gamma: float, steps: int) -> None:
    config = make_config(epochs=9, milestones=milestones, gamma=gamma)
    # In an epoch counted from 1, gamma for each milestone before it, to the last bit.
    expected = [gamma ** sum(milestone < epoch for milestone in milestones) for epoch in range(1, 10)]
    assert compute_factors(config, steps) == [factor for factor in expected for _ in range(steps)]


def test_half_a_cosine(make_config: MakeConfig) -> None:
    found = compute_factors(make_config(schedule="cosine", epochs=2), 4)
    assert found == pytest.approx([(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)])
    assert found[4] == pytest.approx(0.5)


def test_a_floor_and_a_warm_up(make_config: MakeConfig) -> None:
    found = compute_factors(
        make_config(schedule="cosine", epochs=3, schedule_options=(("floor", 0.2), ("warmup", 1))), 4
    )
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert found[4:] == pytest.approx([0.2 + 0.8 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)])


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_training_that_is_all_warm_up(make_config: MakeConfig, name: str) -> None:
    found = compute_factors(make_config(schedule=name, epochs=2, schedule_options=(("warmup", 5),)), 2)
    assert found == [0.1, 0.2, 0.3, 0.4]


def test_a_straight_line(make_config: MakeConfig) -> None:
    assert compute_factors(make_config(schedule="linear", epochs=2), 4) == [1 - step / 8 for step in range(8)]
    found = compute_factors(make_config(schedule="linear", epochs=3, schedule_options=(("warmup", 1),)), 4)
    assert found == [0.25, 0.5, 0.75, 1.0, *(1 - step / 8 for step in range(8))]


def test_milestones_after_a_warm_up(make_config: MakeConfig) -> None:
    config = make_config(epochs=5, milestones=(1, 3), gamma=0.5, schedule_options=(("warmup", 2),))
    assert compute_factors(config, 2) == [0.25, 0.5, 0.75, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
