"""Finding trials by what a person types: whole ids, beginnings, typing errors; from rows and remembered studies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.catalog import trial_ids
from orchestrator.errors import KdctlError
from orchestrator.records import State, TrialRecord
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.study import stored_studies
from orchestrator.study.plan import make_plan
from orchestrator.study.reader import load_study

STUDY = """\
study: tiny
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, seed: [0, 1]}
"""
ROW = TrialRecord(
    **{
        **dict.fromkeys(TrialRecord.__slots__),  # type: ignore[arg-type]
        **{"no": 1, "method": "logit", "dataset": "digits", "student": "resnet_32_8", "teacher": "resnet_32_14"},
        **{"start_time": datetime(2026, 1, 1, tzinfo=UTC), "nepoch": 200, "lr": 0.1, "batch_size": 128, "seed": 7},
        **{"study": "other", "state": State.FINISHED, "recipe": {}, "kdctl_version": "0", "resumed": 0},
    }
)


def make_titles(ids: Sequence[str]) -> list[str]:
    return [f"called {known}" for known in ids]


def choose(text: str, ids: Sequence[str]) -> str:
    return trial_ids.choose(text, ids, make_titles, "trial", "this lists them")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """A storage that remembers a study of two trials without rows, and has two rows of another."""
    storage = Storage.at(tmp_path / "runs")
    storage.prepare()
    (tmp_path / "study.yaml").write_text(STUDY)
    launched = stored_studies.Launch("launch-1", datetime.now(UTC), "host", "inline", "study.yaml", STUDY, (), "data")
    stored_studies.store_plan(storage, make_plan(load_study(tmp_path / "study.yaml")), launched)
    for trial_id in ("aaaaaaaaaa00", "aaaaaaaaaa11"):
        store.write_trial(storage, replace(ROW, trial_id=trial_id))
    return storage


def test_rows_and_remembered_trials_are_known(storage: Storage) -> None:
    found = trial_ids.list_known(storage)
    (study,) = stored_studies.list_studies(storage)
    assert list(found)[:2] == [member.trial_id for member in study.members]
    assert list(found.values()) == ["base digits resnet_32_8 seed 0", "base digits resnet_32_8 seed 1", "", ""]
    assert set(found) - {member.trial_id for member in study.members} == {"aaaaaaaaaa00", "aaaaaaaaaa11"}


def test_what_is_no_row_is_no_trial(storage: Storage) -> None:
    storage.backend.write(f"{storage.trial_rows}/notes.parquet", b"")
    assert "notes" not in trial_ids.list_known(storage)


def test_a_trial_is_found_by_its_id_or_beginning(storage: Storage) -> None:
    for trial_id in trial_ids.list_known(storage):
        assert trial_ids.resolve(storage, trial_id) == trial_id
        assert trial_ids.resolve(storage, f" {trial_id.upper()}\n") == trial_id
    first = next(iter(trial_ids.list_known(storage)))
    assert trial_ids.resolve(storage, first[:5]) == first


def test_an_ambiguous_beginning_lists_ids_and_titles(storage: Storage) -> None:
    with pytest.raises(KdctlError) as caught:
        trial_ids.resolve(storage, "aaaa")
    assert str(caught.value).splitlines() == [
        "'aaaa' is the beginning of 2 trials; write more digits:",
        "  aaaaaaaaaa00  logit digits resnet_32_8 ← resnet_32_14 seed 7",
        "  aaaaaaaaaa11  logit digits resnet_32_8 ← resnet_32_14 seed 7",
    ]


def test_the_nearest_id_is_suggested(storage: Storage) -> None:
    with pytest.raises(KdctlError, match="no trial 'aaaaaaaaab11'; did you mean aaaaaaaaaa11 \\(logit digits .*\\)\\?"):
        trial_ids.resolve(storage, "aaaaaaaaab11")
    with pytest.raises(KdctlError, match="did you mean aaaaaaaaaa00"):
        trial_ids.resolve(storage, "aaba")  # a beginning with a typing error in it


def test_a_text_unlike_any_id_gets_no_suggestion(storage: Storage) -> None:
    with pytest.raises(
        KdctlError, match="no trial 'digits'; expected an id of 12 hex digits, or its beginning; `kdctl"
    ):
        trial_ids.resolve(storage, "digits")


def test_an_empty_storage_is_reported_and_not_created(tmp_path: Path) -> None:
    with pytest.raises(KdctlError, match="holds no trial yet; launch a study"):
        trial_ids.resolve(Storage.at(tmp_path / "none"), "aa")
    assert not (tmp_path / "none").exists()


def test_a_long_list_of_candidates_is_cut() -> None:
    with pytest.raises(KdctlError) as caught:
        choose("0", [f"{number:012d}" for number in range(1000)])
    assert len(str(caught.value).splitlines()) == 12 and str(caught.value).endswith("and 990 more")


def test_control_characters_are_not_printed() -> None:
    with pytest.raises(KdctlError) as caught:
        choose("\x1b[31m" + "x" * 10_000, ["abc"])
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 200


IDS = st.lists(st.text("0123456789abcdef", min_size=12, max_size=12), min_size=1, max_size=30, unique=True)


@given(IDS, st.data())
def test_a_beginning_is_accepted_only_if_one_id_has_it(ids: list[str], data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(ids))
    text = target[: data.draw(st.integers(0, 12))]
    if sum(known.startswith(text) for known in ids) == 1:
        assert choose(text, ids) == target
    else:
        with pytest.raises(KdctlError, match="write more digits"):
            choose(text, ids)


@given(IDS, st.data())
def test_the_id_with_one_wrong_digit_is_suggested(ids: list[str], data: st.DataObject) -> None:
    target, at = data.draw(st.sampled_from(ids)), data.draw(st.integers(0, 11))
    with pytest.raises(KdctlError) as caught:
        choose(f"{target[:at]}x{target[at + 1 :]}", ids)
    if len(ids) == 1:
        assert f"did you mean {target} (called {target})? this lists them" in str(caught.value)
    assert "did you mean" in str(caught.value)
