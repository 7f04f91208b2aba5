"""The command line: exit codes, messages a person can act on, data on standard output, and a light start."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from launch_events import ignore
from processes import until
from terminal import Terminal

from orchestrator import cli
from orchestrator.errors import Interrupted, KdctlError
from orchestrator.launch import launch
from orchestrator.monitor.events import Event, EventKind
from orchestrator.results.output_formats import ResultsFormat
from orchestrator.storage import stops
from orchestrator.storage.layout import Storage
from orchestrator.study import stored_studies

KDCTL = Path(sys.executable).with_name("kdctl")
STUDY = """\
study: tiny
recipe: {epochs: 1, limit_train: 64, limit_test: 50, batch_size: 32, crop_padding: 0, flip: false}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, seed: [0, 1]}
  - {method: logit, dataset: digits, student: resnet_32_8, teacher: resnet_32_8, teacher_cache: table}
resources: {gpus_per_trial: 0}
"""


def every(command: click.Command = cli.cli, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command there is, subcommands too."""
    yield words
    for name, inner in command.commands.items() if isinstance(command, click.Group) else ():
        yield from every(inner, (*words, name))


COMMANDS = list(every())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a study in it."""
    current = tmp_path / "here"
    current.mkdir()
    (current / "study.yaml").write_text(STUDY)
    monkeypatch.chdir(current)
    for name in ("KDCTL_STORAGE", "KDCTL_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KDCTL_CACHE", str(tmp_path / "cache"))
    return current


@pytest.fixture(scope="module")
def trained(digits_storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A storage with the study in it. To be read only."""
    current = tmp_path_factory.mktemp("trained")
    (current / "study.yaml").write_text(STUDY)
    storage = Storage.at(current / "runs")
    storage.prepare()
    shutil.copytree(Path(digits_storage.backend.address, "datasets"), Path(storage.backend.address, "datasets"))
    assert launch(current / "study.yaml", storage=storage.backend.address, inline=True, on_event=ignore).is_complete
    return storage


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `kdctl` through its entry point; returns the exit code, standard output and standard error."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kdctl", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            assert stop.code is None or isinstance(stop.code, int)
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    "words",
    [
        ("launch", "study.yaml", "--inline"),
        *[("plan", "study.yaml"), ("results",), ("query", "FROM trials"), ("report",), ("status",), ("stop",)],
        *[("logs",), ("logs", "3f"), ("teachers",), ("teachers", "verify", "3f"), ("clean",)],
    ],
    ids=" ".join,
)
def test_a_file_is_not_a_storage(run: Run, folder: Path, words: tuple[str, ...]) -> None:
    message = f"'{folder}/study.yaml' is a file, expected a folder; name another folder with --storage\n"
    assert run(*words, "--storage", "study.yaml") == (2, "", message)


