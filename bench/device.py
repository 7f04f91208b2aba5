"""What the device can do, how much of it a training step uses, and how many students it trains best at the same time.

python bench/device.py [--device cpu|cuda] [--student resnet_32_20] [--images N] [--repeats 5] [--most 16]

Four tables. The ceilings: a large matrix product and a large copy, measured in this run. The ways to compute a step,
each with the time until its first step was done: kdctl's own (on a GPU a captured graph), the same without a graph, in
float32, and with torch.compile. Many students at once: threads with streams of their own, which is how kdctl runs
trials that share a GPU, against students stacked into one model with torch.func (grouped convolutions, as in HFTA,
arXiv 2102.02344). Where the time goes: the operations of kdctl's step by their own time.

It fails where a step could not be captured, as its figures would be those of something else.
"""

from __future__ import annotations

import copy
import re
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from shared.common import (
    BenchmarkError,
    as_a_trial,
    check_captured,
    choose_device,
    describe_setup,
    format_spread,
    make_parser,
    parse_positive,
    plan_student,
    run,
    synchronise,
)
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from orchestrator import losses, models
from orchestrator.data.registry import DATASETS
from orchestrator.data.tensors import Data, Images
from orchestrator.records import EpochRecord, TrialConfig
from orchestrator.teachers.outputs import no_teacher
from orchestrator.training import graphs
from orchestrator.training.loop import train
from orchestrator.training.seeds import build_seeded
from orchestrator.training.state import TrainingState, supports_bfloat16

IMAGES = {"cpu": 1280, "cuda": 25_600}
LIMIT = 600.0  # seconds that a thread waits for the others
SIZES = {"cpu": (2048, 2**25), "cuda": (8192, 2**30)}  # of the matrices, and of what is copied


def random_data(count: int, device: torch.device) -> Data:
    """Random images of CIFAR-10's size; their content does not change how long they take."""
    generator = torch.Generator().manual_seed(0)

    def split(size: int) -> Images:
        pixels = torch.randint(256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return Images(pixels.to(device), torch.randint(10, (size,), generator=generator).to(device))

    return Data(split(count), None, split(100), DATASETS["cifar10"])


@dataclass(frozen=True)
class Bench:
    """The parameters of all tables."""

    config: TrialConfig
    data: Data
    device: torch.device
    repeats: int

    def start_training(self, precision: str = "auto", seed: int = 0) -> TrainingState:
        """Starts a fresh student."""
        model = build_seeded(partial(models.build, self.config.student, 10), seed, self.device)
        return TrainingState.start(model, losses.build("base"), replace(self.config, precision=precision, seed=seed))

    def epochs(self, state: TrainingState) -> Iterator[EpochRecord]:
        """kdctl's own training, without a teacher."""
        return train(state, self.data, self.config, no_teacher)


def measure_time(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Measures the seconds of the fastest of `repeats` runs, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def measure_ceilings(bench: Bench) -> tuple[float, float]:
    """Prints them; returns operations per second in the fastest dtype of training, and bytes per second."""
    side, size = SIZES[bench.device.type]
    print("| ceiling | measured |\n| --- | --- |")
    best = 0.0
    for kind in (torch.float32, *([torch.bfloat16] if supports_bfloat16(bench.device) else [])):
        a = torch.randn(side, side, device=bench.device).to(kind)
        best = 2 * side**3 / measure_time(partial(torch.mm, a, a), bench.device, bench.repeats)
        print(f"| matrix product, {str(kind).removeprefix('torch.')} | {best / 1e9:,.0f} GFLOP/s |")
    source = torch.zeros(size, dtype=torch.uint8, device=bench.device)
    target = torch.ones_like(source)
    bandwidth = 2 * size / measure_time(partial(target.copy_, source), bench.device, bench.repeats)
    print(f"| copy in memory, read and written | {bandwidth / 1e9:,.1f} GB/s |", end="\n\n", flush=True)
    return best, bandwidth


def count_operations(bench: Bench) -> float:
    """Counts the operations of one image, forward and backward, as PyTorch does (a multiply-add is two)."""
    model = models.build(bench.config.student, 10)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1])).backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops()) / 2


