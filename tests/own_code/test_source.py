"""Which files belong to a user's file, and their digest; nothing runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.own_code.source import CodeKind, OwnCode, find_tops, read_own_code, split_name


def write(folder: Path, **files: str) -> Path:
    """Files by their names, in which `__` stands for `/` and `.py` is left out."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / f"{next(iter(files)).replace('__', '/')}.py"


def names(code: OwnCode) -> set[str]:
    return {name for name, _ in code.files}


def test_a_file_brings_what_it_imports_from_its_folder_and_nothing_else(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        my_loss="import torch, helper\nfrom models import small\ndef f():\n  from deep.inner.leaf import x\n",
        helper="from other import thing\n",
        other="import my_loss\n",  # a cycle
        unused="",
        models__small="",
        deep__inner__leaf="from . import sibling\nfrom ..top import y\n",
        deep__inner__sibling="",
        deep__top="",
    )
    (tmp_path / "models/__init__.py").write_text("")
    code = read_own_code(path, "Loss")
    assert code.file == "my_loss.py"
    assert names(code) == {
        *("my_loss.py", "helper.py", "other.py", "models/__init__.py", "models/small.py"),
        *("deep/inner/leaf.py", "deep/inner/sibling.py", "deep/top.py"),
    }
    assert find_tops(dict(code.files)) == {"my_loss", "helper", "other", "models", "deep"}


def test_an_edit_of_any_of_them_gives_another_digest(tmp_path: Path) -> None:
    path = write(tmp_path, my_loss="import helper\n", helper="a = 1\n", unused="b = 1\n")
    before = read_own_code(path, "Loss")
    assert before.digest == read_own_code(path, "Loss").digest != read_own_code(path, "Other").digest
    write(tmp_path, unused="b = 2\n")
    assert read_own_code(path, "Loss").digest == before.digest
    write(tmp_path, helper="a = 2\n")
    assert read_own_code(path, "Loss").digest != before.digest
    assert before.name == "my_loss:Loss"


def test_the_digest_is_the_same_wherever_the_folder_is(tmp_path: Path) -> None:
    files = {"my_loss": "import helper", "helper": "a = 1"}
    one, two = (read_own_code(write(tmp_path / name, **files), "Loss") for name in ("one", "two"))
    assert one == two and one.digest == two.digest


def test_text_does_not_move_from_one_file_into_the_next_unnoticed() -> None:
    one, two = (("a.py", "x"), ("b.py", "yz")), (("a.py", "xy"), ("b.py", "z"))
    assert OwnCode(CodeKind.LOSS, "a.py", "f", one).digest != OwnCode(CodeKind.LOSS, "a.py", "f", two).digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"def f(:\n", "my_loss.py, line 1: invalid syntax; Python cannot read this file"),
        (b"x = '\xff'", "my_loss.py is not UTF-8 text"),
        (b"x = '\0'", "Python cannot read this file"),
        (b"x = 1\n" * 200_000, "more than a million characters"),
    ],
)
def test_what_cannot_be_read_is_explained(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "my_loss.py").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        read_own_code(tmp_path / "my_loss.py", "f")


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="my_loss.py cannot be read .No such file"):
        read_own_code(tmp_path / "my_loss.py", "f")


def test_a_file_and_what_it_defines_are_told_apart() -> None:
    assert split_name("./a b/my_loss.py:MyLoss") == ("./a b/my_loss.py", "MyLoss")
    assert split_name("st") is None and split_name(3) is None and split_name("a.py:not a name") is None
    with pytest.raises(ValueError, match="found a.py alone; .* write a.py:NAME"):
        split_name("a.py")
