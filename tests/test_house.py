"""The house: imports point down, one door per heavy dependency, short documented functions, clean files."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("orchestrator", "models", "losses")  # folders; the latter two are linked into the first

# A module imports only from lower floors. A new module needs a floor here: one above the highest that it imports.
FLOORS = {
    "orchestrator": 0,  # every import of the package runs it, so it imports nothing
    "orchestrator.errors": 0,
    "orchestrator.suggest": 0,
    "orchestrator.import_path": 0,
    "orchestrator.limits": 0,
    "orchestrator.ray_environment": 1,
    "orchestrator.streams": 0,
    "orchestrator.commits": 0,
    "orchestrator.datasets": 0,
    "orchestrator.models.resnet": 0,
    "orchestrator.losses.terms": 0,
    "orchestrator.misfits": 0,
    "orchestrator.weights_formats": 0,
    "orchestrator.paths": 1,
    "orchestrator.models": 1,
    "orchestrator.losses": 1,
    "orchestrator.ray_errors": 2,
    "orchestrator.records": 1,
    "orchestrator.document": 1,
    "orchestrator.arrow": 1,
    "orchestrator.places": 1,
    "orchestrator.output": 0,
    "orchestrator.processes": 0,
    "orchestrator.folders": 1,
    "orchestrator.proxies": 1,
    "orchestrator.addresses": 1,
    "orchestrator.layouts": 2,
    "orchestrator.signals": 2,
    "orchestrator.supervisor": 1,
    "orchestrator.bucket": 2,
    "orchestrator.cluster": 2,
    "orchestrator.ray_session": 3,
    "orchestrator.settings": 2,
    "orchestrator.weights": 2,
    "orchestrator.views": 2,
    "orchestrator.keys": 2,
    "orchestrator.labels": 3,
    "orchestrator.storage": 3,
    "orchestrator.spec": 3,
    "orchestrator.results": 4,
    "orchestrator.plan": 4,
    "orchestrator.soundness": 5,
    "orchestrator.schema": 4,
    "orchestrator.leases": 4,
    "orchestrator.starter": 5,
    "orchestrator.studies": 5,
    "orchestrator.events": 6,
    "orchestrator.logs": 4,
    "orchestrator.stops": 5,
    "orchestrator.lookup": 6,
    "orchestrator.trial_ids": 6,
    "orchestrator.data": 5,
    "orchestrator.slices": 5,
    "orchestrator.graphs": 0,
    "orchestrator.summary": 4,
    "orchestrator.report": 5,
    "orchestrator.published": 5,
    "orchestrator.markdown": 1,
    "orchestrator.charts": 1,
    "orchestrator.facts": 6,
    "orchestrator.figures": 7,
    "orchestrator.sections": 8,
    "orchestrator.page": 9,
    "orchestrator.tabular": 1,
    "orchestrator.columns": 0,
    "orchestrator.varying": 3,
    "orchestrator.query": 6,
    "orchestrator.training": 6,
    "orchestrator.teacher": 7,
    "orchestrator.checkpoints": 7,
    "orchestrator.inventory": 8,
    "orchestrator.trial": 8,
    "orchestrator.housekeeping": 9,
    "orchestrator.progress": 9,
    "orchestrator.board": 7,
    "orchestrator.live": 8,
    "orchestrator.scrape": 3,
    "orchestrator.metrics": 8,
    "orchestrator.monitoring": 9,
    "orchestrator.ray_metrics": 9,
    "orchestrator.follow": 8,
    "orchestrator.schedule": 9,
    "orchestrator.doctor": 10,
    "orchestrator.runner": 10,
    "orchestrator.ray_runner": 11,
    "orchestrator.launch": 12,
    "orchestrator.jobs": 6,
    "orchestrator.commands": 0,
    "orchestrator.commands.colours": 0,
    "orchestrator.commands.layout": 1,
    "orchestrator.commands.completing": 7,
    "orchestrator.commands.options": 13,
    "orchestrator.commands.jobs": 14,
    "orchestrator.commands.study": 15,
    "orchestrator.commands.read": 14,
    "orchestrator.commands.care": 14,
    "orchestrator.commands.query": 14,
    "orchestrator.commands.cluster": 14,
    "orchestrator.commands.dashboard_export": 15,
    "orchestrator.commands.report": 14,
    "orchestrator.commands.watch": 15,
    "orchestrator.commands.launch": 15,
    "orchestrator.cli": 16,
    "orchestrator.__main__": 17,
}

COMMANDS = ("orchestrator.cli", *(name for name in FLOORS if name.startswith("orchestrator.commands.")))

DOORS = {
    "ray": ("orchestrator.ray_runner", "orchestrator.ray_session", "orchestrator.ray_metrics", "orchestrator.jobs"),
    "click": COMMANDS,
    "pyarrow": ("orchestrator.arrow", "orchestrator.bucket"),
    "yaml": ("orchestrator.document",),
    "sklearn": ("orchestrator.data",),
    "torchvision": ("orchestrator.data",),
    "PIL": ("orchestrator.data",),
    "jinja2": ("orchestrator.page",),
    "rich": ("orchestrator.live", "orchestrator.tabular", "orchestrator.columns"),
    "duckdb": ("orchestrator.query",),
}


def name_of(path: Path) -> str:
    """`orchestrator.plan` for its file, `orchestrator.models.resnet` for models/resnet.py."""
    parts = [part for part in path.relative_to(ROOT).with_suffix("").parts if part != "__init__"]
    return ".".join(parts if parts[0] == "orchestrator" else ["orchestrator", *parts])


SOURCE = {
    name_of(path): ast.parse(path.read_text(encoding="utf-8"), str(path))
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if (package, path.relative_to(ROOT / package).parts[0])
    not in {("orchestrator", "models"), ("orchestrator", "losses")}
}
LINKED = ("orchestrator.models", "orchestrator.losses")
MODULES = pytest.mark.parametrize("module", SOURCE)


def imported(tree: ast.AST, known: frozenset[str] = frozenset(SOURCE)) -> Iterator[str]:
    """Every module that is imported anywhere in a tree: at the top, in functions, for types alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"line {node.lineno}: a relative import; write the whole name"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            # `from orchestrator import plan` is the module, `from orchestrator.plan import Plan` is not a deeper one.
            yield from (name if name in known else node.module for name in whole)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import a.b, c as d", ["a.b", "c"]),
        ("from a import b, c", ["a.b", "a"]),
        ("def f():\n  class C:\n    def g(self):\n      from a.b import c", ["a.b"]),
        ("if TYPE_CHECKING:\n  from a import b", ["a.b"]),
        ("try:\n  import a\nexcept ImportError:\n  pass", ["a"]),
        ("text = 'import a'", []),
    ],
)
def test_no_import_is_overlooked(source: str, names: list[str]) -> None:
    assert list(imported(ast.parse(source), frozenset({"a", "a.b"}))) == names


