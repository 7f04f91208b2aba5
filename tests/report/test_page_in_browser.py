"""The page in a real browser: quiet, complete, readable in light and dark, on a phone, on paper and by keyboard."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from reported import HOSTILE, facts, fill, member, row, study

from orchestrator.report import page as pages
from orchestrator.storage.layout import Storage

FIGURES = 4  # of the study: curves of student and teacher, a standing, a cost


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a study, as a file."""
    folder = tmp_path_factory.mktemp("browser")
    storage = Storage.at(folder / "runs")
    storage.prepare()
    fill(storage, study())
    pages.write(folder, pages.render(facts(storage, study()), "html"))
    return (folder / "report.html").as_uri()


@dataclass
class Visit:
    """A page, its messages on the console and in dialogs, and its requests."""

    page: Page
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def visit(browser: Browser) -> Iterator[Any]:
    """Opens a page in a context of its own, which is closed at the end."""
    contexts = []

    def visit(address: str, **options: Any) -> Visit:
        context = browser.new_context(**options)
        contexts.append(context)
        visited = Visit(context.new_page())
        visited.page.on("console", lambda message: visited.messages.append(message.text))
        visited.page.on("pageerror", lambda error: visited.messages.append(str(error)))
        visited.page.on("dialog", lambda dialog: (visited.messages.append(dialog.message), dialog.dismiss()))
        visited.page.on("request", lambda request: visited.requests.append(request.url))
        visited.page.goto(address)
        return visited

    yield visit
    for context in contexts:
        context.close()


def test_it_is_quiet_and_requests_only_itself(address: str, visit: Any) -> None:
    visited = visit(address)
    for element in visited.page.locator("svg.chart, th button, summary").filter(visible=True).all():
        element.hover()
    assert visited.messages == []
    assert [url for url in visited.requests if not url.startswith("data:")] == [address]


def test_text_and_curves_are_visible(address: str, visit: Any) -> None:
    page = visit(address).page
    assert page.locator("h1").inner_text() == "made up"
    assert "93.0 ± 1.0" in page.locator("#results").inner_text()
    assert page.locator("figure").count() == FIGURES
    for line in page.locator("#curves .line > path").all():
        box = line.bounding_box()
        assert box and box["width"] > 20 and box["height"] > 1
    length = page.locator("#curves .line > path").first.evaluate("path => path.getTotalLength()")
    assert length > 100
    charts = page.locator("svg.chart").all()
    assert all((box := chart.bounding_box()) and box["width"] > 300 and box["height"] > 100 for chart in charts)
    stroke = "path => getComputedStyle(path).stroke"
    colours = [line.evaluate(stroke) for line in page.locator("#curves-digits-resnet-32-8 .line > path").all()]
    assert len(set(colours)) >= 2 and "none" not in colours  # the policy lets the styles in


INTRUDERS = """(address) => {
    const image = document.createElement("img");
    image.src = address;
    const script = document.createElement("script");
    script.textContent = "window.caught = 1";
    document.body.append(image, script);
}"""


