"""A working folder full of modules with the names of others: kdctl and its workers import none of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import import_path
from orchestrator.storage.layout import Storage

STUDY = """\
study: trapped
recipe: {epochs: 1, limit_train: 64, limit_test: 50, batch_size: 32, crop_padding: 1, flip: false, milestones: []}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8}
  - {method: ./own/my_loss.py:MyLoss, dataset: digits, student: resnet_32_8, teacher: resnet_32_8}
resources: {gpus_per_trial: 0}
"""
KDCTL = str(Path(sys.executable).with_name("kdctl"))
ROOT = Path(import_path.ROOT)
OWN = {  # a loss whose folder has packages with the names of others, which it does import
    "my_loss.py": "import torch\nimport losses.distance\nfrom models.sizes import SCALE\n"
    "from orchestrator import NAME\n"
    "class MyLoss(torch.nn.Module):\n"
    "  def forward(self, student, labels, teacher, progress):\n"
    "    assert NAME == 'mine'\n"
    "    return SCALE * losses.distance.mean_square(student.logits, teacher.logits)\n",
    "models/sizes.py": "SCALE = 2.0\n",
    "losses/__init__.py": "import json\n",
    "losses/distance.py": "def mean_square(a, b):\n  return (a - b).square().mean()\n",
    "orchestrator.py": "NAME = 'mine'\n",
}
# What is installed, or looked for by what is; then the standard library.
MODULES = """
aiohttp click duckdb jinja2 kdctl losses numpy orchestrator pandas PIL pyarrow pytz ray rich safetensors scipy sklearn
torch torchvision wandb yaml
collections enum functools json logging nt pathlib random re socket tempfile types typing warnings
"""


@pytest.fixture
def folder(digits_storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a study, where a module of each of these names ends whoever imports it."""
    for name in MODULES.split():
        (tmp_path / f"{name}.py").write_text("import os\nos._exit(77)\n")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    for name, text in OWN.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_text(text)
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "datasets").symlink_to(Path(digits_storage.backend.address, "datasets"))
    monkeypatch.setenv("PYTHONPATH", ".")
    return tmp_path


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder."""
    return subprocess.run(words, cwd=folder, input="", capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "words",
    [("--help",), ("check", "study.yaml"), ("plan", "study.yaml"), ("launch", "study.yaml", "--inline"), ("doctor",)],
)
def test_a_command_imports_nothing_of_the_folder(folder: Path, words: tuple[str, ...]) -> None:
    done = run(folder, KDCTL, *words)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(200)
def test_a_launch_on_ray_imports_nothing_of_the_folder(folder: Path) -> None:
    done = run(folder, KDCTL, "launch", "study.yaml", "--address", "local", "--no-dashboard", "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events and "retry" not in str(events)


@pytest.mark.timeout(200)
def test_a_script_of_a_user_launches_beside_a_models_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH")
    for name in set(MODULES.split()) - {"losses"}:
        (folder / f"{name}.py").unlink()
    (folder / "script.py").write_text(
        "import models\nfrom orchestrator.launch import launch\n"
        "if __name__ == '__main__':\n"
        "    assert launch('study.yaml', inline=True).is_complete\n"
        "    import ray\n"
        "    ray.init(num_cpus=1, include_dashboard=False)\n"
        "    assert launch('study.yaml', storage='on-ray').is_complete and ray.is_initialized()\n"
    )
    done = run(folder, sys.executable, "script.py")
    assert done.returncode == 0, done.stderr
    assert "is not changed" in done.stderr and "experiment_analysis" not in done.stderr


def paths(folder: Path, code: str, **environment: str) -> list[list[str]]:
    """The paths of a process after `put_in_order`, and of one that it starts."""
    code = f"{code}; import json, subprocess, sys; print(json.dumps(sys.path), flush=True); "
    code += "subprocess.run([sys.executable, '-c', 'import json, sys; print(json.dumps(sys.path))'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


ORDER = "from orchestrator.import_path import put_in_order as order; order(); order()"


def test_other_entries_of_pythonpath_go_last(tmp_path: Path) -> None:
    for path in paths(tmp_path, ORDER, PYTHONPATH=f"/opt/packages:.:sub:{tmp_path}"):
        assert path[-2:] == ["/opt/packages", str(tmp_path / "sub")]
        assert str(tmp_path) not in path and "" not in path
        assert str(ROOT) in path[:-2] and path.index(str(Path(os.__file__).parent)) == 1


def test_without_pythonpath_children_get_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    assert import_path.make_child_environment() == {"PYTHONSAFEPATH": "1"}
    monkeypatch.setenv("PYTHONPATH", ".")
    assert import_path.make_child_environment() == {"PYTHONSAFEPATH": "1", "PYTHONPATH": ""}
