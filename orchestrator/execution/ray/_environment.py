"""The environment variables of a launch on Ray: what was exported for other programs that use Ray changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from orchestrator import import_path

# These decide how a program's own Tune experiment runs: where it writes, what it prints, which callbacks it has.
_FOREIGN = ("TUNE_", "RAY_TUNE_", "RAY_AIR_", "RAY_TRAIN_", "RAY_STORAGE", "RAY_CHDIR_TO_TRIAL_DIR")
_HOOK = "RAY_RUNTIME_ENV_HOOK"  # would give the workers another environment than the launch's

_OWN: Mapping[str, str] = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # three files a trial that nobody reads
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `signals` hears Ctrl-C
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # after `uv run` Ray would upload the working folder and install it again
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def ray_environment() -> Iterator[None]:
    """Within, Ray finds what a launch needs; afterwards the environment is as it was, for a caller of `launch`."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(_FOREIGN) or name == _HOOK:
            del os.environ[name]
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.update({**_OWN, **import_path.for_children()})
    try:
        yield
    finally:
        names = {*_OWN, "PYTHONPATH", "PYTHONSAFEPATH", "TUNE_MAX_PENDING_TRIALS_PG"}
        for name in names - before.keys():
            os.environ.pop(name, None)
        os.environ.update({name: before[name] for name in before if name in names or name.startswith(_FOREIGN)})
        if _HOOK in before:
            os.environ[_HOOK] = before[_HOOK]
