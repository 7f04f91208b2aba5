"""The environment variables of a launch on Ray: those exported for other programs that use Ray have no effect."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from orchestrator import import_path
from orchestrator.machine import limits

# Variables that decide how another program's Tune experiment runs: where it writes, what it prints, its callbacks.
_FOREIGN = ("TUNE_", "RAY_TUNE_", "RAY_AIR_", "RAY_TRAIN_", "RAY_STORAGE", "RAY_CHDIR_TO_TRIAL_DIR")
_HOOK = "RAY_RUNTIME_ENV_HOOK"  # would give the workers an environment that differs from the launch's

_OWN: Mapping[str, str] = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # they would write three files per trial that nobody reads
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `cluster.signals` handles Ctrl-C
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # after `uv run` Ray would upload the working folder and install it again
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def ray_environment() -> Iterator[None]:
    """Sets what a launch on Ray needs; afterwards the environment is as before, for a program that calls `launch`."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(_FOREIGN) or name == _HOOK:
            del os.environ[name]
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    threads = limits.make_thread_environment()  # workers inherit it
    os.environ.update({**_OWN, **threads, **import_path.make_child_environment()})
    try:
        yield
    finally:
        names = {*_OWN, "PYTHONPATH", "PYTHONSAFEPATH", "TUNE_MAX_PENDING_TRIALS_PG", *threads}
        for name in names - before.keys():
            os.environ.pop(name, None)
        os.environ.update({name: before[name] for name in before if name in names or name.startswith(_FOREIGN)})
        if _HOOK in before:
            os.environ[_HOOK] = before[_HOOK]