def compare_ways(bench: Bench, most: float) -> None:
    """Prints images a second by every way to take a step, and what share of the ceiling kdctl's own reaches."""
    print("| a step | images/s, median [min–max] | first step after | share of the ceiling | n |")
    print("| --- | --- | --- | --- | --- |")
    per_image = count_operations(bench)
    kinds = {"kdctl": ("auto", False, True), "kdctl, float32": ("float32", False, True)}
    if bench.device.type == "cuda":
        kinds |= {"without a graph": ("auto", False, False), "compiled, in a graph": ("auto", True, True)}
        kinds |= {"compiled, without a graph": ("auto", True, False)}
    else:
        kinds |= {"compiled": ("auto", True, True)}
    for name, way in kinds.items():
        first, speeds = _measure_way(bench, *way)
        share = statistics.median(speeds) * per_image / most
        print(f"| {name} | {format_spread(speeds)} | {first:.1f} s | {share:.0%} | {len(speeds)} |", flush=True)
    print(f"\n{per_image / 1e6:,.0f} MFLOP an image, forward and backward.", end="\n\n", flush=True)


def _measure_way(bench: Bench, precision: str, is_compiled: bool, is_captured: bool) -> tuple[float, list[float]]:
    before = graphs._WARM_UP
    graphs._WARM_UP = before if is_captured else sys.maxsize
    try:
        with as_a_trial(bench.device):
            start = time.perf_counter()
            state = bench.start_training(precision)
            if is_compiled:
                state.model.embed = torch.compile(state.model.embed)  # type: ignore[method-assign]
            one = replace(bench, data=random_data(bench.config.batch_size, bench.device))
            next(one.epochs(state))
            first = time.perf_counter() - start
            state.epoch = 1
            epochs = bench.epochs(state)
            next(epochs)
            speeds = [next(epochs).images_per_second for _ in range(bench.repeats)]
            check_captured(state)
            return first, speeds
    finally:
        graphs._WARM_UP = before


def compare_together(bench: Bench, most: int) -> None:
    """Prints images per second of 1 to `most` students at once, by threads and by stacking."""
    print("| students at once | threads, images/s in all | stacked, images/s in all | n |\n| --- | --- | --- | --- |")
    count = 1
    while count <= most:
        by_threads, stacked = _measure_threads(bench, count), _measure_stacked(bench, count)
        print(f"| {count} | {format_spread(by_threads)} | {format_spread(stacked)} | {bench.repeats} |", flush=True)
        count *= 2
    print()


def _measure_threads(bench: Bench, count: int) -> list[float]:
    """Trains as `execution.inline` runs trials at the same time: a thread and a stream each."""
    barrier, times = threading.Barrier(count + 1, timeout=LIMIT), []
    failed: list[Exception] = []

    def student(seed: int) -> None:
        try:
            with as_a_trial(bench.device, is_alone=count == 1):
                state = bench.start_training(seed=seed)
                epochs = bench.epochs(state)
                next(epochs)
                for _ in range(bench.repeats):
                    barrier.wait()
                    next(epochs)
                    barrier.wait()
                check_captured(state)
        except Exception as error:  # the others must not wait for this thread
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=student, args=(seed,), daemon=True) for seed in range(count)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(bench.repeats):
            barrier.wait()
            start = time.perf_counter()
            barrier.wait()
            times.append(time.perf_counter() - start)
    except threading.BrokenBarrierError as error:
        failed.append(error)
    for thread in threads:
        thread.join(LIMIT)
    if failed:
        raise BenchmarkError(f"{count} students at once: {failed[0]!r}") from failed[0]
    return [count * len(bench.data.train) / seconds for seconds in times]


