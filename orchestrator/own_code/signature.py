"""What a user's loss, model or dataset declares in its signature, read from its syntax tree."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.losses import Option
from orchestrator.own_code.source import CodeKind, OwnCode, parse

_CALL = ("student", "labels", "teacher", "progress")
_SHAPES = ("student", "teacher")
_OUTPUTS = ("logits", "pooled", "maps")
_MOST = 1e9

Definition = ast.ClassDef | ast.FunctionDef


@dataclass(frozen=True, slots=True)
class LossSignature:
    """`is_function` is a function that is the loss itself; another is a class or function that builds it.

    `takes_shapes` says whether it is built with the `Shapes` of student and teacher.
    """

    is_function: bool
    takes_shapes: bool
    needs: tuple[str, ...]
    options: Mapping[str, Option]


def read_loss(code: OwnCode) -> LossSignature:
    """The signature of a loss. Raises ValueError where kdctl could not call it."""
    tree = parse(code.text, code.file)
    found = _find(code, tree)
    function = _find_function(found)
    required = _list_required(found)
    is_function = isinstance(found, ast.FunctionDef) and required == _CALL
    if not is_function and required not in ((), _SHAPES):
        raise ValueError(
            f"{_where(code, found)} takes {', '.join(required)}; expected a function of {', '.join(_CALL)}, or a class "
            f"that takes nothing, or {' and '.join(_SHAPES)} (their shapes); every other parameter is an option: give "
            "it a default"
        )
    options = dict(_read_options(code, function)) if function else dict(_read_fields(code, found))
    return LossSignature(is_function, required == _SHAPES, _read_needs(code, tree, found), options)


_PARAMETERS = {
    CodeKind.MODEL: ("the number of classes", "def build(num_classes):"),
    CodeKind.DATASET: ("the split, `train` or `test`", "def load(split):"),
}


def check_parameter(code: OwnCode) -> None:
    """Raises ValueError where kdctl could not call a model's or a dataset's code: both take one value."""
    found = _find(code, parse(code.text, code.file))
    required = _list_required(found)
    if len(required) != 1:
        what, example = _PARAMETERS[code.kind]
        raise ValueError(
            f"{_where(code, found)} takes {', '.join(required) or 'nothing'}; expected one parameter without a "
            f"default, {what}; write `{example}`"
        )


def _where(code: OwnCode, node: ast.stmt) -> str:
    return f"{code.file}, line {node.lineno}: {code.attribute}"


def _find(code: OwnCode, tree: ast.Module) -> Definition:
    defined = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    if code.attribute in defined:
        return defined[code.attribute]
    names = ", ".join(name for name in defined if not name.startswith("_")) or "none"
    raise ValueError(
        f"{code.file} defines no class or function {code.attribute}; it defines {names}; name one of these"
    )


def _find_function(found: Definition) -> ast.FunctionDef | None:
    """The function that is called: a class's `__init__`, if it has one."""
    if isinstance(found, ast.FunctionDef):
        return found
    inits = (node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return next(inits, None)


def _list_required(found: Definition) -> tuple[str, ...]:
    """The parameters without a default that a caller gives."""
    function = _find_function(found)
    if function is None:
        return ()
    arguments = function.args
    positional = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    without = positional[: len(positional) - len(arguments.defaults)]
    keywords = [a.arg for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if not default]
    return (*without[1 if isinstance(found, ast.ClassDef) else 0 :], *keywords)


def _read_options(code: OwnCode, function: ast.FunctionDef) -> Iterator[tuple[str, Option]]:
    """Every parameter with a default."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    parameters = [*positional[len(positional) - len(arguments.defaults) :], *arguments.kwonlyargs]
    for argument, default in zip(parameters, [*arguments.defaults, *arguments.kw_defaults], strict=True):
        if default is not None:
            yield argument.arg, _read_option(code, argument.arg, argument.annotation, default)


def _read_fields(code: OwnCode, found: Definition) -> Iterator[tuple[str, Option]]:
    """The fields of a dataclass that have defaults."""
    is_dataclass = any("dataclass" in ast.unparse(decorator) for decorator in found.decorator_list)
    for node in found.body if is_dataclass else ():
        if isinstance(node, ast.AnnAssign) and node.value and _names(node) not in ([], ["needs"]):
            name = _names(node)[0]
            yield name, _read_option(code, name, node.annotation, node.value)


def _read_option(code: OwnCode, name: str, annotation: ast.expr | None, default: ast.expr) -> Option:
    where = f"{code.file}, line {default.lineno}: {name}"
    try:
        value = ast.literal_eval(default)
    except ValueError:
        value = None
    if isinstance(value, bool):
        return Option(value, "")
    if isinstance(value, int | float):
        is_integer = isinstance(value, int) and not (annotation and ast.unparse(annotation) == "float")
        return Option(value if is_integer else float(value), "", least=-_MOST, most=_MOST)
    choices = _read_choices(annotation)
    if isinstance(value, str) and value in choices:
        return Option(value, "", choices=choices)
    if isinstance(value, str):
        raise ValueError(f'{where} is a text; list its possible values: `{name}: Literal["{value}", …] = "{value}"`')
    raise ValueError(
        f"{where} has the default {ast.unparse(default)}; expected a number, True, False or one of several texts; "
        "compute other values from these in your code"
    )


def _read_choices(annotation: ast.expr | None) -> tuple[str, ...]:
    """The texts in `Literal["a", "b"]`."""
    if not isinstance(annotation, ast.Subscript) or not ast.unparse(annotation.value).endswith("Literal"):
        return ()
    items: Sequence[ast.expr] = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    return tuple(item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str))


def _read_needs(code: OwnCode, tree: ast.Module, found: Definition) -> tuple[str, ...]:
    """`needs = ("maps",)` in the class, or in the file; the logits where neither says."""
    for node in itertools.chain(found.body if isinstance(found, ast.ClassDef) else (), tree.body):
        if isinstance(node, ast.Assign | ast.AnnAssign) and "needs" in _names(node):
            return _check_needs(code, node)
    return ("logits",)


def _names(node: ast.Assign | ast.AnnAssign) -> list[str]:
    """The names that an assignment sets."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _check_needs(code: OwnCode, node: ast.Assign | ast.AnnAssign) -> tuple[str, ...]:
    value = node.value
    try:
        needs = tuple(ast.literal_eval(value)) if value is not None else ()
    except (ValueError, TypeError):
        needs = ()
    if isinstance(value, ast.Constant) or not needs or not set(needs) <= set(_OUTPUTS):
        raise ValueError(
            f"{code.file}, line {node.lineno}: found needs = {ast.unparse(value) if value else 'nothing'}; "
            f'expected some of {", ".join(_OUTPUTS)}; write needs = ("logits",)'
        )
    return needs
