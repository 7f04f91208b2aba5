"""Studies that run on a Ray cluster as jobs: submitted, followed and stopped through the cluster's dashboard.

Only HTTP requests are made here; no process of Ray runs on this machine. What a job consists of is in `submission`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from requests import exceptions

from orchestrator.cluster import submission, tokens
from orchestrator.cluster.submission import JobRequest
from orchestrator.errors import EXIT_INTERRUPTED, ClusterError, KdctlError
from orchestrator.machine import addresses, folders, proxies
from orchestrator.records import State
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.study import stored_studies
from orchestrator.text import masked, nearest

_CONNECT_TIMEOUT, _RESPONSE_TIMEOUT = 10.0, 60.0  # seconds
_CLOCK_SKEW = timedelta(minutes=1)  # between the clocks of two machines
_POLL_INTERVAL = 0.5  # seconds
_VERBOSE_LOGGERS = ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging")


@dataclass(frozen=True, slots=True)
class ClusterJob:
    """A study on a cluster. `state` is waiting, running, finished, failed or stopped; times are UTC.

    `exit_code` is that of `kdctl launch`; `reason` is why the job could not be started.
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
        """Whether the job has ended, in any way."""
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
    """Ray's client, with timeouts and an explicit proxy; by itself it waits forever for a silent machine."""

    def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> Any:
        proxy = proxies.of(self._address)
        if proxy and self._headers and self._address.startswith("http://"):
            raise ClusterError(_describe_token_leak(self._address, proxy))
        url = proxy.url if proxy else ""  # if it is empty, `requests` does not look for one in the environment
        try:
            answer = super()._do_request(
                method, endpoint, timeout=(_CONNECT_TIMEOUT, _RESPONSE_TIMEOUT), allow_redirects=False,
                auth=_keep_headers, proxies={"http": url, "https": url, "all": ""}, **kwargs,
            )  # fmt: skip
        except (exceptions.InvalidSchema, exceptions.InvalidURL) as error:
            if proxy is None:
                raise
            raise ClusterError(f"{proxy} cannot be used ({_reason(error)}); expected http://HOST:PORT") from None
        except exceptions.ConnectionError as error:  # Ray's own message omits the reason
            raise ClusterError(_describe_unreachable(self._address, _find_cause(error))) from None
        if answer.is_redirect:
            raise ClusterError(
                f"{self._address} answers with a redirect to {masked(answer.headers['location'])}, which kdctl does "
                "not follow, because the token is meant for the address that you named; name the dashboard's own "
                "address in --address"
            )
        return answer


def _keep_headers(request: Any) -> Any:
    """Authentication for `requests`, which would otherwise replace Ray's token with the credentials in ~/.netrc."""
    return request


def _find_cause(error: BaseException) -> BaseException:
    """The innermost of the errors that an error of `requests` wraps."""
    found = error.args[0] if error.args else None
    while inner := getattr(found, "reason", None) or getattr(found, "original_error", None):
        found = inner
    return found if isinstance(found, BaseException) else error


def _describe_token_leak(address: str, proxy: proxies.Proxy) -> str:
    host = urlsplit(address).hostname
    return (
        f"{address} is not encrypted and is reached through {proxy}, which would see Ray's token; add {host} to "
        f"no_proxy, use an https:// address, or a tunnel (`ssh -L 8265:127.0.0.1:8265 {host}` and "
        "--address http://127.0.0.1:8265)"
    )


