"""Studies that run on a cluster as jobs: submit, list, read logs, stop. `launch`, `status`, `logs` and `stop` call it
when `--address` names a dashboard.
"""

from __future__ import annotations

import json
import platform
import shlex
import sys
from datetime import datetime
from typing import TYPE_CHECKING

import click

from orchestrator.commands.shared.options import confirm, is_terminal, note, warn
from orchestrator.executors import DEFAULT
from orchestrator.text import masked, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.cluster.ray_jobs import ClusterJob


def submit(
    file: str, address: str, *, storage: str, data: str | None, settings: Sequence[str],
    max_concurrent: int | None, skip_failed: bool, executor: str = DEFAULT, as_json: bool = False,
) -> None:  # fmt: skip
    """Submits a study to a cluster and prints how to watch it. `data` is None if no folder was given."""
    from orchestrator.cluster.ray_jobs import Cluster
    from orchestrator.cluster.submission import JobRequest
    from orchestrator.machine.paths import local
    from orchestrator.storage.layout import Storage
    from orchestrator.study.plan import make_plan
    from orchestrator.study.reader import load_study

    study = load_study(file, settings, open_inputs=True, on_note=note)
    trials = len(make_plan(study).trials)
    warn(study.warnings)
    place = Storage.at(storage).backend.address
    folder = str(local(data, "data folder").absolute()) if data is not None else None
    cluster = Cluster(address)
    if (python := cluster.read_python_version()) and python != platform.python_version():
        click.echo(f"note: the cluster has Python {python}, this machine {platform.python_version()}", err=True)
    job = cluster.submit(
        JobRequest(
            study, place, folder, tuple(settings), max_concurrent, skip_failed, executor,
            command=masked(shlex.join(["kdctl", *sys.argv[1:]])),
        )
    )  # fmt: skip
    if as_json:
        facts = {**job.to_json(), "trials": trials, "page": cluster.page(job.job_id)}
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        click.echo(job.job_id)
    _print_next_steps(job, cluster.address, cluster.page(job.job_id), trials)
    for name in [name for name in (place, folder) if name and "://" not in name]:
        click.echo(
            f"every machine of the cluster must be able to use the folder {printable(name)} under this path", err=True
        )


def _print_next_steps(job: ClusterJob, address: str, page: str, trials: int) -> None:
    lines = (
        f"submitted study {job.study} with {trials} trials; it keeps running when you log out",
        f"watch it:  kdctl status --address {address}",
        f"its log:   kdctl logs {job.job_id} --address {address} --follow",
        f"stop it:   kdctl stop {job.job_id} --address {address}",
        f"its page:  {page}",
    )
    click.echo("\n".join(masked(line) for line in lines), err=True)


def status_of_jobs(address: str, name: str | None, *, as_json: bool) -> None:
    """Lists the studies on a cluster, or the jobs of one, the newest first."""
    from orchestrator.cluster.ray_jobs import Cluster, count_trials
    from orchestrator.columns import table, width_of

    found = [(job, count_trials(job)) for job in Cluster(address).list_jobs() if name in (None, job.study, job.job_id)]
    if as_json:
        rows = [{**job.to_json(), "finished": done and done[0], "trials": done and done[1]} for job, done in found]
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    if not found:
        what = "no study" if name is None else f"no study {printable(name)}"
        click.echo(
            f"{what} was submitted to this cluster yet; submit one: kdctl launch FILE --address {masked(address)}",
            err=True,
        )
        return
    header = ("study", "state", "trials", "since", "took", "job")
    cells = [
        (
            job.study, _state(job), f"{done[0]}/{done[1]}" if done else "-",
            f"{job.since.astimezone():%Y-%m-%d %H:%M:%S}" if job.since else "-", _took(job), job.job_id,
        )
        for job, done in found
    ]  # fmt: skip
    click.echo(table(header, [tuple(map(printable, row)) for row in cells], width_of(sys.stdout)))


def _state(job: ClusterJob) -> str:
    if job.reason:
        return f"failed to start: {job.reason[:80]}"
    return f"failed (exit code {job.exit_code})" if job.state == "failed" else job.state


def _took(job: ClusterJob) -> str:
    if job.since is None:
        return "-"
    seconds = max(0, round(((job.ended or datetime.now(job.since.tzinfo)) - job.since).total_seconds()))
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def print_log(address: str, name: str | None, lines: int | None, *, follow: bool) -> None:
    """Prints the log of a job, or its last `lines`. `name` is its id or its study; None is the newest job."""
    from orchestrator.cluster.ray_jobs import Cluster

    cluster = Cluster(address)
    job = cluster.find_job(name)
    if not follow:
        log = cluster.read_log(job).splitlines(keepends=True)
        click.echo("".join(log[-(lines or len(log)) :]), nl=False)
        return
    for text in cluster.follow(job):
        click.echo(text, nl=False)


def stop_job(address: str, name: str | None, yes: bool) -> None:
    """Stops a job, by its id or its study; prints how it ended and how to resume it."""
    from orchestrator.cluster.ray_jobs import Cluster

    cluster = Cluster(address)
    job = cluster.find_job(name, is_running=True)
    if job.is_over:
        click.echo(f"job {job.job_id} has already ended: {_state(job)}", err=True)
        return
    if not yes and is_terminal() and not confirm(f"Stop study {job.study}, job {job.job_id}?"):
        click.echo("nothing was stopped", err=True)
        return
    click.echo(f"stopping {job.job_id}; running trials write a checkpoint first", err=True)
    ended = cluster.stop(job)
    click.echo(f"job {ended.job_id} has ended: {_state(ended)}", err=True)
    if ended.state != "finished" and ended.command:
        click.echo(f"resume with:  {printable(ended.command)}", err=True)
