"""A user's Python file with everything that it imports from its own folder, read without running any of it."""

from __future__ import annotations

import ast
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath

from orchestrator.text import shorten

_MOST_CHARACTERS = 1_000_000  # of all files together: they travel to the worker of each trial


class CodeKind(StrEnum):
    """What a user's class or function is."""

    LOSS = "loss"
    MODEL = "model"
    DATASET = "dataset"


@dataclass(frozen=True, slots=True)
class OwnCode:
    """A class or function in a user's file, and that file with what it imports from its own folder.

    `files` are pairs of a path relative to that folder and the text, in the order of the paths; `file` is one of these
    paths. `folder` is known for datasets alone, which are read where they are and may read other files beside them.
    """

    kind: CodeKind
    file: str
    attribute: str
    files: tuple[tuple[str, str], ...]
    folder: str = field(default="", compare=False)

    @property
    def text(self) -> str:
        """Of the user's file."""
        return dict(self.files)[self.file]

    @property
    def name(self) -> str:
        """What results call it, like `my_loss:MyLoss`."""
        return f"{PurePosixPath(self.file).stem}:{self.attribute}"

    @property
    def digest(self) -> str:
        """12 hex digits over the attribute and every path and text: an edit makes another trial."""
        parts = [self.attribute, self.file, *(part for file in self.files for part in file)]
        lengths = ",".join(str(len(part)) for part in parts)
        return hashlib.sha256("\0".join([lengths, *parts]).encode()).hexdigest()[:12]

    @property
    def package(self) -> str:
        """The name of the package that the files are imported as; no other module has it."""
        place = hashlib.sha256(self.folder.encode(errors="surrogateescape")).hexdigest()[:12] if self.folder else ""
        return f"_kdctl_own_{self.digest}{place}"


_NAMED = re.compile(r"(.+\.py)(?::([A-Za-z_]\w*))?")


def split_name(text: object) -> tuple[str, str] | None:
    """The path and the attribute in `./my_loss.py:MyLoss`; None for a text of another form.

    Raises ValueError where the attribute is missing.
    """
    match = _NAMED.fullmatch(text) if isinstance(text, str) else None
    if not match:
        return None
    if not match[2]:
        raise ValueError(
            f"found {shorten(match[1])} alone; add the class or function in it; write {shorten(match[1])}:NAME"
        )
    return match[1], match[2]


def is_own(text: str) -> bool:
    """Whether a text names a user's own code, maybe in a wrong way."""
    return _NAMED.fullmatch(text) is not None


def read_own_code(path: Path, attribute: str, kind: CodeKind = CodeKind.LOSS) -> OwnCode:
    """Reads a file and, as far as its imports lead, those of its folder. Runs nothing.

    Raises ValueError for a file that cannot be read, parsed or imported by its name, and for more than a million
    characters.
    """
    if not path.stem.isidentifier():
        raise ValueError(f"Python cannot import a file named {path.name}; rename it, like my_loss.py")
    folder, files = path.parent, {path.name: _read(path)}
    waiting = [path.name]
    while waiting and _check_size(files):
        current = waiting.pop()
        for name in _find_imported(current, parse(files[current], current)):
            for found in _resolve(folder, name):
                if found not in files:
                    files[found] = _read(folder / found)
                    waiting.append(found)
    place = str(folder.resolve()) if kind is CodeKind.DATASET else ""
    return OwnCode(kind, path.name, attribute, tuple(sorted(files.items())), place)


def parse(text: str, name: str) -> ast.Module:
    """The syntax tree of a user's file. Raises ValueError with the line where it is not Python."""
    try:
        return ast.parse(text, name)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f"{name}, line {line}" if line else name
        raise ValueError(f"{where}: {getattr(error, 'msg', error)}; Python cannot read this file; correct it") from None


def _check_size(files: Mapping[str, str]) -> bool:
    """True. Raises ValueError where the files are too large to travel."""
    if sum(map(len, files.values())) > _MOST_CHARACTERS:
        raise ValueError(
            f"{next(iter(files))} and what it imports from its folder are {len(files)} files with more than a million "
            "characters; move data out of them"
        )
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"{path.name} cannot be read ({error.strerror}); paths are relative to the study file"
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} is not UTF-8 text; expected a Python file") from None


def _find_imported(current: str, tree: ast.Module) -> Iterator[str]:
    """The dotted names that a file may import, absolute within its folder: `a`, `a.b` and `a.b.c` for the last."""
    package = PurePosixPath(current).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _prefixes(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += (node.module or "").split(".") if node.module else []
            for alias in node.names:
                yield from _prefixes(".".join([*base, alias.name]))


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _resolve(folder: Path, name: str) -> Iterator[str]:
    """The file of the folder that a dotted name imports: a module, or the `__init__.py` of a package."""
    found = (path for path in list_candidates(name) if (folder / path).is_file())
    yield from itertools.islice(found, 1)


def list_candidates(name: str) -> tuple[str, str]:
    """The files that a dotted name may import, the first of which counts: a package, or a module."""
    path = name.replace(".", "/")
    return f"{path}/__init__.py", f"{path}.py"


def find_tops(files: Mapping[str, str]) -> frozenset[str]:
    """The first parts of what the files can be imported as: a module's or a package's name."""
    return frozenset(PurePosixPath(path).parts[0].removesuffix(".py") for path in files)
