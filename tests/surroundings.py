"""Launches a small study where people really work: in containers, behind proxies, without a home, under `nohup`.

    python tests/surroundings.py                 # every situation, about ten minutes
    python tests/surroundings.py --only nohup    # those whose name contains a word

Each situation gets a fresh folder. Its commands run for real, and their outcome is compared with what
docs/reliability.md promises. Prints a Markdown table; exits with 1 if an outcome is not the promised one.
Linux only; situations that need root (mount and network namespaces, another uid) are left out without it, and named.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from processes import descendants, titled, until

from orchestrator.records import State
from orchestrator.results.store import read_trials
from orchestrator.storage.layout import Storage

KDCTL = Path(sys.executable).with_name("kdctl")
ONE = """\
study: one
recipe: {epochs: 1, limit_train: 200, limit_test: 100, milestones: []}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8}
"""
TWO = """\
study: two
recipe: {epochs: 40, limit_train: 300, limit_test: 100, milestones: []}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, seed: [0, 1]}
"""
TRAPS = ("models/__init__", "losses", "orchestrator/__init__", "torch", "ray", "click", "yaml", "random", "logging")
LIMIT = 240.0  # seconds for a command


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its exit code, all that it printed, and the seconds it took."""

    code: int
    text: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Situation:
    """`run` gets a fresh folder, and describes the outcome; it raises AssertionError if that is not as promised."""

    name: str
    run: Callable[[Path], str]
    needs_root: bool = False


def run(folder: Path, command: str, environment: Mapping[str, str] | None = None, code: int = 0) -> Ended:
    """Runs a shell command in a folder; asserts how it ends, and that nothing in it looks like a bug."""
    start = time.monotonic()
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=surroundings(environment), capture_output=True, text=True,
        timeout=LIMIT, check=False,
    )  # fmt: skip
    text = done.stdout + done.stderr
    assert done.returncode == code, f"exit {done.returncode} instead of {code}: {text[-1500:]}"
    assert "Traceback" not in text and "bug in kdctl" not in text, text[-1500:]
    return Ended(done.returncode, text, time.monotonic() - start)


def surroundings(changes: Mapping[str, str] | None) -> dict[str, str]:
    """This process's environment with some variables set, or removed where their value is empty."""
    changed = {**os.environ, **(changes or {})}
    return {name: value for name, value in changed.items() if value != "" or name not in (changes or {})}


def finished(folder: Path, count: int = 1) -> None:
    """Asserts that this many trials, and no others, are finished in the folder's storage."""
    rows = read_trials(Storage.at(folder / "runs"))
    states = [row.state for row in rows]
    assert states == [State.FINISHED] * count, states


def trained(
    folder: Path,
    command: str,
    environment: Mapping[str, str] | None = None,
    within: Callable[[str], str] = str,
) -> str:
    """Runs a launch that is to finish the study `one`, on Ray and again inline in another storage.

    `within` puts the command into its surroundings.
    """
    seconds = []
    for each in (command, f"{command} --inline"):
        seconds.append(run(folder, within(each), environment).seconds)
        finished(folder)
        shutil.rmtree(folder / "runs")
    return "trains: on Ray {:.0f} s, inline {:.0f} s".format(*seconds)


def launch(*, prefix: str = "", file: str = "one.yaml") -> str:
    """The command that launches a study, with something in front of it."""
    return f"{prefix} {shlex.quote(str(KDCTL))} launch {file}".strip()


def message(ended: Ended, *words: str) -> str:
    """Returns the message of a refused launch; asserts that it contains some words."""
    last = ended.text.strip()
    assert all(word in last for word in words), last[-1500:]
    return (
        f"exit {ended.code} after {ended.seconds:.0f} s: {' '.join(last.rpartition('starting Ray')[2].split())[:300]}"
    )


# The situations.


def traps(folder: Path) -> str:
    """A folder with modules of the same names as those that kdctl imports, also on PYTHONPATH."""
    for name in TRAPS:
        path = folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"raise SystemExit('the trap {name} was imported')\n")
    # Python itself reads `random` and `logging` of PYTHONPATH before any program can prevent it, for its children too.
    plain = trained(folder, launch())
    for name in ("random", "logging"):
        (folder / f"{name}.py").unlink()
    return f"{plain}; with PYTHONPATH=. {trained(folder, launch(), {'PYTHONPATH': '.'})}"


