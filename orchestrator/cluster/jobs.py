"""Studies that run on a cluster as jobs of Ray: handed over through its dashboard, followed and stopped from anywhere.

The job runs the same `kdctl launch` on the cluster. Nothing of Ray runs here, it is HTTP alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shlex
import shutil
import time
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from requests import exceptions

from orchestrator import executors
from orchestrator.cluster import tokens
from orchestrator.data.registry import FolderDataset
from orchestrator.errors import EXIT_INTERRUPTED, ClusterError, KdctlError
from orchestrator.machine import addresses, folders, proxies
from orchestrator.machine.paths import word
from orchestrator.records import State
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.study import stored_studies
from orchestrator.study.reader import Study
from orchestrator.text import masked, nearest

_CONNECTING, _ANSWERING = 10.0, 60.0  # seconds
_STOPPING = 40  # seconds that Ray leaves a job after SIGTERM; a launch takes 13 at most, see `supervisor`
_SKEW = timedelta(minutes=1)  # between the clocks of two machines
_LOOK = 0.5  # seconds between two looks at a job that is to stop
_MARK = "kdctl"  # what metadata of our jobs hold: the version that submitted it
_SCRIPT = "kdctl-job"
_TALKERS = ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging")

# What the job runs first; `exec`, so that a signal to the job is one to kdctl. Workers have the Python that Ray was
# started with, whose folder need not be on the PATH; Ray's node process, our parent's parent, knows it.
_RUN = r"""#!/bin/sh
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
    """What is to be launched on a cluster, and how. Paths of folders are as the cluster sees them.

    `data` is None for the cluster's own; `command` is the command line that hands the study over again.
    """

    study: Study
    storage: str
    data: str | None = None
    settings: tuple[str, ...] = ()
    max_concurrent: int | None = None
    skip_failed: bool = False
    executor: str = executors.DEFAULT
    command: str = ""


@dataclass(frozen=True, slots=True)
class ClusterJob:
    """A study on a cluster. `state` is waiting, running, finished, failed or stopped; times are UTC.

    `exit_code` is that of `kdctl launch`; `reason` says why it could not even be started.
    """

    job_id: str
    study: str
    storage: str
    file: str
    command: str
    version: str
    state: str
    since: datetime | None
    ended: datetime | None
    exit_code: int | None
    reason: str | None

    @property
    def is_over(self) -> bool:
        """Whether it has ended, however that was."""
        return self.state not in ("waiting", "running")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "job_id": self.job_id,
            "study": self.study,
            "state": self.state,
            "since": self.since and self.since.isoformat(),
            "ended": self.ended and self.ended.isoformat(),
            "exit_code": self.exit_code,
            "reason": self.reason,
            "storage": self.storage,
            "file": self.file,
            "command": self.command,
            "kdctl": self.version,
        }


class _Client(JobSubmissionClient):  # type: ignore[misc] # of a module that mypy does not follow
    """Ray's client, which by itself waits for ever for a machine that does not answer."""

    def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> Any:
        proxy = proxies.of(self._address)
        if proxy and self._headers and self._address.startswith("http://"):
            raise ClusterError(_would_show_token(self._address, proxy))
        url = proxy.url if proxy else ""  # where it is empty the environment's own is not looked for
        try:
            answer = super()._do_request(
                method, endpoint, timeout=(_CONNECTING, _ANSWERING), allow_redirects=False, auth=_as_it_is,
                proxies={"http": url, "https": url, "all": ""}, **kwargs,
            )  # fmt: skip
        except (exceptions.InvalidSchema, exceptions.InvalidURL) as error:
            if proxy is None:
                raise
            raise ClusterError(f"{proxy} cannot be used ({_reason(error)}); expected http://HOST:PORT") from None
        except exceptions.ConnectionError as error:  # Ray would leave out why
            raise ClusterError(_unreachable(self._address, _cause(error))) from None
        if answer.is_redirect:
            raise ClusterError(
                f"{self._address} answers with a redirect to {masked(answer.headers['location'])}, which kdctl does "
                "not follow, as the token is for the address that you named; name the dashboard's own in --address"
            )
        return answer


def _as_it_is(request: Any) -> Any:
    """Authentication for `requests`, which would else send what ~/.netrc holds in the place of Ray's token."""
    return request


def _cause(error: BaseException) -> BaseException:
    """What is at the bottom of an error of `requests`, which wraps it several times."""
    found = error.args[0] if error.args else None
    while inner := getattr(found, "reason", None) or getattr(found, "original_error", None):
        found = inner
    return found if isinstance(found, BaseException) else error