def test_a_relative_import_is_refused() -> None:
    with pytest.raises(AssertionError, match="relative"):
        list(imported(ast.parse("from . import plan")))


@MODULES
def test_imports_point_down(module: str) -> None:
    assert module in FLOORS, f"{module} has no floor; give it one in FLOORS, one above the highest that it imports"
    foreign = [name for name in imported(SOURCE[module]) if name.split(".")[0] in ("models", "losses")]
    assert not foreign, f"{module} imports {foreign}, which in another folder are somebody else's"
    own = [name for name in imported(SOURCE[module]) if name.split(".")[0] == "orchestrator"]
    unknown = [name for name in own if name not in FLOORS]
    assert not unknown, f"{module} imports {unknown}, which have no floor in FLOORS"
    up = [f"{name} on floor {FLOORS[name]}" for name in own if FLOORS[name] >= FLOORS[module]]
    assert not up, f"{module} on floor {FLOORS[module]} imports {up}"


@MODULES
def test_models_and_losses_know_nothing_of_the_orchestrator(module: str) -> None:
    package = next((name for name in LINKED if module.startswith(name)), None)
    own = [name for name in imported(SOURCE[module]) if name.startswith("orchestrator")]
    assert package is None or all(name.startswith(package) for name in own)


@pytest.mark.parametrize("library", DOORS)
def test_one_door_per_heavy_dependency(library: str) -> None:
    users = {name for name, tree in SOURCE.items() if library in {i.split(".")[0] for i in imported(tree)}}
    assert users <= set(DOORS[library]), f"{library} is imported outside {DOORS[library]}"


# Functions and docstrings.

Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def lengths() -> dict[str, int]:
    """The lines of every function and method, nested ones included."""
    return {
        f"{module}.{node.name}:{node.lineno}": (node.end_lineno or 0) - node.lineno + 1
        for module, tree in SOURCE.items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    }


def test_no_function_is_long() -> None:
    assert {name: lines for name, lines in lengths().items() if lines > 45} == {}