def listed(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# Checking a study.


def test_check_reports_a_good_study(run: Run) -> None:
    assert run("check", "study.yaml") == (0, "study.yaml: study tiny is valid, 3 trials\n", "")


def test_check_warns_on_standard_error(run: Run) -> None:
    code, out, err = run("check", "study.yaml", "--set", "recipe.milestones=[5]")
    assert code == 0 and "is valid" in out and "5 has no effect within 1 epochs" in err


def test_check_prints_every_fault_with_its_location(run: Run, folder: Path) -> None:
    (folder / "bad.yaml").write_text(STUDY.replace("epochs: 1", "epochs: 0").replace("logit", "logits"))
    code, out, err = run("check", "bad.yaml")
    assert code == 2 and out == ""
    assert [line.split(": ")[0] for line in err.splitlines()] == ["bad.yaml:2:18", "bad.yaml:5:14"]
    assert "did you mean logit?" in err


def test_check_has_every_fault_as_json(run: Run, folder: Path) -> None:
    (folder / "bad.yaml").write_text(STUDY.replace("epochs: 1", "epochs: 0").replace("logit", "logits"))
    code, out, err = run("check", "bad.yaml", "--json", "--set", "recipe.lr=x")
    found = json.loads(out)
    assert (code, err) == (2, "") and found["good"] is False and found["study"] is None
    assert [set(fault) for fault in found["faults"]] == [{"file", "line", "column", "path", "message"}] * 3
    locations = [(fault["file"], fault["line"], fault["column"], fault["path"]) for fault in found["faults"]]
    assert locations == [
        ("--set recipe.lr=x", None, None, "recipe.lr"),
        ("bad.yaml", 2, 18, "recipe.epochs"),
        ("bad.yaml", 5, 14, "experiments[1].method"),
    ]


def test_check_reports_a_good_study_as_json(run: Run) -> None:
    code, out, err = run("check", "study.yaml", "--json", "--set", "recipe.milestones=[5]")
    found = json.loads(out)
    assert (code, err) == (0, "") and len(found.pop("warnings")) == 1
    assert found == {"file": "study.yaml", "good": True, "study": "tiny", "trials": 3, "faults": []}


def test_plan_prints_what_would_run(run: Run, folder: Path) -> None:
    before = listed(folder)
    code, out, err = run("plan", "study.yaml")
    header, *lines = out.splitlines()
    assert (code, err) == (0, "") and listed(folder) == before
    assert header.startswith("trial_id") and lines[-1] == "3 trials of study tiny: 3 new"
    assert lines[-2] == "time on this machine: unknown until a trial has finished here"
    assert lines[-3] == "1 table of teacher outputs: 1.28 kB"  # one view of 64 images, 10 classes, float16
    assert [line.split()[1] for line in lines[:3]] == ["teacher", "student", "student"]
    assert "student resnet_32_8" in out and "teacher resnet_32_8" in out and "table" in lines[2]


def test_plan_is_json_for_programs(run: Run, trained: Storage) -> None:
    _, out, _ = run("plan", "study.yaml", "--json", "--storage", trained.backend.address)
    trials = json.loads(out)["trials"]
    expected = {"trial_id", "role", "method", "dataset", "student", "teacher", "teacher_id", "seed", "nepoch", "lr"}
    assert all(expected | {"batch_size", "state"} <= set(trial) for trial in trials)
    assert [trial["state"] for trial in trials] == ["finished"] * 3
    assert [trial["teacher_id"] for trial in trials] == [None, None, trials[0]["trial_id"]]


# Results.


@pytest.mark.parametrize("form", ResultsFormat)
@pytest.mark.parametrize("file", [[], ["study.yaml"]])
def test_results_come_in_every_format(run: Run, trained: Storage, form: str, file: list[str]) -> None:
    code, out, err = run("results", *file, "--storage", trained.backend.address, "--format", form)
    assert (code, err) == (0, "")
    if form == "csv":
        assert len(list(csv.DictReader(io.StringIO(out)))) == 3
    elif form == "json":
        groups = [group for table in json.loads(out)["tables"] for group in table["groups"]]
        names = sorted(group["label"].split()[0] for group in groups)
        assert names == ["base", "logit"] and all(" epochs=1 batch_size=32 " in group["label"] for group in groups)
    else:
        assert "Digits" in out and "ResNet8" in out and "last epoch" in out
        assert "epochs = 1; batch" in out and out.startswith("% " if form == "latex" else ("|", " "))


def test_single_runs_are_listed_on_request(run: Run, trained: Storage) -> None:
    _, short, _ = run("results", "study.yaml", "--storage", trained.backend.address)
    _, whole, _ = run("results", "study.yaml", "--runs", "--storage", trained.backend.address)
    assert "start_time" not in short and whole.count("start_time") == 2
    assert len(whole.splitlines()) >= len(short.splitlines()) + 2 + 3


def test_results_of_a_file_are_only_its_own(run: Run, trained: Storage) -> None:
    _, out, _ = run(
        "results",
        "study.yaml",
        "--storage",
        trained.backend.address,
        "--format",
        "csv",
        "--set",
        "experiments[0].seed=[0, 8]",
    )
    assert [line["seed"] for line in csv.DictReader(io.StringIO(out))] == ["0", "0"]  # seed 8 has no row yet


def test_results_of_a_study_by_its_name(run: Run, trained: Storage) -> None:
    words = ["--storage", trained.backend.address, "--format", "csv"]
    by_file, by_name = run("results", "study.yaml", *words), run("results", "tiny", *words)
    assert by_file == by_name and by_name[0] == 0 and len(by_name[1].splitlines()) == 4


def test_results_of_other_settings_than_those_of_the_launch(run: Run, trained: Storage) -> None:
    words = ["--storage", trained.backend.address, "--set", "recipe.epochs=9"]
    code, out, err = run("results", "study.yaml", *words)
    assert (code, out) == (0, "no trials yet\n") and "with other settings: none of these 3 trials has begun" in err
    assert "`kdctl results tiny` prints" in err


def test_json_is_a_format(run: Run, trained: Storage) -> None:
    words = ["results", "--storage", trained.backend.address]
    assert run(*words, "--json") == run(*words, "--format", "json")


def test_verify_prints_json_for_programs(run: Run, trained: Storage) -> None:
    (key,) = list(trained.list_tables())
    words = ["teachers", "--storage", trained.backend.address]
    assert set(json.loads(run(*words, "--json", "verify", key.teacher_id)[1])[0]) == {"table", "largest_difference"}
    code, out, err = run(*words, "verify", key.teacher_id[:5], "--json")
    (found,) = json.loads(out)
    assert (code, err) == (0, "") and found["table"] == key.name and 0 <= found["largest_difference"] < 0.1


def test_results_of_nothing(run: Run, folder: Path) -> None:
    before = listed(folder)
    assert run("results") == (
        0,
        "no trials yet\n",
        "no trials in runs; launch a study first, or name another storage with --storage\n",
    )
    assert listed(folder) == before


def test_the_formats_are_those_of_the_report() -> None:
    (option,) = [parameter for parameter in cli.cli.commands["results"].params if parameter.name == "form"]
    assert isinstance(option.type, click.Choice) and list(option.type.choices) == [*ResultsFormat]


# Launching.


def test_launch_prints_results_and_where_they_are(run: Run, trained: Storage) -> None:
    code, out, err = run("launch", "study.yaml", "--inline", "--storage", trained.backend.address)
    assert code == 0 and "3 of 3 trials are finished" in err
    assert "ResNet8>>8/Digits" in out and f"{trained.backend.address}/results/trials/*.parquet" in out


def test_a_trial_that_failed_is_exit_code_1(run: Run, storage: Storage) -> None:
    code, out, err = run(
        *("launch", "study.yaml", "--inline", "--storage", storage.backend.address),
        *("--set", "experiments[1].lr=1e6", "--set", "experiments[1].epochs=5"),
    )
    assert code == 1
    assert "failed: epoch" in out and "failed: epoch" in err


def test_storage_and_data_come_from_the_environment(
    run: Run, trained: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCTL_STORAGE", str(trained.backend.address))
    assert "3 finished" in run("plan", "study.yaml")[1]
    assert "3 new" in run("plan", "study.yaml", "--storage", tmp_path / "other")[1]  # an option goes first
    monkeypatch.setenv("KDCTL_STORAGE", str(tmp_path / "new"))
    monkeypatch.setenv("KDCTL_DATA", str(tmp_path / "images"))
    (tmp_path / "images" / "cifar10").mkdir(parents=True)
    (tmp_path / "images" / "cifar10" / "train-0.parquet").write_bytes(b"half a layout")
    change = ["--set", "experiments[0].dataset=cifar10", "--set", "experiments[1].dataset=cifar10"]
    code, out, err = run("launch", "study.yaml", "--inline", *change)
    assert (code, out) == (2, "") and f"{tmp_path}/images/cifar10: there is no test-*.parquet" in err


# Stopping.


@pytest.fixture
def running(storage: Storage, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BaseException]]:
    """A launch of a long study in a thread; the list receives the exception that ends it."""
    monkeypatch.setattr("orchestrator.storage.stops.BEAT", 0.01)
    ended: list[BaseException] = []
    begun = threading.Event()
    settings = ["recipe.epochs=100000"]

    def train() -> None:
        try:
            launch("study.yaml", storage=storage.backend.address, inline=True, settings=settings, on_event=on_event)
        except KdctlError as error:
            ended.append(error)

    def on_event(event: Event) -> None:
        if event.kind is EventKind.EPOCH:
            begun.set()

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    assert begun.wait(60)
    yield ended
    stops.request(storage, stored_studies.find(storage).launched.resource)
    thread.join(60)


def test_stop_waits_until_the_launch_has_stopped_and_prints_how_to_resume(
    run: Run, storage: Storage, running: list[BaseException]
) -> None:
    address = storage.backend.address
    code, out, err = run("stop", "tiny", "--storage", address)
    assert (code, out) == (0, "")
    stopping, stopped, resume = err.splitlines()
    assert "study tiny" in stopping and "checkpoint" in stopping and stopped == "study tiny has stopped"
    assert resume == f"resume with:  kdctl launch study.yaml --set recipe.epochs=100000 --inline --storage {address}"
    assert until(lambda: running) and isinstance(running[0], Interrupted)
    code, out, err = run("stop", "--storage", address)
    assert (code, out) == (2, "") and "the last launch of study tiny has already ended; there is nothing to stop" in err


def test_stop_asks_on_a_terminal(
    run: Run, storage: Storage, running: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[str] = []
    monkeypatch.setattr("orchestrator.commands.stop.is_terminal", lambda: True)
    monkeypatch.setattr("orchestrator.commands.stop.confirm", lambda question: questions.append(question))
    code, out, err = run("stop", "--storage", storage.backend.address)
    assert (code, out, err) == (0, "", "nothing was stopped\n") and running == []
    assert questions == [f"Stop study tiny, process {os.getpid()} on {socket.gethostname()}?"]


def test_stop_of_nothing(run: Run) -> None:
    code, out, err = run("stop")
    assert (code, out) == (2, "") and "holds no study yet" in err


@pytest.mark.parametrize("command", ["stop", "status", "logs"])
def test_an_address_that_is_no_dashboard_is_refused(run: Run, command: str) -> None:
    code, out, err = run(command, "--address", "10.0.0.1:6379")
    assert (code, out) == (
        2,
        "",
    ) and "is not the address of a dashboard; expected one like http://127.0.0.1:8265" in err


# Errors.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "nowhere.yaml"], "there is no such file"),
        (["check", "studdy.yaml"], "there is no such file; did you mean study.yaml?"),
        (["check", "."], "this is a folder"),
        (["plan", "empty.yaml"], "the file is empty"),
        (["launch", "binary.yaml"], "not UTF-8"),
        (["launch", "nowhere.yaml"], "there is no such file"),
        (["results", "nowhere.yaml"], "there is no such file"),
        (["plan", "study.yaml", "--set", "recipe.epoch=1"], "did you mean epochs?"),
        (["plan", "study.yaml", "--set", "epochs"], "expected PATH=VALUE"),
        (["check"], "Missing argument 'FILE'"),
        (["check", "study.yaml", "--sett", "a=b"], "Did you mean '--set'?"),
        (["lanch"], "No such command 'lanch'; did you mean launch?"),
        (["xyzzy"], "No such command 'xyzzy'; choose one of them"),
        (["teachers", "verfy"], "No such command 'verfy'; did you mean verify?"),
        (["results", "tyni"], "there is no such file, and no study of this name"),
        (["completion", "tcsh"], "'tcsh' is not one of"),
        (["init", "study.yaml"], "already exists; name another file, or overwrite this one with --yes"),
        (["init", "none/study.yaml"], "cannot be written"),
        (["init", "."], "already exists"),
        (["init", ".", "--yes"], "it is a folder"),
        (["init", "--method", "my-loss"], "cannot be the name of your own Python file"),
        (["results", "--format", "html"], "'html' is not one of"),
        (["launch", "study.yaml", "--max-concurrent", "0"], "0 is not in the range"),
        (["launch", "study.yaml", "--inline", "--address", "auto"], "remove --address"),
        (["launch", "study.yaml", "--inline", "--storage", "study.yaml"], "is a file, expected a folder"),
        (["teachers", "verify", "00"], "holds no teacher yet"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_writes_nothing(run: Run, folder: Path, words: list[str], message: str) -> None:
    (folder / "empty.yaml").touch()
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    before = listed(folder)
    code, out, err = run(*words)
    assert (code, out) == (2, "") and message in err and "Traceback" not in err
    assert listed(folder) == before


def test_a_wrong_table_is_exit_code_1(run: Run, trained: Storage, tmp_path: Path) -> None:
    own = Storage.at(shutil.copytree(trained.backend.address, tmp_path / "own"))
    (key,) = list(own.list_tables())
    np.load(own.backend.local_path(own.table(key)), mmap_mode="r+")[:] += 1
    code, out, err = run("teachers", "--storage", own.backend.address, "verify", key.teacher_id)
    assert (code, out) == (1, "") and "are not the teacher's" in err and "builds it again" in err
    assert run("teachers", "--storage", trained.backend.address, "verify", key.teacher_id)[0] == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort(), Interrupted("the same command resumes it")])
def test_a_stop_is_exit_code_130(run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def stop(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("orchestrator.launch.launch", stop)
    code, out, err = run("launch", "study.yaml", "--inline", "--set", "recipe.lr=1e-3 ")
    assert (code, out) == (130, "") and ("the same command resumes it" in err or "stopped" in err)
    if isinstance(error, Interrupted):
        assert err.endswith("resume with:  kdctl launch study.yaml --inline --set 'recipe.lr=1e-3 '\n")


def test_a_lost_ray_is_left_to_the_supervisor(folder: Path) -> None:
    script = "import orchestrator.launch as l, sys\nfrom orchestrator.errors import RayLost\n"
    script += "def lost(*a, **k): raise RayLost('gone')\n"
    script += "l.launch = lost\nfrom orchestrator.cli import main\nsys.argv[1:] = ['launch', 'x', '--inline']\nmain()"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (75, "", "")


def test_a_launch_on_ray_has_a_supervisor(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def supervise(
        arguments: list[str], study: str, say: Callable[[str], None], say_how_to_resume: Callable[[], None]
    ) -> int:
        assert study == Path("study.yaml").read_text(encoding="utf-8")
        say(f"with {arguments}")
        say_how_to_resume()
        return 42

    monkeypatch.setattr("orchestrator.cluster.launch_supervisor.supervise", supervise)
    code, out, err = run("launch", "study.yaml", "--storage", "a b")
    output = (
        "with ['launch', 'study.yaml', '--storage', 'a b']\nresume with:  kdctl launch study.yaml --storage 'a b'\n"
    )
    assert (code, out, err) == (42, "", output)


def test_a_bug_is_exit_code_3_with_a_log(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*args: object, **options: object) -> None:
        raise LookupError("a thing that cannot be")

    monkeypatch.setattr("orchestrator.study.reader.load_study", bug)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, err = run("check", "study.yaml")
    assert (code, out) == (3, "") and "LookupError: a thing that cannot be" in err and "Traceback" not in err
    (log,) = tmp_path.glob("kdctl-bug-*.log")
    assert str(log) in err
    assert "Traceback" in log.read_text() and "kdctl check study.yaml" in log.read_text()


SECRET = "wJalrXUtnFEMI"


@pytest.mark.parametrize(
    "words",
    [
        ["check", f"s3://key:{SECRET}@bucket/study.yaml"],
        ["check", SECRET],
        ["check", "study.yaml", "--set", f"recipe.{SECRET}=1"],
        ["plan", "study.yaml", f"--{SECRET}"],
        ["results", "--format", SECRET],
        [SECRET],
    ],
)
def test_no_secret_is_printed(run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    code, out, err = run(*words)
    assert (code, out) == (2, "") and SECRET not in err and "***" in err


def test_no_secret_is_in_the_log_of_a_bug(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*args: object, **options: object) -> None:
        raise LookupError(SECRET)

    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr("orchestrator.study.reader.load_study", bug)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, err = run("check", f"https://{SECRET}@host/study.yaml", "--set", f"study={SECRET}")
    assert (code, out) == (3, "") and SECRET not in err and "LookupError: ***" in err
    (log,) = tmp_path.glob("kdctl-bug-*.log")
    text = log.read_text()
    assert SECRET not in text and "kdctl check https://***@host/study.yaml --set study=***" in text


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_helps(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words, "--help")
    assert (code, err) == (0, "") and out.startswith("Usage: ")
    assert " ".join(["kdctl", *words]) in out.splitlines()[0]
    assert run(*words, "-h")[1] == out


def test_the_commands_are_found() -> None:
    assert {(), ("launch",), ("teachers", "verify")} <= set(COMMANDS)


def test_kdctl_alone_prints_where_to_begin(run: Run) -> None:
    code, out, err = run()
    assert (code, out) == (2, "")
    lines = [line.split("  ")[0] for line in map(str.strip, err.splitlines()) if line.startswith("kdctl ")]
    assert lines[1:] == ["kdctl init", "kdctl launch experiments.yaml", "kdctl report experiments.yaml"]
    assert lines[0].startswith("kdctl runs knowledge-distillation studies")


# Confirmation.


def environment() -> dict[str, str]:
    return {**os.environ, "TERM": "dumb", "NO_COLOR": "1"}


@pytest.fixture
def litter(storage: Storage) -> Path:
    """An unfinished file in the storage, which `clean` deletes."""
    name = storage.trial_epochs("0123456789ab")
    storage.backend.write(name, b"epochs of no trial")
    return Path(storage.backend.local_path(name))


@pytest.mark.parametrize(("answer", "is_there"), [("n", True), ("", True), ("y", False)])
def test_clean_asks_at_a_terminal(folder: Path, storage: Storage, litter: Path, answer: str, is_there: bool) -> None:
    with Terminal([str(KDCTL), "clean", "--storage", storage.backend.address], folder, environment()) as terminal:
        terminal.wait_for("Delete 1 file, 18 B? [y/N]: ")
        terminal.type(f"{answer}\n")
    assert terminal.code == 0 and litter.exists() is is_there
    assert ("nothing was deleted" if is_there else "deleted 1 file, 18 B") in terminal.output


def test_clean_does_not_ask_with_json_or_without_a_terminal(
    run: Run, folder: Path, storage: Storage, litter: Path
) -> None:
    command = [str(KDCTL), "clean", "--storage", storage.backend.address]
    with Terminal([*command, "--json"], folder, environment()) as terminal:
        pass
    assert json.loads(terminal.output)["freed"] is False and litter.exists()
    code, out, err = run(*command[1:])
    assert code == 0 and "nothing was deleted; add --yes" in err and litter.exists()
    assert run(*command[1:], "--yes")[1] == out and not litter.exists()


@pytest.mark.parametrize(("answer", "is_kept"), [("n", True), ("y", False)])
def test_init_asks_before_it_overwrites(folder: Path, answer: str, is_kept: bool) -> None:
    with Terminal([str(KDCTL), "init", "study.yaml"], folder, environment()) as terminal:
        terminal.wait_for("study.yaml already exists; overwrite it? [y/N]: ")
        terminal.type(f"{answer}\n")
    assert terminal.code == 0 and ((folder / "study.yaml").read_text() == STUDY) is is_kept
    assert ("nothing was written" if is_kept else "wrote study.yaml and study.schema.json") in terminal.output


def test_init_prints_the_next_command_and_that_works(run: Run, folder: Path) -> None:
    code, out, err = run("init")
    lines = [line.split("   ")[0].split() for line in map(str.strip, err.splitlines()) if line.startswith("kdctl ")]
    assert (code, out) == (0, "") and [words[1] for words in lines] == ["plan", "launch", "report"]
    assert "7 trials of study my-digits: 7 new" in run(*lines[0][1:])[1]
    assert run("init", "--yes", "--dataset", "cifar100")[0] == 0
    assert "cifar100" in run("plan", "experiments.yaml")[1]


def test_init_writes_a_loss_and_never_over_another_file(run: Run, folder: Path) -> None:
    code, out, err = run("init", "own.yaml", "--method", "my_loss")
    steps = [line.split()[:3] for line in map(str.strip, err.splitlines()) if line.startswith("kdctl ")]
    assert (code, out) == (0, "") and "wrote my_loss.py, own.yaml and study.schema.json; next:" in err
    assert steps == [["kdctl", command, "own.yaml"] for command in ("check", "plan", "launch", "report")]
    for name in ("my_loss.py", "own.yaml"):
        (folder / name).write_text("mine")
    code, _, err = run("init", "own.yaml", "--method", "my_loss")
    assert code == 2 and "my_loss.py already exists" in err and (folder / "my_loss.py").read_text() == "mine"
    for words in (["other"], ["my_loss", "--yes"]):
        assert "in own.yaml, its name is `method: ./" in run("init", "own.yaml", "--method", *words)[2]
        assert "class " in (folder / f"{words[0]}.py").read_text() and (folder / "own.yaml").read_text() == "mine"


# In a shell.


def test_a_reader_that_leaves_is_no_error(folder: Path) -> None:
    # 2,000 trials are more than a pipe holds, so the writer meets the closed end.
    seeds = f"experiments[0].seed={list(range(2000))}"
    script = '"$0" plan study.yaml --json --set "$1" | head -n 1'
    done = subprocess.run(["sh", "-c", script, KDCTL, seeds], cwd=folder, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("{\n", "")


LOADED = """
import sys
from orchestrator.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print(*{name.split(".")[0] for name in sys.modules}, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (["--help"], {"yaml", "pyarrow", "torch", "ray", "numpy", "duckdb"}),
        (["launch", "--help"], {"yaml", "pyarrow", "torch", "ray", "numpy", "duckdb"}),
        (["check", "study.yaml"], {"torch", "ray", "pyarrow"}),
        (["plan", "study.yaml"], {"torch", "ray"}),
        (["results"], {"torch", "ray"}),
        (["query", "FROM trials"], {"torch", "ray", "scipy"}),
        (["query", "--help"], {"yaml", "pyarrow", "torch", "ray", "numpy", "duckdb", "rich"}),
        (["clean"], {"torch", "ray"}),
        (["schema"], {"torch", "ray", "pyarrow"}),
        (["down"], {"torch", "ray", "pyarrow", "yaml"}),
    ],
)
def test_a_command_loads_what_it_needs(folder: Path, words: list[str], heavy: set[str]) -> None:
    command = [sys.executable, "-c", LOADED, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, env=os.environ)
    loaded = set(done.stderr.split())
    assert "click" in loaded and not loaded & heavy
