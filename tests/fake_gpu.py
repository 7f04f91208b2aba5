"""A stand-in for a GPU: processes in which PyTorch finds one whose kernels do nothing. See fakecuda/runtime.c."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

SOURCE = Path(__file__).parent / "fakecuda"
_LIMIT = 250  # seconds for a process, on a machine with other work


def find_headers() -> list[Path]:
    """The folders with the headers of CUDA and cuDNN, which come with PyTorch's wheels; empty if one is missing."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    found = []
    for name in ("cuda_runtime_api.h", "cudnn.h"):
        found += [path.parent for root in roots for path in root.glob(f"*/include/{name}")][:1]
    return found if len(found) == 2 else []


def find_obstacle() -> str | None:
    """Why there cannot be a stand-in on this machine; None if there can."""
    if sys.platform != "linux":
        return "it is made for Linux"
    if not (torch.version.cuda or "").startswith("13."):
        return f"this PyTorch ({torch.__version__}) was not built for CUDA 13"
    if not shutil.which("gcc"):
        return "there is no gcc"
    return None if find_headers() else "the headers of CUDA and cuDNN are missing, which come with PyTorch's wheels"


@dataclass(frozen=True)
class FakeGpu:
    """The built stand-in. `folder` holds its libraries."""

    folder: Path

    @classmethod
    def build(cls, folder: Path) -> FakeGpu:
        """Compiles it, which takes a second."""
        gcc, shared = ["gcc", "-w", "-O1", "-shared", "-fPIC"], [f"-I{SOURCE / 'include'}"]
        shared += [f"-I{path}" for path in find_headers()]
        sources = [str(SOURCE / name) for name in ("runtime.c", "dnn.c", "others.c")]
        subprocess.run([*gcc, *shared, "-o", str(folder / "libfakecuda.so"), *sources, "-lpthread"], check=True)
        driver = ["-Wl,-soname,libcuda.so.1", "-o", str(folder / "libcuda.so.1"), str(SOURCE / "driver.c"), "-ldl"]
        subprocess.run([*gcc, *driver], check=True)
        return cls(folder)

    def environment(self, **settings: object) -> dict[str, str]:
        """The environment of a process with a GPU; `settings` as in fakecuda/runtime.c, without FAKECUDA_."""
        own = {f"FAKECUDA_{name.upper()}": str(value) for name, value in settings.items()}
        libraries = {"LD_LIBRARY_PATH": str(self.folder), "LD_PRELOAD": str(self.folder / "libfakecuda.so")}
        return {**os.environ, **libraries, **own, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def call(self, function: Callable[..., Any], *arguments: Any, **settings: object) -> Any:
        """Calls a function of a test's file in a process with a GPU; arguments and result travel as JSON."""
        path = Path(sys.modules[function.__module__].__file__ or "")
        command = [sys.executable, __file__, str(path), function.__name__, json.dumps(arguments)]
        done = subprocess.run(command, env=self.environment(**settings), capture_output=True, text=True, timeout=_LIMIT)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout.splitlines()[-1])


# Inside such a process.


@dataclass
class Counts:
    """What happened since the counts were reset: totals by name, and operations by their family."""

    totals: dict[str, int] = field(default_factory=dict)
    run: Counter[str] = field(default_factory=Counter)  # one by one
    captured: Counter[str] = field(default_factory=Counter)


def _library() -> Any:
    return ctypes.CDLL(None)  # the preloaded one is part of the process


def reset_counts() -> None:
    """Starts to count from zero."""
    _library().fakecuda_reset()


def fail_captures(at: int, times: int) -> None:
    """Lets operation number `at` of the next `times` captures fail."""
    _library().fakecuda_fail_at(ctypes.c_ulonglong(at), ctypes.c_ulonglong(times))


def die_after(operations: int) -> None:
    """Lets the device die after so many more operations."""
    _library().fakecuda_die_after(ctypes.c_ulonglong(operations))


def read_counts() -> Counts:
    """Reads what was counted."""
    counts = Counts()
    with tempfile.NamedTemporaryFile() as file:
        _library().fakecuda_report(file.name.encode())
        for line in Path(file.name).read_text(encoding="utf-8").splitlines():
            if "\t" in line:
                run, captured, name = line.split("\t")
                counts.run[family(name)] += int(run)
                counts.captured[family(name)] += int(captured)
            else:
                name, number = line.split()
                counts.totals[name] = int(number)
    counts.run, counts.captured = +counts.run, +counts.captured
    return counts


# A pattern in the mangled name of one of PyTorch's kernels → its family.
_FAMILIES = {
    "batch_norm": "batch norm",
    "threshold_kernel": "gradient of ReLU",
    "launch_clamp_scalar": "ReLU",
    "converting_copy_kernel_cudaI(?:fN3c10|N3c10.*EfE)|19CopyFunctor|4CopyI": "cast",
    "OnSelf_addIl": "counter",
    "FusedSgd|FusedAdam": "optimizer",
    "softmax|nll_loss": "cross-entropy",
    "CUDAFunctor_addI(?:N3c10|fE.*vectorized)|vectorized.*CUDAFunctor_addIf": "addition of maps",
    "index": "lookup",
}


def family(name: str) -> str:
    """The family of a kernel; the stand-in's own names are in brackets."""
    if name.startswith("["):
        return name[1:-1]
    return next((found for pattern, found in _FAMILIES.items() if re.search(pattern, name)), "small")


def _serve(path: str, function: str, arguments: str) -> None:
    sys.path.insert(0, str(Path(path).parent))
    result = getattr(importlib.import_module(Path(path).stem), function)(*json.loads(arguments))
    print(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # at its end PyTorch would ask a device that is dead


if __name__ == "__main__":
    _serve(*sys.argv[1:])
