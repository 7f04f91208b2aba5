"""Every type of value: what it accepts and refuses, and that its JSON Schema agrees."""

from __future__ import annotations

import json
from typing import Any

import jsonschema  # Ray depends on it
import pytest

from orchestrator.losses import Option
from orchestrator.study import document, fields
from orchestrator.study.fields import (
    Auto,
    Boolean,
    Choice,
    EpochList,
    FilePath,
    GpuShare,
    Integer,
    ModelValue,
    Number,
    ValueType,
)
from orchestrator.text import nearest

TABLES = {
    "experiment": fields.EXPERIMENT_KEYS,
    "teacher": fields.TEACHER_MAPPING_KEYS,
    "resources": fields.RESOURCE_KEYS,
}
ALL = [pytest.param(key, id=f"{table}.{name}") for table, known in TABLES.items() for name, key in known.items()]
VALUE_TYPES: list[ValueType] = [
    Integer(0, 9),
    Integer(1, 9, optional=True),
    Number(0, 5),
    Number(0, 5, exclusive=True),
    Boolean(),
]
VALUE_TYPES += [Choice(("auto", "live")), Auto(GpuShare()), Auto(Integer(1, 9)), ModelValue(), EpochList(), FilePath()]


def read(value_type: ValueType, value: Any) -> Any:
    """Reads a value, as a study file could contain it, as a type of value."""
    return value_type.read(document.parse(json.dumps(value), "s.yaml"))


