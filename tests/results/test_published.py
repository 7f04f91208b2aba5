"""The lab note's tables beside ours: their figures, and pages of complete, failed, cut and hostile studies."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.launch import plan_study
from orchestrator.records import EpochRecord, State, TrialRecord
from orchestrator.results import store
from orchestrator.results.tables import PUBLISHED_COLUMNS
from orchestrator.storage.layout import Storage
from orchestrator.study.plan import PlannedTrial

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "published.py"
STUDY = ROOT / "experiments.yaml"
START = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
CUT = ["recipe.epochs=2", "recipe.limit_train=512"]


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("published", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["published"] = module  # where its dataclasses look for their types
    spec.loader.exec_module(module)
    return module


published = load_script()
TRIALS = plan_study(STUDY, "no-such-storage").trials
TEACHERS = [trial for trial in TRIALS if trial.role == "teacher"]
STUDENTS = [trial for trial in TRIALS if trial.role == "student"]


def row(trial: PlannedTrial, acc: float | None = 92.5, **overrides: Any) -> TrialRecord:
    """A finished row of a planned trial, an hour on a GPU."""
    config, no = trial.config, 1
    recipe = {**config.recipe(), "teacher_answers": trial.teacher_cache}
    taught = {"teacher_id": trial.teacher_id, "teacher_acc": 92.0, "agreement": 95.125} if config.teacher else {}
    filled: dict[str, Any] = {
        **dict.fromkeys(store.TRIAL_COLUMNS),
        **{"no": no, "method": config.method, "dataset": config.dataset, "student": config.student},
        **{"teacher": config.teacher.student if config.teacher else None, "seed": config.seed},
        **{"start_time": START + timedelta(minutes=config.seed), "end_time": START + timedelta(hours=1 + config.seed)},
        **{"acc": acc, "last_acc": None if acc is None else acc - 0.25, "epoch": 190, "nepoch": config.epochs},
        **{"lr": config.lr, "batch_size": config.batch_size, "trial_id": trial.trial_id, "study": "resnet-logit"},
        **{"state": State.FINISHED, "seconds": 3600.0, "device": "NVIDIA H200", "host": "a", "resumed": 0},
        **{"recipe": recipe, "kdctl_version": "0.1.0", "torch_version": "2.11.0", "ray_version": "2.60.0"},
        **{"git_commit": "abc123"},
    }
    return TrialRecord(**{**filled, **taught, **overrides})


@pytest.fixture
def runs(tmp_path: Path) -> Storage:
    storage = Storage.at(tmp_path / "runs")
    storage.prepare()
    return storage


def fill(storage: Storage, rows: list[TrialRecord]) -> None:
    for record in rows:
        store.write_trial(storage, record)


def page(storage: Storage, settings: list[str] | None = None) -> str:
    text: str = published.render(published.Study.read(STUDY, storage, settings or []))
    return text


def complete() -> list[TrialRecord]:
    """Every row of the study; the students of ResNet-20 on CIFAR-10 as in the note, the others the same."""
    given = dict(zip((trial.trial_id for trial in STUDENTS), published.PUBLISHED[0].acc, strict=False))
    return [row(trial, given.get(trial.trial_id, 70.0)) for trial in TRIALS]


COMPLETE = """\
## resnet_32_20 ← resnet_32_20 on cifar10 (lab note: 92.5)

| no | method | dataset | student | teacher | start_time | acc | epoch | nepoch | lr | batch_size |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 1 | logit | cifar10 | resnet_32_20 | resnet_32_20 | 2024-01-02 03:04:05 | 92.52 | 190 | 200 | 0.1 | 128 |
| 2 | logit | cifar10 | resnet_32_20 | resnet_32_20 | 2024-01-02 03:05:05 | 92.49 | 190 | 200 | 0.1 | 128 |
| 3 | logit | cifar10 | resnet_32_20 | resnet_32_20 | 2024-01-02 03:06:05 | 92.53 | 190 | 200 | 0.1 | 128 |

| run | seed | ours, best epoch (picked on the test set) | ours, last epoch | agreement with the teacher \
| lab note (another experiment), best epoch (picked on the test set) |
| --- | --- | --- | --- | --- | --- |
| 1 | 0 | 92.52 | 92.27 | 95.12 | 92.52 |
| 2 | 1 | 92.49 | 92.24 | 95.12 | 92.49 |
| 3 | 2 | 92.53 | 92.28 | 95.12 | 92.53 |
| mean ± std (n) |  | 92.51 ± 0.02 (n=3) | 92.26 ± 0.02 (n=3) | 95.12 ± 0.00 (n=3) | 92.51 ± 0.02 (n=3) |

