"""Study files: each broken file is refused with the location and the fix, and no other error ever escapes."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import StudyError
from orchestrator.study import fields
from orchestrator.study.plan import make_plan
from orchestrator.study.reader import MAX_TRIALS, load_study
from orchestrator.study.values import Resources, Study

ROOT = Path(__file__).resolve().parents[2]


def base(*lines: str) -> str:
    """A valid `base` study whose experiment continues with these lines, the first in line 6."""
    own = "".join(f"  {line}\n" for line in lines)
    return f"study: s\nexperiments:\n- method: base\n  dataset: digits\n  student: resnet_32_8\n{own}"


def logit(*lines: str) -> str:
    """The same study with method `logit`."""
    return base(*lines).replace("method: base", "method: logit")


def recipe(*lines: str, rest: str = "") -> str:
    """A valid study with a recipe of these lines, the first in line 2."""
    shared = "".join(f"  {line}\n" for line in lines)
    return f"recipe:\n{shared}{base()}{rest}"


def resources(line: str) -> str:
    """A valid study with one line of resources, which is line 7."""
    return f"{base()}resources:\n  {line}\n"


def load(folder: Path, text: str, *sets: str) -> Study:
    """Loads a study from a text."""
    path = folder / "s.yaml"
    path.write_text(text, encoding="utf-8")
    return load_study(path, sets)


def faults_of(folder: Path, text: str, *sets: str) -> list[tuple[str, str, str]]:
    """Every fault as (line:column or `--set`, path, message)."""
    with pytest.raises(StudyError) as caught:
        load(folder, text, *sets)
    assert list(caught.value.faults) == sorted(caught.value.faults)
    return [(f"{f.line}:{f.column}" if f.line else f.source, f.path, f.message) for f in caught.value.faults]


SEEDS = ", ".join(map(str, range(1000)))
E0 = "experiments[0]"

BROKEN = [
    # Files that are not a study.
    ("a list", "[]", "1:1", "", "found an empty list; expected a mapping with the keys study, recipe"),
    ("a number", "5", "1:1", "", "found the number 5; expected a mapping"),
    ("no study", base().replace("study: s\n", ""), "1:1", "study", "key 'study' is missing; give the study a name"),
    ("empty study", base().replace("study: s", "study:"), "1:7", "study", "found nothing; expected a safe file name"),
    ("no experiments", "study: s", "1:1", "experiments", "key 'experiments' is missing; list at least one"),
    (
        "empty experiments",
        "study: s\nexperiments: []",
        "2:14",
        "experiments",
        "found an empty list; expected a list of",
    ),
    ("one experiment", "study: s\nexperiments: {}", "2:14", "experiments", "found a mapping; expected a list of"),
    (
        "null experiment",
        "study: s\nexperiments:\n- ",
        "3:2",
        E0,
        "found nothing; expected a mapping with the keys method",
    ),
    # Unknown words, with the nearest known one.
    ("unknown part", f"{base()}resource: {{}}", "6:1", "resource", "unknown key; known are study, recipe, experiments"),
    ("unknown key", base("lrr: 1"), "6:3", f"{E0}.lrr", "did you mean lr?"),
    ("unknown recipe key", recipe("epoch: 1"), "2:3", "recipe.epoch", "did you mean epochs?"),
    ("seed in the recipe", recipe("seed: 1"), "2:3", "recipe.seed", "unknown key; known are epochs, batch_size"),
    ("far from all keys", base("zzz: 1"), "6:3", f"{E0}.zzz", "choose one of them"),
    ("unknown resource", resources("gpu_per_trial: 1"), "7:3", "resources.gpu_per_trial", "mean gpus_per_trial?"),
    ("unknown teacher key", logit("teacher: {model: resnet_32_8, epoch: 1}"), "6:33", f"{E0}.teacher.epoch", "epochs?"),
    ("merged key", base("<<: {lrr: 1}"), "6:8", f"{E0}.lrr", "unknown key"),
    ("merged value", f"x-a: &a\n  lr: fast\n{base('<<: *a')}", "2:7", f"{E0}.lr", "found the text 'fast'"),
    ("merged nothing", base("<<: 5"), "6:7", "", "found the number 5; `<<` adds the keys of a mapping"),
    ("text at the top", f"epochs: 3\n{base()}", "1:1", "epochs", "did you mean recipe.epochs?"),
    ("anchor at the top", f"common: &c {{lr: 1}}\n{base()}", "1:1", "common", "begins with x-, like x-common"),
    ("x- inside", base("x-a: 1"), "6:3", f"{E0}.x-a", "unknown key"),
    ("quoted seed", base('seed: "0"'), "6:9", f"{E0}.seed", "found the text '0'; expected a whole number"),
    ("unknown method", base().replace("base", "logits"), "3:11", f"{E0}.method", "did you mean logit?"),
    (
        "empty method",
        base().replace("base", ""),
        "3:10",
        f"{E0}.method",
        "found nothing; expected one of base, logit, st",
    ),
    ("unknown dataset", base().replace("digits", "cifar-10"), "4:12", f"{E0}.dataset", "did you mean cifar10?"),
    ("depth", base().replace("_8", "_21"), "5:12", f"{E0}.student", "from 8 to 1202 (did you mean resnet_32_20?)"),
    ("too deep", base().replace("_8", "_9999"), "5:12", f"{E0}.student", "did you mean resnet_32_1202?"),
    ("unknown family", base().replace("resnet_32_8", "vit_16"), "5:12", f"{E0}.student", "unknown model 'vit_16'"),
    ("model a number", base().replace("resnet_32_8", "20"), "5:12", f"{E0}.student", "write it like resnet_32_20"),
    ("no student", base().replace("  student: resnet_32_8\n", ""), "3:3", f"{E0}.student", "key 'student' is missing"),
    # Entries of tables with their options.
    ("unknown option", base("optimizer: {adamw: {beta3: 1}}"), "6:23", f"{E0}.optimizer.adamw.beta3", "mean beta"),
    ("no options", base().replace("base", "{base: {a: 1}}"), "3:18", f"{E0}.method.base", "base has no options"),
    (
        "options a number",
        base("optimizer: {adamw: 3}"),
        "6:22",
        f"{E0}.optimizer.adamw",
        "expected a mapping with the keys",
    ),
    ("unknown entry", base("optimizer: {adam: {}}"), "6:15", f"{E0}.optimizer.adam", "did you mean adamw?"),
    ("two entries", base("schedule: {steps: {}, cosine: {}}"), "6:13", f"{E0}.schedule", "one name with its options"),
    ("option too large", base("schedule: {cosine: {floor: 2}}"), "6:30", f"{E0}.schedule.cosine.floor", "from 0 to 1"),
    (
        "option not whole",
        base("schedule: {cosine: {warmup: 1.5}}"),
        "6:31",
        f"{E0}.schedule.cosine.warmup",
        "whole number",
    ),
    ("options swept", recipe("optimizer: {adamw: {beta1: [0.8, 0.9]}}"), "2:14", "recipe.optimizer", "found a list"),
    (
        "option twice",
        logit("teacher: resnet_32_8\n  ce_weight: 0").replace("logit", "{logit: {ce_weight: 1}}"),
        "7:14",
        f"{E0}.ce_weight",
        "is also given under method logit",
    ),
    # Wrong types and values.
    ("lr a word", base("lr: fast"), "6:7", f"{E0}.lr", "found the text 'fast'; expected a number above 0 to 1e+06"),
    ("lr quoted", base("lr: '0.1'"), "6:7", f"{E0}.lr", "found the text '0.1'"),
    ("lr zero", base("lr: 0"), "6:7", f"{E0}.lr", "found the number 0; expected a number above 0"),
    ("lr nan", base("lr: .nan"), "6:7", f"{E0}.lr", "found the number nan"),
    ("lr empty", base("lr:"), "6:6", f"{E0}.lr", "found nothing; expected a number"),
    ("momentum", base("momentum: 1.1"), "6:13", f"{E0}.momentum", "expected a number from 0 to 1"),
    ("seed yes", base("seed: yes"), "6:9", f"{E0}.seed", "found the text 'yes'; expected a whole number from 0 to"),
    ("seed true", base("seed: true"), "6:9", f"{E0}.seed", "found true; expected a whole number"),
    ("seed negative", base("seed: -1"), "6:9", f"{E0}.seed", "found the number -1"),
    ("seed too large", base(f"seed: {2**63}"), "6:9", f"{E0}.seed", "to 9,223,372,036,854,775,807"),
    ("epochs 0", base("epochs: 0"), "6:11", f"{E0}.epochs", "expected a whole number from 1 to 100,000"),
    ("epochs 1.5", base("epochs: 1.5"), "6:11", f"{E0}.epochs", "found the number 1.5; expected a whole number"),
    ("epochs inf", base("epochs: .inf"), "6:11", f"{E0}.epochs", "found the number inf; expected a whole number"),
    ("flip a word", base("flip: no"), "6:9", f"{E0}.flip", "found the text 'no'; expected true or false"),
    ("cache", base("teacher_cache: tabel"), "6:18", f"{E0}.teacher_cache", "did you mean table?"),
    ("milestones a number", base("milestones: 100"), "6:15", f"{E0}.milestones", "expected a list of epochs"),
    ("milestones down", base("milestones: [9, 5]"), "6:15", f"{E0}.milestones", "in ascending order; sort them"),
    ("milestones twice", base("milestones: [5, 5]"), "6:15", f"{E0}.milestones", "drop repeats"),
    ("milestones nested", base("milestones: [[5]]"), "6:15", f"{E0}.milestones", "expected one list; for several"),
    ("gpus 1.5", resources("gpus_per_trial: 1.5"), "7:19", "resources.gpus_per_trial", "expected a number from 0 to 1"),
    ("cpus 0", resources("cpus_per_trial: 0"), "7:19", "resources.cpus_per_trial", "a whole number from 1 to 1,024"),
    ("cpus none", resources("cpus_per_trial: any"), "7:19", "resources.cpus_per_trial", "write digits, or auto"),
    # Axes.
    ("recipe list", recipe("lr: [0.1, 1]"), "2:7", "recipe.lr", "the recipe has one value per key"),
    ("recipe grid", recipe("milestones: {grid: [[1]]}"), "2:15", "recipe.milestones", "recipe has one value per key"),
    ("empty axis", base("lr: []"), "6:7", f"{E0}.lr", "found an empty list; an axis needs at least one value"),
    ("empty grid", base("lr: {grid: []}"), "6:14", f"{E0}.lr.grid", "an axis needs at least one value"),
    ("grid no list", base("lr: {grid: 1}"), "6:14", f"{E0}.lr.grid", "found the number 1; expected a list of values"),
    ("one of an axis", base("lr: [0.1, fast, 1]"), "6:13", f"{E0}.lr[1]", "found the text 'fast'"),
    ("one of a grid", base("lr: {grid: [0.1, fast]}"), "6:20", f"{E0}.lr.grid[1]", "found the text 'fast'"),
    ("empty teachers", logit("teacher: []"), "6:12", f"{E0}.teacher", "an axis needs at least one value"),
    # Teachers and methods.
    ("logit alone", logit(), "3:11", f"{E0}.method", "method logit needs a teacher; add `teacher: resnet_32_20`"),
    ("base with teacher", base("teacher: resnet_32_8"), "3:11", f"{E0}.method", "has no use for the teacher"),
    ("no model", logit("teacher: {seed: 1}"), "6:12", f"{E0}.teacher.model", "key 'model' is missing"),
    ("teacher model", logit("teacher: [resnet_32_9]"), "6:13", f"{E0}.teacher[0]", "did you mean resnet_32_8?"),
    (
        "teacher's dataset",
        logit("teacher: {model: resnet_32_8, dataset: cifar10}"),
        "6:42",
        f"{E0}.teacher.dataset",
        "the teacher is for cifar10, its student for digits",
    ),
    ("alien option", base("temperature: 2"), "6:16", f"{E0}.temperature", "belongs to method st, kd, dkd"),
    (
        "no weights file",
        logit("teacher: {model: resnet_32_8, weights: no.pt}"),
        "6:42",
        f"{E0}.teacher.weights",
        "'no.pt' cannot be read (No such file or directory); paths are relative to the study file",
    ),
    (
        "weights and epochs",
        logit("teacher: {model: resnet_32_8, weights: s.yaml, epochs: 3}"),
        "6:58",
        f"{E0}.teacher.epochs",
        "found epochs next to weights; a teacher from a file is not trained",
    ),
    (
        "pooled widths",
        logit("teacher: [resnet_32_20, wrn_10_2]", "match: [logits, pooled]"),
        "6:27",
        f"{E0}.teacher[1]",
        "wrn_10_2 cannot teach resnet_32_8: match: pooled compares pooled features one by one, and the student has "
        "64 of them, the teacher 128; use match: logits, or a teacher with 64",
    ),
    # Images.
    (
        "limit_train",
        base("limit_train: 1298"),
        "6:16",
        f"{E0}.limit_train",
        "found 1,298; digits has 1,297 such images",
    ),
    ("limit_test", base("limit_test: 501"), "6:15", f"{E0}.limit_test", "found 501; digits has 500 such images"),
    ("recipe limit", recipe("limit_test: 501"), "2:15", "recipe.limit_test", "digits has 500 such images"),
    ("holdout", base("holdout: 1297"), "6:12", f"{E0}.holdout", "found 1,297 of 1,297 training images"),
    ("holdout of limit", base("holdout: 9", "limit_train: 9"), "6:12", f"{E0}.holdout", "found 9 of 9 training images"),
    ("crop", base("crop_padding: 8"), "6:17", f"{E0}.crop_padding", "digits has 8 pixels a side; use less than 8"),
    (
        "teacher's crop",
        logit("teacher: {model: resnet_32_8, crop_padding: 9}"),
        "6:47",
        f"{E0}.teacher.crop_padding",
        "found 9; digits has 8 pixels a side",
    ),
    (
        "one image of one pixel",
        base("batch_size: [16, 15]").replace("resnet_32_8", "vgg_8"),
        "6:16",
        f"{E0}.batch_size[0]",
        "found 16; with 1,297 images, the last batch is one image; vgg_8 reduces it to one pixel, and a batch",
    ),
    (
        "one image of one pixel, by its teacher",
        logit("teacher: {model: shufflenet_v1, batch_size: 1}"),
        "6:47",
        f"{E0}.teacher.batch_size",
        "found 1; with 1,297 images, the last batch is one image; shufflenet_v1 reduces it to one pixel, and",
    ),
    # Too many trials.
    (
        "product",
        logit(f"seed: [{SEEDS}]", f"lr: [{SEEDS.replace('0,', '1,', 1)}]", "teacher: [resnet_32_8, resnet_32_14]"),
        "3:3",
        E0,
        "the axes multiply to 1,000 seed × 1,000 lr × 2 teacher = 2,000,000 trials; at most 100,000 are allowed",
    ),
]


@pytest.mark.parametrize(("text", "location", "path", "part"), [pytest.param(*row[1:], id=row[0]) for row in BROKEN])
def test_a_broken_study_has_exactly_this_fault(tmp_path: Path, text: str, location: str, path: str, part: str) -> None:
    ((found_location, found_path, message),) = faults_of(tmp_path, text)
    assert (found_location, found_path) == (location, path)
    assert part in message


def test_all_faults_come_at_once_in_order(tmp_path: Path) -> None:
    text = (
        "study: ../up\nrecipe:\n  lr: fast\n  epoch: 3\n"
        "experiments:\n- method: logit\n  dataset: mnist\n  student: resnet_32_21\n  seed: [0, yes]\n"
        "- {method: logit, dataset: digits, student: resnet_32_8}\nresources: {gpus_per_trial: 1.5}\nmore: 1\n"
    )
    assert [(location, path) for location, path, _ in faults_of(tmp_path, text, "recipe.flip=5")] == [
        ("--set recipe.flip=5", "recipe.flip"),
        ("1:8", "study"),
        ("3:7", "recipe.lr"),
        ("4:3", "recipe.epoch"),
        ("6:11", "experiments[0].method"),
        ("7:12", "experiments[0].dataset"),
        ("8:12", "experiments[0].student"),
        ("9:13", "experiments[0].seed[1]"),
        ("10:12", "experiments[1].method"),
        ("11:29", "resources.gpus_per_trial"),
        ("12:1", "more"),
    ]


def test_a_fault_hides_no_other_fault_of_its_experiment(tmp_path: Path) -> None:
    text = (
        "study: s\nexperiments:\n- method: base\n  dataset: digits\n  student: resnet_32_8\n  teacher: resnet_32_9\n"
        "  limit_train: 9999\n  lr: fast\n  ephocs: 3\n  student: resnet_32_21\n"
    )
    assert [(location, path) for location, path, _ in faults_of(tmp_path, text)] == [
        ("3:11", "experiments[0].method"),
        ("6:12", "experiments[0].teacher"),
        ("7:16", "experiments[0].limit_train"),
        ("8:7", "experiments[0].lr"),
        ("9:3", "experiments[0].ephocs"),
        ("10:3", ""),
        ("10:12", "experiments[0].student"),
    ]


def test_a_fault_has_a_form_that_editors_understand(tmp_path: Path) -> None:
    with pytest.raises(StudyError) as caught:
        load(tmp_path, base().replace("_8", "_21"))
    message = "unknown model 'resnet_32_21'; depth must be 6n+2, from 8 to 1202 (did you mean resnet_32_20?)"
    assert str(caught.value) == f"{tmp_path / 's.yaml'}:5:12: experiments[0].student: {message}"


def test_a_value_shared_by_two_experiments_is_one_fault(tmp_path: Path) -> None:
    text = recipe("crop_padding: 8", rest="- {method: base, dataset: digits, student: resnet_32_14}\n")
    assert [path for _, path, _ in faults_of(tmp_path, text)] == ["recipe.crop_padding"]


def test_trials_are_counted_over_all_experiments(tmp_path: Path) -> None:
    seeds = ",".join(map(str, range(MAX_TRIALS // 2)))
    line = f"{{method: base, dataset: digits, student: resnet_32_8, seed: [{seeds}]}}"
    text = f"study: s\nexperiments:\n- &e {line}\n- *e\n"
    assert sum(len(e.axes["seed"]) for e in load(tmp_path, text).experiments) == MAX_TRIALS
    text += "- {method: base, dataset: digits, student: resnet_32_8}\n"
    ((location, path, message),) = faults_of(tmp_path, text)
    assert (location, path) == ("3:1", "experiments")
    assert message == "found 100,001 trials in all; at most 100,000 are allowed; split the study"


def test_huge_axes_are_not_compared_pair_by_pair(tmp_path: Path) -> None:
    many = ", ".join(["5"] * 50_000)
    start = time.perf_counter()
    ((_, _, message),) = faults_of(tmp_path, base(f"holdout: [{many}]", f"limit_train: [{many}]"))
    assert "50,000 holdout × 50,000 limit_train = 2,500,000,000 trials" in message
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize(
    ("student", "lines"),
    [
        ("resnet_32_8", ["teacher: wrn_10_2"]),
        ("[wrn_10_1, resnet_32_8]", ["teacher: [resnet_32_20, {model: wrn_16_1}]", "match: pooled"]),
        ("wrn_10_2", ["teacher: wrn_16_2", "match: pooled"]),
    ],
)
def test_models_of_other_families_and_widths_teach_if_their_outputs_are_comparable(
    tmp_path: Path, student: str, lines: list[str]
) -> None:
    text = logit(*lines).replace("student: resnet_32_8", f"student: {student}")
    assert len(load(tmp_path, text).experiments) == 1


@pytest.mark.parametrize("name", ["s", "7", "a.b_c-D", "x" * 64])
def test_a_safe_study_name_is_accepted(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, base().replace("study: s", f"study: '{name}'")).name == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-x", ".x", "x.", "a/b", "a\\\\b", "a b", "é", "x" * 65, "a\\n", "a\\0"]
)
def test_an_unsafe_study_name_is_refused(tmp_path: Path, name: str) -> None:
    ((location, path, message),) = faults_of(tmp_path, base().replace("study: s", f'study: "{name}"'))
    assert (location, path) == ("1:8", "study")
    assert "expected a safe file name" in message


def test_a_number_is_not_a_study_name(tmp_path: Path) -> None:
    ((_, path, message),) = faults_of(tmp_path, base().replace("study: s", "study: 2026"))
    assert path == "study" and message.startswith("found the number 2026; ")


@pytest.mark.parametrize(
    ("line", "name", "values"),
    [
        ("lr: 1e-3", "lr", [0.001]),
        ("lr: [1e-1, 1, .5]", "lr", [0.1, 1.0, 0.5]),
        ("epochs: 1e3", "epochs", [1000]),
        ("seed: 010", "seed", [10]),
        ("seed: {grid: [0, 1]}", "seed", [0, 1]),
        ("weight_decay: -0.0", "weight_decay", [0.0]),
        ("limit_train: [null, 100]", "limit_train", [None, 100]),
        ("milestones: [100, 150]", "milestones", [(100, 150)]),
        ("milestones: []", "milestones", [()]),
        ("milestones: {grid: [[100], [60, 120]]}", "milestones", [(100,), (60, 120)]),
        ("flip: [true, false]", "flip", [True, False]),
        ("momentum: 1", "momentum", [1.0]),
    ],
)
def test_good_values(tmp_path: Path, line: str, name: str, values: list[object]) -> None:
    found = [value.value for value in load(tmp_path, base(line)).experiments[0].axes[name]]
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]
    assert str(found) == str(values)  # distinguishes -0.0 from 0.0


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gpus_per_trial: 0.5", Resources(0.5)),
        ("gpus_per_trial: 0", Resources(0.0)),
        ("gpus_per_trial: null", Resources()),
        ("gpus_per_trial: auto", Resources()),
        ("cpus_per_trial: 4", Resources(None, 4)),
        ("cpus_per_trial: auto", Resources()),
    ],
)
def test_good_resources(tmp_path: Path, line: str, expected: Resources) -> None:
    assert load(tmp_path, resources(line)).resources == expected


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    study = load(tmp_path, recipe("lr: 1e-2"))
    found = {name: value.value for name, value in study.recipe.items()}
    derived = dict.fromkeys(fields.DERIVED)  # missing on purpose, as they follow from other settings of each trial
    assert found == {name: key.default for name, key in fields.RECIPE_KEYS.items() if name not in derived} | {
        "lr": 0.01
    }
    assert (study.name, study.source, study.resources) == ("s", tmp_path / "s.yaml", Resources())


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        (
            base("epochs: 9", "milestones: [5, 9, 12]"),
            ["7:15 experiments[0].milestones: warning: 9, 12 has no effect within 9 epochs"],
        ),
        (base("epochs: 9", "milestones: [5, 8]"), []),
        (recipe("epochs: 4", "milestones: [4]"), ["3:15 recipe.milestones: warning: 4 has no effect within 4 epochs"]),
        (
            base("epochs: [9, 5]", "milestones: [5]"),
            ["7:15 experiments[0].milestones: warning: 5 has no effect within 5 epochs"],
        ),
        (
            logit("epochs: 9", "milestones: []", "teacher: {model: resnet_32_8, epochs: 3, milestones: [4]}"),
            ["8:56 experiments[0].teacher.milestones: warning: 4 has no effect within 3 epochs"],
        ),
    ],
)
def test_a_late_milestone_is_a_warning(tmp_path: Path, text: str, warnings: list[str]) -> None:
    found = load(tmp_path, text).warnings
    assert [f"{w.line}:{w.column} {w.path}: {w.message}" for w in found] == warnings


def test_weights_are_digested_relative_to_the_study(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"abc")
    study = load(tmp_path, logit("teacher: {model: resnet_32_8, weights: w.pt}"))
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert study.experiments[0].teachers[0].digests == {"w.pt": digest}


def test_merge_keys_share_what_experiments_have_in_common(tmp_path: Path) -> None:
    text = "x-common: &c {dataset: digits, student: resnet_32_8, seed: [0, 1]}\nstudy: s\nexperiments:\n"
    study = load(tmp_path, f"{text}- {{<<: *c, method: base}}\n- {{<<: *c, method: base, seed: 5, epochs: 1e2}}\n")
    assert [(t.config.seed, t.config.epochs) for t in make_plan(study).trials] == [(0, 200), (1, 200), (5, 100)]
    same = "study: s\nexperiments:\n- {method: base, dataset: digits, student: resnet_32_8, seed: [0, 1]}\n"
    ids = {trial.trial_id for trial in make_plan(load(tmp_path, same)).trials}
    assert ids < {trial.trial_id for trial in make_plan(study).trials}


@pytest.mark.parametrize(
    ("text", "location", "part"),
    [
        (base("seed: [0, 1, 0, 0]"), "6:16", "0 is in this list twice"),
        (logit("teacher: {model: [resnet_32_8, resnet_32_8]}"), "6:34", "resnet_32_8 is in this list twice"),
        (f"{base()}- {{method: base, dataset: digits, student: resnet_32_8}}", "6:3", "this equals experiments[0]"),
    ],
)
def test_a_repeat_that_adds_no_trial_is_a_warning(tmp_path: Path, text: str, location: str, part: str) -> None:
    (warning,) = load(tmp_path, text).warnings
    assert f"{warning.line}:{warning.column}" == location and part in warning.message


@pytest.mark.parametrize(
    ("own", "teacher", "leaked"),
    [
        ("holdout: 100", "holdout: 0", 100),
        ("holdout: 100", "holdout: 40", 60),
        ("holdout: 100", "holdout: 100", 0),
        ("holdout: 100", "holdout: 200", 0),
        ("holdout: 0", "holdout: 0", 0),
        ("holdout: 100", "epochs: 1", 0),
        ("holdout: 100, limit_train: 500", "holdout: 0", 100),
        ("holdout: 100, limit_train: 500", "limit_train: 900", 100),
        ("holdout: 100, limit_train: 500", "limit_train: 550", 50),
        ("holdout: 100, limit_train: 500", "limit_train: 500", 0),
        ("holdout: 100, limit_train: 500", "{limit_train: 400, holdout: 0}", 0),
        ("holdout: 100, limit_train: 500", "{limit_train: 450, holdout: 0}", 50),
        ("holdout: 100, limit_train: 500", "limit_train: null", 100),
        ("holdout: [0, 100]", "holdout: [100, 0]", 100),
        ("holdout: 100", "weights: w.pt", 0),
    ],
)
def test_a_teacher_of_held_out_images_is_a_warning(tmp_path: Path, own: str, teacher: str, leaked: int) -> None:
    (tmp_path / "w.pt").write_bytes(b"weights")
    mapping = f"model: resnet_32_8, {teacher.strip('{}')}"
    head = "study: s\nexperiments:\n- method: logit\n  dataset: digits\n  student: resnet_32_8\n"
    study = load(tmp_path, f"{head}  teacher: {{{mapping}}}\n  <<: {{{own}}}\n")
    assert len(study.warnings) == (leaked > 0)
    for warning in study.warnings:
        assert f"the teacher is trained on {leaked} of the 100 images" in warning.message and warning.line == 6
    found = [warning for warning in make_plan(study).warnings if not warning.startswith("warning: without these runs")]
    assert found == list(map(str, study.warnings))


def test_a_leak_through_the_recipe_is_reported_once_per_teacher(tmp_path: Path) -> None:
    text = recipe("holdout: 50").replace("method: base", "method: [logit, st]")
    teachers = "teacher: [{model: resnet_32_8, holdout: 0}, {model: resnet_32_14, holdout: [0, 10]}, resnet_32_20]"
    study = load(tmp_path, f"{text}  {teachers}\n")
    assert [warning.path for warning in study.warnings] == [f"{E0}.teacher[0].holdout", f"{E0}.teacher[1].holdout[0]"]


# --set


@pytest.mark.parametrize(
    ("sets", "values"),
    [
        (["recipe.epochs=2"], (2, [0])),
        (["recipe.epochs=1e1"], (10, [0])),
        (["recipe={epochs: 3}"], (3, [0])),
        (["recipe.epochs=2", "recipe.epochs=7"], (7, [0])),
        (["experiments[0].seed=[4,5]"], (200, [4, 5])),
        (["experiments.0.seed=4"], (200, [4])),
        (["recipe=null"], (200, [0])),
        (["recipe.epochs= 3 # a comment"], (3, [0])),
        (["recipe.epochs = 3"], (3, [0])),
    ],
)
def test_a_setting_changes_the_study(tmp_path: Path, sets: list[str], values: tuple[int, list[int]]) -> None:
    plan = make_plan(load(tmp_path, base(), *sets))
    assert {trial.config.epochs for trial in plan.trials} == {values[0]}
    assert [trial.config.seed for trial in plan.trials] == values[1]


def test_a_setting_turns_an_empty_key_into_a_mapping(tmp_path: Path) -> None:
    assert load(tmp_path, f"recipe:\n{base()}", "recipe.epochs=3").recipe["epochs"].value == 3


def test_a_setting_does_not_change_what_an_alias_shares(tmp_path: Path) -> None:
    text = "study: s\nexperiments:\n- &e {method: base, dataset: digits, student: resnet_32_8}\n- *e\n"
    study = load(tmp_path, text, "experiments[1].seed=7")
    assert [len(e.axes) for e in study.experiments] == [3, 4]
    assert [trial.config.seed for trial in make_plan(study).trials] == [0, 7]


@pytest.mark.parametrize(
    ("setting", "path", "part"),
    [
        ("recipe", "", "expected PATH=VALUE; write it like recipe.epochs=2"),
        ("=1", "", "expected PATH=VALUE"),
        ("]=1", "", "']' is not a path of keys; write it like recipe.epochs=2"),
        ("recipe..epochs=1", "", "'recipe..epochs' is not a path of keys"),
        (".recipe.epochs=1", "", "is not a path of keys"),
        ("recipe.=1", "", "is not a path of keys"),
        ("recipe[epochs]=1", "", "is not a path of keys"),
        ("experiments[0]seed=1", "", "is not a path of keys"),
        ("experiments[0.seed=1", "", "is not a path of keys"),
        ("rec ipe.epochs=1", "", "is not a path of keys"),
        ("epochs=3", "epochs", "did you mean recipe.epochs?"),
        ("epoch=3", "epoch", "did you mean recipe.epochs?"),
        ("gpus_per_trial=0", "gpus_per_trial", "did you mean resources.gpus_per_trial?"),
        ("seed=1", "seed", "did you mean experiments[0].seed?"),
        ("recipe.retries=1", "recipe.retries", "did you mean resources.retries?"),
        ("recipe.seed=1", "recipe.seed", "did you mean experiments[0].seed?"),
        ("resources.lr=1", "resources.lr", "did you mean recipe.lr?"),
        ("experiments[0].retries=1", "experiments[0].retries", "did you mean resources.retries?"),
        ("recipe.epochs=", "recipe.epochs", "found nothing; expected a whole number"),
        ("recipe.epochs=fast", "recipe.epochs", "found the text 'fast'"),
        ("recipe.epochs=[", "", "this is not YAML"),
        ("recipe.epochs=!!int 3", "", "tag 'tag:yaml.org,2002:int' is not allowed"),
        ("recipe.lr=\udcff", "", "this is not UTF-8 text"),
        ("recipe.epoch=2", "recipe.epoch", "did you mean epochs?"),
        ("recipes.epochs=2", "recipes", "did you mean recipe?"),
        ("experiments[1].seed=1", "", "experiments is a list, with experiments[0]; found '1'; name one of its entries"),
        ("experiments[-1].seed=1", "", "is not a path of keys"),
        ("experiments.seed=1", "", "experiments is a list, with experiments[0]; found 'seed'; name one"),
        ("study.x=1", "", "study is the text 's', which has no key 'x'; check the path, or set study itself"),
        (f"experiments[{'9' * 5000}]=1", "", "name one of its entries"),
        ("experiments=5", "experiments", "expected a list of experiments"),
        ("experiments[0]=null", "experiments[0]", "found nothing; expected a mapping"),
        ("experiments[0].student=resnet_32_9", "experiments[0].student", "did you mean resnet_32_8?"),
    ],
)
def test_a_bad_setting_is_its_own_location(tmp_path: Path, setting: str, path: str, part: str) -> None:
    ((location, found_path, message),) = faults_of(tmp_path, base(), setting)
    assert location == f"--set {setting if len(setting) <= 60 else setting[:59] + '…'}"
    assert found_path == path
    assert part in message


# Every input gives a study or a StudyError.

GOOD: dict[str, Any] = {
    "study": "s",
    "recipe": {"epochs": 4, "lr": 0.1, "milestones": [2, 3], "limit_train": 500},
    "experiments": [
        {
            "method": ["logit", "st"],
            "dataset": "digits",
            "teacher": {"model": ["resnet_32_8", "resnet_32_14"], "seed": {"grid": [1, 2]}, "epochs": 2},
            "student": "resnet_32_8",
            "temperature": [1, 2.5],
            "holdout": 10,
        },
        {"method": "base", "dataset": ["digits", "cifar10"], "student": "resnet_32_20", "seed": [0, 1]},
    ],
    "resources": {"gpus_per_trial": 0.5},
}
WORDS = ["study", "recipe", "experiments", "resources", "grid", "teacher", "logit", "digits", "resnet_32_8", "auto"]
LEAVES = (
    st.sampled_from(
        [None, True, 0, 1, -1, 1.5, 1e30, 2**63, 10**200, "", "é", "1e-3", "[]", *WORDS, *fields.EXPERIMENT_KEYS]
    )
    | st.integers()
    | st.floats()
)
DATA = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*WORDS, *fields.EXPERIMENT_KEYS, *fields.TEACHER_KEYS]), inner, max_size=3)
    ),
    max_leaves=8,
)


def load_or_refuse(folder: Path, data: Any) -> None:
    """Loads data as a study file and plans it; any error but StudyError escapes and fails the test."""
    text = json.dumps(data)
    for word, spelled in (("NaN", ".nan"), ("-Infinity", "-.inf"), ("Infinity", ".inf")):
        text = text.replace(word, spelled)
    try:
        study = load(folder, text)
    except StudyError as error:
        assert error.faults
        assert all(re.search(r"s\.yaml:\d+:\d+: .+", str(fault)) for fault in error.faults)
    else:
        assert make_plan(study).trials


@st.composite
def mutations(draw: st.DrawFn) -> Any:
    """The good study with up to three entries changed, removed or added."""
    data = json.loads(json.dumps(GOOD))
    for _ in range(draw(st.integers(1, 3))):
        node = data
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(node[key], dict | list) and draw(st.booleans()):
                node = node[key]
                continue
            match draw(st.sampled_from(["change", "remove", "add"])):
                case "remove":
                    del node[key]
                case "add" if isinstance(node, dict):
                    node[draw(st.sampled_from([*fields.EXPERIMENT_KEYS, "teacher", "weights", "grid"]))] = draw(DATA)
                case _:
                    node[key] = draw(DATA)
            break
    return data


def test_the_good_study_is_good(tmp_path: Path) -> None:
    load_or_refuse(tmp_path, GOOD)
    # 2 × 2 teachers; st × 2 temperatures + logit, each with every teacher; 4 base students.
    assert len(make_plan(load_study(tmp_path / "s.yaml")).trials) == 4 + (2 + 1) * 4 + 4


@settings(max_examples=150)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(["study", "recipe", "experiments", "resources"], DATA)) | DATA)
def test_any_data_is_a_study_or_a_study_error(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    load_or_refuse(tmp_path_factory.getbasetemp(), data)


@settings(max_examples=250)
@given(mutations())
def test_any_mutation_is_a_study_or_a_study_error(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    load_or_refuse(tmp_path_factory.getbasetemp(), data)


@settings(max_examples=150)
@given(
    st.text(alphabet=st.sampled_from("aer.[]=0129:{}*&-\n\udc80") | st.characters(exclude_categories=()), max_size=20)
)
def test_any_setting_is_a_study_or_a_study_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    for setting in (text, f"recipe.{text}", f"experiments[0].teacher={text}"):
        try:
            load(tmp_path_factory.getbasetemp(), base(), setting)
        except StudyError as error:
            assert error.faults


def test_the_published_study_has_16_trials() -> None:
    study = load_study(ROOT / "experiments.yaml")
    plan = make_plan(study)
    assert study.warnings == ()
    assert study.name == "resnet-logit"
    assert [trial.role for trial in plan.trials] == ["teacher"] * 4 + ["student"] * 12
    assert study.resources == Resources(1.0)
