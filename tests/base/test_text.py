"""Text for a person: secrets and control characters, short forms, the nearest known word and file."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.text import (
    first_line,
    format_duration,
    format_size,
    looking_once,
    masked,
    nearest,
    nearest_file,
    printable,
    shorten,
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("no s3://user:secret@host/a here", "no s3://***@host/a here"),
        ("https://ghp_0123@github.com/a.git", "https://***@github.com/a.git"),
        ("'s3://key:se/cr/et@bucket/a'", "'s3://***@bucket/a'"),  # as keys of buckets are, and nobody escapes them
        ("s3://key:p@ss@bucket", "s3://***@bucket"),
        ("a://u:p@h and b://u:p@h", "a://***@h and b://***@h"),
        ("s3://b/a?access_key=AKIA&secret_key=abc&region=eu", "s3://b/a?access_key=***&secret_key=***&region=eu"),
        ("https://h/a?X-Amz-Signature=0f&x=1 ends", "https://h/a?X-Amz-Signature=***&x=1 ends"),
        ("https://h/a?X-Amz-Security-Token=0f#b", "https://h/a?X-Amz-Security-Token=***#b"),
        ("https://h/a?AWSAccessKeyId=0f&Password=p", "https://h/a?AWSAccessKeyId=***&Password=***"),
    ],
)
def test_credentials_in_urls_are_masked(text: str, wanted: str) -> None:
    assert masked(text) == wanted
    assert printable(text) == wanted
    assert masked(wanted) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@b",
        "http://127.0.0.1:8265/a@b",
        "http://[::1]:8265/a@b",
        "ray://host:10001 asks someone@example.org",
        "recipe.token=3",
        "https://h/a?page=2&order=up",
        "images@home: what?",
    ],
)
def test_what_holds_no_secret_is_left_alone(text: str) -> None:
    assert masked(text) == text


SECRET = "wJalr/XUtn+FEMI"
NAMES = ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "HF_TOKEN", "DB_PASSWORD"]
NAMES += ["CLIENT_SECRET", "WANDB_API_KEY", "MINIO_SECRET_KEY", "TOKEN", "lower_token"]


@pytest.mark.parametrize("name", NAMES)
def test_secrets_of_the_environment_are_masked(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, f"{SECRET}\n")  # as `$(cat file)` would not, but a careless container does
    assert printable(f"got {SECRET}, wanted none") == "got ***, wanted none"
    assert masked(f"https://h/{quote(SECRET, safe='')}/a") == "https://h/***/a"


@pytest.mark.parametrize(
    ("name", "value"),
    [("HF_TOKEN", "short"), ("HF_TOKEN", ""), ("RAY_AUTH_TOKEN_PATH", SECRET), ("TOKENS", SECRET), ("BROKEN", SECRET)],
)
def test_other_values_of_the_environment_are_left_alone(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert printable(f"a short {SECRET}") == f"a short {SECRET}"


def test_a_secret_that_holds_another_goes_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "abcdef")
    monkeypatch.setenv("B_TOKEN", "abcdefghijkl")
    assert masked("x abcdefghijkl y abcdef z") == "x *** y *** z"


def test_a_mask_spells_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "ab***ab")
    assert masked("abab***abab") == "***"
    monkeypatch.setenv("A_TOKEN", "******")
    assert masked("*" * 60) == "***"


VALUES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=6, max_size=20)
TEXTS = st.text(max_size=20) | st.sampled_from(["*", "***", "://", "@", "\\", "\\x1b", "'", "?token=", "%2F"])


@given(value=VALUES, around=st.lists(TEXTS, min_size=1, max_size=4), name=st.sampled_from(NAMES))
def test_no_secret_of_the_environment_is_ever_printed(value: str, around: list[str], name: str) -> None:
    assume(len(value.strip()) >= 6)
    with mock.patch.dict(os.environ, {name: value}):
        for form in (value, repr(value), quote(value, safe=""), printable(value)):
            shown = printable(form.join([*around, ""]))
            assert value not in shown and value.strip() not in shown
            assert shown.isprintable()
            assert value.strip() not in masked(form.join([*around, ""]))


@given(st.text())
def test_a_text_without_secrets_is_escaped_alone(text: str) -> None:
    assume("://" not in text and "=" not in text)
    assert printable(text) == "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@pytest.mark.parametrize("part", ["://", "://a:", "?", "?token", "&token" * 9, "a", "@", ":", "://a:b "])
def test_masking_takes_no_time(part: str) -> None:
    masked(part * 20_000)  # the time limit of a test would end what backtracks


def test_a_page_of_many_texts_looks_at_the_environment_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_PASSWORD", "correct horse")
    with looking_once():
        monkeypatch.delenv("SOME_PASSWORD")
        assert masked("a correct horse") == "a ***"
    assert masked("a correct horse") == "a correct horse"


# Short forms.


@pytest.mark.parametrize(
    ("error", "line"), [(ValueError("one\ntwo"), "one"), (ValueError(), "ValueError"), (KeyError("a"), "'a'")]
)
def test_the_first_line_of_an_error(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_a_long_text_is_cut() -> None:
    assert (shorten("x" * 60), shorten("x" * 61), shorten("abc", 2)) == ("x" * 60, "x" * 59 + "…", "a…")


SIZES = [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2e6, "2 MB"), (4.56e9, "4.6 GB"), (2e12, "2,000.0 GB")]


@pytest.mark.parametrize(("size", "text"), SIZES)
def test_sizes_are_readable(size: float, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0 s"), (3.4, "3 s"), (12, "10 s"), (62, "60 s"), (150, "2 min"), (3599, "60 min"), (7200, "2 h"),
        (12_000, "3 h 20 min"), (200_000, "2.3 days"),
    ],
)  # fmt: skip
def test_time_spans_are_no_more_precise_than_they_are_known(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


# The nearest known word.


def test_the_nearest_word_is_named_where_one_is_near() -> None:
    assert nearest("logitt", ("base", "logit")) == "did you mean logit?"
    assert nearest("LOGIT", ("base", "logit")) == "did you mean logit?"
    for word in ("qqqqqq", ["logit"], None, 3, "x" * 10**6):
        assert nearest(word, ("base", "logit")) == "choose one of them"


@pytest.mark.parametrize(
    ("got", "advice"),
    [
        ("lanch", "did you mean launch?"), ("LAUNCH", "did you mean launch?"), ("xyz", "choose one of them"),
        ("", "choose one of them"), (3, "choose one of them"), ("l" * 10_000_000, "choose one of them"),
    ],
)  # fmt: skip
def test_the_nearest_word(got: object, advice: str) -> None:
    assert nearest(got, ["plan", "launch"]) == advice
    assert nearest(got, []) == "choose one of them"


def test_the_nearest_file(tmp_path: Path) -> None:
    for name in ("experiments.yaml", "experiments.yml", "other.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "folder.yaml").mkdir()
    assert nearest_file(tmp_path / "experimnts.yaml") == f"did you mean {tmp_path / 'experiments.yaml'}?"
    for name in ("experiments.json", "folders.yaml", "x" * 5000, "none/experiments.yaml"):
        assert nearest_file(tmp_path / name) == "check the path"
