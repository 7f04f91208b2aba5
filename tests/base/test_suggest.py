"""The nearest known word, and the nearest file."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.suggest import nearest, nearest_file


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
