"""YAML documents: the values of plain text, their locations, and that bad text is refused quickly with a location."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import Fault, StudyError
from orchestrator.study import document
from orchestrator.study.document import Location, Node

# Beyond U+FFFF json.dumps writes two escapes for one character, which is JSON but not YAML.
WORDS = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
# Fragments that have a meaning in YAML reach far more of the parser than evenly drawn characters.
YAML_LIKE = st.lists(
    st.sampled_from(["a", "1", "é", ": ", "- ", "[", "]", "{", "}", ",", "&a ", "*a", "!t ", "'", '"', "#", "\n", "  "])
    | st.sampled_from(["---\n", "...\n", "%YAML 1.1\n", "? ", "|\n", ">-\n", "<<", "\t", "\0", "\x85", "\ud800", "\\u"])
    | st.characters(),
    max_size=30,
).map("".join)


def plain(node: Node) -> Any:
    """The values alone, without their locations."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    return [plain(child) for child in node.value] if isinstance(node.value, list) else node.value


def fault_of(text: str) -> Fault:
    """The only fault of a text."""
    with pytest.raises(StudyError) as caught:
        document.parse(text, "s.yaml")
    (fault,) = caught.value.faults
    return fault


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1e3", 1000.0),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("+5", 5),
        (".5", 0.5),
        ("5.", 5.0),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("True", True),
        ("false", False),
        ("tRUE", "tRUE"),
        ("~", None),
        ("Null", None),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("=", "="),
        ("١", "١"),  # a digit, but not one of YAML's
        ("'1e-3'", "1e-3"),
        ('"5"', "5"),
        ("! 5", "5"),
        ("|\n 5", "5"),
        ("9" * 100, int("9" * 100)),
        ("9" * 5000, math.inf),  # Python refuses to make an int of this many digits
    ],
)
def test_a_scalar_has_the_value_that_yaml_1_2_defines(text: str, value: document.Scalar) -> None:
    found = document.parse(text, "s.yaml").value
    assert found == value
    assert type(found) is type(value)


def test_nan_is_a_number() -> None:
    found = document.parse(".nan", "s.yaml").value
    assert isinstance(found, float) and math.isnan(found)


