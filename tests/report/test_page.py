"""The page and its files: everything escaped, no requests, bounded, and no foreign file replaced."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reported import HOSTILE, SETTING, START, facts, fill, member, row, study

from orchestrator import cli
from orchestrator.errors import KdctlError
from orchestrator.records import State
from orchestrator.report import page
from orchestrator.report.content import Facts
from orchestrator.results import store
from orchestrator.results.output_formats import ReportFormat
from orchestrator.storage.backend import Entry, Folder
from orchestrator.storage.layout import Storage
from orchestrator.study import stored_studies

LIMIT = 2_000_000  # bytes of a page, whatever the study


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A storage with a study in it. To be read only."""
    made = Storage.at(tmp_path_factory.mktemp("page") / "runs")
    made.prepare()
    fill(made, study())
    return made


@pytest.fixture(scope="module")
def made_up(storage: Storage) -> Facts:
    return facts(storage, study())


def html(own: Facts) -> str:
    [text] = page.render(own, "html").values()
    return text


def test_the_page_names_nothing_outside_itself(made_up: Facts) -> None:
    text = html(made_up)
    links = re.findall(r'(?:href|src|action|data|xlink:href)="([^"]*)"', text)
    assert links and all(link.startswith("#") or link == "data:," for link in links)
    assert "@import" not in text and "url(" not in text
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy and policy[1].startswith("default-src 'none'; ")
    assert " style=" not in text and not re.search(r"<[^>]* on\w+=", text)  # the policy would forbid them


def test_links_within_the_page_lead_somewhere(made_up: Facts) -> None:
    text = html(made_up)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("form", ReportFormat)
def test_hostile_text_is_never_markup(text: str, form: str, tmp_path: Path) -> None:
    own = Storage.at(tmp_path)
    own.prepare()
    records = [replace(one, host=text, device=text, error=text, study=text) for one in study()]
    fill(own, records)
    found = page.render(facts(own, records, [member(row(99), text)], name=text, text=text), form)
    rendered = list(found.values())[-1]
    if form == "html":
        tags = {tag.lower() for tag in re.findall(r"<(\w+)", rendered)}
        assert "b" not in tags and rendered.count("<script") == 1 == rendered.count("</style")
        assert not re.search(r"<[^>]* onmouseover=", rendered)
    else:
        outside = re.sub(r"^(`{3,}).*?^\1$", "", rendered, flags=re.DOTALL | re.MULTILINE)
        assert set(re.findall(r"<(\w+)", outside)) <= {"details", "summary", "report"}
        assert "](http" not in outside and "<script" not in outside
    assert "\u202e" not in rendered and "49 {%" not in rendered


@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_a_fence_holds_whatever_text(made_up: Facts, text: str) -> None:
    source = replace(made_up.source, text=text) if made_up.source else None
    files: dict[str, str] = {}
    block = page._render_block(page.Code("file", source.text if source else ""), "x", files)
    fence = block.split("\n")[2].removesuffix("yaml")
    assert block.endswith("\n" + fence) and fence not in "\n".join(block.split("\n")[3:-1])


def test_a_secret_is_masked(made_up: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_PASSWORD", "correct horse")
    source = replace(made_up.source, text="a: correct horse\nb: s3://user:word@host/x") if made_up.source else None
    text = html(replace(made_up, name="correct horse", source=source))
    assert "correct horse" not in text and "user:word" not in text and "***" in text


def test_the_same_facts_give_the_same_page(made_up: Facts) -> None:
    assert html(made_up) == html(made_up)
    assert page.render(made_up, "markdown") == page.render(made_up, "markdown")


def test_a_long_paragraph_is_whole_and_an_endless_one_is_cut() -> None:
    assert page._format_paragraph("word " * 500) == "word " * 500
    assert len(page._format_paragraph("word " * 5000)) == page.MAX_PARAGRAPH


def test_markdown_has_its_figures_beside_it(made_up: Facts, tmp_path: Path) -> None:
    files = page.render(made_up, "markdown", "results")
    page.write(tmp_path, files)
    text = (tmp_path / "results.md").read_text()
    named = re.findall(r"!\[[^\]]*\]\(<([^>]+)>\)", text)
    assert len(named) == len(files) - 1 >= 5
    for name in named:
        text_of_figure = (tmp_path / name).read_text()
        assert ElementTree.fromstring(text_of_figure).get("role") == "img"
        assert "var(--" not in text_of_figure and "<style" not in text_of_figure  # not every reader knows them
    assert f"| logit {SETTING} | 3 of 3 | 93.0 ± 1.0 (n=3) |" in text


def test_long_texts_are_cut_with_a_mark(made_up: Facts) -> None:
    source = replace(made_up.source, text="x" * 100_000) if made_up.source else None
    text = html(replace(made_up, name="n" * 5000, source=source))
    assert "n" * page.MAX_TEXT not in text and "n…" in text
    assert "… (cut)" in text and len(text) < 400_000


# Files.


def test_a_report_replaces_a_report_and_nothing_else(tmp_path: Path, made_up: Facts) -> None:
    files = page.render(made_up, "html")
    page.write(tmp_path / "new", files)
    page.write(tmp_path / "new", files)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]
    mine = tmp_path / "report.html"
    mine.write_text("my own notes")
    with pytest.raises(KdctlError, match=r"report\.html exists and was not written by kdctl report"):
        page.write(tmp_path, files)
    assert mine.read_text() == "my own notes"


