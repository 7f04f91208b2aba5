"""The benchmarks of training and of tables: that both sides do the same work, what is printed, and wrong usage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import compare
import pytest
import table
import torch
from shared import common, plain
from torch import Tensor

from orchestrator import losses
from orchestrator.data.registry import DATASETS
from orchestrator.data.tensors import Data, Images
from orchestrator.data.views import ViewSpace
from orchestrator.records import TrialConfig
from orchestrator.teachers.outputs import LiveTeacher, no_teacher
from orchestrator.training import loop
from orchestrator.training.state import TrainingState

CPU = torch.device("cpu")
BATCH = 16
# What PyTorch's own workers meet where the test runner has threads.
FORKS = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A benchmark takes every core; the other tests keep the threads that they had."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def split(count: int) -> Images:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 10)


@pytest.fixture
def images() -> Data:
    """Noise in the place of CIFAR-10."""
    return Data(split(BATCH), None, split(10), DATASETS["cifar10"])


@pytest.fixture
def config() -> TrialConfig:
    trial = common.plan_student("cifar10", "resnet_32_8", "resnet_32_14", 20, BATCH)
    return replace(trial.config, precision="float32", limit_train=BATCH, limit_test=10)


def rows(text: str) -> list[dict[str, str]]:
    """The lines of the one Markdown table in a text."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    head, ruler, *lines = cells
    assert set(ruler) == {"---"}
    return [dict(zip(head, line, strict=True)) for line in lines]


def is_spread(text: str) -> bool:
    """Whether it reads `2 [1–3]`, in order."""
    median, _, rest = text.replace(",", "").partition(" [")
    least, most = map(float, rest.removesuffix("]").split("–"))
    return 0 < least <= float(median) <= most


# Both sides do the same work.


def test_a_plain_step_is_a_step_of_kdctl(images: Data, config: TrialConfig) -> None:
    # One view and one batch: kdctl's order of the images is then all that differs, and no sum depends on that.
    config = replace(config, crop_padding=0, flip=False, epochs=1, milestones=())
    teacher = common.build_model("resnet_32_14", "cifar10", CPU).eval()
    ours, theirs = (common.build_model("resnet_32_8", "cifar10", CPU).train() for _ in range(2))
    optimizer = plain.make_optimizer(theirs)
    before = [parameter.detach().clone() for parameter in theirs.parameters()]

    loss = plain.step(theirs, teacher, optimizer, images.normalise(images.train.pixels), images.train.labels)
    outputs = LiveTeacher(teacher, ("logits",))
    (record,) = loop.train(TrainingState.start(ours, losses.build("logit"), config), images, config, outputs)

    assert record.train_loss == pytest.approx(loss, rel=1e-5)
    for was, mine, other in zip(before, ours.parameters(), theirs.parameters(), strict=True):
        assert not torch.equal(was, other)
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.bn1.running_var, theirs.bn1.running_var)


def test_plain_pictures_are_views_of_kdctl(images: Data) -> None:
    space = ViewSpace(4, True)
    padded = space.pad(images.train.pixels)
    dataset = plain.make_dataset(images)
    assert len(dataset) == BATCH
    matched = set()
    for index in range(BATCH):
        picture, label = dataset[index]
        assert label == images.train.labels[index]
        views = images.normalise(padded.take(torch.full((space.size,), index), torch.arange(space.size)))
        distances = (views - picture).abs().amax(dim=(1, 2, 3))
        assert distances.min() < 1e-5
        matched.add(int(distances.argmin()))
    assert len(matched) > 1


def test_a_plain_teacher_learns_nothing(images: Data) -> None:
    student, teacher = (common.build_model("resnet_32_8", "cifar10", CPU) for _ in range(2))
    teacher.eval()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    plain.step(student, teacher, plain.make_optimizer(student), *batch(images))
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def batch(images: Data) -> tuple[Tensor, Tensor]:
    return images.normalise(images.train.pixels), images.train.labels


def test_a_bare_pass_gets_training_images_ready_made(images: Data) -> None:
    batches = table.make_batches(images)
    assert [tuple(some.shape) for some in batches] == [(1000, 3, 32, 32)] * table.READY
    assert all(
        some.is_contiguous(memory_format=torch.channels_last) and some.dtype == torch.float32 for some in batches
    )
    assert torch.equal(batches[0][:BATCH], batch(images)[0])


def test_a_table_of_arbitrary_outputs_is_one_of_a_teacher(images: Data, config: TrialConfig) -> None:
    outputs = compare.make_table(images, config, CPU).table
    assert outputs.shape == (162, BATCH, 10)
    assert outputs.dtype == torch.float16
    assert outputs.isfinite().all() and outputs.count_nonzero() > outputs.numel() // 2


# What is printed.


@FORKS
def test_compare_prints_a_line_a_case(
    images: Data, config: TrialConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "SMALL", "resnet_32_8")
    monkeypatch.setattr(compare, "DEEP", "resnet_32_14")
    monkeypatch.setattr(plain, "measure_one_per_core", lambda *given, count: 1.0 * count)
    medians = compare.compare(compare.list_cases(images, config, CPU, 2, True), 1)
    printed = capsys.readouterr().out
    against, free = (rows(part) for part in printed.strip().split("\n\n"))
    assert [row["case"] for row in (*against, *free)] == list(medians)
    assert (len(against), [row["case"] for row in free]) == (3, [compare.FREE_CASE])
    ways = ["plain, one script", "plain, one per core", "kdctl"]
    assert list(against[0]) == [
        "case", *(f"{way} img/s, median [min–max]" for way in ways), "ratio, median [min–max]", "n"
    ]  # fmt: skip
    for row in (*against, *free):
        assert row["n"] == "1"
        assert all(is_spread(row[name]) for name in list(row)[1:-1])


