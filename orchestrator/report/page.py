"""The report as one HTML file that asks nobody for anything, or as Markdown with SVG files beside it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata, resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from orchestrator import markdown
from orchestrator.errors import KdctlError
from orchestrator.files import write_file
from orchestrator.report import charts
from orchestrator.report.charts import Chart, cut
from orchestrator.report.content import Facts
from orchestrator.report.figures import Figure
from orchestrator.report.sections import Code, Section, Table, Text, caution, head, sections
from orchestrator.text import looking_once, masked, printable

FORMATS = {"html": ".html", "markdown": ".md"}
MARK = "kdctl report"  # stands near the top of every file that is ours, in one of these forms
_MARKS = tuple(text.encode() for text in (f"<!-- {MARK} -->", f'<meta name="generator" content="{MARK}">'))
MAX_TEXT = 600  # characters of a text from outside
MAX_CODE = 60_000  # of a study file


def render(facts: Facts, form: str, stem: str = "report") -> dict[str, str]:
    """The files of a report, name → text; the last one is the page itself. `form` is one of `FORMATS`.

    Raises StorageError where epochs cannot be read.
    """
    with looking_once():
        found = sections(facts)
        return _html(facts, found, stem) if form == "html" else _markdown(facts, found, stem)


def _shown(text: str) -> str:
    return cut(" ".join(text.split()) if "\n" in text else text, MAX_TEXT)


def _lines(text: str) -> str:
    """A file's text, line by line as `text.printable` has it."""
    text = masked(text)  # as a whole too: a secret may have lines
    shown = "\n".join(printable(line.expandtabs(4)) for line in text[:MAX_CODE].splitlines())
    return shown + "\n… (cut)" if len(text) > MAX_CODE else shown


# HTML. Everything goes through the template, which escapes it; what is markup already is named here.


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("orchestrator.report"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"shown": _shown, "lines": _lines, "digest": _digest, "own": Markup, "drawn": _drawn}
    kinds = {"text_block": Text, "code_block": Code, "figure_block": Figure}
    environment.tests |= {name: _is_a(kind) for name, kind in kinds.items()}
    return environment


def _is_a(kind: type) -> Callable[[object], bool]:
    return lambda block: isinstance(block, kind)


def _drawn(chart: Chart) -> Markup:
    return Markup(chart.inline())  # noqa: S704 - made by ElementTree, which escapes every text


def _digest(text: str) -> str:
    """What a Content-Security-Policy names an inline script or style by."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _part(name: str) -> str:
    return resources.files("orchestrator.report").joinpath("templates", name).read_text(encoding="utf-8")


def _html(facts: Facts, found: list[Section], stem: str) -> dict[str, str]:
    template = _environment().get_template("report.html")
    text = template.render(
        name=facts.name, head=head(facts), caution=caution(facts), sections=found,
        style=charts.STYLE + _part("report.css"), script=_part("report.js"),
        version=_version(), written=f"{facts.now:%Y-%m-%d %H:%M}",
    )  # fmt: skip
    return {f"{stem}.html": text}


def _version() -> str:
    return metadata.version("kdctl")


# Markdown.


def _markdown(facts: Facts, found: list[Section], stem: str) -> dict[str, str]:
    files: dict[str, str] = {}
    parts = [f"<!-- {MARK} -->\n# {_escaped(facts.name)}", _escaped(head(facts))]
    parts += [f"> {_escaped(caution(facts))}"] if caution(facts) else []
    for section in found:
        parts.append(f"## {section.title}")
        parts += [_block(block, stem, files) for block in section.blocks]
    parts.append(f"Written by kdctl {_version()} on {facts.now:%Y-%m-%d %H:%M} UTC.")
    return {**files, f"{stem}.md": "\n\n".join(parts) + "\n"}


def _escaped(text: str) -> str:
    return markdown.escape(_shown(text))


def _block(block: Text | Table | Figure | Code, stem: str, files: dict[str, str]) -> str:
    if isinstance(block, Text):
        return _escaped(block.text)
    if isinstance(block, Code):
        text = _lines(block.text)
        fence = "`" * (max(map(len, re.findall("`+", text)), default=2) + 1)
        fence = fence if len(fence) >= 3 else "```"
        return f"### {_escaped(block.title)}\n\n{fence}yaml\n{text}\n{fence}"
    if isinstance(block, Figure):
        return _figure(block, stem, files)
    rows = [[_cell(cell.text, cell.small, is_marked=cell.is_marked) for cell in row] for row in block.rows]
    table = markdown.format_table(list(map(_escaped, block.header)), rows)
    body = "\n\n".join([table, *map(_escaped, block.notes)])
    if block.folded:
        return f"<details><summary>{_escaped(block.folded)}</summary>\n\n{body}\n\n</details>"
    return f"### {_escaped(block.title)}\n\n{body}"


def _cell(text: str, small: str, *, is_marked: bool) -> str:
    shown = f"**{_escaped(text)}**" if is_marked else _escaped(text)
    return f"{shown} ({_escaped(small)})" if small else shown


def _figure(figure: Figure, stem: str, files: dict[str, str]) -> str:
    names = [f"{stem}-{figure.name}-{number}.svg" for number in range(1, len(figure.charts) + 1)]
    files.update(zip(names, (chart.standalone() for chart in figure.charts), strict=True))
    images = " ".join(
        f"![{_escaped(chart.words.title)}](<{name}>)" for chart, name in zip(figure.charts, names, strict=True)
    )
    return f"### {_escaped(figure.title)}\n\n{images}\n\n{_escaped(figure.caption)}"


# Files.


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Writes files, each whole or not at all; earlier ones of ours are replaced.

    Raises KdctlError for a file that is not ours, before anything is written, and where a file cannot be written.
    """
    for name in files:
        if not _is_ours(folder / name):
            raise KdctlError(
                f"{folder / name} is there and was not written by kdctl report; name another file with --output, or "
                "move that one away"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_file(folder / name, text)
    except OSError as error:
        raise KdctlError(
            f"{folder} cannot be written ({error.strerror or error}); name another with --output"
        ) from None


def _is_ours(path: Path) -> bool:
    """Whether a file may be replaced: it is not there, or has our mark near its top."""
    try:
        with path.open("rb") as file:
            top = file.read(400)
            return any(mark in top for mark in _MARKS)
    except FileNotFoundError:
        return True
    except OSError:
        return False