def _measure_stacked(bench: Bench, count: int) -> list[float]:
    """All students as one model, each with weights and statistics of its own."""
    with as_a_trial(bench.device):
        students = [bench.start_training(seed=seed).model.train() for seed in range(count)]
        weights, buffers = torch.func.stack_module_state(students)
        skeleton = copy.deepcopy(students[0])
        optimizer = torch.optim.SGD(list(weights.values()), 0.01, momentum=0.9, weight_decay=1e-4, fused=True)
        size = bench.config.batch_size
        images = bench.data.normalise(bench.data.train.pixels[:size]).expand(count, -1, -1, -1, -1).contiguous()
        labels = bench.data.train.labels[:size].expand(count, -1).contiguous()
        is_half = supports_bfloat16(bench.device)

        def predict(weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
            logits: Tensor = torch.func.functional_call(skeleton, (weights, buffers), (images,))
            return logits

        def work() -> None:
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=is_half, cache_enabled=False):
                logits = torch.vmap(predict)(weights, buffers, images)
            optimizer.zero_grad(set_to_none=True)
            # The sum, not the mean: each student's gradient is that of its own loss.
            losses_ = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum") / size
            losses_.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        step, times = graphs.GraphedStep(work, bench.device, graphs.new_pool(bench.device)), []
        steps = max(1, len(bench.data.train) // size // count)
        for _ in range(5):
            step()
        if step.failure:
            raise BenchmarkError(f"stacked students: {step.failure}")
        for _ in range(bench.repeats):
            synchronise(bench.device)
            start = time.perf_counter()
            for _ in range(steps):
                step()
            synchronise(bench.device)
            times.append(time.perf_counter() - start)
        return [steps * size * count / seconds for seconds in times]


def print_profile(bench: Bench) -> None:
    """Prints the share of each operation in kdctl's step: of each family of kernels on a GPU."""
    is_gpu = bench.device.type == "cuda"
    with as_a_trial(bench.device):
        state = bench.start_training()
        epochs = bench.epochs(state)
        next(epochs)
        kinds = [torch.profiler.ProfilerActivity.CUDA if is_gpu else torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=kinds, acc_events=True) as found:
            next(epochs)
        check_captured(state)
    times = _sum_kernels(found) if is_gpu else _sum_operations(found)
    total = sum(times.values())
    print("| operation | share of the time |\n| --- | --- |")
    for name, spent in sorted(times.items(), key=lambda item: -item[1])[:12]:
        print(f"| `{name[:60]}` | {spent / total:.1%} |")


def _sum_operations(found: torch.profiler.profile) -> dict[str, float]:
    times: dict[str, float] = defaultdict(float)
    for entry in found.key_averages():
        times[entry.key] += entry.self_cpu_time_total
    return times


def _sum_kernels(found: torch.profiler.profile) -> dict[str, float]:
    return {family: sum(spent) for family, spent in list_kernels(found.events()).items()}


def list_kernels(events: Iterable[Any]) -> dict[str, list[float]]:
    """The microseconds of the kernels of each family: what ran on the device, not the calls that led to it."""
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        is_kernel = event.device_type == torch.autograd.DeviceType.CUDA
        if is_kernel and not getattr(event, "is_user_annotation", False):
            times[name_family(event.name)].append(event.time_range.elapsed_us())
    return times


def name_family(kernel: str) -> str:
    """What kernels of one purpose share of their names: that of a launcher like `elementwise`, with what it applies."""
    plain = re.sub(r"at::native::|\(anonymous namespace\)::|c10::|^void ", "", kernel)
    name = re.split(r"[<(]", plain)[0]
    applied = re.findall(r"\w+(?:Functor|_kernel_impl|_kernel_cuda|_scalar|Ops)\w*", plain[len(name) :])
    inner = [found for found in applied if not found.startswith("gpu_kernel_impl")]
    return f"{name} {inner[-1]}" if inner else name


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--student", default="resnet_32_20", help="(default: %(default)s)")
    parser.add_argument("--images", type=parse_positive, help="of an epoch")
    parser.add_argument("--batch-size", type=parse_positive, default=128, help="(default: %(default)s)")
    parser.add_argument("--most", type=parse_positive, help="students at once (default: 1 on the CPU, 16 on a GPU)")
    options = parser.parse_args(arguments)
    device = choose_device(parser, options.device)
    count = options.images or IMAGES[device.type]
    config = plan_student("cifar10", options.student, "resnet_32_8", count, options.batch_size).config
    bench = Bench(config, random_data(count, device), device, options.repeats)
    print(describe_setup(device), end="\n\n")
    most, _ = measure_ceilings(bench)
    compare_ways(bench, most)
    compare_together(bench, options.most or (16 if device.type == "cuda" else 1))
    print_profile(bench)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