def _would_show_token(address: str, proxy: proxies.Proxy) -> str:
    host = urlsplit(address).hostname
    return (
        f"{address} is not encrypted and is reached through {proxy}, which would see Ray's token; add {host} to "
        f"no_proxy, use an https:// address, or a tunnel (`ssh -L 8265:127.0.0.1:8265 {host}` and "
        "--address http://127.0.0.1:8265)"
    )


class Cluster:
    """A running Ray cluster, by the address of its dashboard."""

    def __init__(self, address: str) -> None:
        """Looks whether it answers and takes our token. Raises ClusterError."""
        for name in _TALKERS:  # they tell what they send
            logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
        self.address = addresses.dashboard(address)
        token = _token()
        headers = {"Authorization": f"Bearer {token}"} if token else None
        with _asking(self.address, has_token=token is not None), _meant(self.address):
            self._client = _Client(self.address, headers=headers)
        self._has_token = token is not None

    def page(self, job_id: str) -> str:
        """Where the dashboard shows a job."""
        return f"{self.address}/#/jobs/{job_id}"

    def submit(self, order: JobRequest) -> ClusterJob:
        """Hands a study over; it runs from then on without us. Raises ClusterError, also for another Ray than ours."""
        self._check_versions()
        job_id = _job_id(order.study.name)
        with folders.scratch("kdctl-job-") as made:
            file = _gather(order.study, made)
            environment = {
                "KDCTL_EXPECTED": f"kdctl, version {version('kdctl')}",
                "KDCTL_COMMAND": order.command,
                "RAY_JOB_STOP_WAIT_TIME_S": str(_STOPPING),
            }
            with self._asking():
                self._client.submit_job(
                    entrypoint=_entrypoint(order, file),
                    submission_id=job_id,
                    runtime_env={"working_dir": str(made), "env_vars": environment},
                    metadata=_metadata(order),
                )
        return self.job(job_id)

    def _check_versions(self) -> None:
        theirs = self._client._server_ray_version  # as /api/version has just said
        if theirs != ray.__version__:
            raise ClusterError(
                f"the cluster at {self.address} runs Ray {theirs}, and kdctl here Ray {ray.__version__}; expected the "
                f"same version: install ray=={theirs} here, or kdctl with its Ray on every machine of the cluster"
            )

    def python(self) -> str | None:
        """The version of the cluster's Python, where its dashboard tells it."""
        with suppress(OSError, ValueError, KeyError, TypeError, KdctlError):
            return str(self._client._do_request("GET", "/api/v0/cluster_metadata").json()["data"]["pythonVersion"])
        return None

    def jobs(self) -> list[ClusterJob]:
        """Every job of kdctl that the cluster remembers, the newest first. Raises ClusterError."""
        with self._asking():
            found = [_read(details) for details in self._client.list_jobs()]
        oldest = datetime.min.replace(tzinfo=UTC)
        return sorted((job for job in found if job), key=lambda job: job.since or oldest, reverse=True)

    def job(self, job_id: str) -> ClusterJob:
        """A job by its whole id. Raises ClusterError where there is none of this id, or it is not one of kdctl."""
        with self._asking():
            found = _read(self._client.get_job_info(job_id))
        if found is None:
            raise ClusterError(
                f"job {job_id} at {self.address} was not submitted by kdctl; see `ray job status {job_id}`"
            )
        return found

    def find(self, name: str | None = None, *, is_running: bool = False) -> ClusterJob:
        """A job by its id, by how its id begins, or the newest of a study; the newest of all without a name.

        With `is_running`, one that has not ended goes before newer ones that have.
        Raises ClusterError where there is none, or where several begin like that.
        """
        known = self.jobs()
        if is_running:
            known.sort(key=lambda job: job.is_over)
        if not known:
            raise ClusterError(
                f"no study was handed to the cluster at {self.address} yet; {_how_to_submit(self.address)}"
            )
        if name is None:
            return known[0]
        same = [job for job in known if name in (job.job_id, job.study)]
        begin = [job for job in known if job.job_id.startswith(name)]
        if same or len(begin) == 1:
            return (same or begin)[0]
        if begin:
            ids = ", ".join(job.job_id for job in begin[:5])
            raise ClusterError(f"{len(begin)} jobs begin with {name!r}: {ids}; write one of them out")
        words = [word for job in known for word in (job.study, job.job_id)]
        raise ClusterError(
            f"no job or study {name!r} on the cluster at {self.address}; {nearest(name, words)} "
            f"`kdctl status --address {self.address}` lists them"
        )

    def log(self, job: ClusterJob) -> str:
        """What a job has written so far. Raises ClusterError."""
        with self._asking():
            return str(self._client.get_job_logs(job.job_id))

    def follow(self, job: ClusterJob) -> Iterator[str]:
        """What a job has written and writes, until it ends. Raises ClusterError."""
        yield from self._poll(job) if proxies.of(self.address) else self._stream(job)

    def _poll(self, job: ClusterJob) -> Iterator[str]:
        """As `_stream`, which goes through no proxy."""
        seen = 0
        while True:
            is_over = self.job(job.job_id).is_over
            text = self.log(job)
            if text[seen:]:
                yield text[seen:]
            if is_over:
                return
            seen = len(text)
            time.sleep(_LOOK)

    def _stream(self, job: ClusterJob) -> Iterator[str]:
        loop = asyncio.new_event_loop()
        lines: AsyncIterator[str] = self._client.tail_job_logs(job.job_id)
        try:
            while True:
                with self._asking(), warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # Ray's client calls aiohttp in an old way
                    try:
                        text = loop.run_until_complete(anext(lines))
                    except StopAsyncIteration:
                        return
                yield text
        finally:
            with suppress(Exception):  # whatever is wrong with a connection that is not wanted any more
                loop.run_until_complete(lines.aclose())  # type: ignore[attr-defined]
            loop.close()

    def stop(self, job: ClusterJob) -> ClusterJob:
        """Asks a job to stop, which lets its trials write checkpoints, and waits until it has ended.

        Raises ClusterError, also where it has not ended after all the time that Ray leaves it.
        """
        with self._asking():
            self._client.stop_job(job.job_id)
        deadline = time.monotonic() + _STOPPING + _ANSWERING
        while not (now := self.job(job.job_id)).is_over:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"job {job.job_id} was asked to stop, and is still {now.state}; see {self.page(job.job_id)}"
                )
            time.sleep(_LOOK)
        return now

    @contextmanager
    def _asking(self) -> Iterator[None]:
        with _asking(self.address, has_token=self._has_token):
            yield


