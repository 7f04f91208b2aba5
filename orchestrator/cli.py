"""The command `kdctl`: its commands put together, and the one door where an error becomes a message and a code."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import traceback

import click

from orchestrator.commands import care, query, read, study
from orchestrator.commands.options import say_how_to_resume
from orchestrator.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_LOST, EXIT_USAGE, KdctlError, RayLost, masked

# Every command imports what it needs when it runs: `kdctl --help` loads Click alone, `plan` neither torch nor Ray.

_EPILOG = (
    "Exit codes: 0 all done, 1 some trial failed or was skipped, 2 wrong usage or study file, 3 a bug, 130 interrupted."
)


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


for _command in (
    study.check,
    study.plan,
    study.launch,
    study.schema,
    read.results,
    read.teachers,
    query.query,
    care.clean,
    care.doctor,
):
    cli.add_command(_command)


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
            say_how_to_resume()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped", err=True)
        if sys.argv[1:2] == ["launch"]:
            say_how_to_resume()
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left, as `| head` does
        sys.exit(1)
    except Exception:
        _report_bug()
        sys.exit(EXIT_BUG)


def _report_bug() -> None:
    story = masked(traceback.format_exc())
    with tempfile.NamedTemporaryFile("w", prefix="kdctl-bug-", suffix=".log", delete=False) as file:
        file.write(f"{masked(' '.join(sys.argv))}\n{sys.version}\n{story}")
    last = story.strip().splitlines()[-1]
    click.echo(f"this is a bug in kdctl: {last}\nplease report it with the log {file.name}", err=True)


if __name__ == "__main__":
    main()
