"""The field's figures for CIFAR-100: which runs they are shown next to, and what is said of the differences."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from reported import facts, fill

from orchestrator import losses, models
from orchestrator.launch import plan_study
from orchestrator.records import State, TrialConfig, TrialRecord
from orchestrator.report.sections import Table, build_sections
from orchestrator.results.field_tables import FIGURES, describe_figures, find_figure
from orchestrator.results.summary import group_tables
from orchestrator.results.tables import render
from orchestrator.storage.layout import Storage

STUDY = Path(__file__).resolve().parents[2] / "examples" / "crd.yaml"
START = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)


def row_of(config: TrialConfig, acc: float = 75.0, **overrides: Any) -> TrialRecord:
    """A finished row of a planned trial."""
    taught = {"teacher": config.teacher.student, "teacher_id": config.teacher.trial_id()} if config.teacher else {}
    filled: dict[str, Any] = {
        **dict.fromkeys(field.name for field in fields(TrialRecord)),
        **{"no": 1, "method": config.method, "dataset": config.dataset, "student": config.student},
        **{"seed": config.seed, "start_time": START, "end_time": START, "acc": acc, "last_acc": acc, "epoch": 1},
        **{"nepoch": config.epochs, "lr": config.lr, "batch_size": config.batch_size, "study": "crd", "resumed": 0},
        **{"trial_id": config.trial_id(), "state": State.FINISHED, "kdctl_version": "0.1.0", "params": 1},
        **{"recipe": {**config.recipe(), "arithmetic": "float32"}, "seconds": 1.0},
        **taught,
    }
    return TrialRecord(**{**filled, **overrides})


CONFIGS = {
    (trial.config.method, *options, trial.config.teacher.student if trial.config.teacher else "", trial.config.student):
    trial.config
    for trial in plan_study(STUDY, "no-such-storage").trials
    if trial.config.seed == 0
    for options in [["standardize"] if dict(trial.config.options).get("standardize") else []]
}  # fmt: skip
KD = CONFIGS["kd", "wrn_40_2", "wrn_16_2"]


def test_every_entry_names_what_kdctl_knows() -> None:
    for (method, teacher, student), found in FIGURES.items():
        for model in filter(None, (teacher, student)):
            assert models.parse(model)
        for figure in found:
            assert figure.options.keys() <= losses.METHODS[method].defaults().keys()
    assert sum(map(len, FIGURES.values())) == 15 + 10 * 13 + 6 + 13 + 11 + 1 + 2 * 13 + 10 + 9 + 7


@pytest.mark.parametrize(
    ("key", "acc", "source"),
    [
        (("kd", "wrn_40_2", "wrn_16_2"), 74.92, "CRD"),
        (("kd", "standardize", "wrn_40_2", "wrn_16_2"), 76.11, "LSKD"),
        (("dkd", "wrn_40_2", "wrn_16_2"), 76.24, "DKD"),
        (("dkd", "resnet_32_110", "resnet_32_20"), 71.06, "LSKD"),
        (("dkd", "resnet_50", "mobilenet_v2"), 70.35, "DKD"),
        (("crd", "wrn_40_2", "shufflenet_v1"), 76.05, "CRD"),
        (("wttm", "vgg_13", "mobilenet_v2"), 69.16, "TTM"),
        (("fsp", "resnet_32_56", "resnet_32_20"), 69.95, "CRD"),
        (("base", "", "resnet_8x4"), 72.50, "CRD"),
        (("base", "", "resnet_32x4"), 79.42, "CRD"),
        (("base", "", "mobilenet_v2"), 64.60, "CRD"),
        (("dkd", "resnet_50", "vgg_8"), None, ""),
        (("rld", "vgg_13", "vgg_8"), None, ""),
    ],
)
def test_the_standard_study_has_its_figures(key: tuple[str, ...], acc: float | None, source: str) -> None:
    figure = find_figure(row_of(CONFIGS[key]))
    assert (figure and figure.acc, figure.source.name if figure else "") == (acc, source)


def test_most_settings_of_the_standard_study_have_one() -> None:
    without = {key for key, config in CONFIGS.items() if find_figure(row_of(config)) is None}
    assert {key[0] for key in without if "standardize" not in key} == {"rld", "ctkd", "dkd"}
    assert len(without) < len(CONFIGS) / 5


def changed(**overrides: Any) -> TrialRecord:
    return row_of(replace(KD, **overrides))


def taught(**overrides: Any) -> TrialRecord:
    assert KD.teacher
    return row_of(replace(KD, teacher=replace(KD.teacher, **overrides)))


@pytest.mark.parametrize(
    "other",
    [
        changed(epochs=200), changed(batch_size=128), changed(lr=0.1), changed(weight_decay=1e-4), changed(gamma=0.2),
        changed(milestones=(100, 150)), changed(crop_padding=0), changed(flip=False), changed(limit_train=2000),
        changed(limit_test=100), changed(holdout=5000), changed(optimizer_options=(("nesterov", True),)),
        changed(schedule="cosine"), changed(label_smoothing=0.1), changed(clip_norm=1.0), changed(ema=0.99),
        changed(dataset="cifar10"), changed(options=(*KD.options, ("temperature", 2.0))), changed(method="st"),
        taught(epochs=20), taught(lr=0.01), taught(student="wrn_40_1"), taught(method="kd", teacher=KD.teacher),
        row_of(replace(CONFIGS["kd", "vgg_13", "mobilenet_v2"], lr=0.05)),
    ],
)  # fmt: skip
def test_another_protocol_or_setting_has_none(other: TrialRecord) -> None:
    assert find_figure(row_of(KD)) and find_figure(other) is None


def notes(*rows: TrialRecord) -> list[str]:
    return list(describe_figures(group for table in group_tables(rows) for group in table.groups))


def test_differences_are_named() -> None:
    assert notes(changed(epochs=3)) == []
    (note,) = notes(row_of(KD))
    assert note.startswith("Published by CRD (arXiv 1910.10699, the tables of its code's README; last epoch): the same")
    assert "other teachers and seeds" in note and "number of runs" in note and "normalised" in note
    for row, said in (
        (changed(padding="reflect"), "padding reflect, not zero"),
        (taught(padding="reflect"), "teacher.padding reflect, not zero"),
        (taught(weights="a" * 64, epochs=0, milestones=()), "teacher.weights from a file"),
        (row_of(KD, recipe={**KD.recipe(), "arithmetic": "bfloat16"}), "convolutions in bfloat16"),
        (row_of(CONFIGS["ttm", "wrn_40_2", "wrn_16_2"]), "the published weight for this pair is not known"),
    ):
        *_, last = notes(row)
        assert last.startswith("Differs from the published runs as well (") and last.endswith(f"): {said}")
    assert len(notes(row_of(CONFIGS["ttm", "vgg_13", "vgg_8"]))) == 1
    rkd = replace(CONFIGS["rkd", "wrn_40_2", "wrn_16_2"], padding="reflect")
    assert "as well (2 of 2 settings): padding" in notes(changed(padding="reflect"), row_of(rkd))[-1]


def test_a_checkpoint_is_shown_next_to_its_published_accuracy() -> None:
    config = replace(CONFIGS["base", "", "resnet_32x4"], weights="a" * 64, epochs=0, milestones=(), gamma=1.0)
    figure = find_figure(row_of(config))
    assert figure and figure.acc == 79.42 and notes(row_of(config))[-1].endswith("weights from a file")
    assert find_figure(row_of(replace(config, limit_test=100))) is None


def test_results_and_report_show_them(storage: Storage) -> None:
    rows = [
        row_of(KD, 74.0),
        row_of(CONFIGS["rkd", "wrn_40_2", "wrn_16_2"], 73.0),
        row_of(replace(CONFIGS["crd", "wrn_40_2", "wrn_16_2"], epochs=3), 20.0),
        row_of(CONFIGS["rld", "vgg_13", "vgg_8"]),
    ]
    for text in (render(rows), render(rows, "markdown")):
        assert "74.92 (CRD)" in text and "73.35 (CRD)" in text and text.count("(CRD)") == 2, "not next to crd and rld"
        assert text.count("Published by CRD (arXiv 1910.10699") == 1 and "VGG-13>>8/Cifar100, 95" not in text
    data = json.loads(render(rows, "json"))
    published = {group["label"]: group["published"] for table in data["tables"] for group in table["groups"]}
    assert sorted(own["acc"] for own in published.values() if own) == [73.35, 74.92]
    assert {own["name"] for own in published.values() if own} == {"CRD"} and None in published.values()
    fill(storage, rows, epochs=1)
    found = next(section for section in build_sections(facts(storage, rows)) if section.name == "results")
    tables = {block.title: block for block in found.blocks if isinstance(block, Table)}
    table = tables["WRN-40-2>>16-2/Cifar100"]
    column = table.header.index("published, %")
    assert sorted((line[column].text, line[column].small) for line in table.rows) == [
        ("-", ""), ("73.35", "CRD, last epoch"), ("74.92", "CRD, last epoch"),
    ]  # fmt: skip
    assert any(note.startswith("Published by CRD") for note in table.notes)
    assert "published, %" not in tables["VGG-13>>8/Cifar100"].header