def _token() -> str | None:
    """The token of Ray's clusters, from where Ray looks for it; its own client sends none unless told to."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    return tokens.read_token()


@contextmanager
def _meant(address: str) -> Iterator[None]:
    """Ray would go to the cluster of its environment variables instead of the one that was named."""
    name = "RAY_API_SERVER_ADDRESS"
    earlier = os.environ.get(name)
    os.environ[name] = address
    try:
        yield
    finally:
        del os.environ[name]
        if earlier is not None:
            os.environ[name] = earlier


@contextmanager
def _asking(address: str, *, has_token: bool) -> Iterator[None]:
    """Turns what goes wrong between us and a dashboard into one message."""
    try:
        yield
    except AuthenticationError as error:
        raise ClusterError(_how_to_log_in(address, str(error), has_token=has_token)) from None
    except (ValueError, KeyError, TypeError, ClientError) as error:
        raise ClusterError(_is_no_ray(address, error)) from None
    except OSError as error:  # `requests` has its errors below it; one with a response was answered
        is_answered = getattr(error, "response", None) is not None
        raise ClusterError((_is_no_ray if is_answered else _unreachable)(address, error)) from None
    except RuntimeError as error:
        if "Version check returned 404" in str(error):
            raise ClusterError(_is_no_ray(address, "it has no /api/version")) from None
        raise ClusterError(f"the cluster at {address} could not do it: {_reason(error)}") from None


def _is_no_ray(address: str, error: object) -> str:
    return (
        f"what answers at {address}{proxies.through(address)} does not speak as a Ray dashboard does "
        f"({_reason(error)}); expected its address, like http://127.0.0.1:8265, which `ray start --head` prints"
    )


def _unreachable(address: str, error: object) -> str:
    parts = urlsplit(address)
    more = "" if parts.port else "; the address has no port, and 8265 is the dashboard's"
    if proxies.of(address):
        more += f"; if the proxy cannot reach it, add {parts.hostname} to no_proxy"
    return (
        f"no Ray dashboard answers at {address}{proxies.through(address)} ({_reason(error)}){more}; start the "
        "cluster with `ray start --head`, see docs/clusters.md, or reach it through a tunnel "
        "(`ssh -L 8265:127.0.0.1:8265 HOST`)"
    )


def _how_to_log_in(address: str, said: str, *, has_token: bool) -> str:
    got = "does not take your token" if has_token and "Authentication failed" in said else "asks for a token"
    return (
        f"the cluster at {address}{proxies.through(address)} {got}; put the cluster's own into RAY_AUTH_TOKEN or "
        "~/.ray/auth_token (`ray get-auth-token` on its head prints it), see docs/clusters.md"
    )


def _reason(error: object) -> str:
    """The first line of what went wrong; of a traceback, which Ray sends too, the last."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = lines[-1 if any("Traceback" in line for line in lines) else 0]
    return masked(line[:300])


