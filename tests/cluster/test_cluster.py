"""A cluster of several nodes: if one dies, its trials lose only the epochs since their last checkpoints."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos import numbers
from launch_events import ignore
from processes import descendants

from orchestrator.launch import launch
from orchestrator.storage.layout import Storage

pytestmark = [
    pytest.mark.timeout(290),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc"),
]

STUDY = """\
study: long
recipe: {epochs: 100, limit_train: 128, limit_test: 100, batch_size: 32, crop_padding: 1, flip: false, lr: 0.05}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, seed: [0, 1]}
resources: {gpus_per_trial: 0, cpus_per_trial: 1, checkpoint_seconds: 0}
"""


# Ray checks its nodes regularly, and gives up one that did not answer five times in a row.
HEALTH = {"RAY_health_check_initial_delay_ms": "500", "RAY_health_check_period_ms": "500"}


@pytest.fixture
def cluster() -> Iterator[dict[str, Any]]:
    """A head that trains nothing and two nodes of one core: its address, and the node processes' ids."""
    command = [sys.executable, str(Path(__file__).parents[1] / "cluster.py"), "2"]
    with (
        # Where no other test finds it; a short path, as those of sockets are.
        tempfile.TemporaryDirectory(prefix="kc-", dir="/tmp", ignore_cleanup_errors=True) as short,
        subprocess.Popen(
            command,
            env={**os.environ, **HEALTH, "RAY_TMPDIR": short},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process,
    ):
        assert process.stdin and process.stdout
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()


def test_a_dead_node_costs_only_what_came_after_the_checkpoint(
    cluster: dict[str, Any], digits_storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    for name in ("runs", "undisturbed"):
        shutil.copytree(Path(digits_storage.backend.address) / "datasets", tmp_path / name / "datasets")
    command = [str(Path(sys.executable).with_name("kdctl")), "launch", "study.yaml", "--address", cluster["address"]]
    killed = False
    lines = []
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        for line in process.stderr:
            lines.append(line)
            if re.search(r": epoch ([2-9]|[1-7]\d)/100", line) and not killed:
                killed = True
                node = cluster["raylets"][0]
                for pid in [node, *(pid for pid, _ in descendants(node))]:
                    os.kill(pid, signal.SIGKILL)
    output = "".join(lines)
    assert process.returncode == 0, output
    assert killed and output.count("was lost; retried in 5 s from its last checkpoint (1 of 2)") == 1, output
    resumed = re.search(r"resumes in epoch (\d+) of 100, from its checkpoint", output)
    assert resumed and int(resumed[1]) > 1, output
    launch(tmp_path / "study.yaml", storage=tmp_path / "undisturbed", inline=True, on_event=ignore)
    assert numbers(tmp_path / "runs") == numbers(tmp_path / "undisturbed")
