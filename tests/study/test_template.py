"""The study file of `kdctl init`: it runs as it is written, its comments are true, and nothing is overwritten."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from workloads import SMALL_DEMO

from orchestrator.cli import cli
from orchestrator.data.registry import DATASETS
from orchestrator.errors import KdctlError
from orchestrator.execution.rehearsal import rehearse
from orchestrator.launch import launch
from orchestrator.results.store import read_epochs
from orchestrator.storage.layout import Storage
from orchestrator.study import document, loss_template, template
from orchestrator.study.plan import make_plan
from orchestrator.study.reader import load_study
from orchestrator.study.schema import schema_text, study_schema


def plain(node: document.Node) -> Any:
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    return [plain(child) for child in node.value] if isinstance(node.value, list) else node.value


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_dataset_gives_a_valid_study(dataset: str, tmp_path: Path) -> None:
    path = tmp_path / "a study.yaml"
    assert template.write(path, dataset) == [path, tmp_path / template.SCHEMA]
    study = load_study(path)
    plan = make_plan(study)
    assert study.warnings == () and {trial.config.dataset for trial in plan.trials} == {dataset}
    assert [len([t for t in plan.trials if t.config.method == method]) for method in ("base", "logit")] == [4, 3]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", path.read_text().splitlines()[0])
    assert named and (tmp_path / named[1]).read_text() == schema_text()
    jsonschema.Draft7Validator(study_schema()).validate(plain(document.read(path)))


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_comments_are_true(dataset: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    template.write(path, dataset)
    text = path.read_text()
    (teacher,) = re.findall(r"teacher: (?:\{.*\}|resnet_32_20)(?= #)", text)
    for before, after, trials in [
        ("seed: [0, 1, 2]", "seed: [0, 1, 2, 3]", 9),  # "Add 3, and one more is trained", in both experiments
        ("student: resnet_32_8", "student: [resnet_32_8, resnet_32_14]", 13),
        (teacher, "teacher: {model: resnet_32_20, seed: 1}", 7),
        ("method: logit", "method: [logit, st]", 10),
    ]:
        assert before in text
        path.write_text(text.replace(before, after))
        assert len(make_plan(load_study(path)).trials) == trials, after
    path.write_text(re.sub(r"# (limit_train: \d+) .*", r"\1", text))
    assert ("limit_train: 5" in path.read_text()) == (dataset != "digits")
    load_study(path)


def test_the_way_from_digits_to_cifar_is_the_one_that_init_writes(tmp_path: Path) -> None:
    template.write(tmp_path / "digits.yaml", "digits")
    text = (tmp_path / "digits.yaml").read_text()
    recipe = re.search(r"^#   (\{.*\})$", text, re.MULTILINE)
    assert recipe and "`dataset: cifar10`" in text
    changed = re.sub(r"recipe:.*?\n\n", f"recipe: {recipe[1]}\n\n", text, flags=re.DOTALL)
    assert "`teacher: resnet_32_20`" in text
    changed = re.sub(r"teacher: \{.*\}", "teacher: resnet_32_20", changed)
    (tmp_path / "digits.yaml").write_text(changed.replace("dataset: digits", "dataset: cifar10"))
    template.write(tmp_path / "cifar.yaml", "cifar10")
    by_hand, by_init = (make_plan(load_study(tmp_path / f"{name}.yaml")) for name in ("digits", "cifar"))
    assert [trial.trial_id for trial in by_hand.trials] == [trial.trial_id for trial in by_init.trials]


def test_the_study_runs(tmp_path: Path, storage: Storage) -> None:
    path = tmp_path / "study.yaml"
    template.write(path, "digits")
    outcome = launch(path, storage=storage.backend.address, inline=True, settings=SMALL_DEMO)
    assert outcome.is_complete and len(outcome.rows) == 7


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_small_launch_is_a_valid_command(dataset: str, tmp_path: Path) -> None:
    path = tmp_path / "it's a study.yaml"
    template.write(path, dataset)
    steps = [line.strip() for line in template.next_steps(path, dataset).splitlines()]
    in_file = [line for line in re.findall(r"^#   (kdctl .*)", path.read_text(), re.MULTILINE) if "--set" in line]
    assert [line.split()[1] for line in steps] == ["plan", "launch", "report"] and len(in_file) == (dataset != "digits")
    # The small launch has other settings than the file: its results are found by the study's name.
    assert f"kdctl report my-{dataset}" in steps[2] or dataset == "digits"
    for line in [re.split(r"   ", steps[1])[0], *in_file]:
        kdctl, launched, file, *options = shlex.split(line)
        assert (kdctl, launched, file) == ("kdctl", "launch", str(path)) and set(options[::2]) <= {"--set"}
        assert load_study(path, options[1::2]).warnings == ()


def test_an_existing_schema_is_kept(tmp_path: Path) -> None:
    (tmp_path / template.SCHEMA).write_text("mine")
    assert template.write(tmp_path / "study.yaml", "digits") == [tmp_path / "study.yaml"]
    assert (tmp_path / template.SCHEMA).read_text() == "mine"


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "study.yaml"):
        with pytest.raises(KdctlError, match="cannot be written .*; name another"):
            template.write(path, "digits")
    assert list(tmp_path.iterdir()) == []


def test_a_name_cannot_write_into_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a\nstudy: evil.yaml"
    template.write(path, "digits")
    assert load_study(path).name == "my-digits"


# A loss of the user's own.


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A study file next to a loss, both as `kdctl init --method my_loss` writes them."""
    path = tmp_path / "study.yaml"
    template.write_loss(tmp_path / "my_loss.py")
    template.write(path, "digits", loss_template.method("my_loss"))
    return path


