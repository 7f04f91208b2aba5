"""Where modules are looked for: what is installed comes first, and the working folder is left out.

A folder that people work in may have a `torch.py`, an `orchestrator/` or a `wandb/` of its own. Other entries of
PYTHONPATH stay, at the end, since some systems put whole sets of packages there. This module imports only what Python
has loaded when it starts, as before `put_in_order` every other name may be somebody else's.
"""

import os
import site
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - pathlib is not loaded yet
_STANDARD, _INSTALLED, _OTHER = range(3)


def put_in_order() -> None:
    """Orders the path of this process, and of every Python process that it will start."""
    environment = for_children()
    named = _named()
    entries = [entry for entry in sorted(sys.path, key=_rank) if _rank(entry) < _OTHER or _absolute(entry) not in named]
    own = [ROOT] if ROOT in named else []
    sys.path[:] = dict.fromkeys([*entries, *own, *_users()])
    os.environ.update(environment)


def for_children() -> dict[str, str]:
    """The environment variables with which another process of this Python finds modules in the same order.

    PYTHONPATH is among them only where the user set it, or where kdctl is used without being installed. It then begins
    with this Python's own folders, as Python puts it before the standard library.
    """
    environment = {"PYTHONSAFEPATH": "1"}  # `python -m` and `python -c` leave the working folder out
    users = _users()
    if users or (ROOT in _named() and _rank(ROOT) == _OTHER):
        first = [entry for entry in sorted(sys.path, key=_rank) if _rank(entry) < _OTHER]
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*first, ROOT, *users]))
    elif os.environ.get("PYTHONPATH"):
        environment["PYTHONPATH"] = ""
    return environment


def _rank(entry: str) -> int:
    """Whether a folder is of the standard library, one that packages are installed into, or another."""
    name = os.path.basename(entry)  # noqa: PTH119
    archive = f"python{sys.version_info[0]}{sys.version_info[1]}.zip"
    if name in ("lib-dynload", archive) or entry == os.path.dirname(os.__file__):  # noqa: PTH120
        return _STANDARD
    installed = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    return _INSTALLED if entry in installed else _OTHER


def _users() -> list[str]:
    """The entries of PYTHONPATH, without the working folder."""
    return [entry for entry in _python_path() if entry != _absolute("")]


def _named() -> list[str]:
    """The folders that the way this process was started put in front: PYTHONPATH, and the script's or the current."""
    return [*_python_path(), *(() if sys.flags.safe_path else map(_absolute, sys.path[:1]))]


def _python_path() -> list[str]:
    text = "" if sys.flags.ignore_environment else os.environ.get("PYTHONPATH", "")
    return [_absolute(entry) for entry in text.split(os.pathsep)] if text else []


def _absolute(entry: str) -> str:
    try:
        return os.path.abspath(entry)  # noqa: PTH100
    except OSError:  # the working folder is gone
        return entry
