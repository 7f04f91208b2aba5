"""The supervisor, with stand-ins for its child: exit codes, restarts, signals, and no process that is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import processes, until

from orchestrator.cluster import launch_supervisor
from orchestrator.cluster.launch_supervisor import is_supervised, supervise

# The beginning of every stand-in: it notes that it was started, and how.
START = """\
#!{python}
import os, signal, subprocess, sys, time
from pathlib import Path
folder = Path({folder!r})
with (folder / "starts").open("a") as file:
    print(os.getpid(), *sys.argv[1:], file=file)
count = len((folder / "starts").read_text().splitlines())
def announce(code):
    os.write(int(os.environ["KDCTL_SUPERVISOR_PIPE"]), bytes([code]))
def end(code):
    announce(code)
    sys.exit(code)
"""
LAST = "Path(folder / 'ready').touch()\nwhile True: time.sleep(1)\n"


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a program that stands for this Python, and so for the child."""

    def make(code: str) -> Path:
        path = tmp_path / "stand-in"
        path.write_text(START.format(python=sys.executable, folder=str(tmp_path)) + code)
        path.chmod(0o755)
        return path

    return make


class Output(list[str]):
    """What a supervisor prints."""

    def add_resume_hint(self) -> None:
        self.append("how to resume")


@pytest.fixture
def output() -> Output:
    return Output()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses before each restart, which then take no time."""
    taken: list[float] = []

    def sleep(seconds: float) -> None:
        if seconds >= 0.5:
            taken.append(seconds)
        else:
            time.sleep(seconds)

    monkeypatch.setattr(launch_supervisor, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    return taken


def starts(folder: Path) -> list[list[str]]:
    """Each start of the child: its process and its arguments."""
    path = folder / "starts"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def is_alive(pid: int) -> bool:
    return any(process == pid for process, _ in processes())


# Exit codes.


@pytest.mark.parametrize("code", [0, 1, 2, 3, 130])
def test_an_exit_code_passes_through(
    code: int, stand_in: Callable[[str], Path], output: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(stand_in(f"end({code})")))
    assert supervise(["launch", "a b.yaml"], "", output.append, output.add_resume_hint) == code
    ((_, *words),) = starts(tmp_path)
    assert words == ["-P", "-m", "orchestrator.cli", "launch", "a", "b.yaml"]
    assert output == []


def test_every_child_gets_the_text_of_the_study_file(
    stand_in: Callable[[str], Path],
    output: Output,
    tmp_path: Path,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = f"""
from orchestrator.cluster.launch_supervisor import read_study_text
with open({str(tmp_path / "texts")!r}, "ab") as file:
    file.write(read_study_text().encode("utf-8", "surrogatepass") + b"|")
if count == 1:
    os._exit(1)