- teacher resnet_32_20 seed 0 (`base`: cross-entropy alone): best epoch 70.00 (picked on the test set), \
last epoch 69.75 (n=1); the last epoch's weights teach
- 3 runs: 3 finished, 0 failed, 0 missing
- settings that differ from the closest ones: match logits, not pooled

"""
COST = """\
## The study

- study resnet-logit: n = 16 trials, teachers included: 16 finished, 0 failed, 0 missing
- wall time: 3:00:00 (h:mm:ss) from first start to last end, pauses included
- 16.000 GPU-hours on NVIDIA H200: the sum over 16 trials; those that shared it count in full, unfinished ones do \
not count
- machines: 1, trials that resumed from a checkpoint: 0
- kdctl: 0.1.0
- torch: 2.11.0
- Ray: 2.60.0
- commit: abc123
- precision: auto
"""


def test_the_published_figures() -> None:
    figures = {(p.student, p.teacher, p.dataset): (p.acc, f"{p.statistic.mean:.1f}") for p in published.PUBLISHED}
    small, large = ("resnet_32_20",) * 2, ("resnet_32_110",) * 2
    assert figures == {
        (*small, "cifar10"): ((92.52, 92.49, 92.53), "92.5"),
        (*small, "cifar100"): ((69.26, 69.27, 69.10), "69.2"),
        (*large, "cifar10"): ((94.23, 94.31, 94.03), "94.2"),
        (*large, "cifar100"): ((72.50, 71.40, 71.42), "71.8"),
    }
    for p in published.PUBLISHED:  # measured over 9,984 images: each is a whole number of them, rounded
        assert all(round(100 * round(acc * 99.84) / 9984, 2) == acc for acc in p.acc)


def test_a_complete_study(runs: Storage) -> None:
    fill(runs, complete())
    text = page(runs)
    assert text.startswith(
        "# Our runs and those of a lab note\n\nThe four tables beside ours come from a lab note. **It "
    )
    assert all(f"\n- {difference}\n" in text for difference in published.DIFFERENCES)
    assert COMPLETE in text
    assert text.endswith(COST)
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## resnet_32_20 ← resnet_32_20 on cifar10 (lab note: 92.5)",
        "## resnet_32_20 ← resnet_32_20 on cifar100 (lab note: 69.2)",
        "## resnet_32_110 ← resnet_32_110 on cifar10 (lab note: 94.2)",
        "## resnet_32_110 ← resnet_32_110 on cifar100 (lab note: 71.8)",
        "## The study",
    ]
    assert text.count("| " + " | ".join(PUBLISHED_COLUMNS) + " |") == 4
    assert text.count("- settings that differ from the closest ones: match logits, not pooled\n") == 4


def test_nothing_is_called_comparable() -> None:
    assert len(published.DIFFERENCES) == 4
    for name in ("7×7", "1,920", "training mode", "on the test set", "9,984"):
        assert any(name in difference for difference in published.DIFFERENCES), name
    assert "match: pooled" in published.CLOSEST
    assert (7 * 7 - 3 * 3) * 3 * 16 == 1_920


def test_the_study_file_differs_from_the_closest_settings_only_in_what_is_matched(tmp_path: Path) -> None:
    assert len(STUDENTS) == 12 and len(TEACHERS) == 4
    assert {published.describe_differences(row(trial)) for trial in STUDENTS} == {"match logits, not pooled"}
    study = tmp_path / "pooled.yaml"
    study.write_text(STUDY.read_text().replace("method: logit", "method: logit\n    match: pooled"))
    pooled = [trial for trial in plan_study(study, "no-such-storage").trials if trial.role == "student"]
    assert {published.describe_differences(row(trial)) for trial in pooled} == {""}


BROKEN = """\
| 1 | logit | cifar10 | resnet_32_20 | resnet_32_20 | 2024-01-02 03:04:05 | 92.52 | 190 | 200 | 0.1 | 128 |
| 2 | logit | cifar10 | resnet_32_20 | resnet_32_20 | 2024-01-02 03:05:05 | **failed** | - | 200 | 0.1 | 128 |
| 3 | logit | cifar10 | resnet_32_20 | resnet_32_20 | missing | missing | missing | 200 | 0.1 | 128 |
"""
BROKEN_BESIDE = """\
| 1 | 0 | 92.52 | 92.27 | 95.12 | 92.52 |
| 2 | 1 | failed | failed | failed | 92.49 |
| 3 | 2 | missing | missing | missing | 92.53 |
| mean ± std (n) |  | 92.52 (n=1) | 92.27 (n=1) | 95.12 (n=1) | 92.51 ± 0.02 (n=3) |

