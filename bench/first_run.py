"""The first run on a GPU: whether kdctl is right and fast there, the most important part first.

python bench/first_run.py [PART ...] [--student resnet_32_20] [--kinds bf16,fp32,fp16] [--most 16] [--images 25600]

The parts, to be run in this order, each of them minutes long at most:

- `facts`: the GPU, its bandwidth, and what one small kernel in a CUDA graph costs on 1 to 16 streams;
- `parity`: a graph gives bit for bit what its steps give one by one, and the first loss is that of the CPU;
- `torn`: a checkpoint that is written when a trial is stopped holds the tensors of one step;
- `speed`: images per second by compute dtype, with and without a graph;
- `profile`: the kernels of a step by the time that they take;
- `together`: many trials on one GPU at the same time;
- `compile`: the same step under torch.compile.

A line that proves something starts with PASS or FAIL; the exit code is 1 if any of them is FAIL. No part waits
forever: every wait of a thread has a limit.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from unittest.mock import patch

import torch
from device import list_kernels, random_data
from shared.common import build_model, describe_setup, parse_positive, plan_student, run

from orchestrator import losses
from orchestrator.records import EpochRecord
from orchestrator.teachers.outputs import HostTable, LiveTeacher, TableTeacher, no_teacher
from orchestrator.training import graphs
from orchestrator.training.batches import Teacher
from orchestrator.training.evaluation import Check, unchecked
from orchestrator.training.graphs import own_stream
from orchestrator.training.loop import train
from orchestrator.training.state import TrainingState

KINDS = {"bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}  # the precision of each
BATCH = 128
SMALL, DEEP = "resnet_32_8", "resnet_32_110"
LIMIT = 120.0  # seconds that a thread is waited for
NEVER = sys.maxsize  # steps before a capture


@dataclass
class FirstRun:
    """The parameters of all parts, and the checks that failed."""

    device: torch.device
    student: str
    kinds: Sequence[str]
    images: int  # of an epoch
    most: int  # trials at the same time
    failed: list[str] = field(default_factory=list)

    def check(self, name: str, passed: bool, detail: str = "") -> None:
        """Prints the result of a check, and remembers one that failed."""
        print(f"{'PASS' if passed else 'FAIL'}  {name}  {detail}", flush=True)
        if not passed:
            self.failed.append(name)


@dataclass
class Training:
    """A training on random images: `records` trains an epoch for each record that is taken from it."""

    state: TrainingState
    records: Iterator[EpochRecord]


def training(
    device: torch.device,
    student: str,
    images: int,
    kind: str,
    *,
    method: str = "base",
    outputs: Teacher = no_teacher,
    seed: int = 0,
    lr: float = 0.1,
    check: Callable[[TrainingState], Check] = lambda state: unchecked,
) -> Training:
    """A training that is ready to start. The teacher's outputs come from `outputs`; `check` is called between steps."""
    config = replace(
        plan_student("cifar10", student, SMALL, images, BATCH).config, precision=KINDS[kind], seed=seed, lr=lr
    )
    state = TrainingState.start(build_model(student, "cifar10", device, seed), losses.build(method), config)
    data = random_data(images, device)
    return Training(state, train(state, data, config, outputs, check(state)))


@contextmanager
def captured_after(steps: int) -> Iterator[list[None]]:
    """Captures a step after this many runs of it; yields a list with one entry for each replay of a graph."""
    replays: list[None] = []
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        replays.append(None)
        replay(graph)

    with patch.object(graphs, "_WARM_UP", steps), patch.object(torch.cuda.CUDAGraph, "replay", counted):
        yield replays


@contextmanager
def cudnn(*, benchmark: bool, deterministic: bool = False) -> Iterator[None]:
    """Sets how cuDNN chooses its kernels."""
    settings = torch.backends.cudnn
    before = settings.benchmark, settings.deterministic
    settings.benchmark, settings.deterministic = benchmark, deterministic
    try:
        yield
    finally:
        settings.benchmark, settings.deterministic = before


