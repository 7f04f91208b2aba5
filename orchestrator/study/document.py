"""YAML 1.2 data with the location of every value: the only module that imports PyYAML.

PyYAML's own loader reads YAML 1.1, where `1e-3` is text, `no` is False and a duplicate key silently wins. Here its
parser only supplies the events; their meaning follows the core schema of YAML 1.2.2, section 10.3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import Fault, StudyError
from orchestrator.text import nearest_file, shorten

MAX_BYTES = 1 << 20  # a study file has a few kilobytes; 100,000 seeds written out take 700
MAX_NODES = 200_000  # after aliases are followed
MAX_DEPTH = 40

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser where PyYAML was built with it

_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"(true|True|TRUE)|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]{1,100}", re.ASCII)
_OCTAL_OR_HEX = re.compile(r"0o[0-7]{1,100}|0x[0-9a-fA-F]{1,100}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,9})?", re.ASCII)
_TAB = re.compile(r" *\t")
_MERGE = "<<"
_SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF)|(\.nan|\.NaN|\.NAN)")


@dataclass(frozen=True, slots=True)
class Location:
    """Where a value is: line and column of a file, from 1; line 0 for an entire file or an entire `--set`."""

    source: str
    line: int
    column: int

    def fault(self, path: str, message: str) -> Fault:
        """A fault at this location."""
        return Fault(self.source, self.line, self.column, path, message)


Scalar = str | int | float | bool | None


@dataclass(slots=True)
class Node:
    """A value of the document. `value` is a scalar, a list of nodes, or a dict from key to node."""

    value: Scalar | list[Node] | dict[str, Node]
    location: Location
    keys: dict[str, Location] = field(default_factory=dict)  # of a mapping: each key's location
    weight: int = 1  # the number of nodes in it, itself included, with aliases followed

    def describe(self) -> str:
        """The value in words that are familiar to a person who writes YAML."""
        match self.value:
            case None:
                return "nothing"
            case bool():
                return "true" if self.value else "false"
            case dict():
                return "a mapping"
            case list():
                return "a list" if self.value else "an empty list"
            case str():
                return f"the text {shorten(self.value)!r}"
            case int() | float():
                return f"the number {shorten(str(self.value))}"


def read(path: Path) -> Node:
    """Reads the document in a UTF-8 file. Raises StudyError as `read_text` and `parse` do."""
    return parse(read_text(path), str(path))


def read_text(path: Path) -> str:
    """Reads the text of a UTF-8 file once, as a pipe can be read only once. Raises StudyError where it is not text."""
    source = str(path)
    whole = Location(source, 0, 0)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise StudyError([whole.fault("", "this is a folder; name the study file in it")]) from None
    except FileNotFoundError:
        raise StudyError([whole.fault("", f"there is no such file; {nearest_file(path)}")]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StudyError([whole.fault("", f"the file cannot be read ({reason}); check the path")]) from None
    if len(raw) > MAX_BYTES:
        message = (
            f"the file is larger than {MAX_BYTES:,} bytes; a study file is a few kilobytes of text: check the path"
        )
        raise StudyError([whole.fault("", message)])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise StudyError([whole.fault("", "the file is not UTF-8 text but UTF-16; save it as UTF-8")]) from None
        before = raw[: error.start].decode("utf-8", "replace")
        message = f"the file is not UTF-8 text (byte 0x{raw[error.start]:02x}); save it as UTF-8"
        raise StudyError([_locate_end(source, before).fault("", message)]) from None


def parse(text: str, source: str, faults: list[Fault] | None = None) -> Node:
    """Parses a text into a document.

    Raises StudyError with every fault found. If `faults` is given, faults that still leave a usable document, such as a
    duplicate key, are added to it instead.
    """
    builder = _Builder(source, text)
    if lone := re.search("[\ud800-\udfff]", text):  # bytes of a command line that are not UTF-8 arrive as these
        raise StudyError(
            [_locate_end(source, text[: lone.start()]).fault("", "this is not UTF-8 text; write it as UTF-8")]
        )
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.reader.ReaderError as error:
        character = error.character if isinstance(error.character, int) else ord(str(error.character)[0])
        # The error's own position is in bytes or in characters, depending on the parser.
        location = _locate_end(source, text.partition(chr(character))[0])
        message = f"character U+{character:04X} is not allowed in YAML; remove it"
        raise StudyError([*builder.faults, location.fault("", message)]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        location = Location(source, mark.line + 1, mark.column + 1) if mark else Location(source, 1, 1)
        message = f"this is not YAML: {error.problem}; check indentation, colons, quotes and brackets"
        fault = builder.find_tab(location.line, location.line) or location.fault("", message)
        raise StudyError([*builder.faults, fault]) from None
    if faults is not None and builder.root is not None:
        faults += builder.faults
    elif builder.faults:
        raise StudyError(builder.faults)
    if builder.root is None:
        message = "the file is empty; a study needs at least `study` and `experiments`"
        raise StudyError([Location(source, 1, 1).fault("", message)])
    return builder.root


def parse_setting(text: str, source: str) -> Node:
    """Parses the value of a `--set`, which is YAML too; its location is the entire `--set`. Raises StudyError."""
    try:
        node = parse(text, source) if text.strip() else Node(None, Location(source, 0, 0))
    except StudyError as error:
        raise StudyError(Fault(source, 0, 0, fault.path, fault.message) for fault in error.faults) from None
    location = Location(source, 0, 0)
    for part in _walk(node):
        part.location = location
        part.keys = dict.fromkeys(part.keys, location)
    return node


def _walk(node: Node) -> Iterator[Node]:
    yield node
    if isinstance(node.value, list | dict):
        for child in node.value.values() if isinstance(node.value, dict) else node.value:
            yield from _walk(child)


def parse_scalar(text: str) -> Scalar:
    """The value of a plain scalar in the core schema of YAML 1.2."""
    if _NULL.fullmatch(text):
        return None
    if match := _BOOL.fullmatch(text):
        return match[1] is not None
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL_OR_HEX.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if match := _SPECIAL.fullmatch(text):
        return math.nan if match[3] else float(f"{match[1]}inf")
    return text


def _locate_end(source: str, before: str) -> Location:
    return Location(source, before.count("\n") + 1, len(before) - before.rfind("\n"))


@dataclass(slots=True)
class _Open:
    """A list or mapping that has not ended yet."""

    node: Node
    anchor: str | None
    key: str | None = None  # the key whose value comes next
    merge: Location | None = None  # the location of a mapping's `<<`
    is_merging: bool = False  # whether the value of `<<` comes next
    merged: list[Node] = field(default_factory=list)  # the mappings that it adds; the first one wins


class _Builder:
    """Builds nodes from events without recursion, so that no document can overflow the stack."""

    def __init__(self, source: str, text: str) -> None:
        self.source = source
        self._lines = text.split("\n")
        self.root: Node | None = None
        self.faults: list[Fault] = []
        self._open: list[_Open] = []
        self._anchors: dict[str, Node] = {}
        self._documents = 0

    def take(self, event: Any) -> None:
        """Handles one event of the parser. Raises StudyError where it would be useless to continue."""
        location = Location(self.source, event.start_mark.line + 1, event.start_mark.column + 1)
        if getattr(event, "tag", None) not in (None, "!"):
            self.faults.append(
                location.fault("", f"tag {shorten(event.tag)!r} is not allowed; a study file is plain data")
            )
        match event:
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    self._stop(location, "a second document starts here; a study file holds one: remove this `---`")
            case yaml.ScalarEvent():
                self._take_scalar(event, location)
            case yaml.AliasEvent():
                self._add(self._follow_alias(str(event.anchor), location), None, None, location)
            case yaml.SequenceStartEvent():
                self._push(Node([], location), event.anchor, location)
            case yaml.MappingStartEvent():
                self._push(Node({}, location), event.anchor, location)
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                self._merge(self._open[-1])
                closed = self._open.pop()
                self._add(closed.node, closed.anchor, None)

    def _take_scalar(self, event: yaml.ScalarEvent, location: Location) -> None:
        plain = event.implicit[0] and event.tag is None  # without quotes; the tag `!` makes text too
        if plain and event.value == _MERGE and self._expect_merged(location):
            return
        # YAML lets the next line of a plain scalar begin with a tab, but its author intended another value.
        if plain and event.end_mark and (fault := self.find_tab(location.line + 1, event.end_mark.line + 1)):
            self.faults.append(fault)
        self._add(Node(parse_scalar(event.value) if plain else event.value, location), event.anchor, event.value)

    def find_tab(self, first: int, last: int) -> Fault | None:
        """A fault at the first tab in the indentation of these lines, as YAML does not allow tabs there."""
        for number, line in enumerate(self._lines[first - 1 : last], first):
            if match := _TAB.match(line):
                message = "a tab indents this line, and YAML indents with spaces only; replace it with spaces"
                return Location(self.source, number, match.end()).fault("", message)
        return None

    # Merge keys, as YAML 1.1 defines them: https://yaml.org/type/merge.html

    def _expect_merged(self, location: Location) -> bool:
        """Whether a `<<` here is a key; if it is, the value after it is merged."""
        parent = self._open[-1] if self._open else None
        if parent is None or not isinstance(parent.node.value, dict) or parent.key is not None or parent.is_merging:
            return False
        if parent.merge:
            message = f"key '<<' appears again, first in line {parent.merge.line}; write one, like `<<: [*a, *b]`"
            self.faults.append(location.fault("", message))
        parent.is_merging, parent.merge = True, location
        return True

    def _take_merged(self, parent: _Open, node: Node, location: Location) -> None:
        sources = node.value if isinstance(node.value, list) else [node]
        if wrong := next((source for source in sources if not isinstance(source.value, dict)), None):
            message = (
                f"found {wrong.describe()}; `<<` adds the keys of a mapping, or of a list of mappings; "
                "write `<<: *name`, and `&name` before that mapping"
            )
            self.faults.append((location if wrong is node else wrong.location).fault("", message))
        parent.merged += [source for source in sources if isinstance(source.value, dict)]
        parent.is_merging = False

    def _merge(self, opened: _Open) -> None:
        """Adds the merged keys that a mapping does not have itself; each keeps its own location."""
        for source in opened.merged:
            assert isinstance(source.value, dict) and isinstance(opened.node.value, dict)
            for name in [name for name in source.value if name not in opened.node.value]:
                opened.node.value[name] = source.value[name]
                opened.node.keys[name] = source.keys[name]
                self._weigh(opened.node, source.value[name])

    def _push(self, node: Node, anchor: str | None, location: Location) -> None:
        if len(self._open) >= MAX_DEPTH:
            self._stop(location, f"more than {MAX_DEPTH} levels deep; a study file needs 5")
        self._open.append(_Open(node, anchor))

    def _follow_alias(self, anchor: str, location: Location) -> Node:
        if anchor in self._anchors:
            return self._anchors[anchor]
        inside = any(opened.anchor == anchor for opened in self._open)
        target = "itself" if inside else "nothing"
        self._stop(location, f"alias *{shorten(anchor)} refers to {target}; write the value out")
        raise AssertionError("unreachable")

    def _add(self, node: Node, anchor: str | None, text: str | None, location: Location | None = None) -> None:
        """Adds a complete node to its parent. `text` is the source text of a scalar, `location` that of an alias."""
        if anchor:
            self._anchors[anchor] = node
        if not self._open:
            self.root = node
            return
        parent = self._open[-1]
        if parent.is_merging:
            self._take_merged(parent, node, location or node.location)
            return
        if isinstance(parent.node.value, list):
            parent.node.value.append(node)
        elif parent.key is None:
            parent.key = self._check_key(node, text, parent.node, location or node.location)
            return
        else:
            assert isinstance(parent.node.value, dict)
            parent.node.value[parent.key] = node
            parent.key = None
        self._weigh(parent.node, node)

    def _weigh(self, parent: Node, node: Node) -> None:
        parent.weight += node.weight
        if parent.weight > MAX_NODES:
            message = f"more than {MAX_NODES:,} values once aliases are followed; write fewer, or plain numbers"
            self._stop(parent.location, message)

    def _check_key(self, node: Node, text: str | None, parent: Node, location: Location) -> str:
        if text is None:
            text = node.value if isinstance(node.value, str) else None
        if text is None:
            self.faults.append(location.fault("", f"a key is {node.describe()}; keys are plain words"))
            text = f"?{len(parent.keys)}"
        if text in parent.keys:
            first = parent.keys[text].line
            message = f"key {shorten(text)!r} appears again, first in line {first}; keep one of them"
            self.faults.append(location.fault("", message))
        else:
            parent.keys[text] = location
        return text

    def _stop(self, location: Location, message: str) -> None:
        raise StudyError([*self.faults, location.fault("", message)])
