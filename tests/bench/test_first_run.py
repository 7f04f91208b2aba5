"""The script for the first run on a GPU, as far as a CPU can take it: its checks, its clocks and its options."""

from __future__ import annotations

from collections.abc import Iterator

import first_run
import pytest
import torch
from first_run import FirstRun

from orchestrator.training.state import TrainingState

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small batches and models; the other tests keep the threads that they had."""
    monkeypatch.setattr(first_run, "BATCH", 8)
    monkeypatch.setattr(first_run, "DEEP", "resnet_32_8")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def first() -> FirstRun:
    return FirstRun(CPU, "resnet_32_8", ["fp32"], 16, 4)


def test_parity_compares_every_way_to_get_outputs(first: FirstRun, capsys: pytest.CaptureFixture[str]) -> None:
    first_run.parity(first, images=20, epochs=1)
    lines = capsys.readouterr().out.splitlines()
    # On a CPU there is no graph to replay, and both runs take the same steps.
    assert len(first.failed) == len(lines) - 1 == 5
    assert all("0 replays" in line and line.endswith("largest difference 0") for line in lines[:-1])
    assert lines[-1].startswith("PASS  the first loss is that of the CPU")


def test_parity_counts_replays_and_sees_a_difference(first: FirstRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: None)
    seeds = iter([0, 0, 0, 1])

    def start() -> first_run.Training:
        torch.cuda.CUDAGraph.replay(None)  # type: ignore[arg-type]
        return first_run.training(CPU, "resnet_32_8", 16, "fp32", seed=next(seeds))

    for _ in range(2):
        first_run._compare_graph(first, "seeds", start, 1)
    assert first.failed == ["seeds"]


def test_a_stopped_training_is_whole(first: FirstRun, capsys: pytest.CaptureFixture[str]) -> None:
    first_run.torn(first, steps=2)
    assert capsys.readouterr().out.startswith("PASS  a checkpoint at a stop is whole  0 of ")
    assert not first.failed


def test_pace_of_a_training_alone(first: FirstRun) -> None:
    changed: list[TrainingState] = []
    pace = first_run.measure_pace(
        first, "resnet_32_8", "fp32", 16, repeats=2, warm_up=first_run.NEVER, prepare=changed.append
    )
    assert pace.first > 0 and pace.speed > 0 and pace.captured == "no" and len(changed) == 1


def test_trials_side_by_side(first: FirstRun, capsys: pytest.CaptureFixture[str]) -> None:
    first_run.together(first)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [row[2] for row in rows[2:]] == ["1", "2", "4", "1", "2"]
    assert {row[-1] for row in rows[2:]} == {"all |"} and not first.failed


def test_a_trial_that_fails_keeps_nobody_waiting(first: FirstRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object, seed: int, **more: object) -> None:
        raise ValueError(f"seed {seed} fails")

    monkeypatch.setattr(first_run, "training", fail)
    speed, failed = first_run.side_by_side(first, "resnet_32_8", "fp32", 16, 2)
    assert speed != speed and any("fails" in reason for reason in failed)


def test_a_part_that_fails_does_not_keep_the_next_from_running(
    first: FirstRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(first: FirstRun) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(first_run, "PARTS", {"facts": fail, "torn": lambda first: first.check("whole", True)})
    assert first_run.run_parts(first, ["facts", "torn"]) == 1
    captured = capsys.readouterr()
    assert "FAIL  facts  RuntimeError('no such kernel')" in captured.out and "PASS  whole" in captured.out
    assert "Traceback" in captured.err
    assert first_run.run_parts(FirstRun(CPU, "resnet_32_8", ["fp32"], 16, 4), ["torn"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fact"], "unknown part 'fact'; expected some of facts, parity,"),
        (["--kinds", "bf16,int8"], "unknown kind 'int8'; expected some of bf16, fp32, fp16"),
        (["--images", "0"], "'0' is "),
    ],
)
def test_wrong_options(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        first_run.main(arguments)
    assert words in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        first_run.main([])
    assert "torch finds no GPU" in capsys.readouterr().err
