"""The codec: every value comes back, the stored text stays, and data that does not fit is named by its path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.codec import OMIT_DEFAULT, CodecError, decode, encode, named
from orchestrator.records import TableKey
from orchestrator.study.stored_studies import Launch


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Inner:
    options: tuple[tuple[str, float | str], ...] = ()
    point: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Outer:
    name: str
    count: int
    is_on: bool
    colour: Colour
    when: datetime
    share: float | None = None
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Renamed:
    mode: str = field(metadata=named("asked"))
    later: tuple[tuple[str, float | str], ...] = field(default=(), metadata=OMIT_DEFAULT)


INNERS = st.builds(
    Inner,
    options=st.dictionaries(st.text(), st.floats(allow_nan=False) | st.text()).map(lambda d: tuple(sorted(d.items()))),
    point=st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)),
)
OUTERS = st.builds(
    Outer,
    name=st.text(),
    count=st.integers(),
    is_on=st.booleans(),
    colour=st.sampled_from(Colour),
    when=st.datetimes(timezones=st.just(UTC)),
    share=st.none() | st.floats(allow_nan=False),
    inner=st.none() | INNERS,
    many=st.lists(INNERS, max_size=2).map(tuple),
    words=st.dictionaries(st.text(), st.text(), max_size=2),
)
OUTER = Outer("a", 1, True, Colour.RED, datetime(2024, 1, 2, 3, 4, 5, 6, UTC), inner=Inner((("b", 2.0),)))


@given(OUTERS)
def test_a_value_comes_back(value: Outer) -> None:
    assert decode(Outer, json.loads(json.dumps(encode(value)))) == value


def test_what_is_missing_is_at_its_default() -> None:
    data = {"name": "a", "count": 1, "is_on": True, "colour": "red", "when": "2024-01-02T03:04:05.000006+00:00"}
    assert decode(Outer, data) == Outer("a", 1, True, Colour.RED, OUTER.when)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"new": 1}, "new: Outer has no such field"),
        ({"name": None}, "name: expected str, found NoneType"),
        ({"count": True}, "count: expected int, found bool"),
        ({"count": 1.0}, "count: expected int, found float"),
        ({"is_on": 1}, "is_on: expected bool, found int"),
        ({"colour": "green"}, "colour: 'green' is not a valid Colour"),
        ({"when": "noon"}, "when: Invalid isoformat string: 'noon'"),
        ({"share": "half"}, "share: expected float, found str"),
        ({"many": [{"point": [0]}]}, r"many\[0\].point: expected 2 items, found 1"),
        ({"many": [{}, {"options": {"b": []}}]}, r"many\[1\].options.b: expected str, found list"),
        ({"words": {"a": 1}}, "words.a: expected str, found int"),
        ({"words": []}, "words: expected dict, found list"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CodecError, match=f"^{message}$"):
        decode(Outer, {**encode(OUTER), **change})


@pytest.mark.parametrize(
    ("value", "data"),
    [(Renamed("table"), {"asked": "table"}), (Renamed("live", (("a", 2),)), {"asked": "live", "later": {"a": 2}})],
)
def test_a_field_has_its_own_key_and_is_left_out_at_its_default(value: Renamed, data: dict[str, Any]) -> None:
    assert encode(value) == data and decode(Renamed, data) == value
    with pytest.raises(CodecError, match=r"^mode: Renamed has no such field$"):
        decode(Renamed, {"mode": "table"})


def test_what_is_missing_is_named() -> None:
    data = encode(OUTER)
    del data["name"]
    with pytest.raises(CodecError, match=r"^name: Outer needs this field, and it is missing$"):
        decode(Outer, data)
    with pytest.raises(CodecError, match=r"^the value: expected dict, found list$"):
        decode(Outer, [])


def test_the_text_of_stored_values_stays() -> None:
    """Storages of earlier versions hold these texts, and theirs are read by this version."""
    assert json.dumps(encode(OUTER)) == (
        '{"name": "a", "count": 1, "is_on": true, "colour": "red", "when": "2024-01-02T03:04:05.000006+00:00", '
        '"share": null, "inner": {"options": {"b": 2.0}, "point": [0.0, 1.0]}, "many": [], "words": {}}'
    )
    assert json.dumps(encode(TableKey("t", "logits", 4, True, 100))) == (
        '{"teacher_id": "t", "answers": "logits", "crop_padding": 4, "flip": true, "images": 100}'
    )
    launched = Launch("launch-1", OUTER.when, "host", "ray", "a.yaml", "study: a", ("seed=1",), "data", ("x",))
    assert json.dumps(encode(launched)) == (
        '{"resource": "launch-1", "since": "2024-01-02T03:04:05.000006+00:00", "host": "host", "executor": "ray", '
        '"file": "a.yaml", "text": "study: a", "settings": ["seed=1"], "data": "data", "left": ["x"], "path": "", '
        '"commit": null}'
    )