def test_one_script_per_core_is_counted_in_all(images: Data) -> None:
    assert plain.measure_one_per_core("resnet_32_8", "resnet_32_8", images, BATCH, BATCH, count=2) > 0
    with pytest.raises(RuntimeError, match="ended with an error"):
        plain.measure_one_per_core("no_model", "resnet_32_8", images, BATCH, BATCH, count=1)


def test_a_ratio_is_to_the_better_plain_way(capsys: pytest.CaptureFixture[str]) -> None:
    ways = {"one": iter([10.0, 30.0, 10.0]), "per core": iter([20.0, 10.0, 10.0]), "kdctl": iter([60.0, 60.0, 60.0])}
    case = compare.Case("a case", {name: values.__next__ for name, values in ways.items()})
    assert compare.compare([case], 3) == {"a case": 3.0}
    assert "3.00 [2.00–6.00]" in capsys.readouterr().out


def test_students_share_the_cores_and_are_counted_together(
    images: Data, config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def measured(*given: object) -> float:
        seen.append(torch.get_num_threads())
        return 5.0

    monkeypatch.setattr(common, "measure_epoch", measured)
    monkeypatch.setattr("orchestrator.machine.limits.cores", lambda: 6)
    assert common.measure_students(partial(losses.build, "base"), images, config, no_teacher, 3) == 15.0
    assert seen == [2, 2, 2]


@pytest.mark.parametrize(("ratio", "code"), [(0.97, 1), (0.981, 0), (1.5, 0)])
def test_compare_ends_with_1_where_a_table_is_not_free(
    images: Data,
    ratio: float,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(compare, "load_images", lambda *given: images)
    monkeypatch.setattr(compare, "compare", lambda *given: {compare.FREE_CASE: ratio})
    assert compare.main(["--data", "nowhere", "--device", "cpu", "--images", "20"]) == code
    assert f"costs a student {1 - ratio:.1%}" in capsys.readouterr().out


def test_table_prints_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(table, "BATCH", 100)
    arguments = ["--images", "10", "--repeats", "1", "--teacher", "resnet_32_8", "--device", "cpu"]
    assert table.main(arguments) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__.partition('+')[0]}" in out.splitlines()[0]
    (row,) = rows(out)
    assert list(row) == [
        "teacher",
        "outputs",
        "table outputs/s, median [min–max]",
        "bare outputs/s, median [min–max]",
        "ratio, median [min–max]",
        "n",
        "peak memory, MiB",
    ]
    assert (row["teacher"], row["outputs"], row["n"]) == ("resnet_32_8, digits", "1,620", "1")
    assert all(is_spread(row[name]) for name in list(row)[2:5])
    assert float(row["peak memory, MiB"].replace(",", "")) > 1


def test_pairs_are_measured_by_turns() -> None:
    log = []

    def measured(name: str) -> float:
        log.append(name)
        return float(len(log))

    first, second = common.measure_pairs(lambda: measured("plain"), lambda: measured("kdctl"), 3)
    assert log == ["plain", "kdctl"] * 3
    assert (first, second) == ((1, 3, 5), (2, 4, 6))
    assert common.compute_ratios(second, first) == [2, 4 / 3, 6 / 5]
    assert common.format_spread([1234.5, 1, 10000.2]) == "1,234 [1–10,000]"
    assert common.format_spread([1.5], ".3f") == "1.500 [1.500–1.500]"


# Wrong usage is one message and the code 2.


@pytest.mark.parametrize(
    ("main", "arguments", "words"),
    [
        (compare.main, [], "--data"),
        (compare.main, ["--data", "x", "--repeats", "0"], "'0' is not a whole number of at least 1"),
        (compare.main, ["--data", "x", "--batch-size", "many"], "'many' is not a whole number of at least 1"),
        (table.main, ["--dataset", "cifar10"], "needs --data DIR"),
        (table.main, ["--dataset", "mnist"], "invalid choice"),
    ],
)
def test_wrong_options(
    main: Callable[[list[str]], int], arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        common.run(lambda: main(arguments))
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "arguments", "words"),
    [
        (compare.main, ["--data", "{here}"], "cifar10"),
        (compare.main, ["--data", "{here}", "--images", "50001"], "50,000"),
        (table.main, ["--teacher", "resnet_32_21"], "depth must be 6n+2"),
        (table.main, ["--dataset", "cifar10", "--data", "{here}"], "cifar10"),
    ],
)
def test_what_is_not_there(
    main: Callable[[list[str]], int],
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "train-0.parquet").write_bytes(b"PAR1")
    arguments = [text.format(here=tmp_path) for text in arguments]
    assert common.run(lambda: main([*arguments, "--device", "cpu"])) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        table.main(["--device", "cuda"])
    assert "torch finds no GPU here" in capsys.readouterr().err


def test_a_stop_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> int:
        raise KeyboardInterrupt

    assert common.run(stopped) == 130
    assert capsys.readouterr().err == "stopped\n"
