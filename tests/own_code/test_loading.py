"""Loading a user's files: their own folder first, nothing left behind, and errors with their own lines."""

from __future__ import annotations

import inspect
import sys

import pytest

from orchestrator.own_code.loading import OwnCodeError, guard, load
from orchestrator.own_code.source import CodeKind, OwnCode


def code(attribute: str = "f", **files: str) -> OwnCode:
    return OwnCode(
        CodeKind.LOSS,
        "mine.py",
        attribute,
        tuple((f"{name.replace('__', '/')}.py", text) for name, text in files.items()),
    )


def test_imports_are_found_in_the_users_folder_first() -> None:
    own = code(
        mine="import json\nimport models.small as small\nfrom models import other\nimport models.small\n"
        "def f():\n  import tools\n  return small.x + other.x + models.small.x + tools.x + json.loads('1')\n",
        models____init__="from .other import x\n",
        models__small="x = 10\n",
        models__other="from tools import x as y\nx = 100 * y\n",
        tools="x = 1000\n",
    )
    assert load(own)() == 10 + 100_000 + 10 + 1000 + 1
    assert not {"models", "tools", "mine"} & set(sys.modules)


def test_a_folder_without_init_is_a_package() -> None:
    assert load(code(mine="from deep.inner import leaf\nf = leaf.x\n", deep__inner__leaf="x = 7\n")) == 7


def test_their_own_json_does_not_replace_pythons_elsewhere() -> None:
    assert load(code(mine="import json\nf = json.x\n", json="x = 'own'\n")) == "own"
    assert sys.modules["json"].loads("1") == 1


def test_two_versions_live_side_by_side() -> None:
    one, two = (load(code(mine="import helper\ndef f(): return helper.x\n", helper=f"x = {x}\n")) for x in (1, 2))
    assert (one(), two()) == (1, 2)


def test_the_source_is_there_for_inspect() -> None:
    text = "def f():\n    return 1\n"
    assert inspect.getsource(load(code(mine=text))) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nowhere\n", "mine.py, line 1, in <module> (`import nowhere`): ModuleNotFoundError: No module named"),
        ("x = 1\n1 / 0\n", "mine.py, line 2, in <module> (`1 / 0`): ZeroDivisionError: division by zero"),
        ("exit(2)\n", "mine.py, line 1, in <module> (`exit(2)`): SystemExit: 2"),
        ("import helper\n", "helper.py, line 2, in <module> (`raise ValueError`): ValueError"),
    ],
)
def test_an_error_while_loading_has_the_users_line(text: str, message: str) -> None:
    with pytest.raises(OwnCodeError) as caught:
        load(code(mine=text, helper="\nraise ValueError\n"))
    assert str(caught.value).startswith(message)


def test_an_error_in_a_library_has_the_users_line_that_led_there() -> None:
    own = code(mine="import json\ndef f(text):\n    return json.loads(text)\n")
    with pytest.raises(OwnCodeError, match=r"mine.py, line 3, in f \(`return json.loads\(text\)`\): JSONDecodeError"):
        guard(own, lambda: load(own)("{"))


def test_a_module_that_failed_can_be_loaded_again() -> None:
    own = code(mine="import os\nif 'KDCTL_NOWHERE' not in os.environ: raise OSError\nf = 1\n")
    with pytest.raises(OwnCodeError):
        load(own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCTL_NOWHERE", "1")
        assert load(own) == 1