def _how_to_submit(address: str) -> str:
    return f"hand one over with `kdctl launch FILE --address {address}`"


def _job_id(study: str) -> str:
    """Tells a person what it is and when it began; the last part tells two of one second apart."""
    return f"kdctl-{study}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _gather(study: Study, folder: Path) -> str:
    """Writes the text of a study, and copies the weights beside its file, to a folder; returns the file's name there.

    Weights under an absolute path stay where they are, and so do images of the user's own: the cluster must see them
    there. Raises ClusterError for a folder of images whose path is relative, as the file does not stay where it is.
    """
    for value in (value for experiment in study.experiments for value in experiment.axes["dataset"]):
        if isinstance(value.value, FolderDataset) and not Path(value.value.path).is_absolute():
            raise ClusterError(
                f"dataset folder {value.value.path} has a path relative to the study file, of which the cluster gets a "
                "copy elsewhere; write an absolute path that leads to the images on the cluster's head too"
            )
    source = Path(os.path.abspath(study.source))  # noqa: PTH100 - `..` goes as it is written
    named = {path for experiment in study.experiments for teacher in experiment.teachers for path in teacher.digests}
    beside = [path for path in named if not Path(path).is_absolute()]
    weights = [Path(os.path.normpath(source.parent / path)) for path in sorted(beside)]
    base = Path(os.path.commonpath([source.parent, *(path.parent for path in weights)]))
    file = source.relative_to(base)
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(study.text, encoding="utf-8", newline="")
    for path in weights:
        target = folder / path.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(path, target)
        except OSError as error:
            reason = error.strerror or error
            raise ClusterError(
                f"{path} cannot be sent to the cluster ({reason}); fix its path or its permissions"
            ) from None
    (folder / _SCRIPT).write_text(_RUN)
    return file.as_posix()


def _entrypoint(order: JobRequest, file: str) -> str:
    """The shell's command line for a job."""
    words = ["launch", word(file), *executors.arguments(order.executor), "--address", "auto"]
    words += ["--storage", order.storage]
    words += ["--data", order.data] if order.data is not None else []
    words += [word for setting in order.settings for word in ("--set", setting)]
    words += ["--max-concurrent", str(order.max_concurrent)] if order.max_concurrent else []
    words += ["--skip-failed"] if order.skip_failed else []
    return f"exec sh ./{_SCRIPT} {shlex.join(words)}"


def _metadata(order: JobRequest) -> dict[str, str]:
    facts = {
        "study": order.study.name,
        "storage": order.storage,
        "file": str(order.study.source),
        "command": order.command,
        _MARK: version("kdctl"),
    }
    return {name: masked(value) for name, value in facts.items()}


_STATES: Mapping[JobStatus, str] = {
    JobStatus.PENDING: "waiting",
    JobStatus.RUNNING: "running",
    JobStatus.SUCCEEDED: "finished",
    JobStatus.FAILED: "failed",
    JobStatus.STOPPED: "stopped",
}


def _read(details: JobDetails) -> ClusterJob | None:
    """What Ray says of a job, or None where it is not one of kdctl's."""
    facts = details.metadata or {}
    if _MARK not in facts or details.submission_id is None:
        return None
    is_stopped = details.driver_exit_code == EXIT_INTERRUPTED  # through the storage, or by a signal of its machine
    is_stillborn = details.status is JobStatus.FAILED and details.driver_exit_code is None
    return ClusterJob(
        job_id=details.submission_id,
        study=facts.get("study", ""),
        storage=facts.get("storage", ""),
        file=facts.get("file", ""),
        command=facts.get("command", ""),
        version=facts[_MARK],
        state="stopped" if is_stopped else _STATES[details.status],
        since=_time(details.start_time),
        ended=_time(details.end_time),
        exit_code=details.driver_exit_code,
        reason=_reason(details.message) if is_stillborn else None,
    )


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def progress(job: ClusterJob) -> tuple[int, int] | None:
    """How many trials of a job are finished, and how many there are; None where its storage does not tell us."""
    try:
        storage = Storage.at(job.storage)
        study = stored_studies.find(storage, job.study)
        states = store.read_states(storage, [member.trial_id for member in study.members])
    except KdctlError:
        return None  # a folder of the cluster's, a bucket whose credentials are there, or nothing trained yet
    if (
        job.since is None
        or study.launched.since < job.since - _SKEW
        or study.launched.since > (job.ended or datetime.now(UTC)) + _SKEW
    ):
        return None  # what lies there is of another launch
    return sum(state is State.FINISHED for state in states.values()), len(study.members)