class Cluster:
    """A running Ray cluster, by the address of its dashboard."""

    def __init__(self, address: str) -> None:
        """Connects, and checks the version and the token. Raises ClusterError."""
        for name in _VERBOSE_LOGGERS:  # they log every upload
            logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
        self.address = addresses.dashboard(address)
        token = _read_token()
        headers = {"Authorization": f"Bearer {token}"} if token else None
        with _translate_errors(self.address, has_token=token is not None), _only_address(self.address):
            self._client = _Client(self.address, headers=headers)
        self._has_token = token is not None

    def page(self, job_id: str) -> str:
        """Where the dashboard shows a job."""
        return f"{self.address}/#/jobs/{job_id}"

    def submit(self, request: JobRequest) -> ClusterJob:
        """Submits a study; it then runs without this machine. Raises ClusterError, also if the Ray versions differ."""
        self._check_versions()
        job_id = submission.make_job_id(request.study.name)
        with folders.scratch("kdctl-job-") as folder:
            file = submission.collect_files(request.study, folder)
            with self._translate_errors():
                self._client.submit_job(
                    entrypoint=submission.make_entrypoint(request, file),
                    submission_id=job_id,
                    runtime_env=submission.make_runtime_env(request, folder),
                    metadata=submission.make_metadata(request),
                )
        return self.read_job(job_id)

    def _check_versions(self) -> None:
        theirs = self._client._server_ray_version  # from /api/version
        if theirs != ray.__version__:
            raise ClusterError(
                f"the cluster at {self.address} runs Ray {theirs}, and kdctl here Ray {ray.__version__}; expected the "
                f"same version: install ray=={theirs} here, or kdctl with its Ray on every machine of the cluster"
            )

    def read_python_version(self) -> str | None:
        """The version of the cluster's Python; None if its dashboard does not report it."""
        with suppress(OSError, ValueError, KeyError, TypeError, KdctlError):
            return str(self._client._do_request("GET", "/api/v0/cluster_metadata").json()["data"]["pythonVersion"])
        return None

    def list_jobs(self) -> list[ClusterJob]:
        """Every kdctl job that the cluster remembers, the newest first. Raises ClusterError."""
        with self._translate_errors():
            found = [_to_job(details) for details in self._client.list_jobs()]
        oldest = datetime.min.replace(tzinfo=UTC)
        return sorted((job for job in found if job), key=lambda job: job.since or oldest, reverse=True)

    def read_job(self, job_id: str) -> ClusterJob:
        """A job by its complete id. Raises ClusterError if no job has this id, or kdctl did not submit it."""
        with self._translate_errors():
            found = _to_job(self._client.get_job_info(job_id))
        if found is None:
            raise ClusterError(
                f"job {job_id} at {self.address} was not submitted by kdctl; see `ray job status {job_id}`"
            )
        return found

    def find_job(self, name: str | None = None, *, is_running: bool = False) -> ClusterJob:
        """A job by its id, by the beginning of its id, or the newest job of a study; without a name, the newest of all.

        With `is_running`, jobs that have not ended are preferred to newer jobs that have.
        Raises ClusterError if there is no such job, or several ids begin with `name`.
        """
        known = self.list_jobs()
        if is_running:
            known.sort(key=lambda job: job.is_over)
        if not known:
            raise ClusterError(
                f"no study was submitted to the cluster at {self.address} yet; submit one with "
                f"`kdctl launch FILE --address {self.address}`"
            )
        if name is None:
            return known[0]
        exact = [job for job in known if name in (job.job_id, job.study)]
        partial = [job for job in known if job.job_id.startswith(name)]
        if exact or len(partial) == 1:
            return (exact or partial)[0]
        if partial:
            ids = ", ".join(job.job_id for job in partial[:5])
            raise ClusterError(f"{len(partial)} jobs begin with {name!r}: {ids}; write one of them out")
        words = [word for job in known for word in (job.study, job.job_id)]
        raise ClusterError(
            f"no job or study {name!r} on the cluster at {self.address}; {nearest(name, words)} "
            f"`kdctl status --address {self.address}` lists them"
        )

    def read_log(self, job: ClusterJob) -> str:
        """The output of a job so far. Raises ClusterError."""
        with self._translate_errors():
            return str(self._client.get_job_logs(job.job_id))

    def follow(self, job: ClusterJob) -> Iterator[str]:
        """The output of a job from its start until it ends, piece by piece. Raises ClusterError."""
        yield from self._poll(job) if proxies.of(self.address) else self._stream(job)

    def _poll(self, job: ClusterJob) -> Iterator[str]:
        """Like `_stream`, which cannot go through a proxy."""
        length = 0  # of the output that was passed on
        while True:
            is_over = self.read_job(job.job_id).is_over
            text = self.read_log(job)
            if text[length:]:
                yield text[length:]
            if is_over:
                return
            length = len(text)
            time.sleep(_POLL_INTERVAL)

    def _stream(self, job: ClusterJob) -> Iterator[str]:
        loop = asyncio.new_event_loop()
        lines: AsyncIterator[str] = self._client.tail_job_logs(job.job_id)
        try:
            while True:
                with self._translate_errors(), warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # Ray's client calls aiohttp in an old way
                    try:
                        text = loop.run_until_complete(anext(lines))
                    except StopAsyncIteration:
                        return
                yield text
        finally:
            with suppress(Exception):  # an error of a connection that is no longer needed does not matter
                loop.run_until_complete(lines.aclose())  # type: ignore[attr-defined]
            loop.close()

    def stop(self, job: ClusterJob) -> ClusterJob:
        """Asks a job to stop, so that its trials write checkpoints, and waits until it has ended.

        Raises ClusterError, also if the job has not ended after the time that Ray gives it.
        """
        with self._translate_errors():
            self._client.stop_job(job.job_id)
        deadline = time.monotonic() + submission.STOP_SECONDS + _RESPONSE_TIMEOUT
        while not (now := self.read_job(job.job_id)).is_over:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"job {job.job_id} was asked to stop, but is still {now.state}; see {self.page(job.job_id)}"
                )
            time.sleep(_POLL_INTERVAL)
        return now

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        with _translate_errors(self.address, has_token=self._has_token):
            yield