def gcs(folder: Path) -> str:
    """Ray's central process is killed while two trials run."""
    with started(folder, launch(file="two.yaml")) as process:
        wait_for_training(folder)
        os.kill(titled(descendants(process.pid), b"gcs_server")[0], signal.SIGKILL)
        assert process.wait(LIMIT) == 0, log(folder)[-1500:]
    finished(folder, 2)
    assert "starting again" in log(folder), log(folder)[-1500:]
    return "starts again, finishes, exit 0"


def hangup(folder: Path) -> str:
    """SIGHUP: under nohup the launch continues, on Ray and inline; without it, an inline launch leaves a checkpoint."""
    for how in ("", " --inline"):
        with started(folder, f"nohup {launch(file='two.yaml')}{how}") as process:
            wait_for_training(folder)
            os.killpg(process.pid, signal.SIGHUP)
            assert process.wait(LIMIT) == 0, log(folder)[-1500:]
        finished(folder, 2)
        shutil.rmtree(folder / "runs")
    with started(folder, f"{launch(file='two.yaml')} --inline") as process:
        wait_for_training(folder)
        os.killpg(process.pid, signal.SIGHUP)
        assert process.wait(LIMIT) == 130, log(folder)[-1500:]
    run(folder, f"{launch(file='two.yaml')} --inline")
    finished(folder, 2)
    return "nohup: finishes on Ray and inline; without: exit 130, the same command resumes"


def uv_run(folder: Path) -> str:
    """`uv run` in a subfolder of somebody's project."""
    (folder / "pyproject.toml").write_text('[project]\nname = "theirs"\nversion = "0"\n')
    uv = shlex.quote(str(KDCTL.with_name("uv")))
    below = folder / "below"
    below.mkdir()
    (below / "one.yaml").write_text(ONE)
    ended = run(below, f"{uv} run --no-sync {KDCTL} launch one.yaml", {"UV_PYTHON": sys.executable})
    finished(below)
    return f"trains on Ray, {ended.seconds:.0f} s"


def variables(folder: Path) -> str:
    """Variables that somebody set for other programs that use Ray."""
    names = {"TUNE_RESULT_DIR": "/nowhere", "RAY_AIR_LOCAL_CACHE_DIR": "/nowhere", "RAY_TUNE_CALLBACKS": "a.B"}
    return trained(folder, launch(), names)


def one_core(folder: Path) -> str:
    """A launch that may use one core trains one trial at a time."""
    ended = run(folder, launch(prefix="taskset -c 0", file="two.yaml"))
    finished(folder, 2)
    assert "up to 1 at a time" in ended.text, ended.text[-1500:]
    return f"one trial at a time, {ended.seconds:.0f} s"


def long_temporary_folder(folder: Path) -> str:
    """A temporary folder whose name is too long for a socket."""
    temporary = folder / ("t" * 95)
    temporary.mkdir()
    refusal = message(run(folder, launch(), {"TMPDIR": str(temporary)}, code=2), "RAY_TMPDIR=/tmp")
    return f"{refusal}; with that {trained(folder, launch(), {'TMPDIR': str(temporary), 'RAY_TMPDIR': '/tmp'})}"


def pipe(folder: Path) -> str:
    """A study file that can be read once."""
    return trained(folder, launch(file="<(cat one.yaml)"))


def proxy(folder: Path) -> str:
    """A proxy in the environment sees neither a token nor any other request."""
    with listener() as (port, received):
        address = f"http://127.0.0.1:{port}"
        names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        result = trained(folder, launch(), dict.fromkeys(names, address))
        run(folder, f"{KDCTL} status --address http://127.0.0.1:1", dict.fromkeys(names, address), code=2)
        assert not received, received
    return f"{result}; the proxy received nothing"


def no_home(folder: Path) -> str:
    """A uid without a name, and no HOME at all; then HOME=/."""
    outcomes = []
    for home in ("-u HOME", "HOME=/"):
        done = trained(folder, launch(prefix=f"env {home}"), within=lambda command: as_somebody(command, folder))
        outcomes.append(f"env {home}: {done}")
    return "; ".join(outcomes)


def read_only_root(folder: Path) -> str:
    """A container whose file system is read-only but for the working folder and /tmp."""
    ended = run(folder, namespace("mount -o remount,bind,ro /", launch(), folder))
    finished(folder)
    return f"trains on Ray, {ended.seconds:.0f} s"


def no_loopback(folder: Path) -> str:
    """A network namespace without a loopback interface."""
    return message(run(folder, f"unshare -n {launch()}", code=2), "loopback")


