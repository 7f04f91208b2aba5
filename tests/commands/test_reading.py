"""A study file is read once, whatever reads it: a pipe like <(…) gives its text only once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from orchestrator.catalog import lookup
from orchestrator.cluster.submission import collect_files
from orchestrator.launch import plan_study
from orchestrator.report.content import find_facts
from orchestrator.storage.layout import Storage
from orchestrator.study.reader import load_study

TEXT = "# a comment\nstudy: s\nexperiments:\n- {method: base, dataset: digits, student: resnet_32_8}\n"

pytestmark = pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="pipes have no names here")


@contextmanager
def pipe(text: str = TEXT) -> Iterator[str]:
    """The name of a pipe that gives this text once, as a shell's <(cat FILE)."""
    reading, writing = os.pipe()
    os.write(writing, text.encode())
    os.close(writing)
    try:
        yield f"/dev/fd/{reading}"
    finally:
        with suppress(OSError):
            os.close(reading)


def test_a_study_and_its_plan_carry_the_text_that_was_read(tmp_path: Path) -> None:
    with pipe() as name:
        assert load_study(name).text == TEXT
    with pipe() as name:
        assert plan_study(name, tmp_path).text == TEXT
    with pipe() as name:
        assert lookup.find_study(Storage.at(tmp_path), name).text == TEXT


def test_a_text_that_is_given_is_not_read_again() -> None:
    assert load_study("/nowhere/s.yaml", text=TEXT).text == TEXT


def test_a_report_shows_the_text_that_was_read(tmp_path: Path) -> None:
    with pipe() as name:
        source = find_facts(Storage.at(tmp_path), name).source
    assert source is not None and source.text == TEXT


def test_a_cluster_gets_the_text_that_was_read(tmp_path: Path) -> None:
    with pipe() as name:
        study = load_study(name)
        file = collect_files(study, tmp_path)
    assert (tmp_path / file).read_text() == TEXT
