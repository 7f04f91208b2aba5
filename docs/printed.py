"""Writes what the program prints into the docs, between `<!-- printed: NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click

from orchestrator import cli, errors, losses
from orchestrator.data import registry
from orchestrator.monitor import metrics
from orchestrator.results import store, summary
from orchestrator.results.evidence import comparisons
from orchestrator.study import fields, schema
from orchestrator.study.fields import Key
from orchestrator.training.optimizers import OPTIMIZERS, Optimizer
from orchestrator.training.schedules import SCHEDULES, ScheduleFacts

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/columns.md", "docs/commands.md", "docs/data.md", "docs/methods.md", "docs/monitoring.md")
SCHEMA = "docs/study.schema.json"
COSTS = "docs/performance.md"
_SECTION = "performance.md#what-a-method-costs"
_BLOCK = re.compile(r"(<!-- printed: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _key_table(known: Mapping[str, Key]) -> str:
    rows = [f"| `{name}` | {key.default_text()} | {key.doc} |" for name, key in known.items()]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def _options(options: Mapping[str, losses.Option]) -> str:
    return ", ".join(f"`{name}: {fields.option_key(each).default_text()}`" for name, each in options.items()) or "-"


def _choice_table(title: str, entries: Mapping[str, Optimizer] | Mapping[str, ScheduleFacts]) -> str:
    rows = [f"| `{name}` | {entry.doc} | {_options(entry.options)} |" for name, entry in entries.items()]
    return "\n".join([f"| {title} | meaning | options with their defaults |", "|---|---|---|", *rows])


def _describe_teacher(method: losses.Method) -> str:
    """Where a method's teacher outputs can come from, with its default options."""
    needs = method.needs(method.defaults())
    if not needs:
        return "none"
    return "table or live" if losses.find_table_output(needs) else "live"


def _method_table() -> str:
    rows = [
        f"| [`{name}`](docs/methods.md#{name}) | {_describe_teacher(method)} | {method.doc} |"
        for name, method in losses.METHODS.items()
    ]
    return "\n".join(["| method | teacher | loss |", "|---|---|---|", *rows])


def _method_reference() -> str:
    """A section for each method: its formula, options, what it needs of the teacher, and where it comes from."""
    return "\n\n".join(_describe_method(name, method) for name, method in losses.METHODS.items())


def _describe_method(name: str, method: losses.Method) -> str:
    parts = [f"## {name}", f"{method.doc[0].upper()}{method.doc[1:]}.", f"```text\n{method.formula}\n```"]
    if method.options:
        rows = [
            f"| `{option}` | {key.default_text()} | {_describe_values(key)} | {key.doc} |"
            for option, key in ((option, fields.option_key(facts)) for option, facts in method.options.items())
        ]
        parts.append("\n".join(["| option | default | values | meaning |", "|---|---|---|---|", *rows]))
    needs = " and ".join(method.needs(method.defaults()))
    teacher = f"{needs}, {_describe_teacher(method)}" if needs else "none"
    lines = [f"- Teacher: {teacher}", f"- Trained parameters of its own: {'yes' if method.has_parameters else 'no'}"]
    lines += _describe_cost(name)
    lines.append(f"- Source: {method.source}")
    if method.variant:
        lines.append(f"- Paper and code: {method.variant}")
    return "\n\n".join([*parts, "\n".join(lines)])


def _describe_cost(name: str) -> Iterator[str]:
    """The measured speed of a method, which bench/methods.py printed into docs/performance.md; none for `base`."""
    row = re.search(rf"^\| {name} \| (table|live) .*\| ([\d.]+) \[", (ROOT / COSTS).read_text(), re.MULTILINE)
    if row:
        yield f"- Cost: {row[2]} times the speed of `base` ({row[1]}), as measured in [performance.md]({_SECTION})"


def _describe_values(key: Key) -> str:
    """What an option may be."""
    schema = key.value_type.schema()
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if schema["type"] == "boolean":
        return "true, false"
    kind = "whole numbers" if schema["type"] == "integer" else "numbers"
    start = f"above {schema['exclusiveMinimum']:g}" if "exclusiveMinimum" in schema else f"from {schema['minimum']:g}"
    return f"{kind} {start}" + (f" to {schema['maximum']:g}" if schema["maximum"] < 1e9 else "")