@pytest.mark.parametrize(
    ("text", "location", "part"),
    [
        ("a: 1\nb: 2\na: 3", "3:1", "key 'a' appears again, first in line 1"),
        ("x:\n  - {lr: 1, lr: 2}", "2:13", "key 'lr' appears again, first in line 2"),
        ("&k a: 1\n*k : 2", "2:1", "key 'a' appears again, first in line 1"),
        ("? [1]\n: 2", "1:3", "a key is a list; keys are plain words"),
        ("&k 1: 2\n*k : 3", "2:1", "a key is the number 1; keys are plain words"),
        ("a: !!python/object/apply:os.system [ls]", "1:4", "tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("a: !!int 3", "1:4", "tag 'tag:yaml.org,2002:int' is not allowed; a study file is plain data"),
        ("!mine {a: 1}", "1:1", "tag '!mine' is not allowed"),
        ("a: &x [1, *x]", "1:11", "alias *x refers to itself; write the value out"),
        ("a: *y", "1:4", "alias *y refers to nothing; write the value out"),
        ("a: 1\n---\nb: 2", "2:1", "a second document starts here"),
        ("", "1:1", "the file is empty; a study needs at least `study` and `experiments`"),
        ("# only a comment\n", "1:1", "the file is empty"),
        ("a: \x00", "1:4", "character U+0000 is not allowed in YAML; remove it"),
        ("# é\né: ü\x07", "2:5", "character U+0007 is not allowed in YAML; remove it"),
        ("a\n: '\ud800'", "2:4", "this is not UTF-8 text"),
        ("a: b: c", "1:5", "this is not YAML: mapping values are not allowed"),
        ("a:\n\t- 1", "2:1", "a tab indents this line, and YAML indents with spaces only; replace it with spaces"),
        ("😀: [}", "1:5", "this is not YAML"),
        ("[" * 100_000, "1:41", "more than 40 levels deep; a study file needs 5"),
        ("- " * 100_000, "1:81", "more than 40 levels deep"),
    ],
)
def test_bad_text_is_refused_at_its_location(text: str, location: str, part: str) -> None:
    fault = fault_of(text)
    assert f"{fault.line}:{fault.column}" == location
    assert part in fault.message


def test_every_duplicate_and_tag_is_reported_at_once() -> None:
    with pytest.raises(StudyError) as caught:
        document.parse("a: 1\na: !x 2\na: 3\n", "s.yaml")
    assert [(fault.line, fault.column) for fault in caught.value.faults] == [(2, 1), (2, 4), (3, 1)]


def test_locations_count_from_one_in_characters() -> None:
    root = document.parse("é: {ü: 5}\nb:\n  - x\n", "s.yaml")
    assert isinstance(root.value, dict)
    inner, outer = root.value["é"], root.value["b"]
    assert isinstance(inner.value, dict) and isinstance(outer.value, list)
    assert inner.value["ü"].location == Location("s.yaml", 1, 8)
    assert inner.keys == {"ü": Location("s.yaml", 1, 5)}
    assert root.keys["b"] == Location("s.yaml", 2, 1)
    assert outer.value[0].location == Location("s.yaml", 3, 5)


def test_an_alias_is_the_anchored_value() -> None:
    root = document.parse("a: &x [1]\nb: *x\nc: &x 3\nd: *x", "s")
    assert plain(root) == {"a": [1], "b": [1], "c": 3, "d": 3}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<<: *x", {"b": 1, "c": 2}),
        ("<<: *x\n  b: 3", {"b": 3, "c": 2}),
        ("b: 3\n  <<: *x", {"b": 3, "c": 2}),
        ("<<: [*y, *x]", {"b": 5, "c": 2, "d": 6}),
        ("<<: [*x, *y]", {"b": 1, "c": 2, "d": 6}),
        ("<<: {e: 1}", {"e": 1}),
        ("<<: []\n  b: 1", {"b": 1}),
        ("'<<': *x", {"<<": {"b": 1, "c": 2}}),  # quoted, it is an ordinary key, as in YAML 1.1
        ("b: <<", {"b": "<<"}),
    ],
)
def test_a_merge_key_adds_only_the_missing_keys(text: str, value: Any) -> None:
    root = document.parse(f"x: &x {{b: 1, c: 2}}\ny: &y {{b: 5, d: 6}}\nz:\n  {text}", "s")
    assert plain(root)["z"] == value


def test_merged_keys_can_be_merged_again_and_keep_their_locations() -> None:
    root = document.parse("x: &x\n  b: 1\ny: &y\n  <<: *x\nz:\n- <<: *y\n", "s")
    assert plain(root) == {"x": {"b": 1}, "y": {"b": 1}, "z": [{"b": 1}]}
    assert isinstance(root.value, dict) and isinstance(root.value["z"].value, list)
    assert root.value["z"].value[0].keys == {"b": Location("s", 2, 3)}


