"""`--set PATH=VALUE`: changes one value of a study file for one command."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

from orchestrator.errors import Fault, StudyError
from orchestrator.study import document
from orchestrator.study.document import Location, Node
from orchestrator.text import shorten

_NAME = r"[^.\[\]\s]+"
_PATH = re.compile(rf"{_NAME}(?:\.{_NAME}|\[[0-9]+\])*")
_FORM = "write it like recipe.epochs=2 or experiments[0].seed=[0,1]"


def apply(root: Node, setting: str) -> list[Fault]:
    """Applies one `--set` to the document; returns its faults."""
    source = f"--set {shorten(setting)}"
    location = Location(source, 0, 0)
    path, equals, text = (part.strip() for part in setting.partition("="))
    if not equals or not path:
        return [location.fault("", f"expected PATH=VALUE; {_FORM}")]
    if not _PATH.fullmatch(path):
        return [location.fault("", f"{shorten(path)!r} is not a path of keys; {_FORM}")]
    try:
        new = document.parse_setting(text, source)
    except StudyError as error:
        return list(error.faults)
    return _set_value(root, re.findall(_NAME, path), new, location)


def _set_value(root: Node, steps: list[str], new: Node, location: Location) -> list[Fault]:
    """Walks down to the key and sets its value; creates each missing mapping on the way."""
    target = root
    for depth, step in enumerate(steps, 1):
        value: Any = target.value
        child: Node | None
        if isinstance(value, dict):
            at: str | int = step
            child = value.get(step)
        elif isinstance(value, list) and step in map(str, range(len(value))):
            at = int(step)
            child = value[at]
        else:
            return [location.fault("", _describe_dead_end(_join(steps[: depth - 1]), step, target))]
        if depth == len(steps):
            child = new
            target.keys[step] = location
        elif child is None or child.value is None:
            # A missing mapping is created, so that recipe.epochs=2 works in a file without a recipe.
            child = Node({}, location)
            target.keys.setdefault(step, location)
        else:
            # A copy: an alias shares its nodes with the anchor, which this setting must not change.
            child = replace(child, value=copy.copy(child.value), keys=dict(child.keys))
        value[at] = child
        target = child
    return []


def _describe_dead_end(path: str, step: str, node: Node) -> str:
    """Why a path cannot continue with a step."""
    where = shorten(path) or "the file"
    if not isinstance(node.value, list):
        return (
            f"{where} is {node.describe()}, which has no key {shorten(step)!r}; check the path, or set {where} itself"
        )
    if not node.value:
        return f"{where} is an empty list; set {where} itself"
    last = len(node.value) - 1
    entries = f"{where}[0]" if not last else f"{where}[0] to {where}[{last}]"
    return f"{where} is a list, with {entries}; found {shorten(step)!r}; name one of its entries, like {where}[0]"


def _join(steps: list[str]) -> str:
    return "".join(f"[{step}]" if step.isdecimal() else f".{step}" for step in steps).lstrip(".")
