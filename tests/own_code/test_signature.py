"""What a loss declares in its signature."""

from __future__ import annotations

import pytest

from orchestrator.losses import Option
from orchestrator.own_code.signature import LossSignature, check_parameter, read_loss
from orchestrator.own_code.source import CodeKind, OwnCode


def code(text: str, attribute: str = "f", kind: CodeKind = CodeKind.LOSS) -> OwnCode:
    return OwnCode(kind, "my_loss.py", attribute, (("my_loss.py", text),))


FUNCTION = "def f(student, labels, teacher, progress"


def number(value: float) -> Option:
    return Option(value, "", least=-1e9, most=1e9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{FUNCTION}): pass", LossSignature(True, False, ("logits",), {})),
        (
            f"{FUNCTION}, alpha=1.0, *, n: int = 2, x: float = 3, flag=True): pass",
            LossSignature(True, False, ("logits",), {
                "alpha": number(1.0), "n": number(2), "x": number(3.0), "flag": Option(True, ""),
            }),
        ),
        (
            f"from typing import Literal\n{FUNCTION}, *, kind: Literal['a', 'b'] = 'b'): pass",
            LossSignature(True, False, ("logits",), {"kind": Option("b", "", choices=("a", "b"))}),
        ),
        ("class f:\n  def __init__(self, *, a=1): pass", LossSignature(False, False, ("logits",), {"a": number(1)})),
        (
            "needs = ('pooled',)\nclass f:\n  needs = ('maps', 'logits')\n  def __init__(self, student, teacher): pass",
            LossSignature(False, True, ("maps", "logits"), {}),
        ),
        (f"needs: tuple = ['pooled']\n{FUNCTION}): pass", LossSignature(True, False, ("pooled",), {})),
        (
            "@dataclass(frozen=True)\nclass f:\n  weight: float = 2\n  needs: tuple = ('maps',)\n",
            LossSignature(False, False, ("maps",), {"weight": number(2.0)}),
        ),
        ("def f(student, teacher, w=1.5): pass", LossSignature(False, True, ("logits",), {"w": number(1.5)})),
    ],
)  # fmt: skip
def test_a_signature_is_read_without_running_it(text: str, expected: LossSignature) -> None:
    found = read_loss(code(f"{text}\nraise SystemExit"))
    assert found == expected
    assert {name: type(option.default) for name, option in found.options.items()} == {
        name: type(option.default) for name, option in expected.options.items()
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def g(): pass\ndef _h(): pass", "my_loss.py defines no class or function f; it defines g; name one of these"),
        ("x = 1", "it defines none"),
        ("def f(a, b): pass", "line 1: f takes a, b; expected a function of student, labels, teacher, progress, or a"),
        (f"{FUNCTION}, *, t): pass", "every other parameter is an option: give it a default"),
        (
            f"{FUNCTION}, kind='a'): pass",
            'line 1: kind is a text; list its possible values: `kind: Literal."a", …. = "a"`',
        ),
        (f"{FUNCTION}, x=None): pass", "x has the default None; expected a number"),
        (f"{FUNCTION}, x=g()): pass", r"x has the default g\(\); expected a number"),
        (f"needs = ('views',)\n{FUNCTION}): pass", "line 1: found needs = .'views',.; expected some of logits, pooled"),
        (f"needs = 'maps'\n{FUNCTION}): pass", "found needs = 'maps'"),
    ],
)
def test_what_kdctl_could_not_call_is_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_loss(code(text))


@pytest.mark.parametrize("text", ["def f(classes, width=1): pass", "class f:\n  def __init__(self, n): pass"])
def test_a_model_is_built_with_the_number_of_classes(text: str) -> None:
    check_parameter(code(text, kind=CodeKind.MODEL))


@pytest.mark.parametrize("text", ["def f(): pass", "class f: pass", "def f(a, b): pass", "def f(n, *, m): pass"])
def test_another_model_is_explained(text: str) -> None:
    with pytest.raises(ValueError, match="expected one parameter without a default, the number of classes"):
        check_parameter(code(text, kind=CodeKind.MODEL))
