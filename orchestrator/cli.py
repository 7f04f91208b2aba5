"""The program `kdctl`: its commands, and the only place where an error becomes a message and an exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
import tempfile
import traceback
from contextlib import suppress

import click

from orchestrator.commands import (
    check,
    clean,
    cluster,
    completion,
    doctor,
    init,
    launch,
    logs,
    plan,
    query,
    report,
    results,
    status,
    stop,
    teachers,
)
from orchestrator.commands.shared.colours import colour, guesses
from orchestrator.commands.shared.completion import TIMEOUT, VARIABLE
from orchestrator.commands.shared.layout import WELCOME, Sections
from orchestrator.commands.shared.options import print_resume_command
from orchestrator.errors import EXIT_BUG, EXIT_CODES, EXIT_INTERRUPTED, EXIT_LOST, EXIT_USAGE, KdctlError, RayLost
from orchestrator.machine import limits, output
from orchestrator.text import masked

# Every command imports what it needs when it runs: `kdctl --help` imports only Click, `plan` neither torch nor Ray.

_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:<3}  {meaning}" for code, meaning in EXIT_CODES.items())


@click.group(
    cls=Sections,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
    invoke_without_command=True,
)
@click.version_option(package_name="kdctl")
@click.pass_context
def cli(context: click.Context) -> None:
    """Knowledge-distillation studies: one YAML file in, a finished study out.

    \b
    Examples:
      kdctl init                        # write a study file that runs
      kdctl plan experiments.yaml       # list what would be trained
      kdctl launch experiments.yaml     # train it; run it again to resume
      kdctl results experiments.yaml    # print its tables
    """
    context.color = colour()
    if context.invoked_subcommand is None:
        click.echo(WELCOME, err=True)
        sys.exit(EXIT_USAGE)


for _command in (
    init.init, init.schema, check.check, plan.plan, launch.launch, stop.stop, status.status, logs.logs, results.results,
    query.query, report.report, teachers.teachers, cluster.up, cluster.down, cluster.dashboard, clean.clean,
    doctor.doctor, completion.completion,
):  # fmt: skip
    cli.add_command(_command)


def main() -> None:
    """Runs `kdctl` with the arguments of this process, and exits with its code."""
    output.open_closed()
    try:
        _run()
    except SystemExit as end:
        _announce(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise
    _announce(0)


def _announce(code: int) -> None:
    if "KDCTL_SUPERVISOR" in os.environ:  # else the import below is not needed
        from orchestrator.cluster.launch_supervisor import announce_end

        announce_end(code)


def _run() -> None:
    if VARIABLE in os.environ:
        _complete()
    _spare_loopback()
    os.environ.update(limits.make_thread_environment())
    try:
        cli(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (click.ClickException, KdctlError, KeyboardInterrupt, click.Abort) as error:
        sys.exit(_report(error))
    except BrokenPipeError:
        sys.exit(1)  # the reader closed the pipe, as `| head` does
    except Exception as error:
        if isinstance(error, OSError) and (text := output.complaint(error)):
            _print_error(text)
            sys.exit(EXIT_USAGE)
        _report_bug()
        sys.exit(EXIT_BUG)
    finally:
        output.drop_unwritable()


def _spare_loopback() -> None:
    if any(name.lower().endswith("_proxy") for name in os.environ):  # else the import below is not needed
        from orchestrator.machine.proxies import spare_loopback

        spare_loopback()


def _report(error: BaseException) -> int:
    """Prints an error that the user can act on; returns the exit code."""
    match error:
        case RayLost():
            os._exit(EXIT_LOST)  # Ray's own shutdown would wait for processes that are gone; the supervisor takes over
        case KdctlError():
            _print_error(str(error))
            if error.exit_code == EXIT_INTERRUPTED:
                print_resume_command()
            return error.exit_code
        case click.ClickException():
            usage = io.StringIO()
            error.show(usage)
            _print_error(usage.getvalue().rstrip("\n"))
            return EXIT_USAGE
    _print_error("stopped")
    if sys.argv[1:2] == ["launch"]:
        print_resume_command()
    return EXIT_INTERRUPTED


def _print_error(message: str) -> None:
    with suppress(OSError):  # the reader of standard error may be gone
        click.echo(guesses(masked(message)), err=True, color=colour())


def _complete() -> None:
    """Prints completions for a shell, then exits: within `TIMEOUT`, and without any error message."""
    sys.stderr = io.StringIO()
    signal.signal(signal.SIGALRM, lambda *_: os._exit(1))
    signal.setitimer(signal.ITIMER_REAL, TIMEOUT)
    try:
        cli(prog_name="kdctl", complete_var=VARIABLE)
    except Exception:
        sys.exit(1)


def _report_bug() -> None:
    trace = masked(traceback.format_exc())
    last = trace.strip().splitlines()[-1]
    try:
        with tempfile.NamedTemporaryFile("w", prefix="kdctl-bug-", suffix=".log", delete=False) as file:
            file.write(f"{masked(' '.join(sys.argv))}\n{sys.version}\n{trace}")
        advice = f"please report it, and attach the log {file.name}"
    except OSError as error:
        advice = f"its log cannot be written ({error.strerror or error}): set TMPDIR to a writable folder and try again"
    _print_error(f"this is a bug in kdctl: {last}\n{advice}")


if __name__ == "__main__":
    main()