def test_most_functions_are_short() -> None:
    assert len(lengths()) > 100
    assert median(lengths().values()) <= 12


# Methods whose contract stands elsewhere: at `torch.nn.Module`, and at `keys.Kind` for every kind.
CONTRACTS = {"forward", "read", "schema"}
# And those of every place at `places.Place`.
PLACE = next(
    {method.name for method in node.body if isinstance(method, Function)}
    for node in SOURCE["orchestrator.places"].body
    if isinstance(node, ast.ClassDef) and node.name == "Place"
)
PLACES = ("Folder", "Bucket")


def undocumented(node: ast.Module | ast.ClassDef, name: str) -> Iterator[str]:
    """Public things without a docstring: the module itself, its classes and functions, their methods."""
    if not ast.get_docstring(node):
        yield name
    for inner in node.body:
        if isinstance(inner, (*Function, ast.ClassDef)) and not inner.name.startswith("_"):
            path = f"{name}.{inner.name}"
            if isinstance(inner, ast.ClassDef):
                yield from undocumented(inner, path)
            elif not ast.get_docstring(inner) and inner.name not in CONTRACTS | (
                PLACE if name.endswith(PLACES) else set()
            ):
                yield path


@MODULES
def test_everything_public_has_a_docstring(module: str) -> None:
    assert list(undocumented(SOURCE[module], module)) == []


def test_a_missing_docstring_is_seen() -> None:
    methods = "class A:\n  def b(self): pass\n  def _c(self): pass\n  def __d__(self): pass\n"
    source = f"{methods}def e():\n  'Says.'\n  def f(): pass"
    assert list(undocumented(ast.parse(source), "m")) == ["m", "m.A", "m.A.b"]


def prints(tree: ast.Module) -> Iterator[ast.Call]:
    """Every call of `print`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node


@pytest.mark.parametrize("module", sorted(set(SOURCE) - set(COMMANDS)))
def test_only_the_command_line_prints(module: str) -> None:
    calls = list(prints(SOURCE[module]))
    assert [call.lineno for call in calls] == []


# Files.


def files() -> list[Path]:
    """Every file that is committed, or would be."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a checkout")
    return [path for path in map(ROOT.joinpath, filter(None, listed.split("\0"))) if path.is_file()]


# Written so that they do not match themselves.
PRIVATE = re.compile(r"(?<![\w.])/(?:home|root|Users|work)/\w")
REGISTRY = re.compile(r"pypi[.]org|pythonhosted[.]org|(?:pip|pypi|mirror)s?[.][\w.]+/simple")


def test_no_file_names_a_folder_of_its_author_or_a_registry() -> None:
    listed = files()
    assert ROOT / "requirements.lock" in listed
    texts = {path.relative_to(ROOT): path.read_text(encoding="utf-8", errors="replace") for path in listed}
    found = {f"{path}: {hit[0]}" for path, text in texts.items() for hit in PRIVATE.finditer(text)}
    found |= {f"{path}: {hit[0]}" for path, text in texts.items() for hit in REGISTRY.finditer(text)}
    assert found == set()


@pytest.mark.parametrize("folder", ["home", "root", "Users", "work"])
def test_a_private_folder_is_seen(folder: str) -> None:
    assert PRIVATE.search(f"see /{folder}/someone")
    assert not PRIVATE.search(f"see docs/{folder}/page and a {folder}")


LOCKS = ("requirements.lock", "requirements-dev.lock")


def pins(name: str) -> list[str]:
    """The lines of a lock file that are neither hashes nor comments, without the backslashes at their ends."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line.removesuffix(" \\") for line in lines if line and not line.startswith((" ", "#"))]


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_has_versions_and_hashes_alone(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "://" not in text
    # aiohttp and httptools are names; what comes before a name would be an option such as an index.
    assert pins(name) and all(re.match(r"[a-z0-9][a-z0-9.\-]*==", pin) for pin in pins(name))
    assert all(f"{pin} \\\n    --hash=sha256:" in text for pin in pins(name))


def test_the_development_tools_are_in_their_own_lock_file() -> None:
    user, developer = (set(pins(name)) for name in LOCKS)
    assert user < developer, "other versions; run `make lock`"
    added = {pin.partition("==")[0] for pin in developer - user}
    assert {"mypy", "pytest", "ruff", "hypothesis", "playwright"} <= added
    assert not added & {"torch", "torchvision", "ray", "setuptools"}
