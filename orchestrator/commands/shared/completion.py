"""What a shell offers on Tab: study files, studies, trials, teachers, keys.

It must be quick and print nothing else: no bucket is searched, and after any error nothing is offered.
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

VARIABLE = "_KDCTL_COMPLETE"  # set in the environment when a shell asks for completions
SHELLS = ("bash", "zsh", "fish")
TIMEOUT = 2.0  # seconds after which nothing is offered, for example if a network folder hangs

Item = CompletionItem[str]
Completer = Callable[[click.Context, click.Parameter, str], list[Item]]


@add_completion_class
class Bash(BashComplete):
    """Click's script for bash, with three changes.

    No blank after `recipe.epochs=`, because its value follows; folders in addition to the offered values, not instead
    of them; and values taken literally, not as file name patterns.
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
    """The script that teaches a shell (one of `SHELLS`) to complete `kdctl`."""
    completer = get_completion_class(shell)
    assert completer, "a shell of SHELLS"
    return completer(command, {}, "kdctl", VARIABLE).source()


def _quietly(offer: Callable[[click.Context, str], Iterable[Item]]) -> Completer:
    @wraps(offer)
    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Item]:
        try:
            return [item for item in offer(context, incomplete) if item.value.startswith(incomplete)]
        except Exception:  # for example a damaged storage or an unreadable folder
            return []

    return complete


@_quietly
def study_files(context: click.Context, incomplete: str) -> Iterable[Item]:
    """Files with the ending of a study file, and folders."""
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
    """Study files, and the studies in the storage."""
    return [*_studies_in_storage(context), *_files(incomplete)]


def _studies_in_storage(context: click.Context) -> Iterator[Item]:
    from orchestrator.study.stored_studies import list_studies

    if storage := _storage(context):
        for study in list_studies(storage):
            yield CompletionItem(study.name, help=f"study of {len(study.members)} trials, {study.launched.file}")


@_quietly
def trials(context: click.Context, incomplete: str) -> Iterable[Item]:
    """Ids of trials, each with its title."""
    from orchestrator.catalog.trial_ids import list_known

    storage = _storage(context)
    found = list_known(storage) if storage else {}
    return [CompletionItem(trial_id, help=title or None) for trial_id, title in found.items()]


@_quietly
def teachers(context: click.Context, incomplete: str) -> Iterable[Item]:
    """Ids of teachers that have a row in the storage."""
    from orchestrator.study.stored_studies import list_studies

    storage = _storage(context)
    members = [member for study in list_studies(storage) for member in study.members] if storage else []
    titles = {member.trial_id: member.title for member in members if member.role == "teacher"}
    return [
        CompletionItem(trial_id, help=title)
        for trial_id, title in titles.items()
        if storage and storage.backend.stat(storage.trial_row(trial_id))
    ]


@_quietly
def settings(context: click.Context, incomplete: str) -> Iterable[Item]:
    """Keys of a study file in the form that `--set` expects, each with its meaning."""
    from orchestrator.study import fields

    experiments = [f"experiments[{number}]" for number in range(_experiments(context))]
    parts = {"recipe": fields.RECIPE_KEYS, "resources": fields.RESOURCE_KEYS}
    for experiment in experiments:
        if incomplete.startswith(experiment):  # else one entry stands for all its keys
            parts[experiment] = {**fields.EXPERIMENT_KEYS, "teacher": fields.TEACHER_KEYS["model"]}
        else:
            yield CompletionItem(f"{experiment}.", help="keys of an experiment")
    for part, known in parts.items():
        for name, key in known.items():
            yield CompletionItem(f"{part}.{name}=", help=key.doc)
    yield CompletionItem("study=", help="the study's name")


def _experiments(context: click.Context) -> int:
    """The number of experiments in the study file on the command line; 1 if it cannot be read."""
    from orchestrator.errors import StudyError
    from orchestrator.machine.paths import PathError, local
    from orchestrator.study import document

    named = [context.params.get("file"), *context.args]  # Click leaves it in args while an option expects its value
    try:
        root = document.read(local(next(filter(None, named), ""), "study file")).value
    except (StudyError, PathError):
        return 1
    listed = root["experiments"].value if isinstance(root, dict) and "experiments" in root else None
    return len(listed) if isinstance(listed, list) else 1


@_quietly
def folders(context: click.Context, incomplete: str) -> Iterable[Item]:
    """Only folders."""
    return [CompletionItem(incomplete, type="dir")]


def _storage(context: click.Context) -> Storage | None:
    """The storage of the command line so far; None for a bucket, which may be slow, and for what cannot be one."""
    from orchestrator.errors import StorageError
    from orchestrator.storage.layout import Storage

    found: click.Context | None = context
    while found and not found.params.get("storage"):  # `kdctl teachers --storage X verify` names it one level up
        found = found.parent
    address = found.params["storage"] if found else "runs"
    try:
        return None if "://" in address else Storage.at(address)
    except StorageError:  # a file, for example
        return None