def test_the_policy_forbids_what_slips_through(address: str, visit: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        visited = visit(address)
        with visited.page.expect_event("requestfailed") as failed:
            visited.page.evaluate(INTRUDERS, f"http://127.0.0.1:{server.getsockname()[1]}/x")
        assert failed.value.failure == "csp"
        assert visited.page.evaluate("window.caught") is None
        with pytest.raises(BlockingIOError):  # nobody has knocked
            server.accept()
    assert len([text for text in visited.messages if "Content Security Policy" in text]) == 2


def test_hostile_names_are_shown_as_text(tmp_path: Path, visit: Any) -> None:
    storage = Storage.at(tmp_path / "runs")
    storage.prepare()
    name = " ".join(HOSTILE)
    records = [replace(one, host=name, error=name, device=name) for one in study()]
    fill(storage, records)
    own = facts(storage, records, [member(row(90), name)], name=name, text=name)
    pages.write(tmp_path, pages.render(own, "html"))
    visited = visit((tmp_path / "report.html").as_uri())
    for element in visited.page.locator("svg.chart, h1, summary").all():
        element.hover()
    assert visited.messages == []
    heading = visited.page.locator("h1").inner_text()
    assert (
        "<script>alert(1)</script>" in heading and "\\u202eright to left\\u202c" in heading and "{{ 7 * 7 }}" in heading
    )
    assert "</style><b>bold</b>" in visited.page.locator("#unfinished").inner_text()
    assert visited.page.locator("script").count() == 1 == visited.page.locator("style").count()
    assert visited.page.locator("main b, main [onmouseover]").count() == 0
    assert visited.page.locator("pre").inner_text() == name.replace("\u202e", "\\u202e").replace("\u202c", "\\u202c")


CONTRASTS = """() => {
  const part = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map((value) => part(value / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  // Dark pages show charts inverted; turning the hue back keeps the lightness.
  const invert = (text) => text.match(/[\\d.]+/g).map((value) => 0.93 * (255 - value) + 0.07 * value).join(" ");
  const isInverted = getComputedStyle(document.querySelector("svg.chart")).filter !== "none";
  return [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility()
      && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())).map((one) => {
    const style = getComputedStyle(one), isChart = one.closest("svg");
    const ink = light(isChart ? (isInverted ? invert(style.fill) : style.fill) : style.color);
    return [(Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05), one.tagName, one.textContent.slice(0, 30)];
  });
}"""


def test_light_and_dark_differ_and_can_both_be_read(address: str, visit: Any) -> None:
    papers = []
    for scheme in ("light", "dark"):
        page = visit(address, color_scheme=scheme).page
        papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        found = [one for one in page.evaluate(CONTRASTS) if one[1].lower() not in ("title", "desc", "script", "style")]
        assert len(found) > 100
        assert [one for one in found if one[0] < 4.5] == []
    assert papers == ["rgb(255, 255, 255)", "rgb(20, 23, 28)"]


def test_a_phone_needs_no_sideways_scroll(address: str, visit: Any) -> None:
    page = visit(address, viewport={"width": 375, "height": 700}).page
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    for chart in page.locator("svg.chart").all():
        box = chart.bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 375
    wide = page.locator("details[open] .scroll").first
    assert wide.evaluate("box => box.scrollWidth > box.clientWidth")  # a wide table scrolls within itself
    # A shadow at the right edge shows that there is more: it stays, and a cover scrolls away with the content.
    assert wide.evaluate("box => getComputedStyle(box).backgroundAttachment") == "local, local, scroll, scroll"


def test_the_pointer_shows_epoch_mean_and_run(address: str, visit: Any) -> None:
    page = visit(address).page
    chart = page.locator("#curves-digits-resnet-32-8 svg").first
    chart.scroll_into_view_if_needed()
    end = chart.locator(".run").first.bounding_box()
    assert end
    page.mouse.move(end["x"] + end["width"] - 1, end["y"] + 1)
    tip = page.locator("#tip").inner_text()
    assert tip.startswith("epoch 10\n") and "logit, mean, n=3: 93.00 %" in tip
    assert re.search(r"(base|logit), seed \d \([0-9a-f]{12}\): 9\d\.00 %$", tip)
    assert chart.locator(".run.on").count() == 1


def test_it_can_be_used_by_keyboard(address: str, visit: Any) -> None:
    page = visit(address).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#answer"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.locator("#curves svg.curves").first.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert "epoch 8" in page.locator("#tip").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()


def test_tables_sort_by_their_numbers(address: str, visit: Any) -> None:
    page = visit(address).page
    table = page.locator(".table table", has_text="seconds per run")
    button = table.locator("thead button", has_text="parameters")
    column = "table => [...table.tBodies[0].rows].map(row => row.cells[2].textContent.trim())"
    button.focus()
    page.keyboard.press("Enter")
    assert table.evaluate(column) == ["78,042", "78,042", "272,474"]
    page.keyboard.press("Enter")
    assert table.evaluate(column) == ["272,474", "78,042", "78,042"]
    assert table.locator("th[aria-sort=descending]").inner_text().startswith("parameters")


def test_a_long_table_can_be_filtered(tmp_path: Path, visit: Any) -> None:
    storage = Storage.at(tmp_path / "runs")
    storage.prepare()
    rows = [row(number, seed=number) for number in range(15)]
    fill(storage, rows)
    pages.write(tmp_path, pages.render(facts(storage, rows), "html"))
    page = visit((tmp_path / "report.html").as_uri()).page
    page.locator("details summary", has_text="15 runs").click()
    table = page.locator("details[open] table", has_text="trial id").first
    page.locator("details[open] .filter").first.fill("0000E  FINISHED")
    assert table.locator("tbody tr").filter(visible=True).count() == 1
    page.locator("details[open] .filter").first.fill("")
    assert table.locator("tbody tr").filter(visible=True).count() == 15
    assert page.locator("#results > .table .filter").count() == 0, "short tables have none"


def test_every_part_has_an_address(address: str, visit: Any) -> None:
    page = visit(address).page
    ids = page.locator("main [id]").evaluate_all("all => all.map(one => one.id)")
    assert len(ids) == len(set(ids))
    anchors = page.locator("main .anchor").evaluate_all("all => all.map(one => one.getAttribute('href').slice(1))")
    assert len(anchors) > 8 and set(anchors) <= set(ids)
    heading = page.locator("#cost h2")
    assert heading.locator(".anchor").evaluate("one => getComputedStyle(one).opacity") == "0"
    heading.hover()
    assert heading.locator(".anchor").evaluate("one => getComputedStyle(one).opacity") == "1"


def test_it_is_complete_without_scripts(address: str, visit: Any) -> None:
    page = visit(address, java_script_enabled=False).page
    assert page.locator("figure").count() == FIGURES
    assert page.locator("th button").count() == 0
    assert page.locator("#curves .run > title").first.text_content() == "base, seed 1 (000000000001)"
    assert page.locator("svg.chart > title").count() == page.locator("svg.chart").count()


def test_paper_has_whole_tables_and_folded_parts(address: str, visit: Any) -> None:
    page = visit(address, color_scheme="dark").page
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).getPropertyValue('--paper')") == "#ffffff"
    assert page.locator("nav").is_hidden()
    found = page.locator(".table").evaluate_all(
        "all => all.map(one => [one.querySelectorAll('tbody tr').length, getComputedStyle(one).breakInside])"
    )
    assert found and all((inside == "avoid") == (rows < 9) for rows, inside in found)  # a long one fills its page
    assert page.locator("details.printed").count() >= 4
    heights = page.locator("details.printed table").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect().height)"
    )
    assert heights and min(heights) > 20  # shown although they were not opened
    assert page.pdf().startswith(b"%PDF")


def test_a_figure_beside_markdown_is_the_same_on_dark_pages(tmp_path: Path, visit: Any) -> None:
    storage = Storage.at(tmp_path / "runs")
    storage.prepare()
    fill(storage, study())
    pages.write(tmp_path, pages.render(facts(storage, study()), "markdown"))
    fills = []
    for scheme in ("light", "dark"):
        visited = visit((tmp_path / "report-curves-digits-resnet-32-8-1.svg").as_uri(), color_scheme=scheme)
        assert visited.messages == [] and len(visited.requests) == 1
        first = visited.page.locator("path").first  # the ground
        fills.append(first.evaluate("path => getComputedStyle(path).fill"))
        assert first.bounding_box()["width"] == pytest.approx(3.25 * 96, abs=1)  # as wide as a column
    assert fills == ["rgb(255, 255, 255)"] * 2
