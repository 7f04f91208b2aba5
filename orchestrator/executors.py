"""The executors, which run the trials of a launch, as a literal table that is read without PyTorch and Ray.

To add one, write a module in `execution/` with a function `run(work, on_event, **options)`, which uses
`execution.controller` as `execution.inline` does, and add one entry here. `tests/execution/test_executors.py` then
checks that it does what every executor must do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from orchestrator.errors import KdctlError
from orchestrator.text import nearest

DEFAULT = "ray"


@dataclass(frozen=True, slots=True)
class Executor:
    """One executor.

    `run` is the function that trains, as `module:function`. `where` completes the sentence "it trains …". `options` are
    the options of `kdctl launch` that this executor takes and others may not. If `is_supervised`, a launch runs in a
    child process, see `cluster.launch_supervisor`, because the executor may end its process. `flag` is the short form
    of `--executor NAME`, if there is one.
    """

    run: str
    where: str
    options: tuple[str, ...] = ()
    is_supervised: bool = False
    flag: str | None = None

    def load(self) -> Callable[..., None]:
        """The function that trains, imported."""
        module, _, name = self.run.partition(":")
        function: Callable[..., None] = getattr(import_module(module), name)
        return function

    def select_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Selects from the given options those that this executor takes."""
        return {name: value for name, value in given.items() if name in self.options}


EXECUTORS: Mapping[str, Executor] = {
    "ray": Executor(
        run="orchestrator.execution.ray.executor:run",
        where="on Ray",
        options=("address", "dashboard", "max_concurrent"),
        is_supervised=True,
    ),
    "inline": Executor(
        run="orchestrator.execution.inline:run",
        where="in one process",
        options=("max_concurrent",),
        flag="--inline",
    ),
}


def get(name: str) -> Executor:
    """The executor with this name. Raises KdctlError for a name that is not in the table."""
    if name not in EXECUTORS:
        raise KdctlError(f"unknown executor {name!r}; expected {' or '.join(EXECUTORS)}; {nearest(name, EXECUTORS)}")
    return EXECUTORS[name]


def describe_where(name: str) -> str:
    """Where an executor trains; only its name if it belongs to another version of kdctl."""
    return EXECUTORS[name].where if name in EXECUTORS else name


def arguments(name: str) -> list[str]:
    """The command-line arguments that choose an executor; none for the default."""
    if name == DEFAULT:
        return []
    flag = EXECUTORS[name].flag if name in EXECUTORS else None
    return [flag] if flag else ["--executor", name]