def measure_seconds(work: Callable[[], object], repeats: int) -> float:
    """Measures the median time of some runs on the GPU, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


# The parts.


def facts(first: FirstRun) -> None:
    """Prints facts about the GPU, and the two costs that an estimate of kdctl's speed depends on."""
    properties = torch.cuda.get_device_properties(first.device)
    free, total = torch.cuda.mem_get_info()
    print(f"{properties.multi_processor_count} multiprocessors, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")
    is_tf32 = f"convolutions {torch.backends.cudnn.allow_tf32}, products {torch.backends.cuda.matmul.allow_tf32}"
    connections = os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS", "8 (default)")
    print(f"cuDNN {torch.backends.cudnn.version()}, TF32: {is_tf32}; CUDA_DEVICE_MAX_CONNECTIONS: {connections}")
    with own_stream(first.device):
        source = torch.randint(255, (2**30,), dtype=torch.uint8, device=first.device)
        target = torch.empty_like(source)
        bandwidth = 2 * 2**30 / measure_seconds(lambda: target.copy_(source), 10)
    print(f"copy, read and written: {bandwidth / 1e12:.2f} TB/s")
    for streams in (1, 2, 4, 8, 16):
        each = kernel_cost(first.device, streams)
        print(
            f"small kernels in graphs, {streams} streams: {each:.2f} µs per kernel in one, {each / streams:.2f} in all"
        )


def kernel_cost(device: torch.device, streams: int, length: int = 1000) -> float:
    """Microseconds per kernel of one chain, when each stream replays a graph that is a chain of small kernels."""
    made = []
    with ExitStack() as stack:
        for _ in range(streams):  # kdctl's own: PyTorch has 32, and its 33rd would be the first one again
            stack.enter_context(own_stream(device))
            stream = torch.cuda.current_stream()
            x = torch.zeros(1, device=device)
            x.add_(1)
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                for _ in range(length):
                    x.add_(1)
            made.append((graph, stream, x))

        def replay() -> None:
            for graph, stream, _ in made:
                with torch.cuda.stream(stream):
                    graph.replay()

        return measure_seconds(replay, 5) / length * 1e6


def teachers(device: torch.device, images: int) -> Iterator[tuple[str, str, Teacher]]:
    """Every way to get a teacher's outputs, with its name and a method that uses it."""
    table = torch.randn(162, images, 10).half()
    live = build_model(SMALL, "cifar10", device, 7).eval().requires_grad_(False)
    yield "base", "base", no_teacher
    yield "logit, table", "logit", TableTeacher(table.to(device), "logits")
    yield "st, table", "st", TableTeacher(table.to(device), "logits")
    yield "logit, table on the host", "logit", HostTable(table, "logits", device)
    yield "logit, live teacher", "logit", LiveTeacher(live, ("logits",))


def parity(first: FirstRun, images: int = 5 * BATCH + 80, epochs: int = 5) -> None:
    """A graph gives what its steps give one by one, to the last bit; the smaller last batch has a graph of its own."""
    with cudnn(benchmark=False, deterministic=True):
        for kind in first.kinds:
            for name, method, outputs in teachers(first.device, images):
                with own_stream(first.device):
                    _compare_graph(first, f"{kind}: {name}", partial(
                        training, first.device, SMALL, images, kind, method=method, outputs=outputs, lr=0.01
                    ), epochs)  # fmt: skip
    found = []
    for device in (torch.device("cpu"), first.device):
        with own_stream(device):
            found.append(next(training(device, SMALL, BATCH, "fp32").records).train_loss)
    first.check("the first loss is that of the CPU", math.isclose(*found, rel_tol=5e-3), f"{found}")


def _compare_graph(first: FirstRun, name: str, start: Callable[[], Training], epochs: int) -> None:
    tensors, last, replayed, failure = [], [], 0, ""
    for steps in (NEVER, graphs._WARM_UP):
        with captured_after(steps) as replays:
            trained = start()
            last.append([next(trained.records).train_loss for _ in range(epochs)][-1])
            tensors.append({name: tensor.cpu() for name, tensor in trained.state.tensors().items()})
        replayed, failure = len(replays), trained.state.uncaptured or ""
    one, other = tensors
    largest = max((one[name].double() - other[name].double()).abs().max().item() for name in one)
    passed = replayed > 0 and not failure and largest == 0  # NaN is not 0 either
    detail = f"{replayed} replays {failure}, losses {last[0]:.6f} {last[1]:.6f}, largest difference {largest:.3g}"
    first.check(name, passed, detail)


class Stop(Exception):
    """Ends a training in the middle of an epoch."""


