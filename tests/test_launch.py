"""Launching: only what is left is trained, and what cannot be trained is refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import data, results
from orchestrator.errors import DataError, StudyError
from orchestrator.launch import Outcome, launch, look
from orchestrator.plan import Plan
from orchestrator.records import State
from orchestrator.storage import Storage

STUDY = """\
study: tiny
recipe: {epochs: 1, limit_train: 64, limit_test: 50, batch_size: 32, crop_padding: 1, flip: false}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, seed: [0, 1]}
  - {method: logit, dataset: digits, student: resnet_32_8, teacher: {model: resnet_32_8, seed: 1}}
resources: {gpus_per_trial: 0}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study file; seed 1 of its first experiment is the teacher of its second."""
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def train(study: Path, storage: Storage, *settings: str) -> Outcome:
    return launch(study, storage=storage.root, inline=True, settings=settings, quiet=True)


def files(root: Path) -> dict[str, tuple[int, int]]:
    """Every file with its time and size."""
    paths = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}


def test_a_teacher_that_is_also_an_experiment_is_trained_once(study: Path, storage: Storage) -> None:
    outcome = train(study, storage)
    assert outcome.is_complete and outcome.trained == 3
    assert [trial.role for trial in outcome.plan.trials] == ["teacher", "student", "student"]
    assert [row.trial_id for row in outcome.rows] == [trial.trial_id for trial in outcome.plan.trials]
    assert [(row.method, row.seed) for row in outcome.rows] == [("base", 1), ("base", 0), ("logit", 0)]
    assert outcome.rows[2].teacher_id == outcome.rows[0].trial_id


def test_a_second_launch_trains_nothing(study: Path, storage: Storage) -> None:
    first = train(study, storage)
    before = files(storage.root)
    second = train(study, storage)
    assert second.trained == 0 and second.is_complete
    assert second.rows == first.rows
    assert files(storage.root) == before


def test_a_new_seed_trains_the_new_alone(study: Path, storage: Storage) -> None:
    train(study, storage)
    before = files(storage.root)
    outcome = train(study, storage, "experiments[1].seed=[0, 7]")
    assert outcome.trained == 1 and len(outcome.rows) == 4
    assert (outcome.rows[-1].seed, outcome.rows[-1].no) == (7, 4)
    after = files(storage.root)
    assert {name: after[name] for name in before} == before
    assert {Path(name).parts[0] for name in set(after) - set(before)} == {"trials", "results"}


def test_lost_weights_are_trained_again(study: Path, storage: Storage) -> None:
    teacher = train(study, storage).rows[0]
    weights = storage.weights(teacher.trial_id)
    before = weights.read_bytes()
    weights.unlink()
    assert train(study, storage).trained == 1
    assert weights.read_bytes() == before


def test_a_trial_that_failed_is_trained_again(study: Path, storage: Storage) -> None:
    diverging = ("experiments[1].lr=1e6", "experiments[1].epochs=5")
    for _ in range(2):
        outcome = train(study, storage, *diverging)
        assert not outcome.is_complete
        assert [row.state for row in outcome.rows] == [State.FINISHED, State.FINISHED, State.FAILED]
    assert outcome.trained == 0, "a trial that failed again is none that was finished"


def test_looking_writes_nothing(study: Path, tmp_path: Path) -> None:
    before = files(tmp_path)
    plan = look(study, tmp_path / "nowhere")
    assert isinstance(plan, Plan) and [trial.state for trial in plan.trials] == ["new"] * 3
    assert files(tmp_path) == before and not (tmp_path / "nowhere").exists()


def test_looking_sees_what_is_there(study: Path, storage: Storage) -> None:
    train(study, storage)
    before = files(storage.root)
    plan = look(study, storage.root, ["experiments[1].seed=[0, 7]"])
    assert [trial.state for trial in plan.trials] == ["finished"] * 3 + ["new"]
    assert files(storage.root) == before


def test_a_commit_of_the_study_files_repository_is_kept(study: Path, storage: Storage) -> None:
    assert train(study, storage).rows[0].git_commit is None  # a temporary folder is no repository


def test_missing_images_are_refused_before_anything_is_written(
    study: Path, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, folder: Path) -> None:
        raise DataError(f"{name} is not in {folder}")

    monkeypatch.setattr(data, "_download", refuse)
    with pytest.raises(DataError, match="cifar10 is not in"):
        launch(
            study,
            data=tmp_path / "images",
            storage=storage.root,
            inline=True,
            settings=["experiments[0].dataset=cifar10"],
            quiet=True,
        )
    assert results.read_trials(storage) == []
    assert not any(name.startswith(("results", "trials")) for name in files(storage.root))


def test_a_faulty_study_makes_no_storage(study: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="recipe.epochs"):
        launch(study, storage=tmp_path / "runs", inline=True, settings=["recipe.epochs=0"], quiet=True)
    assert not (tmp_path / "runs").exists()


def test_progress_is_told_unless_quiet(study: Path, storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    launch(study, storage=storage.root, inline=True)
    out, err = capsys.readouterr()
    assert out == "" and "[3/3]" in err and "epoch 1/1, acc" in err
    train(study, storage)
    assert capsys.readouterr() == ("", "")