def _read_token() -> str | None:
    """The token of Ray's clusters, from where Ray looks for it; Ray's client does not send it by itself."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    return tokens.read_token()


@contextmanager
def _only_address(address: str) -> Iterator[None]:
    """Within, Ray connects to this address; it would prefer the cluster that its environment variable names."""
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
def _translate_errors(address: str, *, has_token: bool) -> Iterator[None]:
    """Turns every error of a request to a dashboard into a ClusterError with one message."""
    try:
        yield
    except AuthenticationError as error:
        raise ClusterError(_describe_login(address, str(error), has_token=has_token)) from None
    except (ValueError, KeyError, TypeError, ClientError) as error:
        raise ClusterError(_describe_other_server(address, error)) from None
    except OSError as error:  # also the errors of `requests`; one with a response means that a server answered
        is_answered = getattr(error, "response", None) is not None
        raise ClusterError((_describe_other_server if is_answered else _describe_unreachable)(address, error)) from None
    except RuntimeError as error:
        if "Version check returned 404" in str(error):
            raise ClusterError(_describe_other_server(address, "it has no /api/version")) from None
        raise ClusterError(f"the cluster at {address} refused the request: {_reason(error)}") from None


def _describe_other_server(address: str, error: object) -> str:
    return (
        f"the server at {address}{proxies.through(address)} does not answer like a Ray dashboard "
        f"({_reason(error)}); expected its address, like http://127.0.0.1:8265, which `ray start --head` prints"
    )


def _describe_unreachable(address: str, error: object) -> str:
    parts = urlsplit(address)
    hint = "" if parts.port else "; the address has no port, and the dashboard's is 8265"
    if proxies.of(address):
        hint += f"; if the proxy cannot reach it, add {parts.hostname} to no_proxy"
    return (
        f"no Ray dashboard answers at {address}{proxies.through(address)} ({_reason(error)}){hint}; start the "
        "cluster with `ray start --head`, see docs/clusters.md, or reach it through a tunnel "
        "(`ssh -L 8265:127.0.0.1:8265 HOST`)"
    )


def _describe_login(address: str, answer: str, *, has_token: bool) -> str:
    problem = "rejects your token" if has_token and "Authentication failed" in answer else "requires a token"
    return (
        f"the cluster at {address}{proxies.through(address)} {problem}; put the cluster's own into RAY_AUTH_TOKEN or "
        "~/.ray/auth_token (`ray get-auth-token` on its head prints it), see docs/clusters.md"
    )


def _reason(error: object) -> str:
    """The first line of an error; the last line of a traceback, which Ray may send instead."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = lines[-1 if any("Traceback" in line for line in lines) else 0]
    return masked(line[:300])


_STATES: Mapping[JobStatus, str] = {
    JobStatus.PENDING: "waiting",
    JobStatus.RUNNING: "running",
    JobStatus.SUCCEEDED: "finished",
    JobStatus.FAILED: "failed",
    JobStatus.STOPPED: "stopped",
}


def _to_job(details: JobDetails) -> ClusterJob | None:
    """A job from what Ray knows of it; None if kdctl did not submit it."""
    facts = details.metadata or {}
    if submission.VERSION_KEY not in facts or details.submission_id is None:
        return None
    is_stopped = details.driver_exit_code == EXIT_INTERRUPTED  # by a request in the storage, or a signal on its machine
    failed_to_start = details.status is JobStatus.FAILED and details.driver_exit_code is None
    return ClusterJob(
        job_id=details.submission_id,
        study=facts.get("study", ""),
        storage=facts.get("storage", ""),
        file=facts.get("file", ""),
        command=facts.get("command", ""),
        version=facts[submission.VERSION_KEY],
        state="stopped" if is_stopped else _STATES[details.status],
        since=_to_datetime(details.start_time),
        ended=_to_datetime(details.end_time),
        exit_code=details.driver_exit_code,
        reason=_reason(details.message) if failed_to_start else None,
    )


def _to_datetime(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def count_trials(job: ClusterJob) -> tuple[int, int] | None:
    """How many trials of a job are finished, and how many there are; None if its storage cannot be read here."""
    try:
        storage = Storage.at(job.storage)
        study = stored_studies.find(storage, job.study)
        states = store.read_states(storage, [member.trial_id for member in study.members])
    except KdctlError:
        return None  # a folder of the cluster, a bucket whose credentials only the cluster has, or nothing trained yet
    if (
        job.since is None
        or study.launched.since < job.since - _CLOCK_SKEW
        or study.launched.since > (job.ended or datetime.now(UTC)) + _CLOCK_SKEW
    ):
        return None  # the files there are of another launch
    return sum(state is State.FINISHED for state in states.values()), len(study.members)
