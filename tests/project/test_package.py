"""What kdctl ships as: the wheel and the source archive, their metadata, and a study far from the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
LINKS = {"orchestrator/models": "models", "orchestrator/losses": "losses"}


def committed() -> list[str]:
    """Every file that is committed, or would be."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a checkout")
    return sorted(name for name in listed.split("\0") if name and os.path.lexists(ROOT / name))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, as a clone has them; building writes into its folder."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in committed():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


def build(kind: str, source: Path, out: Path) -> Path:
    """Builds an sdist or a wheel as pip does, without a network."""
    out.mkdir(exist_ok=True)
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", checkout, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the source archive, which is what package indexes and distributions do."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build("wheel", source, folder)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    (name,) = (name for name in contents(wheel) if name.endswith(".dist-info/METADATA"))
    return message_from_string(contents(wheel)[name].decode())


# What is in it.


def test_the_wheel_has_every_module_and_nothing_else(wheel: Path) -> None:
    found = contents(wheel)
    tops = {name.split("/")[0] for name in found}
    info = f"kdctl-{PROJECT['version']}.dist-info"
    assert {"orchestrator", info} <= tops <= {"orchestrator", "kdctl_entry.py", info}
    sources = [name for name in committed() if name.startswith(("orchestrator/", "models/", "losses/"))]
    wanted = {name if name.startswith("orchestrator/") else f"orchestrator/{name}" for name in sources} - set(LINKS)
    assert {name for name in found if name.startswith("orchestrator/")} == wanted
    for name in ("models/__init__.py", "models/resnet.py", "losses/logits.py"):
        assert found[f"orchestrator/{name}"] == (ROOT / name).read_bytes()
    assert {"orchestrator/py.typed", "orchestrator/report/templates/report.html"} <= set(found)
    assert found[f"{info}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()


def test_the_source_archive_has_real_files(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    assert all(member.isfile() or member.isdir() for member in members.values())
    assert members["orchestrator/models/resnet.py"].isfile() and members["orchestrator/losses/logits.py"].isfile()
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "SECURITY.md", "setup.py"} <= set(members)
    assert not [name for name in members if name.startswith(("tests/", "bench/"))]


def test_a_checkout_builds_the_same_wheel(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    assert contents(build("wheel", checkout, tmp_path)) == contents(wheel)


@pytest.mark.parametrize("form", ["tar", "zip"])
def test_an_archive_of_the_repository_keeps_the_links(form: str, tmp_path: Path) -> None:
    committed()  # skips where there is no repository
    archive = tmp_path / f"kdctl.{form}"
    subprocess.run(["git", "-C", str(ROOT), "archive", "-o", str(archive), "HEAD", *LINKS, *LINKS.values()], check=True)
    unpack = ["tar", "xf"] if form == "tar" else ["unzip", "-q"]
    if not shutil.which(unpack[0]):
        pytest.skip(f"there is no {unpack[0]} here")
    subprocess.run([*unpack, archive.name], cwd=tmp_path, check=True)
    for link, target in LINKS.items():
        assert (tmp_path / link).is_symlink() and (tmp_path / link).resolve() == tmp_path.resolve() / target


def test_links_that_were_not_unpacked_are_named(checkout: Path, tmp_path: Path) -> None:
    """Python's zipfile writes a link as a small text file, and so does git on Windows."""
    shutil.copytree(checkout / "orchestrator", tmp_path / "orchestrator", symlinks=True)
    shutil.copy(checkout / "setup.py", tmp_path)
    (tmp_path / "orchestrator" / "models").unlink()
    (tmp_path / "orchestrator" / "models").write_text("../models")
    (tmp_path / "losses").mkdir()
    command = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("orchestrator/models should be links to the folders")
    assert "losses should" not in done.stderr and "unzip" in done.stderr


# What it says of itself.


def test_the_metadata_is_complete(metadata: Message) -> None:
    assert (metadata["Name"], metadata["Version"]) == ("kdctl", PROJECT["version"])
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["License-File"] == "LICENSE"
    assert metadata["Author"] == metadata["Maintainer"] == "The kdctl authors"
    assert metadata["Description-Content-Type"] == "text/markdown"
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL", []))
    assert set(urls) == {"Repository", "Documentation", "Changelog", "Issues"}
    assert {"Typing :: Typed", "Operating System :: POSIX :: Linux"} <= set(metadata.get_all("Classifier", []))
    assert not [line for line in metadata.get_all("Classifier", []) if line.startswith("License")]


def test_the_description_links_to_what_exists(metadata: Message) -> None:
    text = metadata.get_payload()
    assert isinstance(text, str)
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", text)
    assert len(links) > 9 and any(image for image, _ in links)
    for image, link in links:
        target = re.fullmatch(rf"{re.escape(REPOSITORY)}/(blob|raw)/main/([^#]+)(#.*)?", link)
        assert target or link.startswith(("#", "https://")), link
        assert target is None or (ROOT / target[2]).exists(), link
        assert not image or (target and target[1] == "raw"), link


def test_the_repository_has_one_address() -> None:
    for name in committed():
        if name.endswith((".md", ".toml", ".cff", ".yaml", ".py")) and (ROOT / name).is_file():
            text = (ROOT / name).read_text(encoding="utf-8")
            own = re.findall(r"https://[\w.]+/[\w-]+/kdctl\b", text)
            assert set(own) <= {REPOSITORY}, name
    assert all(url.startswith(REPOSITORY) for url in PROJECT["urls"].values())


def test_the_license_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert all(f"\n   {number}. " in text for number in range(1, 10)) and "END OF TERMS AND CONDITIONS" in text


def test_the_citation_can_be_read() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software"
    assert {"message", "title", "authors"} <= set(cited) and all(set(author) == {"name"} for author in cited["authors"])
    assert str(cited["version"]) == PROJECT["version"] and cited["license"] == PROJECT["license"]
    assert cited["repository-code"] == REPOSITORY
    known = {"abstract", "keywords", "cff-version", "type", "message", "title", "authors", "version", "license"}
    assert set(cited) <= {*known, "repository-code"}  # CFF 1.2.0 refuses keys that it does not know


def test_the_changelog_has_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == ("Unreleased", "") and headings[1][0] == PROJECT["version"] and headings[1][1]


def test_pre_commit_runs_what_make_lint_runs() -> None:
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lint
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in lint[1].splitlines()]
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    assert [hook["entry"] for hook in local["hooks"]] == commands
    assert all(hook["language"] == "system" and hook["pass_filenames"] is False for hook in local["hooks"])


# Whether it works where nothing else is.

STUDY = """\
study: far
recipe: {epochs: 1, batch_size: 32, limit_train: 64, limit_test: 50, milestones: []}
experiments:
  - {method: logit, dataset: digits, teacher: resnet_32_8, student: resnet_32_8, crop_padding: 0, flip: false}
"""


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has kdctl from the wheel alone. Its dependencies come from the one that runs the tests."""
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--disable-pip-version-check", str(wheel)], check=True)
    # A folder that a .pth file adds is searched last, and .pth files in it (the editable install) are not read.
    own = sysconfig.get_path("purelib", vars={"base": str(place)})
    Path(own, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place


def run(environment: Path, folder: Path, *command: str) -> str:
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        [str(environment / "bin" / command[0]), *command[1:]],
        cwd=folder, env={**kept, "PATH": f"{environment / 'bin'}:/usr/bin:/bin"},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_comes_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    code = (
        "import json; from importlib.metadata import distribution; from importlib.util import find_spec; "
        "names = ['orchestrator.cli', 'orchestrator.losses.logits', 'orchestrator.models.resnet']; "
        "found = [find_spec(name).origin for name in names]; "
        "print(json.dumps([*found, str(distribution('kdctl').locate_file(''))]))"
    )
    files = json.loads(run(environment, tmp_path, "python", "-c", code))
    assert all(Path(file).is_relative_to(environment) for file in files), files


def test_a_study_runs_far_from_the_repository(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    run(environment, tmp_path, "kdctl", "launch", "study.yaml", "--inline", "--quiet")
    rows = pq.read_table(tmp_path / "runs" / "results" / "trials", columns=["method", "state"]).to_pylist()
    assert sorted(row["method"] for row in rows) == ["base", "logit"]
    assert {row["state"] for row in rows} == {"finished"}
    run(environment, tmp_path, "kdctl", "report", "study.yaml")  # its templates are files of the package
    assert "<html" in (tmp_path / "report.html").read_text()
