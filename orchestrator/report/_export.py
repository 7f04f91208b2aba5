"""Charts as text of a page, and as SVG, PDF and PNG files for papers: the same bytes for the same numbers."""

from __future__ import annotations

import re
from functools import partial
from io import BytesIO
from xml.etree.ElementTree import Element, fromstring, tostring
from zlib import crc32

from orchestrator.report._charts import Chart
from orchestrator.report._style import cut, use_style

MARK = "kdctl report"  # in every file, which a later report may therefore replace
FORMS = ("svg", "pdf", "png")
_DOTS = 300  # per inch, of a PNG
_METADATA = {
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
    "pdf": {"CreationDate": None, "Creator": MARK, "Producer": None},
    "png": {"Software": MARK},
}
_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
_XLINK = "{http://www.w3.org/1999/xlink}"


def render_file(chart: Chart, form: str) -> bytes:
    """The content of a file in one of `FORMS`, on white. The text of an SVG is drawn, so any reader shows it alike."""
    if form == "svg":
        root = _draw_svg(chart, "path")
        return (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<!-- {MARK} -->\n{tostring(root, encoding="unicode")}\n'.encode()
        )
    return _save(chart, form)


def render_inline(chart: Chart, name: str) -> str:
    """An SVG element for a page, on no ground; its text is text. Its ids are those of no other `name`."""
    chart.drawing.patch.set_visible(False)
    try:
        root = _draw_svg(chart, "none", f"c{crc32(name.encode()):x}", digits=1)
    finally:
        chart.drawing.patch.set_visible(True)
    for text in root.iter("text"):
        text.attrib.pop("font-family", None)  # that of the page
    axes, (left, bottom, right, top) = chart.axes, chart.box
    root.set("class", f"chart {chart.kind}")
    root.set("data-name", cut(chart.texts.x, 60))
    root.set("data-box", f"{left:g} {right:g} {bottom:g} {top:g}")
    root.set("data-range", " ".join(f"{value:g}" for value in (*axes.get_xlim(), *axes.get_ylim())))
    if axes.get_xscale() == "log":
        root.set("data-log", "")
    return tostring(root, encoding="unicode")


def _save(chart: Chart, form: str, fonts: str = "none") -> bytes:
    file = BytesIO()
    with use_style({"svg.fonttype": fonts, "svg.hashsalt": MARK}):
        chart.drawing.savefig(file, format=form, dpi=_DOTS, metadata=_METADATA[form])
    return file.getvalue()


def _draw_svg(chart: Chart, fonts: str, prefix: str = "c", digits: int = 2) -> Element:
    """Its SVG, much shorter than as matplotlib writes it, and without styles, which the policy of a page forbids."""
    root = fromstring(_save(chart, "svg", fonts))  # noqa: S314 - made by matplotlib
    for parent in list(root.iter()):
        for child in list(parent):
            if _name_of(child) in ("metadata", "style", "clipPath"):
                parent.remove(child)
    used = {element.get(f"{_XLINK}href", "#")[1:] for element in root.iter()} - {""}
    names = {name: f"{prefix}-{number}" for number, name in enumerate(sorted(used), 1)}
    for element in list(root.iter()):  # without the titles that are added
        _simplify(element, names, chart.marks, digits)
    _flatten(root)
    root.attrib |= {"xmlns": "http://www.w3.org/2000/svg", "role": "img"}
    root.attrib |= {"stroke-linejoin": "round", "stroke-linecap": "butt"}
    if used:
        root.set("xmlns:xlink", "http://www.w3.org/1999/xlink")
    description = Element("desc")
    description.text = cut(chart.texts.description, 600)
    root.insert(0, description)
    _add_title(root, chart.texts.title)
    return root


def _name_of(element: Element) -> str:
    return element.tag.rpartition("}")[2]


def _add_title(element: Element, text: str) -> None:
    title = Element("title")
    title.text = cut(text, 200)
    element.insert(0, title)


def _simplify(element: Element, names: dict[str, str], marks: dict[str, dict[str, str]], digits: int) -> None:
    """Plain names, attributes for styles, few decimals, the ids that are used, and what a page says about a mark."""
    kept = {"d": digits, "x": digits, "y": digits, "transform": 4}  # it scales letters
    element.tag = _name_of(element)
    given, element.attrib = element.attrib, {}
    for name, value in [*given.items(), *_split_style(given.get("style", ""))]:
        if name == f"{_XLINK}href":
            element.set("xlink:href", f"#{names[value[1:]]}")
        elif name == "id":
            if value in names:
                element.set("id", names[value])
        elif name not in ("style", "clip-path", "version") and not value.startswith("rotate(-0 "):
            short = _NUMBER.sub(partial(_round, kept.get(name, 2)), value)
            element.set(name, _shorten_path(short) if name == "d" else short)
    if own := marks.get(given.get("id", "")):
        element.attrib |= {name: value for name, value in own.items() if name != "title"}
        _add_title(element, own["title"])
    element.tail = None
    if element.tag != "text":
        element.text = None


def _shorten_path(path: str) -> str:
    """The same path, without what its grammar implies."""
    path = re.sub(r"\s*([A-Za-z])\s*", r"\1", path)
    return re.sub(r"(?<=L)([^A-Z]+)(?:L[^A-Za-z]+)+", lambda found: found[0].replace("L", " "), path).strip()


def _flatten(parent: Element) -> None:
    """Leaves out groups that say nothing."""
    children: list[Element] = []
    for child in parent:
        _flatten(child)
        is_plain = child.tag in ("g", "defs") and not child.attrib
        children += list(child) if is_plain and (child.tag == "g" or not len(child)) else [child]
    parent[:] = children


def _split_style(style: str) -> list[tuple[str, str]]:
    return [
        (name.strip(), value.strip()) for name, _, value in (part.partition(":") for part in style.split(";")) if value
    ]


def _round(digits: int, number: re.Match[str]) -> str:
    return f"{float(number[0]):.{digits}f}".rstrip("0").rstrip(".")
