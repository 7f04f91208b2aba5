"""The benchmarks of the device and of accuracy, in a tiny form: what they print, and what they compare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import accuracy
import device
import pytest
import torch
from shared import common
from torch.nn import functional as F

from orchestrator import models

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A benchmark takes every core; the other tests keep the threads that they had."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> device.Bench:
    monkeypatch.setattr(device, "SIZES", {"cpu": (64, 2**10)})
    config = common.plan_student("cifar10", "resnet_32_8", "resnet_32_8", 16, 8).config
    return device.Bench(replace(config, precision="float32"), device.random_data(16, CPU), CPU, 2)


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_ceilings_and_ways(bench: device.Bench, capsys: pytest.CaptureFixture[str]) -> None:
    operations, bandwidth = device.measure_ceilings(bench)
    assert operations > 0 and bandwidth > 0
    first, speeds = device._measure_way(bench, "float32", False, True)
    assert first > 0 and len(speeds) == 2 and min(speeds) > 0
    assert [row[0] for row in cells(capsys.readouterr().out)][2:3] == ["matrix product, float32"]


def test_operations_of_an_image_are_those_of_its_layers(bench: device.Bench) -> None:
    """By hand: a multiply-add of each weight at each place, forward, and backward for weights and inputs."""
    stem = 3 * 16 * 9 * 32 * 32
    stage1 = 2 * 16 * 16 * 9 * 32 * 32
    stage2 = (16 * 32 * 9 + 32 * 32 * 9 + 16 * 32) * 16 * 16
    stage3 = (32 * 64 * 9 + 64 * 64 * 9 + 32 * 64) * 8 * 8
    head = 64 * 10
    # The stem's images need no gradient.
    assert device.count_operations(bench) == 2 * (2 * stem + 3 * (stage1 + stage2 + stage3 + head))


def test_many_at_once(bench: device.Bench, capsys: pytest.CaptureFixture[str]) -> None:
    device.compare_together(bench, 2)
    head, _, *rows = cells(capsys.readouterr().out)
    assert head[0] == "students at once" and [row[0] for row in rows] == ["1", "2"]


def test_profile(bench: device.Bench, capsys: pytest.CaptureFixture[str]) -> None:
    device.print_profile(bench)
    _, _, *rows = cells(capsys.readouterr().out)
    assert any("convolution" in name for name, _ in rows)


FAMILIES = {
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, std::array<char*, 3> >": (
        "vectorized_elementwise_kernel CUDAFunctor_add"
    ),
    "void at::native::elementwise_kernel<4, at::native::gpu_kernel_impl<BinaryFunctor<MulFunctor<float> > > >(int)": (
        "elementwise_kernel MulFunctor"
    ),
    "void at::native::vectorized_elementwise_kernel<8, at::native::(anonymous namespace)::launch_clamp_scalar(X)": (
        "vectorized_elementwise_kernel launch_clamp_scalar"
    ),
    "void at::native::reduce_kernel<128, 4, at::native::ReduceOp<float, at::native::MeanOps<float, float> > >(X)": (
        "reduce_kernel MeanOps"
    ),
    "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc": (
        "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc"
    ),
    "void cudnn::bn_fw_tr_1C11_kernel_NCHW<float, float, int=512>(cudnnTensorStruct)": (
        "cudnn::bn_fw_tr_1C11_kernel_NCHW"
    ),
}


@pytest.mark.parametrize("kernel", FAMILIES)
def test_kernels_of_one_purpose_are_a_family(kernel: str) -> None:
    assert device.name_family(kernel) == FAMILIES[kernel]


def test_only_what_ran_on_the_device_is_summed() -> None:
    def event(name: str, kind: str, microseconds: int, **more: bool) -> SimpleNamespace:
        spent = SimpleNamespace(elapsed_us=lambda: microseconds)
        return SimpleNamespace(
            name=name, device_type=getattr(torch.autograd.DeviceType, kind), time_range=spent, **more
        )

    events = [
        event("aten::conv2d", "CPU", 1000),
        event("kernel<1>", "CUDA", 3),
        event("kernel<2>", "CUDA", 4),
        event("step", "CUDA", 900, is_user_annotation=True),
    ]
    assert device.list_kernels(events) == {"kernel": [3, 4]}


def test_a_student_that_fails_ends_the_measurement(bench: device.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    start = device.Bench.start_training

    def fail(self: device.Bench, precision: str = "auto", seed: int = 0) -> device.TrainingState:
        if seed == 1:
            raise ValueError("no memory")
        return start(self, precision, seed)

    monkeypatch.setattr(device.Bench, "start_training", fail)
    with pytest.raises(common.BenchmarkError, match="3 students at once: ValueError.*no memory"):
        device._measure_threads(bench, 3)


def test_figures_without_a_graph_are_no_figures(bench: device.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    start = device.Bench.start_training

    def uncaptured(self: device.Bench, precision: str = "auto", seed: int = 0) -> device.TrainingState:
        state = start(self, precision, seed)
        state.uncaptured = "out of memory"
        return state

    monkeypatch.setattr(device.Bench, "start_training", uncaptured)
    for measure in (
        lambda: device._measure_way(bench, "float32", False, True),
        lambda: device._measure_threads(bench, 2),
        lambda: device.print_profile(bench),
    ):
        with pytest.raises(common.BenchmarkError, match="not captured as a CUDA graph: out of memory"):
            measure()


def test_stacked_students_predict_what_they_predict_alone() -> None:
    built = [models.build("resnet_32_8", 10).train() for _ in range(3)]
    images = torch.randn(3, 8, 3, 8, 8)
    weights, buffers = torch.func.stack_module_state(built)

    def predict(w: dict[str, torch.Tensor], b: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = torch.func.functional_call(built[0], (w, b), (x,))
        return logits

    together = torch.vmap(predict)(weights, buffers, images)
    for number, model in enumerate(built):
        torch.testing.assert_close(together[number], model(images[number]), rtol=1e-4, atol=1e-4)


def test_rounding_is_that_of_bfloat16() -> None:
    torch.manual_seed(1)
    model = models.build("resnet_32_8", 10)
    images, labels = torch.randn(16, 3, 8, 8), torch.arange(16) % 10

    def gradient(outputs: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        F.cross_entropy(outputs, labels).backward()  # type: ignore[no-untyped-call]
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    with torch.autocast("cpu", torch.bfloat16):
        half = model.embed(images).logits
    full, like = model.embed(images).logits, accuracy.Rounded(model).embed(images).logits
    apart = (half - full).norm()
    assert (like - half).norm() < apart / 10 and apart > 0
    halves, likes = gradient(half), gradient(like)
    assert (likes - halves).norm() < (gradient(model.embed(images).logits) - halves).norm() / 4


def test_accuracy_of_every_path(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--images", "64", "--test", "50", "--epochs", "2", "--seeds", "2", "--student", "resnet_32_8"]
    assert accuracy.main([*tiny, "--teacher", "resnet_32_8", "--device", "cpu"]) == 0
    head, _, *rows = cells(capsys.readouterr().out)
    assert [name.split(",")[0] for name, *_ in rows] == ["plain float32", "kdctl", "kdctl"]
    assert [row[-1] for row in rows] == ["2", "2", "2"] and len(head) == 6
    assert float(rows[0][1]) == 0 <= float(rows[1][1]) < float(rows[2][1]) < 0.1