def accepts(value_type: ValueType, value: Any) -> bool:
    try:
        read(value_type, value)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("value_type", "value", "expected"),
    [
        (Integer(0, 9), 9, 9),
        (Integer(0, 9), 9.0, 9),
        (Integer(0, 9, optional=True), None, None),
        (Number(0, 5), 0, 0.0),
        (Number(0, 5), 5, 5.0),
        (Number(0, 5, exclusive=True), 1e-300, 1e-300),
        (GpuShare(), 0.25, 0.25),
        (GpuShare(), 1, 1.0),
        (Auto(GpuShare()), None, None),
        (Auto(GpuShare()), "auto", None),
        (Auto(Integer(1, 9)), 2, 2),
        (Boolean(), False, False),
        (Choice(("auto", "live")), "live", "live"),
        (ModelValue(), "resnet_32_8", "resnet_32_8"),
        (ModelValue(), "resnet_32_1202", "resnet_32_1202"),
        (EpochList(), [], ()),
        (EpochList(), [1, 2e0, 1_000_000], (1, 2, 1_000_000)),
        (FilePath(), "a b/é.pt", "a b/é.pt"),
    ],
)
def test_a_value_type_accepts(value_type: ValueType, value: Any, expected: Any) -> None:
    found = read(value_type, value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value_type", "value", "part"),
    [
        (Integer(0, 9), 10, "found the number 10; expected a whole number from 0 to 9"),
        (Integer(0, 9), 0.5, "found the number 0.5"),
        (Integer(0, 9), True, "found true"),
        (Integer(0, 9), None, "found nothing"),
        (Integer(0, 9), "1", "found the text '1'"),
        (Integer(0, 9), [1], "found a list"),
        (Number(0, 5), -1e-9, "found the number -1e-09; expected a number from 0 to 5"),
        (Number(0, 5, exclusive=True), -0.0, "expected a number above 0 to 5"),
        (Number(0, 5), 5.1, "found the number 5.1"),
        (Number(0, 5), False, "found false"),
        (GpuShare(), 1.5, "expected a number from 0 to 1; write 0.5 for two trials on a GPU"),
        (GpuShare(), -1, "found the number -1"),
        (GpuShare(), 2, "found the number 2"),
        (GpuShare(), True, "found true"),
        (Boolean(), 1, "found the number 1; expected true or false"),
        (Choice(("auto", "live")), "Live", "did you mean live?"),
        (Choice(("auto", "live")), [], "found an empty list; expected one of auto, live"),
        (ModelValue(), "resnet_32_08", "unknown model 'resnet_32_08'; models are resnet_32_D (D = 6n+2)"),
        (ModelValue(), "resnet_32_²", "unknown model"),
        (ModelValue(), "resnet_32_7", "did you mean resnet_32_8?"),
        (ModelValue(), 20, "found the number 20; expected the name of a model"),
        (EpochList(), [0], "found the number 0; expected a whole number from 1 to 1,000,000"),
        (EpochList(), [2, 1], "in ascending order"),
        (EpochList(), [1, 1], "in ascending order"),
        (EpochList(), [None], "found nothing"),
        (EpochList(), {"a": 1}, "found a mapping; expected a list of epochs"),
        (FilePath(), " ", "expected the path of a file"),
        (FilePath(), "a\0b", "contains a NUL byte"),
        (FilePath(), 5, "found the number 5"),
    ],
)
def test_a_value_type_refuses(value_type: ValueType, value: Any, part: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(value_type, value)
    assert part in str(caught.value)


VALUES = [None, True, False, *range(-2, 11), 1024, 1025, 0.5, 1.5, 2.0, -0.0, 1e30, "auto", "resnet_32_20", "x", ""]
VALUES += [[], [1, 3], [1, 2, 2], [0], [1.5], ["1"], [[1]], {}, {"a": 1}]


@pytest.mark.parametrize("value_type", VALUE_TYPES, ids=repr)
def test_a_schema_accepts_what_its_value_type_accepts(value_type: ValueType) -> None:
    schema = jsonschema.Draft202012Validator(value_type.schema())
    assert [value for value in VALUES if schema.is_valid(value)] == [
        value for value in VALUES if accepts(value_type, value)
    ]


def test_a_schema_cannot_require_ascending_epochs() -> None:
    assert jsonschema.Draft202012Validator(EpochList().schema()).is_valid([3, 1])
    assert not accepts(EpochList(), [3, 1])


@pytest.mark.parametrize("key", ALL)
def test_a_default_is_a_value_of_its_type(key: fields.Key) -> None:
    if key.default is not None:
        written = key.default.name if isinstance(key.default, fields.Selection) else key.default
        assert read(key.value_type, written) == key.default
        assert key.schema()["default"] == written


@pytest.mark.parametrize("key", ALL)
def test_every_key_has_a_description(key: fields.Key) -> None:
    schema = key.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["description"] == key.doc != ""
    assert not key.doc.endswith(".")
    assert key.default_text()


def test_defaults_as_a_study_file_writes_them() -> None:
    texts = {name: key.default_text() for name, key in fields.EXPERIMENT_KEYS.items()}
    assert [texts[name] for name in ("momentum", "flip", "teacher_cache", "holdout")] == ["0.9", "true", "auto", "0"]
    assert [texts[name] for name in ("lr", "weight_decay")] == ["0.1; 0.001 for adamw", "0.0001; 0.01 for adamw"]
    assert [texts[name] for name in ("optimizer", "schedule")] == ["sgd", "steps"]
    assert [texts[name] for name in ("method", "limit_train")] == ["required", "all"]


def test_a_key_has_the_same_meaning_in_every_table() -> None:
    everything = [item for known in TABLES.values() for item in known.items()]
    shared = {name for name, _ in everything if sum(name == other for other, _ in everything) > 1}
    assert "epochs" in shared
    kinds = {name: {key.value_type for other, key in everything if other == name} for name in shared}
    assert {name: len(found) for name, found in kinds.items()} == dict.fromkeys(shared, 1)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("lrr", "did you mean lr?"),
        ("LR", "did you mean lr?"),
        ("epoch", "did you mean epochs?"),
        ("zzz", "choose one of them"),
        ("", "choose one of them"),
        (10, "choose one of them"),
    ],
)
def test_the_nearest_word(found: object, expected: str) -> None:
    assert nearest(found, ["lr", "epochs", "momentum"]) == expected


def test_an_option_with_a_truth_for_its_default_is_true_or_false() -> None:
    key = fields.option_key(Option(False, "whether"))
    assert key.value_type == Boolean() and key.default_text() == "false"
    assert str(fields.Selection("st", (("standardize", True), ("temperature", 2.0)))) == (
        "st:standardize=true,temperature=2.0"
    )