end(0)"""
    monkeypatch.setattr(sys, "executable", str(stand_in(body)))
    text = "study: möwe\n"
    assert supervise(["launch", "/dev/fd/63"], text, output.append, output.add_resume_hint) == 0
    assert (tmp_path / "texts").read_text(encoding="utf-8") == f"{text}|{text}|"
    assert launch_supervisor.read_study_text() is None


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("sys.exit(75)", "its processes died"),
        ("os._exit(1)", "its library ended the launch"),  # as Ray does without its GCS
        ("sys.exit(0)", "its library ended the launch"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "signal 9 ended the launch"),
        ("os.abort()", "signal 6 ended the launch"),
    ],
)
@pytest.mark.parametrize("lost", [1, 3, 4])
def test_a_child_that_ray_took_down_is_started_again(
    end: str, reason: str, lost: int, stand_in: Callable[[str], Path],
    output: Output, tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "executable", str(stand_in(f"if count <= {lost}:\n    {end}\nend(0)")))
    code = supervise(["launch"], "", output.append, output.add_resume_hint)
    assert len(starts(tmp_path)) == min(lost + 1, 4)
    assert pauses == [1.0, 2.0, 4.0][:lost]
    assert [reason in text for text in output[:3]] == [True] * min(lost, 3)
    if lost <= 3:
        assert (code, len(output)) == (0, lost)
    else:
        assert code == 1 and "4 times in a row" in output[3] and "kdctl doctor" in output[3] and "--inline" in output[3]
        assert reason in output[3]


@pytest.mark.parametrize("then", ["os._exit(1)", "os.kill(os.getpid(), signal.SIGKILL)", "os.abort()"])
@pytest.mark.parametrize("code", [0, 1, 130])
def test_a_child_that_dies_after_it_announced_its_end_is_not_started_again(
    then: str,
    code: int,
    stand_in: Callable[[str], Path],
    output: Output,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", str(stand_in(f"announce({code})\n{then}")))
    assert supervise(["launch"], "", output.append, output.add_resume_hint) == code
    assert len(starts(tmp_path)) == 1 and output == []


def test_a_process_that_holds_the_pipe_is_not_waited_for(
    stand_in: Callable[[str], Path], output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = 'subprocess.Popen(["sleep", "600"], close_fds=False, start_new_session=True)'
    code = f'child = {holder}\n(folder / "holder").write_text(str(child.pid))\nend(2)'
    program = stand_in(code)
    monkeypatch.setattr(sys, "executable", str(program))
    try:
        assert supervise(["launch"], "", output.append, output.add_resume_hint) == 2
    finally:
        os.kill(int((program.parent / "holder").read_text()), signal.SIGKILL)


def test_a_child_that_lived_long_starts_a_new_row(
    stand_in: Callable[[str], Path],
    output: Output,
    tmp_path: Path,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch_supervisor, "_LONG", -1.0)
    monkeypatch.setattr(sys, "executable", str(stand_in("if count <= 9: sys.exit(75)\nend(0)")))
    assert supervise(["launch"], "", output.append, output.add_resume_hint) == 0
    assert len(starts(tmp_path)) == 10 and len(set(pauses)) == 1


def test_the_earlier_handlers_are_back_afterwards(
    stand_in: Callable[[str], Path], output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    monkeypatch.setattr(sys, "executable", str(stand_in("end(0)")))
    supervise([], "", output.append, output.add_resume_hint)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


# Signals, to a supervisor in a process of its own.

DRIVER = """
import sys
from orchestrator.cluster import launch_supervisor
sys.executable, launch_supervisor._PATIENCE = sys.argv[1], float(sys.argv[2])
def write(text): print(text, flush=True)
sys.exit(launch_supervisor.supervise(["launch"], "", write, lambda: write("how to resume")))
"""


def driven(program: Path, patience: float = 60.0) -> subprocess.Popen[str]:
    """Starts a supervisor, and waits until its stand-in is ready."""
    command = [sys.executable, "-c", DRIVER, str(program), str(patience)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert until((program.parent / "ready").exists, 60)
    return process


def outcome(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Waits for the end; returns the exit code and the lines of the output."""
    out, _ = process.communicate(timeout=60)
    return process.returncode, out.splitlines()


HASTY = ["stopped at once; running trials resume from their last checkpoints", "how to resume"]


