"""Imports a user's files from memory, under a package name of their own, so that a worker needs no copy on its disk.

An import in these files is looked up in their own folder first. Their `models` or `utils` is therefore never another
module of that name, and two versions of one file can be loaded side by side.
"""

from __future__ import annotations

import builtins
import importlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePosixPath
from types import CodeType, ModuleType
from typing import Any

from orchestrator.errors import KdctlError
from orchestrator.own_code.source import OwnCode, find_tops, list_candidates

_LOADED: dict[str, OwnCode] = {}  # by their packages


def load(code: OwnCode) -> Any:
    """The class or function that the code names. Raises OwnCodeError with the user's own line."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    _LOADED[code.package] = code
    module = PurePosixPath(code.file).stem
    found = guard(code, lambda: importlib.import_module(f"{code.package}.{module}"))
    return getattr(found, code.attribute)


class OwnCodeError(KdctlError):
    """An exception of a user's own code; the message names the user's file and line."""


def guard(code: OwnCode, call: Callable[[], Any]) -> Any:
    """Calls something that runs a user's code. Raises OwnCodeError for whatever that raises but a lack of memory.

    A script that reads its own command line when it is imported raises SystemExit.
    """
    try:
        return call()
    except (Exception, SystemExit) as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error):
            raise  # no mistake in the code
        raise OwnCodeError(describe_error(code, error)) from error


def describe_error(code: OwnCode, error: BaseException) -> str:
    """An error with the last line of the user's code that it passed through, like `my_loss.py, line 12, in forward`."""
    kind = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(f"{code.package}/")
    ]
    if not frames:
        return f"{code.file}: {kind}"
    last = frames[-1]
    line = f" (`{last.line}`)" if last.line else ""
    return f"{last.filename.partition('/')[2]}, line {last.lineno}, in {last.name}{line}: {kind}"


class _Finder(MetaPathFinder):
    """Finds the modules of loaded code; every other one is left to Python."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, rest = fullname.partition(".")
        code = _LOADED.get(package)
        if code is None:
            return None
        files = dict(code.files)
        for file in list_candidates(rest):
            if file in files:
                loader = _Loader(code, files, file)
                return ModuleSpec(fullname, loader, origin=loader.origin, is_package=file.endswith("__init__.py"))
        if not rest or any(
            file.startswith(f"{rest.replace('.', '/')}/") for file in files
        ):  # a folder without an __init__.py
            return ModuleSpec(fullname, _Loader(code, files, ""), is_package=True)
        return None


class _Loader(InspectLoader):
    """Runs one file of loaded code as a module; "" stands for a folder without an `__init__.py`."""

    def __init__(self, code: OwnCode, files: Mapping[str, str], file: str) -> None:
        self._code = code
        self._files = files
        self._file = file
        self.origin = f"{code.package}/{file}"

    def get_source(self, fullname: str) -> str:
        """The text, which tracebacks and `inspect` show."""
        return self._files.get(self._file, "")

    def get_code(self, fullname: str) -> CodeType:
        """The compiled text. Raises SyntaxError."""
        return compile(self.get_source(fullname), self.origin, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        """Runs the module, with an import of its own."""
        # The code of a dataset finds its images by the folder that it is in; on a worker there is no such folder.
        module.__file__ = str(Path(self._code.folder, self._file)) if self._code.folder else self.origin
        own = {**vars(builtins), "__import__": _make_import(self._code.package, find_tops(self._files))}
        module.__dict__["__builtins__"] = own
        super().exec_module(module)


def _make_import(package: str, tops: frozenset[str]) -> Callable[..., ModuleType]:
    """An `__import__` that looks into the user's folder first."""

    def import_own(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        top = name.partition(".")[0]
        if level or top not in tops:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        found = builtins.__import__(f"{package}.{name}", globals, locals, fromlist or (), 0)
        return found if fromlist else sys.modules[f"{package}.{top}"]

    return import_own
