"""The command `kdctl`: its commands put together, and the one door where an error becomes a message and a code."""

from __future__ import annotations

import io
import os
import signal
import sys
import tempfile
import traceback
from contextlib import suppress

import click

from orchestrator.commands import care, cluster, dashboard_export, launch, query, read, report, study, watch
from orchestrator.commands.colours import colour, guesses
from orchestrator.commands.completing import PATIENCE, VARIABLE
from orchestrator.commands.layout import WELCOME, Sections
from orchestrator.commands.options import say_how_to_resume
from orchestrator.errors import (
    EXIT_BUG,
    EXIT_CODES,
    EXIT_INTERRUPTED,
    EXIT_LOST,
    EXIT_USAGE,
    KdctlError,
    RayLost,
    masked,
)
from orchestrator.machine import output

# Every command imports what it needs when it runs: `kdctl --help` loads Click alone, `plan` neither torch nor Ray.

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
      kdctl plan experiments.yaml       # what would be trained
      kdctl launch experiments.yaml     # train it; the same line again goes on
      kdctl results experiments.yaml    # its tables
    """
    context.color = colour()
    if context.invoked_subcommand is None:
        click.echo(WELCOME, err=True)
        sys.exit(EXIT_USAGE)


for _command in (
    study.init,
    study.check,
    study.plan,
    launch.launch,
    launch.stop,
    study.schema,
    watch.status,
    watch.logs,
    read.results,
    read.teachers,
    report.report,
    query.query,
    care.clean,
    care.doctor,
    care.completion,
    cluster.up,
    cluster.down,
    cluster.dashboard,
):
    cli.add_command(_command)
cluster.dashboard.add_command(dashboard_export.export)


def main() -> None:
    """The command `kdctl`: the one place where an error becomes a message and an exit code."""
    output.open_closed()
    try:
        _run()
    except SystemExit as end:
        _announce(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise
    _announce(0)


def _announce(code: int) -> None:
    if "KDCTL_SUPERVISOR" in os.environ:  # others need not load what follows
        from orchestrator.cluster.supervisor import announce_end

        announce_end(code)


def _run() -> None:
    if VARIABLE in os.environ:
        _offer()
    _spare_loopback()
    try:
        cli(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (click.ClickException, KdctlError, KeyboardInterrupt, click.Abort) as error:
        sys.exit(_told(error))
    except BrokenPipeError:
        sys.exit(1)  # the reader left, as `| head` does
    except Exception as error:
        if isinstance(error, OSError) and (text := output.complaint(error)):
            _say(text)
            sys.exit(EXIT_USAGE)
        _report_bug()
        sys.exit(EXIT_BUG)
    finally:
        output.drop_unwritable()


def _spare_loopback() -> None:
    if any(name.lower().endswith("_proxy") for name in os.environ):  # others need not load what follows
        from orchestrator.machine.proxies import spare_loopback

        spare_loopback()


def _told(error: BaseException) -> int:
    """Says what a person can act on; returns the exit code."""
    match error:
        case RayLost():
            os._exit(EXIT_LOST)  # Ray's own end would wait for processes that are gone; the supervisor knows what to do
        case KdctlError():
            _say(str(error))
            if error.exit_code == EXIT_INTERRUPTED:
                say_how_to_resume()
            return error.exit_code
        case click.ClickException():
            usage = io.StringIO()
            error.show(usage)
            _say(usage.getvalue().rstrip("\n"))
            return EXIT_USAGE
    _say("stopped")
    if sys.argv[1:2] == ["launch"]:
        say_how_to_resume()
    return EXIT_INTERRUPTED


def _say(message: str) -> None:
    with suppress(OSError):  # nobody may read it any more
        click.echo(guesses(masked(message)), err=True, color=colour())


def _offer() -> None:
    """Answers a shell that completes a line, and ends: in time, and without a word about what went wrong."""
    sys.stderr = io.StringIO()
    signal.signal(signal.SIGALRM, lambda *_: os._exit(1))
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        cli(prog_name="kdctl", complete_var=VARIABLE)
    except Exception:
        sys.exit(1)


def _report_bug() -> None:
    story = masked(traceback.format_exc())
    last = story.strip().splitlines()[-1]
    try:
        with tempfile.NamedTemporaryFile("w", prefix="kdctl-bug-", suffix=".log", delete=False) as file:
            file.write(f"{masked(' '.join(sys.argv))}\n{sys.version}\n{story}")
        advice = f"please report it with the log {file.name}"
    except OSError as error:
        advice = f"its log cannot be written ({error.strerror or error}): name a folder in TMPDIR and try again"
    _say(f"this is a bug in kdctl: {last}\n{advice}")


if __name__ == "__main__":
    main()
