"""The house: imports point down, one door per heavy dependency, short documented functions, clean files."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("orchestrator", "models", "losses")  # folders; the latter two are linked into the first

# The rooms of orchestrator/ from top to bottom, a line each: packages, and modules that stand beside them. Whatever is
# in a room imports only from its own room and from rooms further down.
ORDER = (
    "__main__",
    "cli",  # the door: one place where an error becomes a message and an exit code
    "commands",
    "launch",  # the use case
    "execution",
    "doctor",
    "report",
    "monitor",
    "cluster",
    "teachers",
    "catalog",
    "results",
    "study",
    "training",
    "pretrained",
    "own_code",  # files of the user
    "data",
    "storage",
    "machine",
    "parquet",  # from here on the base layer
    "columns",
    "markdown",
    "files",
    "executors",  # their table
    "records",
    "dataset",
    "codec",
    "errors",
    "text",
    "import_path",
    "losses",
    "models",
)
MOST_MODULES = 15  # in one folder; more than that nobody takes in at a glance

# library → the rooms or modules through which alone it is imported
DOORS = {
    "ray": ("execution.ray", "cluster.ray_jobs"),
    "click": ("cli", "commands"),
    "pyarrow": ("parquet", "storage.bucket"),
    "yaml": ("study.document",),
    "sklearn": ("data.digits",),
    "torchvision": ("data.cifar", "models.torchvision_models"),
    "PIL": ("data._decode",),
    "jinja2": ("report.page",),
    "matplotlib": ("report",),
    "rich": ("monitor.live_view", "monitor.terminal", "results.formats", "columns"),
    "duckdb": ("results.query",),
    "pandas": ("results.frames",),
}


def name_of(path: Path) -> str:
    """`orchestrator.study.plan` for its file, `orchestrator.models.resnet` for models/resnet.py."""
    parts = [part for part in path.relative_to(ROOT).with_suffix("").parts if part != "__init__"]
    return ".".join(parts if parts[0] == "orchestrator" else ["orchestrator", *parts])


PATHS = {
    name_of(path): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if (package, path.relative_to(ROOT / package).parts[0])
    not in {("orchestrator", "models"), ("orchestrator", "losses")}
}
SOURCE = {name: ast.parse(path.read_text(encoding="utf-8"), str(path)) for name, path in PATHS.items()}
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
            # `from a import b` is the module a.b where there is one, else something within a.
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


def room(module: str) -> str:
    """`study` for orchestrator.study.plan, `launch` for orchestrator.launch, "" for orchestrator itself."""
    return [*module.split("."), ""][1]


def own_imports(module: str) -> set[str]:
    """The modules of kdctl that a module imports; `import orchestrator` itself is nothing, as it holds only a text."""
    return {name for name in imported(SOURCE[module]) if name.startswith("orchestrator.")}


def test_every_room_has_its_place() -> None:
    rooms = {room(module) for module in SOURCE} - {""}
    assert rooms == set(ORDER), (
        "ORDER lists each package and each module beside them once, above everything that it imports; "
        f"to add: {sorted(rooms - set(ORDER))}, to remove: {sorted(set(ORDER) - rooms)}"
    )


@MODULES
def test_imports_point_down(module: str) -> None:
    foreign = [name for name in imported(SOURCE[module]) if name.split(".")[0] in ("models", "losses")]
    assert not foreign, f"{module} imports {foreign}, in another folder somebody else's; write orchestrator.NAME"
    allowed = ORDER[ORDER.index(room(module)) :] if room(module) else ()
    up = sorted(name for name in own_imports(module) if room(name) not in allowed)
    assert not up, (
        f"{module} imports {up}, which stand above {room(module)!r} in ORDER. Move what it needs from there into "
        "a package further down, or hand it over as an argument; change ORDER only if the new order is better for all."
    )


@MODULES
def test_no_module_imports_itself_by_way_of_others(module: str) -> None:
    seen: set[str] = set()
    ahead = set(own_imports(module))
    while ahead:
        seen |= ahead
        ahead = {name for other in ahead if other in SOURCE for name in own_imports(other)} - seen
    assert module not in seen, f"{module} imports itself by way of others; move what both need into a third module"


@MODULES
def test_a_private_module_stays_in_its_package(module: str) -> None:
    others = {name for name in own_imports(module) if name.rpartition(".")[2].startswith("_")}
    foreign = sorted(name for name in others if room(name) != room(module))
    assert not foreign, f"{module} imports {foreign}; a name with an underscore is for its own package alone"


@pytest.mark.parametrize("package", sorted(name for name, path in PATHS.items() if path.name == "__init__.py"))
def test_a_package_says_what_it_owns_and_nothing_more(package: str) -> None:
    body = SOURCE[package].body
    assert ast.get_docstring(SOURCE[package])
    if package not in LINKED:
        assert len(body) == 1, f"{package}/__init__.py runs with every import of the package; keep it a docstring"


@pytest.mark.parametrize("package", sorted(name for name, path in PATHS.items() if path.name == "__init__.py"))
def test_a_package_names_only_modules_that_exist(package: str) -> None:
    named = re.findall(r"`([a-z_.]+)`", ast.get_docstring(SOURCE[package]) or "")
    known = {name.removeprefix(f"{package}.") for name in SOURCE} | {
        name.removeprefix("orchestrator.") for name in SOURCE
    }
    gone = [name for name in named if package not in LINKED and not {name, name.rpartition(".")[0]} & known]
    assert not gone, f"the docstring of {package} names {gone}; name the module or package as it is called now"


def test_the_architecture_names_only_files_that_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+/\w+\.py)`", text))
    assert "results/store.py" in named
    assert {name for name in named if not ((ROOT / name).exists() or (ROOT / "orchestrator" / name).exists())} == set()


def test_no_folder_is_crowded() -> None:
    folders = Counter(path.parent for path in PATHS.values() if path.name != "__init__.py")
    crowded = {str(folder.relative_to(ROOT)): n for folder, n in folders.items() if n > MOST_MODULES}
    assert not crowded, f"{crowded}: more than {MOST_MODULES} modules; split the package by what its modules are about"


@MODULES
def test_models_and_losses_know_nothing_of_the_orchestrator(module: str) -> None:
    package = next((name for name in LINKED if module.startswith(name)), None)
    own = [name for name in imported(SOURCE[module]) if name.startswith("orchestrator")]
    assert package is None or all(name.startswith(package) for name in own)


def is_in(module: str, doors: Sequence[str]) -> bool:
    """Whether a module is one of the doors, or lies in a package that is one."""
    name = module.removeprefix("orchestrator.")
    return any(name == door or name.startswith(f"{door}.") for door in doors)


@pytest.mark.parametrize("library", DOORS)
def test_one_door_per_heavy_dependency(library: str) -> None:
    users = {name for name, tree in SOURCE.items() if library in {i.split(".")[0] for i in imported(tree)}}
    others = sorted(name for name in users if not is_in(name, DOORS[library]))
    assert not others, f"{others} import {library}; call {' or '.join(DOORS[library])} instead, which know its pitfalls"


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


# Methods whose contract stands elsewhere: at `torch.nn.Module`, at `models.base` for every model, and at
# `fields.ValueType` for every type of value.
CONTRACTS = {"forward", "embed", "fold", "read", "schema"}
# And those of every storage backend at `backend.StorageBackend`.
BACKEND = next(
    {method.name for method in node.body if isinstance(method, Function)}
    for node in SOURCE["orchestrator.storage.backend"].body
    if isinstance(node, ast.ClassDef) and node.name == "StorageBackend"
)
BACKENDS = ("Folder", "Bucket")


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
                BACKEND if name.endswith(BACKENDS) else set()
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


@pytest.mark.parametrize("module", sorted(name for name in SOURCE if not is_in(name, DOORS["click"])))
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
