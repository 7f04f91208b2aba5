"""The commands, each a few lines around one function; the door where an error becomes a message and an exit code."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.errors import (
    EXIT_BUG,
    EXIT_INTERRUPTED,
    EXIT_LOST,
    EXIT_TRIALS,
    EXIT_USAGE,
    KdctlError,
    RayLost,
    masked,
)

if TYPE_CHECKING:
    from orchestrator.launch import Outcome
    from orchestrator.plan import Plan

# Every command imports what it needs when it runs: `kdctl --help` loads Click alone, `plan` neither torch nor Ray.

_EPILOG = (
    "Exit codes: 0 all done, 1 some trial failed or was skipped, 2 wrong usage or study file, 3 a bug, 130 interrupted."
)

Command = Callable[..., Any]


def _storage_option(command: Command) -> Command:
    option = click.option(
        "--storage", default="runs", envvar="KDCTL_STORAGE", show_default=True, show_envvar=True, metavar="PLACE",
        help="Folder, or bucket like s3://bucket/folder, of trials, teachers and results.",
    )  # fmt: skip
    return option(command)


def _set_option(command: Command) -> Command:
    return click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change the study file, like recipe.epochs=2."
    )(command)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=_EPILOG)
@click.version_option(package_name="kdctl")
def cli() -> None:
    """Knowledge-distillation studies: one YAML file in, a finished study out.

    \b
    Example:
      kdctl plan experiments.yaml
      kdctl launch experiments.yaml --data ./data
      kdctl results
    """


@cli.command()
@click.argument("file", type=click.Path())
@_set_option
def check(file: str, settings: Sequence[str]) -> None:
    """Check a study FILE: all faults at once, each with its place and its cure."""
    from orchestrator.plan import make_plan
    from orchestrator.spec import load_study

    study = load_study(file, settings)
    _warn(study.warnings)
    click.echo(f"{file}: study {study.name} is good, {len(make_plan(study).trials)} trials")


@cli.command()
@click.argument("file", type=click.Path())
@_storage_option
@_set_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def plan(file: str, storage: str, settings: Sequence[str], as_json: bool) -> None:
    """Print what a launch of FILE would run; trains and writes nothing."""
    from orchestrator.launch import look

    found = look(file, storage, settings)
    _warn(found.warnings)
    if not as_json:
        click.echo(_plan_text(found))
        return
    sys.stdout.writelines(f"{line}\n" for line in _plan_json(found))  # `echo` would flush every line
    sys.stdout.flush()


def _plan_json(plan: Plan) -> Iterator[str]:
    """The lines of a plan as JSON: one a trial, as a plan of all may not fit the memory, and this is faster."""
    encode = json.JSONEncoder(ensure_ascii=False).encode
    facts = replace(plan, trials=()).to_json()
    del facts["trials"]
    yield "{"
    yield encode(facts)[1:-1] + ', "trials": ['
    last = len(plan.trials)
    for number, trial in enumerate(plan.trials, 1):
        yield encode(trial.to_json()) + ("," if number < last else "")
    yield "]}"


def _plan_text(plan: Plan) -> str:
    from orchestrator.report import aligned

    header = (
        "trial_id",
        "role",
        "method",
        "dataset",
        "student ← teacher",
        "seed",
        "waits for",
        "teacher cache",
        "state",
    )
    rows = []
    for trial in plan.trials:
        config = trial.config
        pair = f"{config.student} ← {config.teacher.student}" if config.teacher else config.student
        source = " (weights from a file)" if config.weights else ""
        cells = (trial.trial_id, trial.role, config.method, config.dataset, pair + source, str(config.seed))
        rows.append((*cells, trial.teacher_id or "-", trial.teacher_cache or "-", trial.state))
    states = [trial.state for trial in plan.trials]
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("new", "unfinished", "failed", "finished") if s in states)
    return "\n".join([aligned(header, rows), "", f"{len(rows)} trials of study {plan.study}: {counts}"])


@cli.command()
@click.argument("file", type=click.Path())
@click.option(
    "--data", default="data", envvar="KDCTL_DATA", show_default=True, show_envvar=True, metavar="DIR",
    help="Folder of CIFAR-10 and CIFAR-100; downloaded into it where they are missing.",
)  # fmt: skip
@_storage_option
@_set_option
@click.option(
    "--address", metavar="ADDR", help="Join a running Ray cluster (auto: the one here) instead of starting one."
)
@click.option("--inline", is_flag=True, help="Train in this process, one trial after another, without Ray.")
@click.option("--max-concurrent", type=click.IntRange(min=1), metavar="N", help="Train at most N trials at a time.")
@click.option("--skip-failed", is_flag=True, help="Leave trials that failed; otherwise they are tried again.")
def launch(
    file: str,
    data: str,
    storage: str,
    settings: Sequence[str],
    address: str | None,
    inline: bool,
    max_concurrent: int | None,
    skip_failed: bool,
) -> None:
    """Train what is not finished of a study FILE, then print its results.

    Launching the same file again goes on where the last launch ended, however it ended.
    """
    from orchestrator.launch import launch as run
    from orchestrator.spec import load_study
    from orchestrator.supervisor import clear_session, follow_parent, is_supervised, supervise

    if inline and (address or max_concurrent):
        raise click.UsageError("--inline trains in this process; remove --address and --max-concurrent, or --inline")
    is_child = is_supervised()
    if is_child:
        follow_parent()
    elif not inline:
        load_study(file, settings)  # a fault of the file needs no second process
        sys.exit(supervise(sys.argv[1:], lambda text: click.echo(text, err=True), _say_how_to_resume))
    try:
        outcome = run(
            file, data=data, storage=storage, address=address, inline=inline, settings=settings,
            max_concurrent=max_concurrent, skip_failed=skip_failed,
        )  # fmt: skip
    finally:
        if is_child:
            clear_session()
    _print_outcome(outcome, storage)
    if not outcome.is_complete:
        sys.exit(EXIT_TRIALS)


def _print_outcome(outcome: Outcome, storage: str) -> None:
    from orchestrator.report import render
    from orchestrator.storage import Storage

    click.echo(render(outcome.rows))
    is_bucket = "://" in storage
    folder = Storage.at(storage).place.shown("results") if is_bucket else Path(storage) / "results"
    click.echo(f"Parquet: {folder}/trials/*.parquet (one row a trial), {folder}/epochs/*.parquet (one row an epoch)")
    if is_bucket:
        return  # DuckDB would need an extension and the credentials
    query = (
        "SELECT dataset, student, teacher, method, round(avg(acc), 2) acc, round(stddev(acc), 2) std, count(*) n "  # noqa: S608 - shown
        f"FROM '{folder}/trials/*.parquet' WHERE state = 'finished' AND study = '{outcome.plan.study}' GROUP BY ALL"
    )
    click.echo(f'Query:   {_python()} -c "import duckdb; duckdb.sql(\\"{query}\\").show()"')


def _python() -> str:
    """The Python that has kdctl, as a person would type it."""
    try:
        return str(Path(sys.executable).relative_to(Path.cwd()))
    except ValueError:
        return sys.executable


@cli.command()
@click.argument("file", type=click.Path(), required=False)
@_storage_option
@_set_option
@click.option(
    "--format", "form", type=click.Choice(("table", "markdown", "csv", "json")), default="table", show_default=True
)
def results(file: str | None, storage: str, settings: Sequence[str], form: str) -> None:
    """Print the result tables of a study FILE, or of everything in the storage."""
    from orchestrator import results as stored
    from orchestrator.launch import look
    from orchestrator.report import render
    from orchestrator.storage import Storage

    wanted = None if file is None else [trial.trial_id for trial in look(file, storage, settings).trials]
    rows = stored.read_trials(Storage.at(storage), wanted)
    if wanted is None:
        rows.sort(key=lambda row: (row.study, row.no))
    if not rows:
        click.echo(f"no trials in {storage}; launch a study, or name another storage with --storage", err=True)
    click.echo(render(rows, form), nl=False)


@cli.group(invoke_without_command=True)
@_storage_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.pass_context
def teachers(context: click.Context, storage: str, as_json: bool) -> None:
    """List the cached teachers, or verify one of them."""
    context.obj = storage
    if context.invoked_subcommand is None:
        _list_teachers(storage, as_json)


def _list_teachers(storage: str, as_json: bool) -> None:
    from orchestrator.inventory import list_teachers
    from orchestrator.report import aligned
    from orchestrator.storage import Storage

    found = list_teachers(Storage.at(storage))
    if as_json:
        click.echo(json.dumps([teacher.to_json() for teacher in found], indent=1))
        return
    header = ("teacher_id", "model", "dataset", "acc", "size", "tables", "used by")
    rows = [
        (
            teacher.teacher_id, teacher.row.student, teacher.row.dataset, f"{teacher.row.last_acc:.2f}",
            f"{teacher.bytes / 1e6:,.1f} MB", ", ".join(key.name for key in teacher.tables) or "-",
            ", ".join(f"{count} of {study}" for study, count in teacher.users.items()) or "-",
        )
        for teacher in found
    ]  # fmt: skip
    click.echo(aligned(header, rows))


@teachers.command()
@click.argument("teacher_id")
@click.option("--storage", metavar="DIR", help="Folder of trials, teachers and results, as for `kdctl teachers`.")
@click.pass_obj
def verify(outer: str, teacher_id: str, storage: str | None) -> None:
    """Ask teacher TEACHER_ID live about random views and compare its tables."""
    from orchestrator.inventory import verify_teacher
    from orchestrator.storage import Storage

    verdicts = verify_teacher(teacher_id, Storage.at(storage or outer))
    for verdict in verdicts:
        click.echo(
            f"{verdict.table.name}: says what the teacher says, largest difference {verdict.largest_difference:.3g}"
        )
    if not verdicts:
        click.echo("this teacher has no table, so there is nothing to compare; its students asked it live")


@cli.command()
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path())
@_storage_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.option("--yes", is_flag=True, help="Free it; without this nothing is removed.")
def clean(files: Sequence[str], storage: str, as_json: bool, yes: bool) -> None:
    """Show what can be freed in a storage: what no launch needs any more.

    Rows, weights of trials and datasets always stay. So do tables that some trial to come will use: one of the last
    launch of each study, or of a FILE.
    """
    from orchestrator import housekeeping
    from orchestrator.launch import look
    from orchestrator.storage import Storage

    plans = [look(file, storage) for file in files]
    found = (housekeeping.free if yes else housekeeping.find)(Storage.at(storage), plans)
    if as_json:
        facts = {"freed": yes, "bytes": housekeeping.total(found), "files": [piece.to_json() for piece in found]}
        click.echo(json.dumps(facts, indent=1))
        return
    click.echo(housekeeping.text(found))
    if yes:
        click.echo(f"freed {len(found):,} files, {housekeeping.sized(housekeeping.total(found))}", err=True)
    elif found:
        click.echo("nothing was removed; the same command with --yes frees this", err=True)


@cli.command()
@click.option(
    "--data", default="data", envvar="KDCTL_DATA", show_default=True, show_envvar=True, metavar="DIR",
    help="Folder of CIFAR-10 and CIFAR-100.",
)  # fmt: skip
@_storage_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def doctor(data: str, storage: str, as_json: bool) -> None:
    """Check this machine, the storage and the data: what is wrong, and what to do.

    Ends with 0 when nothing is bad, be there warnings or not, and with 1 otherwise.
    """
    from orchestrator.doctor import examine, is_fit, text

    found = examine(storage, Path(data))
    facts = {"fit": is_fit(found), "checks": [finding.to_json() for finding in found]}
    click.echo(json.dumps(facts, indent=1, ensure_ascii=False) if as_json else text(found))
    if not is_fit(found):
        sys.exit(EXIT_TRIALS)


@cli.command()
def schema() -> None:
    """Print the JSON Schema of study files, for editors."""
    from orchestrator.schema import study_schema

    click.echo(json.dumps(study_schema(), indent=1, ensure_ascii=False))


def _warn(warnings: Sequence[object]) -> None:
    for warning in warnings:
        click.echo(str(warning), err=True)


def main() -> None:
    """The command `kdctl`: the one place where an error becomes a message and an exit code."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        usage = io.StringIO()
        error.show(usage)
        click.echo(masked(usage.getvalue()), err=True, nl=False)
        sys.exit(EXIT_USAGE)
    except RayLost:
        os._exit(EXIT_LOST)  # Ray's own end would wait for processes that are gone; the supervisor knows what to do
    except KdctlError as error:
        click.echo(masked(str(error)), err=True)
        if error.exit_code == EXIT_INTERRUPTED:
            _say_how_to_resume()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped", err=True)
        if sys.argv[1:2] == ["launch"]:
            _say_how_to_resume()
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left, as `| head` does
        sys.exit(1)
    except Exception:
        _report_bug()
        sys.exit(EXIT_BUG)


def _say_how_to_resume() -> None:
    with suppress(OSError):  # nobody may read it any more
        click.echo(f"go on with:  kdctl {masked(shlex.join(sys.argv[1:]))}", err=True)


def _report_bug() -> None:
    story = masked(traceback.format_exc())
    with tempfile.NamedTemporaryFile("w", prefix="kdctl-bug-", suffix=".log", delete=False) as file:
        file.write(f"{masked(' '.join(sys.argv))}\n{sys.version}\n{story}")
    last = story.strip().splitlines()[-1]
    click.echo(f"this is a bug in kdctl: {last}\nplease report it with the log {file.name}", err=True)


if __name__ == "__main__":
    main()