def test_every_file_has_the_mark(made_up: Facts) -> None:
    for form in ReportFormat:
        assert all(page.MARK in text[:400] for text in page.render(made_up, form).values())


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path: Path, made_up: Facts) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KdctlError, match=r"cannot be written|exists"):
        page.write(tmp_path / "file", page.render(made_up, "html"))
    assert not list(tmp_path.glob(".report*"))


# The command.


def remember(storage: Storage, name: str = "made up") -> None:
    launched = stored_studies.Launch("x", START, "here", "inline", "study.yaml", "study: made up\n", (), "data")
    kept = stored_studies.StoredStudy(name, tuple(map(member, study())), launched)
    facts_of = {
        "study": name,
        "trials": {},
        "members": [[getattr(one, field) for field in stored_studies.Member.__slots__] for one in kept.members],
        "launched": {field: getattr(launched, field) for field in stored_studies.Launch.__slots__}
        | {"since": START.isoformat()},
    }
    stored_studies.write_json(storage, storage.plan(stored_studies._digest(name)), facts_of)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["kdctl", "report", *words])
    try:
        cli.main()
    except SystemExit as error:
        return int(error.code or 0)
    return 0


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a storage `runs` that holds a study."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDCTL_STORAGE", raising=False)
    own = Storage.at("runs")
    own.prepare()
    fill(own, study())
    return tmp_path


def test_the_last_study_is_reported(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remember(Storage.at("runs"))
    assert run(monkeypatch) == 0
    out, err = capsys.readouterr()
    assert out == "report.html\n" and err.splitlines()[-1] == "study made up: 7 of 8 trials finished; 1 failed"
    assert "<h1>made up</h1>" in (here / "report.html").read_text()
    assert run(monkeypatch, "made up", "--format", "markdown", "--output", "docs/r.md") == 0
    assert (here / "docs" / "r.md").is_file()


def test_a_storage_that_remembers_no_study_is_reported_whole(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch) == 0
    assert "<h1>everything in the storage</h1>" in (here / "report.html").read_text()


def test_a_study_file_is_reported_before_anything_ran(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "a.yaml").write_text(
        "study: of-a-file\nexperiments: [{method: base, dataset: digits, student: resnet_32_8}]"
    )
    assert run(monkeypatch, "a.yaml", "--set", "recipe.epochs=3") == 0
    text = (here / "report.html").read_text()
    assert "kdctl launch a.yaml --set recipe.epochs=3" in text and "No trial has started yet." in text
    assert "0 of 1 trials finished; 1 not started" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("no-such-study",), "which has no studies"),
        (("missing.yaml",), "missing.yaml"),
        (("--output", "report.txt"), "must end in .html"),
        (("--set", "recipe.epochs=1"), "name the file"),
    ],
)
def test_bad_input_is_one_message(
    here: Path,
    words: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *words) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and "Traceback" not in err
    assert not list(here.glob("report*"))


# Size.


def test_five_thousand_trials_make_a_bounded_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage.at(tmp_path)
    storage.prepare()
    rows = [row(1, seed=0), *study()]
    long = "an error with a very long message " * 100
    for no in range(5000 - len(rows)):
        state = State.FAILED if no % 11 == 0 else State.FINISHED
        options = {"temperature": no // 50, "note": "x" * 50}
        student = f"resnet_32_{8 + 6 * (no % 10)}"  # more pairs than there are figures
        own = {"seed": no // 10 % 5, "state": state, "options": options, "student": student, "error": long}
        rows.append(row(1000 + no, "st", 60 + no % 37, **own))
    fill(storage, rows[:1], epochs=200)
    content = storage.backend.read(storage.trial_epochs(rows[0].trial_id))
    monkeypatch.setattr(
        store, "read_trials", lambda *_: rows
    )  # writing and reading 5,000 files belongs to another test
    entries = [Entry(storage.trial_epochs(each.trial_id), 1, 0.0) for each in rows]
    monkeypatch.setattr(Folder, "list_files", lambda _self, folder: entries if folder == storage.epoch_rows else [])
    read = []
    monkeypatch.setattr(Folder, "read", lambda _self, name: read.append(name) or content)
    own = facts(storage, rows)
    text = html(own)
    assert 200_000 < len(text.encode()) < LIMIT
    assert len(read) < 1000  # only epochs that are drawn are read
    assert (
        " settings, those with the best last epoch; kdctl query prints the others" in text
        and "(kdctl query prints the others)" in text
    )
    assert sum(len(one.encode()) for one in page.render(own, "markdown").values()) < 1.2 * LIMIT  # text is drawn


def test_a_file_that_only_mentions_reports_is_not_ours(tmp_path: Path, made_up: Facts) -> None:
    (tmp_path / "report.md").write_text("Made with kdctl report, then edited by hand\n")
    with pytest.raises(KdctlError, match="was not written by kdctl report"):
        page.write(tmp_path, page.render(made_up, "markdown", "report"))
