"""Where kdctl and Ray may write on a machine: with a home, without one, and where nothing can be written."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from dashboard import Dashboard

from orchestrator import cli, doctor
from orchestrator.cluster import dashboard, persistent_cluster, tokens
from orchestrator.errors import KdctlError, ResourceError
from orchestrator.execution.ray import _session
from orchestrator.machine import folders

OURS = ("KDCTL_CACHE", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE",
        "RAY_TMPDIR", "TMPDIR", "HOME")  # fmt: skip


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without a name, a home or folders in the environment; the temporary folder is that of the test."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in OURS:
        monkeypatch.setenv(name, "")  # so that what is set on the way is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    return tmp_path


def mode(path: Path) -> int:
    return path.lstat().st_mode & 0o777


# The user's folder.


def test_where_it_is(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = bare / "t" / f"kdctl-{os.getuid()}"
    assert folders.own() == private and mode(private) == 0o700
    runtime = bare / "runtime"
    runtime.mkdir(mode=0o755)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    assert folders.own() == private, "others may look into the other one"
    runtime.chmod(0o700)
    assert folders.own() == runtime / "kdctl" and mode(runtime / "kdctl") == 0o700
    monkeypatch.setenv("HOME", str(bare))
    assert folders.own() == bare / ".cache" / "kdctl" and not (bare / ".cache").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(bare / "xdg"))
    assert folders.own() == bare / "xdg" / "kdctl"
    monkeypatch.setenv("KDCTL_CACHE", str(bare / "mine"))
    assert folders.own() == bare / "mine"


@pytest.mark.parametrize("home", ["", "/dev/null", "/dev/null/x", "none", "/nonexistent"])
def test_an_unusable_home(home: str, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(os, "access", lambda path, rights: str(path).startswith(str(bare)))  # root may write anywhere
    assert folders.own() == bare / "t" / f"kdctl-{os.getuid()}"
    assert tokens.token_file() == folders.own() / "auth_token"


def link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir(mode=0o700)
    path.symlink_to(path.parent / "elsewhere")


@pytest.mark.parametrize(
    "prepare", [link, lambda path: path.mkdir(mode=0o755), lambda path: path.touch()], ids=["link", "open", "file"]
)
def test_a_folder_that_somebody_else_may_have_made_is_refused(prepare: Callable[[Path], None], bare: Path) -> None:
    prepare(bare / "t" / f"kdctl-{os.getuid()}")
    with pytest.raises(ResourceError, match="name .*folder.* in KDCTL_CACHE"):
        folders.own()


def test_one_of_another_user_is_refused(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / "t" / "kdctl-77").mkdir(mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: 77)
    if (bare / "t").stat().st_uid != 77:
        with pytest.raises(ResourceError, match="is not a folder that only you may open"):
            folders.own()


def test_no_umask_opens_it(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(bare))
    before = os.umask(0)
    try:
        tokens.make_token()
        dashboard.remember_dashboard("tiny", "127.0.0.1:5")
    finally:
        os.umask(before)
    assert mode(bare / ".ray") == 0o700 and mode(bare / ".ray" / "auth_token") == 0o600
    assert mode(bare / ".cache") == mode(bare / ".cache" / "kdctl") == 0o755
    assert all(mode(file) == 0o600 for file in (bare / ".cache" / "kdctl").iterdir())


def no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", fail)


def test_no_folder_at_all_is_one_message(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_temporary_folder(monkeypatch)
    with pytest.raises(ResourceError, match="name one in TMPDIR"):
        folders.own()
    with (
        pytest.raises(ResourceError, match="name a writable folder with free space in TMPDIR"),
        folders.scratch("x"),
    ):
        pass
    assert tokens.read_token() is None
    dashboard.remember_dashboard("tiny", "127.0.0.1:5")  # which matters less than what is trained
    dashboard.forget_dashboard()


def test_a_bug_is_still_a_message_if_its_log_cannot_be_written(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_temporary_folder(monkeypatch)
    monkeypatch.setattr(cli, "cli", lambda **options: 1 // 0)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    err = capsys.readouterr().err
    assert ended.value.code == 3 and "ZeroDivisionError" in err and "set TMPDIR" in err
    assert "Traceback" not in err


# Ray's token.


def test_a_token_that_can_be_read_is_taken_from_a_home_that_is_read_only(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(bare))
    (bare / ".ray").mkdir()
    (bare / ".ray" / "auth_token").write_text("of the home")
    (bare / ".ray" / "auth_token").chmod(0o400)
    monkeypatch.setattr(os, "access", lambda path, rights: rights == os.R_OK)
    tokens.check_token()
    tokens.make_token()
    assert tokens.read_token() == "of the home" and "RAY_AUTH_TOKEN_PATH" not in os.environ


def test_ray_is_shown_a_token_that_is_not_where_it_looks(bare: Path) -> None:
    tokens.lend_token()
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ, "there is none yet"
    tokens.make_token()
    file = bare / "t" / f"kdctl-{os.getuid()}" / "auth_token"
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(file) and mode(file) == 0o600
    assert tokens.read_token() == file.read_text()


@pytest.mark.parametrize("named", ["file/token", "empty"])
def test_a_token_that_cannot_be_kept(named: str, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / "file").touch()
    (bare / "empty").touch()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(bare / named))
    monkeypatch.setattr(os, "access", lambda path, rights: path == bare)
    for needs_it in (tokens.check_token, tokens.make_token):
        with pytest.raises(ResourceError, match="name a writable file in RAY_AUTH_TOKEN_PATH, or put a token"):
            needs_it()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    tokens.make_token()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the environment")
    tokens.make_token()


# Ray's folders.


def refuse(monkeypatch: pytest.MonkeyPatch, refused: Path) -> None:
    real = tempfile.TemporaryFile

    def open_file(*args: Any, dir: Path, **options: Any) -> Any:
        if dir == refused:
            raise OSError(30, "Read-only file system")
        return real(*args, dir=dir, **options)

    monkeypatch.setattr(tempfile, "TemporaryFile", open_file)


@pytest.mark.parametrize("case", ["shared", "ray", "long", "token"])
def test_a_launch_and_the_doctor_find_the_same(case: str, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / "ray").mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(bare / ("x" * 100) if case == "long" else bare))
    monkeypatch.setattr(folders, "_SOCKET", 200)
    monkeypatch.setattr(folders, "_SHARED", bare / "t")
    if case == "token":
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/dev/null/token")
    refuse(monkeypatch, {"shared": bare / "t", "ray": bare / "ray"}.get(case, bare / "none"))
    with pytest.raises(KdctlError) as raised:
        _session._connect(None, is_kept=False)
    findings = [doctor._run_check(name, check) for name, check in doctor._of_machine().items()]
    (bad,) = [finding for finding in findings if finding.level is doctor.CheckLevel.BAD]
    assert f"{bad.found}; {bad.fix}" == str(raised.value)
    with pytest.raises(KdctlError) as raised:
        persistent_cluster.start_cluster(pytest.fail)
    assert f"{bad.found}; {bad.fix}" == str(raised.value)


# Commands of a user without a name or a home.


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("dashboard", 1), ("dashboard token", 2), ("dashboard export --output x", 0), ("down", 0),
        ("status", 2), ("stop", 2), ("doctor", 0), ("completion bash", 0),
        ("init a.yaml", 0), ("results", 0), ("clean", 0),
    ],
)  # fmt: skip
def test_no_command_needs_a_home(words: str, code: int, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bare)
    done = CliRunner().invoke(cli.cli, words.split())
    found = done.exit_code if done.exception is None or isinstance(done.exception, SystemExit) else 2
    assert found == code and isinstance(done.exception, KdctlError | SystemExit | None), done.exception


@pytest.mark.timeout(290)
def test_a_launch_on_ray_without_a_home_and_behind_a_proxy(bare: Path) -> None:
    study = "study: tiny\nrecipe: {epochs: 1, limit_train: 64, limit_test: 100, milestones: []}\nexperiments:\n"
    (bare / "study.yaml").write_text(study + "  - {method: base, dataset: digits, student: resnet_32_8}\n")
    proxy = Dashboard()
    environment = {name: value for name, value in os.environ.items() if name not in OURS}
    with tempfile.TemporaryDirectory(prefix="kh-", dir="/tmp") as short:  # paths of sockets may not be long
        variables = {"HOME": "/dev/null", "TMPDIR": short, "http_proxy": proxy.address, "grpc_proxy": proxy.address}
        command = [sys.executable, "-P", "-m", "orchestrator.cli", "launch", "study.yaml", "--address", "local"]
        done = subprocess.run(
            command, cwd=bare, env=environment | variables, capture_output=True, text=True, timeout=240, check=False
        )
        proxy.close()
        assert done.returncode == 0, done.stderr
        assert mode(Path(short) / f"kdctl-{os.getuid()}" / "auth_token") == 0o600
    assert "finished" in done.stderr and proxy.received == []


def test_tune_can_be_imported_without_a_home(bare: Path) -> None:
    script = (
        "import pwd\n"
        "def unknown(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = unknown\n"
        "from orchestrator.machine import folders\n"
        "before = folders.own(); folders.lend_home()\n"
        "import ray.tune\n"
        "assert folders.own() == before and folders.home() is None\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in OURS}
    subprocess.run(
        [sys.executable, "-c", script], env={**environment, "TMPDIR": str(bare / "t")}, check=True, timeout=120
    )