def _column_table(columns: Mapping[str, tuple[str, str]]) -> str:
    rows = [f"| `{name}` | {kind} | {meaning} |" for name, (kind, meaning) in columns.items()]
    return "\n".join(["| column | type | meaning |", "|---|---|---|", *rows])


def _commands() -> Iterator[tuple[str, str, click.Command]]:
    """Every command with its section and its words, subcommands after their group."""
    for section, names in cli.cli.sections():
        for name in names:
            command = cli.cli.commands[name]
            yield section, f"kdctl {name}", command
            if isinstance(command, click.Group):
                for inner, subcommand in command.commands.items():
                    yield section, f"kdctl {name} {inner}", subcommand


def _command_table() -> str:
    rows = []
    for _, words, command in _commands():
        context = click.Context(command)
        metavars = [p.make_metavar(context) for p in command.params if isinstance(p, click.Argument)]
        call = " ".join([words, *metavars]).replace("|", "\\|")
        rows.append(f"| `{call}` | {command.get_short_help_str(limit=200)} |")
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


def _command_reference() -> str:
    """What `--help` prints of each command, in a terminal 100 columns wide."""
    lines, last = [], ""
    for section, words, command in _commands():
        if section != last:
            lines.append(f"## {section}\n")
        last = section
        lines.append(f"### {words}\n\n```text\n{_help(words, command)}\n```\n")
    return "\n".join(lines).rstrip()


def _help(words: str, command: click.Command) -> str:
    context: click.Context | None = None
    found: click.Command = cli.cli
    for word in words.split():
        if context is not None:
            assert isinstance(found, click.Group)
            found = found.commands[word]
        context = click.Context(found, parent=context, info_name=word, terminal_width=100, **cli.cli.context_settings)
    assert context and found is command
    with context:
        return command.get_help(context)


def _normalisation() -> str:
    texts = {
        name: [", ".join(f"{value:.4f}" for value in values) for values in (facts.mean, facts.std)]
        for name, facts in registry.DATASETS.items()
    }
    rows = [f"| `{name}` | {mean} | {std} |" for name, (mean, std) in texts.items()]
    return "\n".join(["| dataset | mean | standard deviation |", "|---|---|---|", *rows])


def _exit_codes() -> str:
    rows = [f"| {code} | {meaning} |" for code, meaning in errors.EXIT_CODES.items()]
    return "\n".join(["| code | meaning |", "|---|---|", *rows])


def _metric_table() -> str:
    rows = []
    for name, metric in metrics.METRICS.items():
        per = "trial that runs" if "trial_id" in metric.labels else ", ".join(metric.labels)
        rows.append(f"| `{metrics.PREFIX}{name}` | {metric.kind} | {metric.unit} | {per} | {metric.meaning} |")
    return "\n".join(["| metric | kind | unit | one for each | meaning |", "|---|---|---|---|---|", *rows])


_PRINTERS: Mapping[str, Callable[[], str]] = {
    "commands": _command_table,
    "command-reference": _command_reference,
    "exit-codes": _exit_codes,
    "recipe-keys": lambda: _key_table(fields.RECIPE_KEYS),
    "experiment-keys": lambda: _key_table(fields.STUDENT_KEYS),
    "teacher-keys": lambda: _key_table(fields.TEACHER_KEYS),
    "resource-keys": lambda: _key_table(fields.RESOURCE_KEYS),
    "methods": _method_table,
    "method-reference": _method_reference,
    "optimizers": lambda: _choice_table("optimizer", OPTIMIZERS),
    "schedules": lambda: _choice_table("schedule", SCHEDULES),
    "metrics": _metric_table,
    "normalisation": _normalisation,
    "trial-columns": lambda: _column_table(store.TRIAL_COLUMNS),
    "epoch-columns": lambda: _column_table(store.EPOCH_COLUMNS),
    "summary-columns": lambda: _column_table(summary.SUMMARY_COLUMNS),
    "result-columns": lambda: _column_table(summary.RESULT_COLUMNS),
    "comparison-columns": lambda: _column_table(comparisons.COMPARISON_COLUMNS),
}


def printed(text: str) -> str:
    """Replaces every block of a page by what the program prints now."""
    return _BLOCK.sub(lambda match: f"{match[1]}{_PRINTERS[match[2]]()}\n{match[3]}", text)


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(printed((ROOT / page).read_text()))
    (ROOT / SCHEMA).write_text(schema.schema_text())