def torn(first: FirstRun, steps: int = 30) -> None:
    """What a stopped trial copies, in its own stream and without waiting for the device, is of one step."""

    def stop_after(state: TrainingState) -> Check:
        def check() -> None:
            if state.epoch == 2 and state.images >= steps * BATCH:
                raise Stop

        return check

    is_cuda = first.device.type == "cuda"
    copies: list[dict[str, torch.Tensor]] = []
    with cudnn(benchmark=False), own_stream(first.device):
        trained = training(first.device, first.student, (steps + 10) * BATCH, first.kinds[0], check=stop_after)
        next(trained.records)
        try:
            next(trained.records)
        except Stop:
            queued = is_cuda and not torch.cuda.current_stream().query()
        for _ in range(2):
            copies.append({name: tensor.detach().cpu().clone() for name, tensor in trained.state.tensors().items()})
            if is_cuda:
                torch.cuda.synchronize()
    now, later = copies
    wrong = sum(now[name].numpy().tobytes() != later[name].numpy().tobytes() for name in now)  # also where they are NaN
    detail = f"{wrong} of {len(now)} tensors were of another step; work was still queued: {queued}"
    first.check("a checkpoint at a stop is whole", wrong == 0, detail)


@dataclass(frozen=True)
class Pace:
    """How fast a training was."""

    first: float  # seconds until its first epoch was done
    speed: float  # images per second, the median of the later epochs
    captured: str  # "yes", or why its steps ran without a graph


def measure_pace(
    first: FirstRun,
    student: str,
    kind: str,
    images: int,
    *,
    repeats: int = 5,
    warm_up: int = graphs._WARM_UP,
    prepare: Callable[[TrainingState], None] = lambda state: None,
) -> Pace:
    """Trains alone on the GPU."""
    with cudnn(benchmark=True), captured_after(warm_up), own_stream(first.device):
        start = time.perf_counter()
        trained = training(first.device, student, images, kind)
        prepare(trained.state)
        next(trained.records)
        seconds_to_first = time.perf_counter() - start
        speeds = [next(trained.records).images_per_second for _ in range(repeats)]
        captured = "no" if warm_up == NEVER else trained.state.uncaptured or "yes"
    return Pace(seconds_to_first, statistics.median(speeds), captured)