- teacher resnet_32_20 seed 0 (`base`: cross-entropy alone): missing
- 3 runs: 1 finished, 1 failed, 1 missing
"""


def test_failed_and_missing_trials_are_shown_and_counted(runs: Storage) -> None:
    rest = {"acc": 99.0, "seconds": 1.0, "end_time": None}  # figures that a row without an end must not pass on
    failed = row(STUDENTS[1], state=State.FAILED, error="disk full", **rest)
    fill(runs, [row(STUDENTS[0], 92.52), failed, row(STUDENTS[3], state=State.RUNNING, **rest)])
    text = page(runs)
    assert BROKEN in text and BROKEN_BESIDE in text
    assert "| mean ± std (n) |  | missing | missing | missing | 94.19 ± 0.14 (n=3) |" in text
    assert "- 3 runs: 0 finished, 0 failed, 2 missing, 1 running\n" in text
    assert "n = 16 trials, teachers included: 1 finished, 1 failed, 13 missing, 1 running\n" in text
    assert "- logit cifar10 resnet_32_20 ← resnet_32_20 seed 1 failed: disk full\n" in text
    assert "- logit cifar10 resnet_32_20 ← resnet_32_20 seed 2 missing\n" in text
    assert "- base cifar100 resnet_32_110 seed 0 missing\n" in text
    assert "99.00" not in text
    assert "- 1.000 GPU-hours on NVIDIA H200: the sum over 1 trials" in text


def test_a_cut_recipe_is_named(runs: Storage) -> None:
    trials = [
        trial for trial in plan_study(STUDY, runs.backend.address, CUT).trials if trial.config.dataset == "cifar10"
    ]
    fill(runs, [row(trial, 20.0, device="cpu, 1 threads", ray_version=None) for trial in trials])
    text = page(runs, CUT)
    line = "| 2024-01-02 03:04:05 | 20.00 | 190 | 2 | 0.1 | 128 |\n"
    assert text.count(line) == 2
    assert text.count("| 20.00 | 19.75 | 95.12 |") == 6
    assert text.count("| 20.00 ± 0.00 (n=3) | 19.75 ± 0.00 (n=3) |") == 2
    changes = "%sepochs 2, not 200; %smilestones none, not 100 and 150; %sgamma 1, not 0.1; "
    own, taught = (f"{changes}%slimit_train 512, not unset" % ((prefix,) * 4) for prefix in ("", "teacher."))
    difference = f"{own}; match logits, not pooled; {taught}"
    assert text.count(f"- settings that differ from the closest ones: {difference}\n") == 2
    assert "- 8.000 CPU-hours on cpu, 1 threads: the sum over 8 trials" in text
    assert "- Ray: unknown or unused (8 trials)\n" in text


@pytest.mark.parametrize(
    ("recipe", "difference"),
    [
        ({"epochs": 199}, "epochs 199, not 200"),
        ({"limit_test": 100}, "limit_test 100, not unset"),
        ({"holdout": 5000}, "holdout 5000, not 0"),
        ({"weights": "ab"}, "weights ab, not unset"),
        ({"flip": False}, "flip false, not true"),
        ({"padding": "zero"}, "padding zero, not reflect"),
        ({"label_smoothing": 0.1}, "label_smoothing 0.1, not 0"),
        ({"ema": 0.9}, "ema 0.9, not 0"),
        ({"schedule": "cosine"}, "schedule cosine, not steps"),
        ({"optimizer_options": {"beta1": 0.5}}, "optimizer_options beta1=0.5, not none"),
    ],
)
def test_every_setting_that_changes_a_result_counts(recipe: dict[str, Any], difference: str) -> None:
    record = row(STUDENTS[0])
    own = record.recipe
    nepoch = recipe.get("epochs", 200)
    student = replace(record, recipe={**own, **recipe}, nepoch=nepoch)
    assert published.describe_differences(student) == f"{difference}; match logits, not pooled"
    taught = replace(record, recipe={**own, "teacher": {**own["teacher"], **recipe}})
    assert published.describe_differences(taught) == f"match logits, not pooled; teacher.{difference}"


def test_the_options_of_the_method_count() -> None:
    record = row(STUDENTS[0])
    own = {**record.recipe, "options": {"ce_weight": 0.0, "match": "pooled"}}
    assert published.describe_differences(replace(record, recipe=own)) == "ce_weight 0, not 1"


def test_how_a_trial_was_run_does_not_count() -> None:
    record = row(STUDENTS[0])
    own = {**record.recipe, "teacher_answers": "live", "teacher_cache": "live"}
    assert published.describe_differences(replace(record, recipe=own)) == "match logits, not pooled"


def test_settings_have_means_of_their_own(runs: Storage, tmp_path: Path) -> None:
    study = tmp_path / "rates.yaml"
    study.write_text(STUDY.read_text().replace("method: logit", "method: logit\n    lr: [0.1, 0.05]"))
    trials = plan_study(study, runs.backend.address).trials
    fill(runs, [row(trial, 90.0 if trial.config.lr == 0.1 else 80.0) for trial in trials])
    text = published.render(published.Study.read(study, runs, []))
    assert text.count("| mean ± std (n), logit |  | 90.00 ± 0.00 (n=3) |") == 4
    assert text.count("| mean ± std (n), logit lr=0.05 teacher.lr=0.1 |  | 80.00 ± 0.00 (n=3) |") == 4
    assert text.count("- settings that differ from the closest ones: lr 0.05, not 0.1; match logits, not pooled\n") == 4
    assert text.count("| 4 | 0 | 80.00") + text.count("| 4 | 0 | 90.00") == 4
    assert text.count("| 95.12 | - |\n") == 12  # the note has three runs beside six


def test_a_pair_that_the_study_lacks_is_missing(runs: Storage, tmp_path: Path) -> None:
    study = tmp_path / "small.yaml"
    study.write_text("study: s\nexperiments: [{method: base, dataset: digits, student: resnet_32_8}]\n")
    fill(runs, [row(trial) for trial in plan_study(study, runs.backend.address).trials])
    text = published.render(published.Study.read(study, runs, []))
    message = "missing: the study has no such trial; lab note 92.52, 92.49, 92.53, mean 92.51 ± 0.02 (n=3)"
    assert text.count("missing: the study has no such trial") == 4 and message in text


HOSTILE = "a | b\n# c <script>x</script> [l](http://e) `d` *e* _f_ \x1b[2J"
HARMLESS = (
    "a &#124; b &#35; c &#60;script&#62;x&#60;/script&#62; &#91;l&#93;(http&#58;//e) &#96;d&#96; &#42;e&#42; "
    "&#95;f&#95; &#92;x1b&#91;2J"
)


def test_hostile_text_has_no_effect(runs: Storage) -> None:
    odd: dict[str, Any] = {
        "device": HOSTILE,
        "torch_version": HOSTILE,
        "method": HOSTILE,
        "student": HOSTILE,
        "teacher": HOSTILE,
    }
    strange = row(STUDENTS[0], **odd, error=HOSTILE, state=State.FAILED)
    fill(runs, [strange, row(STUDENTS[1], device=HOSTILE)])
    text = page(runs)
    assert f"| 1 | {HARMLESS} | cifar10 | {HARMLESS} | {HARMLESS} | 2024" in text
    assert f" seed 0 failed: {HARMLESS}\n" in text
    assert f"GPU-hours on {HARMLESS}: " in text and f"- torch: 2.11.0 (1 trials), {HARMLESS} (1 trials)\n" in text
    assert "\x1b" not in text and "<script>" not in text


def test_names_stay_readable() -> None:
    assert published.escape("resnet_32_20: 2.11.0+cu128, a/b (c)") == "resnet_32_20: 2.11.0+cu128, a/b (c)"


@given(st.text())
def test_any_text_is_one_line_without_markup(text: str) -> None:
    escaped = published.escape(text)
    assert escaped.isprintable()
    rest = escaped.replace("&#", "")
    assert not set(rest) & set("\\`*[]<>|&#~@$!")


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
    assert (
        published.escape("key verysecret of s3://u:p@host")
        == "key &#42;&#42;&#42; of s3&#58;//&#42;&#42;&#42;&#64;host"
    )


# The command.


def test_out_writes_the_page_and_its_rows(runs: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = complete()
    fill(runs, rows)
    epoch = EpochRecord(1, 0.1, 2.0, 1.5, None, 50.0, 1.25, 60.0, None, 3.0, 1000.0)
    for trial in TRIALS[:2]:
        store.write_epochs(runs, trial.trial_id, [epoch, replace(epoch, epoch=2)])
    other = replace(rows[0], trial_id="0" * 12, study="another")
    fill(runs, [other])
    out = tmp_path / "results" / "here"
    assert published.main([runs.backend.address, "--out", str(out)]) == 0
    output = capsys.readouterr().out
    assert (out / "README.md").read_text().startswith(output)
    assert "[trials.parquet](trials.parquet)" in (out / "README.md").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "epochs.parquet", "trials.parquet"]
    trials = pq.read_table(out / "trials.parquet")
    assert trials.to_pylist()[0]["trial_id"] == TRIALS[0].trial_id
    assert trials.column_names == list(store.TRIAL_COLUMNS) and trials.num_rows == 16
    assert trials.schema.metadata[b"kdctl_schema"] == store.SCHEMA_VERSION.encode()
    epochs = pq.read_table(out / "epochs.parquet")
    assert epochs.column_names == list(store.EPOCH_COLUMNS) and epochs.num_rows == 4


def test_no_storage_and_no_rows_are_reported(tmp_path: Path, runs: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = tmp_path / "nowhere"
    assert published.main([str(nowhere)]) == 2
    assert capsys.readouterr() == ("", f"{nowhere} holds no trial of study resnet-logit; {CURE}\n")
    assert not nowhere.exists()
    fill(runs, [row(STUDENTS[0])])
    assert published.main([runs.backend.address, "--set", "recipe.epochs=2"]) == 2
    hint = "; 1 trials are there, of other studies or settings: give the --set of the launch"
    assert capsys.readouterr().err == f"{runs.backend.address} holds no trial of study resnet-logit{hint}; {CURE}\n"


CURE = "launch it first (make table DATA=...), or name the storage it was launched with"


def test_bad_input_is_one_message(tmp_path: Path, runs: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    assert published.main([runs.backend.address, "--study", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err
    assert published.main([runs.backend.address, "--set", "recipe.epoch=2"]) == 2
    assert "recipe.epoch" in capsys.readouterr().err
    assert published.main(["ftp://host/folder"]) == 2
    assert "ftp://host/folder" in capsys.readouterr().err
    fill(runs, complete())
    (tmp_path / "file").touch()
    assert published.main([runs.backend.address, "--out", str(tmp_path / "file" / "x")]) == 2
    assert capsys.readouterr() == (
        "",
        f"{tmp_path / 'file' / 'x'} cannot be written (Not a directory); name another with --out\n",
    )
    fill(runs, [replace(row(TRIALS[0]), recipe={})])
    assert published.main([runs.backend.address]) == 2
    assert f"{TRIALS[0].trial_id}.parquet holds a damaged row; launch" in capsys.readouterr().err
    Path(runs.backend.address, runs.trial_row(TRIALS[0].trial_id)).write_bytes(b"half")
    assert published.main([runs.backend.address]) == 2
    assert TRIALS[0].trial_id in capsys.readouterr().err


def test_it_runs_as_a_script(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path / "none")]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.count("\n") == 1 and "Traceback" not in found.stderr


# `make table`.


def make(tmp_path: Path, launch: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `make table` with stand-ins for kdctl and Python, which record their arguments."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name, end in (("kdctl", launch), ("python", "exit 0")):
        script = bin_ / name
        script.write_text(
            f'#!/bin/sh\nprintf "%s" "{name}" >>"$LOG"\nprintf " [%s]" "$@" >>"$LOG"\necho >>"$LOG"\n'
            f"echo {name} wrote\n{end}\n"
        )
        script.chmod(0o755)
    command = ["make", "-s", "-C", str(ROOT), "-o", "setup", "table", f"BIN={bin_}", *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("KDCTL_", "MAKE"))}
    environment["LOG"] = str(tmp_path / "log")
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_make_table_launches_and_renders(tmp_path: Path) -> None:
    cut = "SET=--set recipe.limit_train=512 --set recipe.epochs=2"
    found = make(tmp_path, "exit 0", "DATA=./my data", cut, "OUT=docs/results/x")
    assert (found.returncode, found.stdout, found.stderr) == (0, "python wrote\n", "kdctl wrote\n")
    settings = "[--set] [recipe.limit_train=512] [--set] [recipe.epochs=2]"
    assert (tmp_path / "log").read_text().splitlines() == [
        f"kdctl [launch] [experiments.yaml] [--data] [./my data] [--storage] [runs] {settings}",
        f"python [bench/published.py] [runs] {settings} [--out] [docs/results/x]",
    ]


@pytest.mark.parametrize("end", ["exit 1", "exit 130", "kill -TERM $$"])
def test_make_table_fails_with_its_launch(tmp_path: Path, end: str) -> None:
    found = make(tmp_path, end)
    assert found.returncode and found.stdout == ""
    assert "python" not in (tmp_path / "log").read_text()
