"""The order of `sys.path`: installed packages come first, and the working folder is left out.

A working folder may have a `torch.py`, an `orchestrator/` or a `wandb/` of its own. Other entries of
PYTHONPATH stay, at the end, since some systems put sets of packages there. This module imports only what Python
has loaded when it starts, because before `put_in_order` any other name may be a module of the working folder.
"""

import os
import site
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - pathlib is not loaded yet
_STANDARD, _INSTALLED, _OTHER = range(3)


def put_in_order() -> None:
    """Orders `sys.path` of this process, and of every Python process that it starts later."""
    environment = make_child_environment()
    start_entries = _list_start_entries()
    entries = [
        entry for entry in sorted(sys.path, key=_rank) if _rank(entry) < _OTHER or _absolute(entry) not in start_entries
    ]
    own = [ROOT] if ROOT in start_entries else []
    sys.path[:] = dict.fromkeys([*entries, *own, *_list_user_entries()])
    os.environ.update(environment)


def make_child_environment() -> dict[str, str]:
    """The environment variables with which another process of this Python finds modules in the same order.

    PYTHONPATH is among them only where the user set it, or where kdctl is used without being installed. It then begins
    with this Python's own folders, as Python puts it before the standard library.
    """
    environment = {"PYTHONSAFEPATH": "1"}  # `python -m` and `python -c` leave the working folder out
    users = _list_user_entries()
    if users or (ROOT in _list_start_entries() and _rank(ROOT) == _OTHER):
        first = [entry for entry in sorted(sys.path, key=_rank) if _rank(entry) < _OTHER]
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*first, ROOT, *users]))
    elif os.environ.get("PYTHONPATH"):
        environment["PYTHONPATH"] = ""
    return environment


def _rank(entry: str) -> int:
    """Whether a folder belongs to the standard library, contains installed packages, or neither."""
    name = os.path.basename(entry)  # noqa: PTH119
    archive = f"python{sys.version_info[0]}{sys.version_info[1]}.zip"
    if name in ("lib-dynload", archive) or entry == os.path.dirname(os.__file__):  # noqa: PTH120
        return _STANDARD
    installed = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    return _INSTALLED if entry in installed else _OTHER


def _list_user_entries() -> list[str]:
    """The entries of PYTHONPATH, without the working folder."""
    return [entry for entry in _python_path() if entry != _absolute("")]


def _list_start_entries() -> list[str]:
    """The folders that the start of this process added: PYTHONPATH, and the script's folder or the current one."""
    return [*_python_path(), *(() if sys.flags.safe_path else map(_absolute, sys.path[:1]))]


def _python_path() -> list[str]:
    text = "" if sys.flags.ignore_environment else os.environ.get("PYTHONPATH", "")
    return [_absolute(entry) for entry in text.split(os.pathsep)] if text else []


def _absolute(entry: str) -> str:
    try:
        return os.path.abspath(entry)  # noqa: PTH100
    except OSError:  # the working folder is gone
        return entry