def read_only_shm(folder: Path) -> str:
    """/dev/shm cannot be written to, as in some containers."""
    return message(run(folder, namespace("mount -t tmpfs -o ro tmpfs /dev/shm", launch(), folder), code=2), "/dev/shm")


def tilde(folder: Path) -> str:
    """A `~` that no shell expanded."""
    run(folder, f"{launch()} --inline --storage=~/runs", {"HOME": str(folder)})
    finished(folder)
    assert not (folder / "~").exists()
    return "the home folder"


def full_output(folder: Path) -> str:
    """A full disk behind standard output."""
    return message(run(folder, f"{KDCTL} results > /dev/full", code=2), "full")


SITUATIONS = (
    Situation("folder of traps", traps),
    Situation("GCS killed", gcs),
    Situation("no loopback", no_loopback, needs_root=True),
    Situation("/dev/shm read-only", read_only_shm, needs_root=True),
    Situation("SIGHUP and nohup", hangup),
    Situation("uv run", uv_run),
    Situation("variables of Ray Tune", variables),
    Situation("taskset -c 0", one_core),
    Situation("TMPDIR of 95 bytes and more", long_temporary_folder),
    Situation("study file from a pipe", pipe),
    Situation("proxy set", proxy),
    Situation("uid without a name, no home", no_home, needs_root=True),
    Situation("read-only root", read_only_root, needs_root=True),
    Situation("~ unexpanded", tilde),
    Situation("full disk behind standard output", full_output),
)


# How the situations are made.


@contextmanager
def started(folder: Path, command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs in a process group of its own, its output in the folder's `log`."""
    with (folder / "log").open("wb") as sink:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=folder, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
            start_new_session=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def log(folder: Path) -> str:
    """What a started command has printed."""
    return (folder / "log").read_text(errors="replace")


def wait_for_training(folder: Path) -> None:
    """Waits until a trial has ended an epoch."""
    assert until(lambda: "epoch" in log(folder), LIMIT), f"nothing was trained: {log(folder)[-1500:]}"


@contextmanager
def listener() -> Iterator[tuple[int, list[bytes]]]:
    """A server on the loopback address that keeps the first bytes of whatever reaches it."""
    received: list[bytes] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            received.append(self.request.recv(4096))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], received
        server.shutdown()


def namespace(setup: str, command: str, folder: Path) -> str:
    """The command in a mount namespace of its own after some setup; the folder and /tmp stay writable."""
    script = (
        "mount --make-rprivate / && mount --bind /tmp /tmp && "
        f"mount --bind {folder} {folder} && {setup} && cd {folder} && {command}"
    )
    return f"unshare -m bash -c {shlex.quote(script)}"


def as_somebody(command: str, folder: Path) -> str:
    """The command as a user without a name. Where Python lies below a folder that only root may enter, it is opened."""
    for path in (folder, *folder.iterdir()):
        path.chmod(0o777)
    switch = f"setpriv --reuid=54321 --regid=54321 --clear-groups {command}"
    python = Path(sys.base_prefix)
    closed = next((path for path in reversed(python.parents) if not path.stat().st_mode & 0o001), None)
    if closed is None:
        return switch
    setup = (
        f"mount --bind {python} /mnt && mount -t tmpfs -o mode=755 tmpfs {closed} && mkdir -p {python} && "
        f"mount --bind /mnt {python}"
    )
    return namespace(setup, switch, folder)


def outcome(situation: Situation) -> tuple[bool, str]:
    """Whether the outcome is as promised, and what it was."""
    folder = Path(tempfile.mkdtemp(prefix="kdctl-"))
    (folder / "one.yaml").write_text(ONE)
    (folder / "two.yaml").write_text(TWO)
    try:
        return True, situation.run(folder)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        return False, f"**not as promised**: {' '.join(str(error).split())[-600:]}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Tries the situations, and prints the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORD", help="situations whose name contains this")
    word = parser.parse_args().only
    print("| situation | seen |\n| --- | --- |", flush=True)
    is_fine = True
    for situation in SITUATIONS:
        if word not in situation.name:
            continue
        if situation.needs_root and os.getuid():
            print(f"| {situation.name} | not tried: needs root |", flush=True)
            continue
        is_as_promised, result = outcome(situation)
        is_fine &= is_as_promised
        print(f"| {situation.name} | {re.sub(r'[|]', '/', result)} |", flush=True)
    sys.exit(not is_fine)


if __name__ == "__main__":
    main()