@pytest.mark.parametrize(
    ("sent", "received"),
    [(signal.SIGINT, "SIGINT"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")],
)
def test_the_first_signal_is_passed_on(
    sent: signal.Signals, received: str, stand_in: Callable[[str], Path], tmp_path: Path
) -> None:
    catch = """
def handle(number, frame):
    (folder / "received").write_text(signal.Signals(number).name)
    sys.exit(130)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, handle)
"""
    process = driven(stand_in(catch + LAST))
    process.send_signal(sent)
    assert outcome(process) == (130, [])  # the child has printed how to resume
    assert (tmp_path / "received").read_text() == received
    assert len(starts(tmp_path)) == 1, "a child that was to stop is not started again"


def test_nohup_survives_the_end_of_the_terminal(stand_in: Callable[[str], Path], tmp_path: Path) -> None:
    wait = "Path(folder / 'ready').touch()\nwhile not (folder / 'go').exists(): time.sleep(0.05)\nend(0)"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = driven(stand_in(wait))
    finally:
        signal.signal(signal.SIGHUP, before)
    ((child, *_),) = starts(tmp_path)
    for pid in (process.pid, int(child)):  # whoever is hung up on
        os.kill(pid, signal.SIGHUP)
    (tmp_path / "go").touch()
    assert outcome(process) == (0, [])
    assert len(starts(tmp_path)) == 1


def test_ctrl_z_stops_the_child_too_and_it_continues(stand_in: Callable[[str], Path], tmp_path: Path) -> None:
    wait = "Path(folder / 'ready').touch()\nwhile not (folder / 'go').exists(): time.sleep(0.05)\nend(0)"
    process = driven(stand_in(wait))
    ((child, *_),) = starts(tmp_path)

    def are_stopped() -> bool:
        stats = [Path(f"/proc/{pid}/stat").read_text() for pid in (process.pid, child)]
        return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)

    process.send_signal(signal.SIGTSTP)
    assert until(are_stopped)
    process.send_signal(signal.SIGCONT)
    (tmp_path / "go").touch()
    assert outcome(process) == (0, [])


@pytest.mark.parametrize("patience", [0.5, 60.0])
def test_a_child_that_does_not_stop_is_killed(patience: float, stand_in: Callable[[str], Path], tmp_path: Path) -> None:
    ignore = """
def handle(number, frame):
    (folder / "received").touch()
signal.signal(signal.SIGTERM, handle)
signal.signal(signal.SIGINT, handle)
"""
    process = driven(stand_in(ignore + LAST), patience)
    process.send_signal(signal.SIGTERM)
    if patience > 1:  # a second signal ends it at once
        assert until((tmp_path / "received").exists)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
    assert outcome(process) == (130, HASTY)
    ((pid, *_),) = starts(tmp_path)
    assert not is_alive(int(pid))


def test_a_signal_between_two_children_reaches_the_next_one(
    stand_in: Callable[[str], Path], output: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen

    def late(*words: object, **options: object) -> subprocess.Popen[bytes]:
        os.kill(os.getpid(), signal.SIGINT)  # after the last look, before there is a child to pass it on to
        return start(*words, **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(subprocess, "Popen", late)
    monkeypatch.setattr(sys, "executable", str(stand_in(LAST)))
    assert supervise(["launch"], "", output.append, output.add_resume_hint) == 130


def test_a_signal_during_the_pause_starts_no_child(
    stand_in: Callable[[str], Path], output: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(seconds: float) -> None:
        if seconds >= 0.5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(launch_supervisor, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    monkeypatch.setattr(sys, "executable", str(stand_in("sys.exit(75)")))
    assert supervise(["launch"], "", output.append, output.add_resume_hint) == 130
    assert len(starts(tmp_path)) == 1


# What is left.

FAMILY = """
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
below = subprocess.Popen([{python!r}, "-c", deaf])
group = subprocess.Popen([{python!r}, "-c", deaf], process_group=0)
(folder / "family").write_text(f"{{below.pid}} {{group.pid}}")
"""


@pytest.mark.parametrize("end", ["end(0)", "sys.exit(1)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_process_of_the_session_is_left(
    end: str, stand_in: Callable[[str], Path], output: Output, tmp_path: Path, pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(launch_supervisor, "_RESTARTS", 0)
    monkeypatch.setattr(sys, "executable", str(stand_in(FAMILY.format(python=sys.executable) + end)))
    supervise([], "", output.append, output.add_resume_hint)
    family = [int(pid) for pid in (tmp_path / "family").read_text().split()]
    assert len(family) == 2 and not any(map(is_alive, family))


# Children of a supervisor.

PARENT = """
import os, subprocess, sys
environment = {**os.environ, "KDCTL_SUPERVISOR": str(os.getpid())}
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=environment)
child.wait()
"""
CHILD = """
import os, signal, sys, time
from orchestrator.cluster.launch_supervisor import follow_parent, is_supervised
def handle(number, frame):
    print("stopped", flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, handle)
follow_parent()
print(is_supervised(), flush=True)
while True:
    time.sleep(1)
"""


def test_a_child_whose_parent_is_killed_is_asked_to_stop() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout and parent.stdout.readline() == "True\n"
        parent.kill()
        assert parent.stdout.read() == "stopped\n"


def test_a_child_whose_parent_is_gone_already_is_asked_to_stop() -> None:
    environment = {**os.environ, "KDCTL_SUPERVISOR": str(os.getppid())}
    command = [sys.executable, "-c", CHILD]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "stopped\n"


@pytest.mark.parametrize("value", [None, "", "-1", "x", "1.5"])
def test_without_a_supervisor_it_has_none(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KDCTL_SUPERVISOR", raising=False)
    if value is not None:
        monkeypatch.setenv("KDCTL_SUPERVISOR", value)
    assert not is_supervised()


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--version"], 0), (["check", "no.yaml"], 2), (["launch"], 2), (["results", "--storage", "none"], None)],
)
@pytest.mark.parametrize("is_child", [True, False])
def test_every_command_announces_its_end_to_its_supervisor_alone(
    words: list[str], code: int | None, is_child: bool, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    parent = str(os.getpid() if is_child else os.getppid())  # what a child starts has both variables too
    environment = {**os.environ, "KDCTL_SUPERVISOR": parent, "KDCTL_SUPERVISOR_PIPE": str(writing)}
    command = [sys.executable, "-m", "orchestrator.cli", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, pass_fds=(writing,), capture_output=True)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == (bytes([done.returncode]) if is_child else b"")
    assert code in (None, done.returncode)


def test_a_child_clears_its_own_session() -> None:
    script = (
        "import subprocess, sys, os\n"
        "from orchestrator.cluster.launch_supervisor import clear_session\n"
        "others = [subprocess.Popen(['sleep', '600']) for _ in range(2)]\n"
        "clear_session()\n"
        "print([other.wait() for other in others])\n"
    )
    led = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, start_new_session=True)
    assert led.stdout.strip() == "[-9, -9]", led.stderr


def test_a_child_that_does_not_stop_ends_itself() -> None:
    script = (
        "import time\n"
        "from orchestrator.cluster import launch_supervisor\n"
        "launch_supervisor._PATIENCE = -0.9\n"
        "launch_supervisor.end_in_time()\n"
        "time.sleep(600)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], start_new_session=True).returncode == 130