@pytest.mark.parametrize(
    ("text", "location", "part"),
    [
        ("a:\n  <<: 5", "2:7", "found the number 5; `<<` adds the keys of a mapping, or of a list of mappings"),
        ("a:\n  <<: [{b: 1}, x]", "2:16", "found the text 'x'; `<<` adds"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n  <<: *x", "4:3", "'<<' appears again, first in line 3; write one, like"),
        ("a: &x {<<: *x}", "1:12", "alias *x refers to itself"),
        ("a: b\n\tc", "2:1", "a tab indents this line"),
        ("a:\n - x\n \t- y", "3:2", "a tab indents this line"),
    ],
)
def test_a_wrong_merge_and_a_tab_have_their_location(text: str, location: str, part: str) -> None:
    fault = fault_of(text)
    assert part in fault.message
    assert f"{fault.line}:{fault.column}" == location


@pytest.mark.parametrize("text", ["a: 'b\n\tc'", "a: |\n b\n \tc", "a: [\n\t1]", "a: 1\t# tab"])
def test_a_tab_that_indents_nothing_is_allowed(text: str) -> None:
    document.parse(text, "s")


def test_merges_that_explode_are_refused_quickly() -> None:
    keys = ", ".join(f"k{i}: [x]" for i in range(2000))
    rows = [f"a: &a {{{keys}}}", *(f"b{i}: {{<<: *a}}" for i in range(2000))]
    start = time.perf_counter()
    assert "more than 200,000 values once aliases are followed" in fault_of("\n".join(rows)).message
    assert time.perf_counter() - start < 2


def test_exploding_aliases_are_refused_quickly() -> None:
    rows = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30))]
    start = time.perf_counter()
    assert "more than 200,000 values once aliases are followed" in fault_of("\n".join(rows)).message
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("raw", "location", "part"),
    [
        (b"study: caf\xe9\n", "1:11", "the file is not UTF-8 text (byte 0xe9); save it as UTF-8"),
        ("é: 1\nü: ".encode() + b"\xff", "2:4", "byte 0xff"),
    ],
)
def test_a_file_that_is_not_utf8_names_the_byte(tmp_path: Path, raw: bytes, location: str, part: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(raw)
    with pytest.raises(StudyError) as caught:
        document.read(path)
    assert str(caught.value).startswith(f"{path}:{location}: ")
    assert part in str(caught.value)


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    root = document.read(path)
    assert plain(root) == {"a": 1, "b": 2}
    assert root.keys == {"a": Location(str(path), 1, 1), "b": Location(str(path), 2, 1)}


def test_a_huge_file_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.touch()
    os.truncate(path, 50_000_000)
    start = time.perf_counter()
    with pytest.raises(StudyError, match="the file is larger than 1,048,576 bytes"):
        document.read(path)
    assert time.perf_counter() - start < 1


def test_a_path_that_is_not_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "utf-16.yaml").write_text("study: s", "utf-16")
    for path, part in [
        (tmp_path / "none.yaml", "there is no such file; check the path"),
        (tmp_path, "this is a folder; name the study file in it"),
        (tmp_path / "utf-16.yaml", "the file is not UTF-8 text but UTF-16; save it as UTF-8"),
        (tmp_path / ("a" * 5000), "the file cannot be read (File name too long)"),
        (Path("a\0b"), "the file cannot be read (embedded null byte)"),
    ]:
        with pytest.raises(StudyError) as caught:
            document.read(path)
        (fault,) = caught.value.faults
        assert str(fault).startswith((f"{path}: ", "a\\x00b: "))  # there is no line
        assert part in fault.message


def test_a_setting_is_one_location() -> None:
    node = document.parse_setting("{a: [1, x]}", "--set k=…")
    assert plain(node) == {"a": [1, "x"]}
    assert node.keys == {"a": Location("--set k=…", 0, 0)}
    assert document.parse_setting("  ", "s").value is None
    with pytest.raises(StudyError) as caught:
        document.parse_setting("[", "--set a=[")
    assert str(caught.value).startswith("--set a=[: this is not YAML: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("~", "nothing"),
        ("true", "true"),
        ("{}", "a mapping"),
        ("[1]", "a list"),
        ("[]", "an empty list"),
        ("no", "the text 'no'"),
        ("1.50", "the number 1.5"),
        ("x" * 99, f"the text '{'x' * 59}…'"),
    ],
)
def test_a_value_is_described_in_words(text: str, words: str) -> None:
    assert document.parse(text, "s").describe() == words


@settings(max_examples=400)
@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=40) | YAML_LIKE)
def test_any_text_parses_or_is_a_study_error(text: str) -> None:
    try:
        root = document.parse(text, "s.yaml")
    except StudyError as error:
        assert error.faults
        assert all(fault.line >= 1 and fault.column >= 1 and fault.message for fault in error.faults)
    else:
        assert root.weight >= 1


@settings(max_examples=100)
@given(st.binary(max_size=40))
def test_any_bytes_parse_or_are_a_study_error(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(raw)
    try:
        document.read(path)
    except StudyError as error:
        assert error.faults


@settings(max_examples=200)
@given(JSON, st.sampled_from([None, 2]))
def test_json_reads_back_to_the_same_values(value: Any, indent: int | None) -> None:
    assert plain(document.parse(json.dumps(value, indent=indent), "s.json")) == value
