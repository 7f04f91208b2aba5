"""What a job on a Ray cluster consists of: the files that are sent, its command line, environment and metadata.

The job runs `kdctl launch` with the same study file on the cluster. `jobs` submits it.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestrator import executors
from orchestrator.data.folder import FolderDataset
from orchestrator.errors import ClusterError
from orchestrator.machine.paths import word
from orchestrator.study.values import Study
from orchestrator.text import masked

STOP_SECONDS = 40  # that Ray gives a job after SIGTERM; a launch needs at most 13, see `supervisor`
VERSION_KEY = "kdctl"  # the key of our jobs' metadata with the version that submitted them; other jobs lack it
_SCRIPT_NAME = "kdctl-job"
# Where a study with code of the user's own is within the folder that is sent. Ray lets every worker look for modules in
# that folder itself, where a `json.py` of the user's would replace Python's.
_STUDY_FOLDER = "study"

# The script that the job runs. It ends with `exec`, so that a signal to the job reaches kdctl. Workers use the Python
# that Ray was started with, whose folder may not be on the PATH; the command line of Ray's node process, the parent of
# our parent, names it.
_SCRIPT = r"""#!/bin/sh
raylet=$(cut -d ' ' -f 4 "/proc/$PPID/stat" 2>/dev/null || ps -o ppid= -p "$PPID" 2>/dev/null | tr -d ' ')
command=$({ tr '\0' '\n' <"/proc/$raylet/cmdline" || ps -ww -o args= -p "$raylet" | tr ' ' '\n'; } 2>/dev/null)
bin=$(echo "$command" | sed -n 's,^--python_worker_command=\(/[^ ]*\)/python.*,\1,p')
PATH="${bin:+$bin:}$PATH"
if ! command -v kdctl >/dev/null; then
    echo "kdctl is not on the PATH of the cluster's head: $PATH" >&2
    echo "install it on every machine of the cluster, and start Ray from the environment that has it" >&2
    exit 127
fi
here=$(kdctl --version)
if [ "$here" != "$KDCTL_EXPECTED" ]; then
    echo "note: the study was checked by $KDCTL_EXPECTED; the cluster has $here" >&2
fi
exec kdctl "$@"
"""


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A launch to run on a cluster. The paths of folders are paths on the cluster.

    `data` is None for the cluster's default; `command` is the command line that submits the study again.
    """

    study: Study
    storage: str
    data: str | None = None
    settings: tuple[str, ...] = ()
    max_concurrent: int | None = None
    skip_failed: bool = False
    executor: str = executors.DEFAULT
    command: str = ""


def make_job_id(study: str) -> str:
    """A new id with the study and the time, which a person can read, and a random part for jobs of the same second."""
    return f"kdctl-{study}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def collect_files(study: Study, folder: Path) -> str:
    """Writes a study, the user's own code and the weights beside it to a folder; returns the study file's name there.

    Code and weights with an absolute path are not copied, nor are the user's own images: the cluster must be able to
    read them at that path. Raises ClusterError for a folder of images with a relative path, because the study file
    moves.
    """
    for value in (value for experiment in study.experiments for value in experiment.axes["dataset"]):
        if isinstance(value.value, FolderDataset) and not Path(value.value.path).is_absolute():
            raise ClusterError(
                f"dataset folder {value.value.path} has a path relative to the study file, which the cluster gets as a "
                "copy in another folder; write an absolute path under which the cluster's head finds the images too"
            )
    source = Path(os.path.abspath(study.source))  # noqa: PTH100 - resolves `..`, but no links
    paths = {path for experiment in study.experiments for teacher in experiment.teachers for path in teacher.digests}
    weights, code = _locate(source.parent, sorted(paths)), _locate(source.parent, study.own_files)
    base = Path(os.path.commonpath([source.parent, *(path.parent for path in (*weights, *code))]))
    place = folder / _STUDY_FOLDER if code else folder
    texts = {path: study.own_files[name] for path, name in code.items()}  # as they were checked
    for path, text in {source: study.text, **texts}.items():
        target = place / path.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8", newline="")
    for path in weights:
        target = place / path.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(path, target)
        except OSError as error:
            reason = error.strerror or error
            raise ClusterError(
                f"{path} cannot be sent to the cluster ({reason}); fix its path or its permissions"
            ) from None
    (folder / _SCRIPT_NAME).write_text(_SCRIPT)
    return (place / source.relative_to(base)).relative_to(folder).as_posix()


def _locate(folder: Path, names: Iterable[str]) -> dict[Path, str]:
    """The full paths of the files with relative names, each with its name."""
    return {Path(os.path.normpath(folder / name)): name for name in names if not Path(name).is_absolute()}


def make_runtime_env(request: JobRequest, folder: Path) -> dict[str, Any]:
    """Ray's runtime environment of a job: the folder that is sent to the cluster, and environment variables."""
    variables = {
        "KDCTL_EXPECTED": f"kdctl, version {version('kdctl')}",
        "KDCTL_COMMAND": request.command,
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
    }
    return {"working_dir": str(folder), "env_vars": variables}


def make_entrypoint(request: JobRequest, file: str) -> str:
    """The command line of a job, for a shell; `file` is the study file's name in the folder that is sent."""
    words = ["launch", word(file), *executors.arguments(request.executor), "--address", "auto"]
    words += ["--storage", request.storage]
    words += ["--data", request.data] if request.data is not None else []
    words += [word for setting in request.settings for word in ("--set", setting)]
    words += ["--max-concurrent", str(request.max_concurrent)] if request.max_concurrent else []
    words += ["--skip-failed"] if request.skip_failed else []
    return f"exec sh ./{_SCRIPT_NAME} {shlex.join(words)}"


def make_metadata(request: JobRequest) -> dict[str, str]:
    """What a job list shows of a job, without secrets."""
    facts = {
        "study": request.study.name,
        "storage": request.storage,
        "file": str(request.study.source),
        "command": request.command,
        VERSION_KEY: version("kdctl"),
    }
    return {name: masked(value) for name, value in facts.items()}