def speed(first: FirstRun) -> None:
    """Prints images per second of a small and of a deep student."""
    print("| student | kind | images/s | ms per step | first epoch, s | captured | memory |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    main = first.kinds[0]
    for student, images in ((first.student, first.images), (DEEP, first.images // 4)):
        ways = [(kind, partial(measure_pace, first, student, kind, images)) for kind in first.kinds]
        measure = partial(measure_pace, first, student, main, images)
        ways += [(f"{main}, no graph", partial(measure, warm_up=NEVER, repeats=1))]
        for name, way in ways:
            torch.cuda.reset_peak_memory_stats()
            pace = way()
            memory = torch.cuda.max_memory_reserved() / 2**20
            cells = f"{pace.speed:,.0f} | {BATCH * 1e3 / pace.speed:.3f} | {pace.first:.1f} | {pace.captured}"
            print(f"| {student} | {name} | {cells} | {memory:,.0f} MiB |", flush=True)


def compile_model(state: TrainingState) -> None:
    """Compiles the student."""
    state.model.embed = torch.compile(state.model.embed)  # type: ignore[method-assign]


def compiled(first: FirstRun) -> None:
    """Prints images per second under torch.compile."""
    pace = measure_pace(first, first.student, first.kinds[0], first.images, prepare=compile_model)
    each = f"{pace.speed:,.0f} images/s, {BATCH * 1e3 / pace.speed:.3f} ms per step"
    print(f"compiled, {first.kinds[0]}: {each}, first epoch after {pace.first:.0f} s, captured: {pace.captured}")


def profile(first: FirstRun, steps: int = 50) -> None:
    """Prints where the time of a step goes: kernels alone, not the calls that led to them."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    for kind in first.kinds:
        with cudnn(benchmark=True), own_stream(first.device):
            records = training(first.device, first.student, BATCH * steps, kind).records
            next(records)
            torch.cuda.synchronize()
            with torch.profiler.profile(activities=activities) as found:
                start = time.perf_counter()
                next(records)
                wall = time.perf_counter() - start
        times = list_kernels(found.events())
        total, count = (sum(measure(spent) for spent in times.values()) for measure in (sum, len))
        print(f"\n{first.student}, {kind}: {count / steps:.0f} kernels of {total / steps:,.0f} µs per step", end="; ")
        print(f"a step takes {wall / steps * 1e6:,.0f} µs with the profiler")
        for name, spent in sorted(times.items(), key=lambda item: -sum(item[1]))[:22]:
            each = f"{len(spent) / steps:6.1f} × {statistics.mean(spent):6.2f} µs"
            print(f"{sum(spent) / steps:8.1f} µs  {each}  {name}", flush=True)


def together(first: FirstRun) -> None:
    """Prints images per second of many trials at the same time, as threads with streams of their own."""
    print("| student | kind | at once | images/s in all | of one alone | captured |")
    print("| --- | --- | --- | --- | --- | --- |")
    cases = ((first.student, first.most, first.images // 2), (DEEP, first.most // 2, first.images // 8))
    for student, most, images in cases:
        for kind in dict.fromkeys((first.kinds[0], first.kinds[-1])):
            alone = None
            for count in (1, 2, 4, 8, 12, 16):
                if count > most:
                    break
                found, failed = side_by_side(first, student, kind, images, count)
                alone = alone or found
                cells = f"{found:,.0f} | {found / alone:.2f} | {'; '.join(failed) or 'all'}"
                print(f"| {student} | {kind} | {count} | {cells} |", flush=True)
                if failed:
                    first.check(f"{count} {student} at once, {kind}", False, failed[0])


def side_by_side(
    first: FirstRun, student: str, kind: str, images: int, count: int, repeats: int = 3
) -> tuple[float, list[str]]:
    """Images per second of all trials, and what went wrong; NaN if a trial did not get as far as its second epoch."""
    barrier = threading.Barrier(count + 1, timeout=LIMIT)
    ends: list[float] = []
    failed: list[str] = []

    def train_one(seed: int) -> None:
        try:
            with own_stream(first.device):
                trained = training(first.device, student, images, kind, seed=seed)
                next(trained.records)
                barrier.wait()
                for _ in range(repeats):
                    next(trained.records)
                ends.append(time.perf_counter())
                failed.extend(filter(None, [trained.state.uncaptured]))
        except Exception as error:  # after any error, the others must not wait for this thread
            failed.append(repr(error)[:200])
            barrier.abort()

    with cudnn(benchmark=False):
        threads = [threading.Thread(target=train_one, args=(seed,), daemon=True) for seed in range(count)]
        for thread in threads:
            thread.start()
        try:
            barrier.wait()
        except threading.BrokenBarrierError:
            return float("nan"), failed or [f"a trial did not start within {LIMIT:.0f} s"]
        start = time.perf_counter()
        for thread in threads:
            thread.join(LIMIT)
    if len(ends) < count:
        return float("nan"), failed or [f"a trial did not end within {LIMIT:.0f} s"]
    return count * repeats * images / (max(ends) - start), failed


PARTS = {
    "facts": facts,
    "parity": parity,
    "torn": torn,
    "speed": speed,
    "profile": profile,
    "together": together,
    "compile": compiled,
}


def run_parts(first: FirstRun, parts: Sequence[str]) -> int:
    """Runs some parts, of which none prevents the next; returns the exit code."""
    for part in parts:
        print(f"\n## {part}", flush=True)
        start = time.perf_counter()
        try:
            PARTS[part](first)
        except Exception as error:  # the next part may still find something out
            traceback.print_exc()
            first.check(part, False, repr(error)[:200])
        print(f"({part}: {time.perf_counter() - start:.0f} s)", flush=True)
    return 1 if first.failed else 0


def kinds_of(text: str) -> list[str]:
    """Compute dtypes with commas between them, for argparse."""
    kinds = text.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise argparse.ArgumentTypeError(f"unknown kind {unknown[0]!r}; expected some of {', '.join(KINDS)}")
    return kinds


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: facts)")
    parser.add_argument("--student", default="resnet_32_20", help="(default: %(default)s)")
    parser.add_argument("--kinds", type=kinds_of, default="bf16,fp32,fp16", help="(default: %(default)s)")
    parser.add_argument("--images", type=parse_positive, default=25_600, help="per epoch (default: %(default)s)")
    parser.add_argument("--most", type=parse_positive, default=16, help="trials at once (default: %(default)s)")
    options = parser.parse_args(arguments)
    parts = options.parts or ["facts"]
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}; expected some of {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        parser.error("torch finds no GPU on this machine; this script measures nothing else")
    device = torch.device("cuda")
    print(describe_setup(device))
    return run_parts(FirstRun(device, options.student, options.kinds, options.images, options.most), parts)


if __name__ == "__main__":
    sys.exit(run(main))
