"""What a shell offers when somebody presses Tab: study files, studies, trials, teachers, keys.

It must be quick and never say anything: no bucket is asked, and whatever goes wrong offers nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import TYPE_CHECKING

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, get_completion_class

if TYPE_CHECKING:
    from orchestrator.storage.layout import Storage

VARIABLE = "_KDCTL_COMPLETE"  # in the environment while a shell asks
SHELLS = ("bash", "zsh", "fish")
PATIENCE = 2.0  # seconds after which a shell is told nothing, for example where a network folder hangs

Item = CompletionItem[str]
Completer = Callable[[click.Context, click.Parameter, str], list[Item]]


@add_completion_class
class Bash(BashComplete):
    """Click's script for bash, with three changes.

    No blank after `recipe.epochs=`, which the value follows; folders beside what is offered, not instead of it; and
    values as they are, not as patterns of file names.
    """

    source_template = (
        BashComplete.source_template.replace(
            "COMPREPLY+=($value)",
            'COMPREPLY+=("$value")\n            [[ $value == *[=.] ]] && compopt -o nospace',
        )
        .replace("COMPREPLY=()\n            compopt -o dirnames", "compopt -o plusdirs")
        .replace("IFS=',' read type value", "IFS=',' read -r type value")
    )


def script(shell: str, command: click.Command) -> str:
    """The script that makes a shell (one of `SHELLS`) ask."""
    made = get_completion_class(shell)
    assert made, "a shell of SHELLS"
    return made(command, {}, "kdctl", VARIABLE).source()


def _quietly(offer: Callable[[click.Context, str], Iterable[Item]]) -> Completer:
    @wraps(offer)
    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Item]:
        try:
            return [item for item in offer(context, incomplete) if item.value.startswith(incomplete)]
        except Exception:  # a damaged storage, a folder that may not be read: there is nothing to offer then
            return []

    return complete


@_quietly
def study_files(context: click.Context, incomplete: str) -> Iterable[Item]:
    """Files that end as study files do, and folders, in which there may be some."""
    return _files(incomplete)


def _files(incomplete: str) -> Iterator[Item]:
    from orchestrator.machine.paths import local

    head = os.path.split(incomplete)[0]
    for path in sorted(local(head or ".", "folder").iterdir()):
        if path.suffix in (".yaml", ".yml") and path.is_file():
            yield CompletionItem(os.path.join(head, path.name))  # noqa: PTH118 - ./ and ~ stay as they were typed
    yield CompletionItem(incomplete, type="dir")


@_quietly
def studies(context: click.Context, incomplete: str) -> Iterable[Item]:
    """Study files, and the studies that the storage remembers."""
    return [*_remembered(context), *_files(incomplete)]


def _remembered(context: click.Context) -> Iterator[Item]:
    from orchestrator.study.stored_studies import remembered

    if storage := _storage(context):
        for study in remembered(storage):
            yield CompletionItem(study.name, help=f"study of {len(study.members)} trials, {study.launched.file}")


@_quietly
def trials(context: click.Context, incomplete: str) -> Iterable[Item]:
    """Ids of trials, with what a person calls them."""
    from orchestrator.catalog.trial_ids import known

    storage = _storage(context)
    found = known(storage) if storage else {}
    return [CompletionItem(trial_id, help=title or None) for trial_id, title in found.items()]


@_quietly
def teachers(context: click.Context, incomplete: str) -> Iterable[Item]:
    """Ids of the teachers of remembered studies that have a row."""
    from orchestrator.study.stored_studies import remembered

    storage = _storage(context)
    members = [member for study in remembered(storage) for member in study.members] if storage else []
    titles = {member.trial_id: member.title for member in members if member.role == "teacher"}
    return [
        CompletionItem(trial_id, help=title)
        for trial_id, title in titles.items()
        if storage and storage.backend.stat(storage.trial_row(trial_id))
    ]


@_quietly
def settings(context: click.Context, incomplete: str) -> Iterable[Item]:
    """Keys of a study file as `--set` wants them, each with its meaning."""
    from orchestrator.study import fields

    experiments = [f"experiments[{number}]" for number in range(_experiments(context))]
    parts = {"recipe": fields.RECIPE_KEYS, "resources": fields.RESOURCE_KEYS}
    for experiment in experiments:
        if incomplete.startswith(experiment):  # else one line for all of its keys
            parts[experiment] = {**fields.EXPERIMENT_KEYS, "teacher": fields.TEACHER_KEYS["model"]}
        else:
            yield CompletionItem(f"{experiment}.", help="keys of an experiment")
    for part, known in parts.items():
        for name, key in known.items():
            yield CompletionItem(f"{part}.{name}=", help=key.doc)
    yield CompletionItem("study=", help="the study's name")


def _experiments(context: click.Context) -> int:
    """How many experiments the file that was named has; 1 where that cannot be told."""
    from orchestrator.errors import StudyError
    from orchestrator.machine.paths import PathError, local
    from orchestrator.study import document

    named = [context.params.get("file"), *context.args]  # Click leaves it in args where an option wants its value
    try:
        root = document.read(local(next(filter(None, named), ""), "study file")).value
    except (StudyError, PathError):
        return 1
    listed = root["experiments"].value if isinstance(root, dict) and "experiments" in root else None
    return len(listed) if isinstance(listed, list) else 1


@_quietly
def folders(context: click.Context, incomplete: str) -> Iterable[Item]:
    """Folders alone."""
    return [CompletionItem(incomplete, type="dir")]


def _storage(context: click.Context) -> Storage | None:
    """The storage that the line names so far; None for a bucket, which may take long to answer."""
    from orchestrator.storage.layout import Storage

    found: click.Context | None = context
    while found and not found.params.get("storage"):  # `kdctl teachers --storage X verify` names it one level up
        found = found.parent
    address = found.params["storage"] if found else "runs"
    return None if "://" in address else Storage.at(address)