def test_a_study_with_a_loss_of_the_users_passes_the_check(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["check", str(own)], standalone_mode=False)
    assert "is valid, 10 trials" in capsys.readouterr().out
    jsonschema.Draft7Validator(study_schema()).validate(plain(document.read(own)))


def test_it_trains_as_the_method_that_it_is_written_after(own: Path, storage: Storage) -> None:
    settings = [*SMALL_DEMO, "experiments[0].seed=0", "experiments[1].seed=0"]
    outcome = launch(own, storage=storage.backend.address, inline=True, settings=settings)
    found = {row.method: row.acc for row in outcome.rows if row.teacher}
    assert outcome.is_complete and found.keys() == {"st", "my_loss:MyLoss"}
    st, mine = (
        next(epoch["kd_loss"] for epoch in read_epochs(storage) if epoch["trial_id"] == row.trial_id)
        for row in outcome.rows
        if row.teacher
    )
    assert mine == pytest.approx(st, rel=1e-4)


def test_every_way_to_name_the_loss_in_its_comments_is_right(own: Path) -> None:
    ways = re.findall(r"^  method: (\S+$|\{.*\})", (own.parent / "my_loss.py").read_text(), re.MULTILINE)
    text, counts = own.read_text(), []
    for way in ways:
        own.write_text(text.replace("[st, ./my_loss.py:MyLoss]", way))
        counts.append(len(make_plan(load_study(own)).trials))
    assert counts == [7, 10, 7]


def test_its_option_is_checked_by_the_loss_itself(own: Path) -> None:
    own.write_text(own.read_text().replace("./my_loss.py:MyLoss", "{./my_loss.py:MyLoss: {temperature: 0}}"))
    with pytest.raises(KdctlError, match=r"my_loss.py, line \d+, in __init__ .*temperature is 0.0; expected a number"):
        rehearse(make_plan(load_study(own)).trials[-1].config)


@pytest.mark.parametrize(("name", "title"), [("my_loss", "MyLoss"), ("KD2", "KD2"), ("a__b_", "AB"), ("st", "St")])
def test_the_class_is_called_like_the_file(name: str, title: str) -> None:
    assert loss_template.method(name) == f"./{name}.py:{title}"
    assert f"class {title}:" in loss_template.text(name)


@pytest.mark.parametrize("name", ["", "my-loss", "my_loss.py", "../x", "1st", "class", "none", "torch", "json", "é"])
def test_a_name_that_no_module_can_have_is_refused(name: str) -> None:
    with pytest.raises(KdctlError, match="write --method my_loss"):
        loss_template.method(name)
