"""Variables that a user exported for other programs that use Ray have no effect on a launch, and are restored."""

from __future__ import annotations

import os

import pytest

from orchestrator.execution.ray import _session
from orchestrator.execution.ray._environment import ray_environment
from orchestrator.machine import limits

FOREIGN = ("TUNE_RESULT_DIR", "RAY_AIR_LOCAL_CACHE_DIR", "RAY_TUNE_CALLBACKS", "RAY_TRAIN_V2_ENABLED", "RAY_STORAGE")


def test_variables_of_other_programs_are_removed_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*FOREIGN, "RAY_RUNTIME_ENV_HOOK", "RAY_AIR_NEW_OUTPUT"):
        monkeypatch.setenv(name, "mine")
    monkeypatch.setenv("PYTHONPATH", ".")
    monkeypatch.delenv("TUNE_DISABLE_SIGINT_HANDLER", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    before = dict(os.environ)
    with ray_environment():
        assert not {*FOREIGN, "RAY_RUNTIME_ENV_HOOK"} & os.environ.keys()
        assert os.environ["RAY_AIR_NEW_OUTPUT"] == "0" and os.environ["TUNE_DISABLE_SIGINT_HANDLER"] == "1"
        assert os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0"
        assert os.environ["PYTHONSAFEPATH"] == "1" and os.environ["PYTHONPATH"] != "."
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "3"  # as the executor does
    assert dict(os.environ) == before


@pytest.mark.parametrize("address", [None, "127.0.0.1:1"])
def test_how_ray_is_started(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}

    def init(**options: object) -> None:
        found.update(options, uv=_session.ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV)

    monkeypatch.setattr(_session.ray, "init", init)
    monkeypatch.setattr(_session, "_reach", lambda address: None)
    monkeypatch.setattr(limits, "cores", lambda: 3)
    monkeypatch.setattr(_session.ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", True)
    _session._connect(address, is_kept=False)
    assert found["num_cpus"] == (None if address else 3) and found["uv"] is False
    assert _session.ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV is True
    assert (found["runtime_env"] is not None) is (address is not None)
    job = found["job_config"]
    job._py_driver_sys_path.extend(["/the/working/folder"])
    assert b"working" not in job._serialize()
