"""The training loop: an iterator of `EpochRecord`. It knows no files, no Ray and no method's name."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.data.tensors import Data, Images
from orchestrator.data.views import ViewSpace
from orchestrator.errors import DivergedError, ResourceError
from orchestrator.losses.terms import Loss
from orchestrator.models.base import Classifier
from orchestrator.records import EpochRecord, TrialConfig
from orchestrator.training.graphs import GraphedStep, new_pool

# Fixed, so that the batch size of training cannot change an evaluation; a GPU is idle between small ones.
EVAL_BATCHES = {"cpu": 500, "cuda": 2500}


class Batch(NamedTuple):
    """B training images under one view each. `index` and `view` [B] name them for a teacher table.

    `place` [B] is where they stand in the order of the epoch.
    """

    images: Tensor  # [B, 3, S, S], normalised
    labels: Tensor  # [B]
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    view: Tensor
    place: Tensor


TeacherOutputs = Callable[[Batch], dict[str, Tensor]]  # what the teacher says of a batch, see `losses.terms.Loss`


class EpochOrder(NamedTuple):
    """The order of the images in an epoch, and the view of each; int64 [N] both, on the CPU."""

    order: Tensor
    views: Tensor


@runtime_checkable
class EpochPreparer(Protocol):
    """Answers that are got ready for a whole epoch at a time."""

    def prepare(self, draw: EpochOrder) -> None:
        """Gets the answers of the next epoch ready, while the device is still at work on this one."""

    def begin(self) -> None:
        """Answers for what was prepared last, from now on."""


@dataclass(frozen=True)
class Score:
    """How a model does on a split. Accuracies are percentages; `said` [N] is its answer for each image."""

    loss: float
    acc: float
    top5: float
    said: Tensor


Check = Callable[[], None]  # called between steps; what it raises ends the training there


def unchecked() -> None:
    """For training that nothing is to stop."""


@dataclass
class TrainingState:
    """A training under way: everything that its next step depends on, so that it can stop anywhere and go on.

    `epoch` counts from 1 and is the one to go on in; `images` of it are done, and `sums` are theirs: total, ce, kd
    and right answers. `with_teacher` says whether kd means anything, `arithmetic` what convolutions reckon in.
    """

    model: Classifier
    optimizer: torch.optim.SGD
    sums: Tensor  # float64 [4]
    epoch: int = 1
    images: int = 0
    seconds: float = 0.0
    with_teacher: bool = False
    arithmetic: str = "float32"
    asked: str | None = None  # how its teacher is: by `table` or `live`
    tested: Score | None = None  # how it did at the end of its last epoch, where this process saw that
    uncaptured: str | None = None  # why its steps do not run as a CUDA graph, where that was tried

    @classmethod
    def start(cls, model: Classifier, config: TrialConfig) -> TrainingState:
        """The training of a fresh model. Raises ResourceError where its device lacks the precision asked for."""
        device = next(model.parameters()).device
        # A GPU reads the rate from its memory, so that a captured step need not be captured again for another one.
        rate = torch.tensor(config.lr, device=device) if device.type == "cuda" else config.lr
        optimizer = torch.optim.SGD(
            model.parameters(), lr=rate, momentum=config.momentum or 0.0, weight_decay=config.weight_decay, fused=True
        )
        sums = torch.zeros(4, dtype=torch.float64, device=device)
        return cls(model, optimizer, sums, arithmetic=compute_dtype(config.precision, device))

    @property
    def device(self) -> torch.device:
        """Where it trains."""
        return self.sums.device

    def tensors(self) -> dict[str, Tensor]:
        """Its weights, buffers, momenta and sums."""
        momenta = {
            f"momentum.{name}": self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self.model.named_parameters()
            if self.optimizer.state.get(parameter, {}).get("momentum_buffer") is not None
        }
        weights = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        return {**weights, **momenta, "sums": self.sums}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes what `tensors` gave. Raises ValueError where something is missing, unknown or of another shape."""
        mine = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        parameters = {f"momentum.{name}": parameter for name, parameter in self.model.named_parameters()}
        wanted = {**mine, "sums": self.sums}
        if any(name.startswith("momentum.") for name in tensors):
            wanted |= parameters
        wrong = sorted(set(wanted) ^ set(tensors)) or [
            name
            for name, tensor in wanted.items()
            if (tensors[name].shape, tensors[name].dtype) != (tensor.shape, tensor.dtype)
        ]
        if wrong:
            raise ValueError(f"{wrong[0]} is missing, unknown or of another shape")
        momenta = {  # laid out as their parameters; made before anything is changed, as there may be no memory
            parameter: torch.empty_like(parameter).copy_(tensors[name])
            for name, parameter in parameters.items()
            if name in tensors
        }
        for name, tensor in {**mine, "sums": self.sums}.items():
            tensor.copy_(tensors[name])
        for parameter, momentum in momenta.items():
            self.optimizer.state[parameter]["momentum_buffer"] = momentum


def compute_dtype(precision: str, device: torch.device) -> str:
    """What convolutions reckon in: `float32`, or `bfloat16` where `precision` asks for it or leaves it to the device.

    Raises ResourceError where a device is asked for what it lacks.
    """
    if precision == "float32" or (precision == "auto" and not supports_bfloat16(device)):
        return "float32"
    if not supports_bfloat16(device):
        raise ResourceError(
            "precision: bfloat16 needs a GPU or CPU that reckons in it (NVIDIA from Ampere on, AVX-512 BF16, AMX); "
            "others take a hundred times as long: set precision: auto or float32"
        )
    return "bfloat16"


def supports_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    facts = cpu_facts()
    return bool(facts.get("avx512_bf16") or facts.get("amx_bf16"))


def cpu_facts() -> Mapping[str, Any]:
    """What this CPU has, by PyTorch's names; nothing where PyTorch is too old to tell."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


def train(
    course: TrainingState,
    loss: Loss,
    data: Data,
    config: TrialConfig,
    answers: TeacherOutputs,
    check: Check = unchecked,
) -> Iterator[EpochRecord]:
    """Trains from where the course stands to its end, one record an epoch; the course stands after it by then.

    Raises DivergedError at the first epoch whose mean loss is not finite, and what `check` raises.
    """
    steps = StepRunner(course, loss, data, config, answers)
    try:
        yield from _epochs(course, steps, data, config, check)
    finally:
        steps.close()


def _epochs(
    course: TrainingState, steps: StepRunner, data: Data, config: TrialConfig, check: Check
) -> Iterator[EpochRecord]:
    while course.epoch <= config.epochs:
        start = time.perf_counter()
        try:
            steps.run(check)
            # Training waits for the device here alone.
            total, ce, kd, correct = (amount / len(data.train) for amount in course.sums.tolist())
        finally:
            course.seconds += time.perf_counter() - start
        if not math.isfinite(total):
            raise DivergedError(
                f"epoch {course.epoch}: the mean training loss is {total}; try a smaller lr than {config.lr:g}"
            )
        trained = course.seconds
        evaluation = time.perf_counter()
        test = evaluate(course.model, data.test, data, check)
        val = evaluate(course.model, data.val, data, check).acc if data.val else None
        record = EpochRecord(
            epoch=course.epoch,
            lr=learning_rate(config, course.epoch),
            train_loss=total,
            ce_loss=ce,
            kd_loss=kd if course.with_teacher else None,
            train_acc=100 * correct,
            test_loss=test.loss,
            test_acc=test.acc,
            val_acc=val,
            seconds=trained + time.perf_counter() - evaluation,
            images_per_second=len(data.train) / trained,
        )
        course.epoch, course.images, course.seconds, course.tested = course.epoch + 1, 0, 0.0, test
        course.sums.zero_()
        yield record


class StepRunner:
    """The steps of one training. All that a step reads and writes stays where it is, so that a GPU can repeat it."""

    def __init__(
        self, course: TrainingState, loss: Loss, data: Data, config: TrialConfig, answers: TeacherOutputs
    ) -> None:
        self._course = course
        self._loss = loss
        self._config = config
        self._answers = answers
        self._feed = EpochBatches(data, config)
        self._pool = new_pool(course.device)
        self._steps: dict[int, GraphedStep] = {}  # by the size of the batch: the last one of an epoch may be smaller

    def run(self, check: Check) -> None:
        """The steps that are left of the course's epoch. On a GPU they are only queued by then."""
        course, config = self._course, self._config
        if not self._feed.holds(course.epoch):
            self._prepare(course.epoch)
        self._feed.begin(course.images)
        if isinstance(self._answers, EpochPreparer):
            self._answers.begin()
        set_rate(course.optimizer, learning_rate(config, course.epoch))
        course.model.train()
        for size in self._feed.sizes(course.images):
            check()
            self._step(size)
            course.images += size
        if course.epoch < config.epochs:  # the device has its hands full by now, and the host is free
            self._prepare(course.epoch + 1)

    def close(self) -> None:
        """Lets go of what lies on the device: a captured step and its training would otherwise keep one another."""
        self._steps.clear()

    def _prepare(self, epoch: int) -> None:
        draw = self._feed.prepare(epoch)
        if isinstance(self._answers, EpochPreparer):
            self._answers.prepare(draw)

    def _step(self, size: int) -> None:
        if size not in self._steps:
            self._steps[size] = GraphedStep(lambda: self._work(size), self._course.device, self._pool)
        self._steps[size]()
        self._course.uncaptured = self._course.uncaptured or self._steps[size].failure

    def _work(self, size: int) -> None:
        course = self._course
        batch = self._feed.take(size)
        is_taught = step(course, self._loss, batch, self._answers(batch))
        course.with_teacher |= is_taught


def step(course: TrainingState, loss: Loss, batch: Batch, answers: dict[str, Tensor]) -> bool:
    """One step of SGD; adds total, ce, kd and the count of right answers to the sums. Waits for no device.

    Returns whether a teacher had a part in it.
    """
    # Nothing is cast twice, and a cache would outlive a captured step.
    with torch.autocast(
        course.device.type, torch.bfloat16, enabled=course.arithmetic == "bfloat16", cache_enabled=False
    ):
        student = course.model.embed(batch.images)
    terms = loss(student, batch.labels, answers)
    course.optimizer.zero_grad(set_to_none=True)
    terms.total.backward()  # type: ignore[no-untyped-call]
    course.optimizer.step()
    with torch.no_grad():
        kd = torch.zeros_like(terms.ce) if terms.kd is None else terms.kd
        course.sums[:3] += torch.stack([terms.total, terms.ce, kd]).double() * len(batch.labels)
        course.sums[3] += (student.logits.argmax(1) == batch.labels).sum()
    return terms.kd is not None


def learning_rate(config: TrialConfig, epoch: int) -> float:
    """lr in an epoch counted from 1: multiplied by gamma after each milestone that has passed."""
    return config.lr * config.gamma ** sum(milestone < epoch for milestone in config.milestones)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the lr of an optimizer, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class EpochBatches:
    """Every training image once an epoch, in an order and under views that follow from the seed and the epoch alone.

    A cursor on the device says where the next batch begins, so that taking one needs nothing from the host.
    """

    def __init__(self, data: Data, config: TrialConfig) -> None:
        count, device = len(data.train), data.train.labels.device
        self._data = data
        self._config = config
        self._padded = ViewSpace(config.crop_padding, config.flip).pad(data.train.pixels)
        self._order = torch.zeros(count, dtype=torch.int64, device=device)
        self._views = torch.zeros(count, dtype=torch.int64, device=device)
        self._cursor = torch.zeros((), dtype=torch.int64, device=device)
        self._prepared: tuple[int, EpochOrder] | None = None

    def holds(self, epoch: int) -> bool:
        """Whether that epoch is the one that was prepared last."""
        return self._prepared is not None and self._prepared[0] == epoch

    def prepare(self, epoch: int) -> EpochOrder:
        """Draws an epoch."""
        count, config = len(self._data.train), self._config
        generator = torch.Generator().manual_seed(_mix(config.seed, epoch))  # on the CPU: alike for every device
        order = torch.randperm(count, generator=generator)
        draw = EpochOrder(order, torch.randint(self._padded.space.size, (count,), generator=generator))
        self._prepared = epoch, draw
        return draw

    def begin(self, done: int = 0) -> None:
        """Starts the epoch that was prepared, after its first `done` images: whole batches, or all."""
        assert self._prepared is not None
        _, draw = self._prepared
        self._order.copy_(draw.order)
        self._views.copy_(draw.views)
        self._cursor.fill_(done)

    def sizes(self, done: int = 0) -> Iterator[int]:
        """How large the batches after the first `done` images are."""
        count, size = len(self._data.train), self._config.batch_size
        for start in range(done, count, size):
            yield min(size, count - start)

    def take(self, size: int) -> Batch:
        """The next batch."""
        place = self._cursor + torch.arange(size, device=self._cursor.device)
        index, view = self._order[place], self._views[place]
        images = self._data.normalise(self._padded.take(index, view))
        self._cursor += size
        return Batch(images, self._data.train.labels[index], index, view, place)


def _mix(seed: int, epoch: int) -> int:
    # A digest and not a sum: seed 0 in epoch 2 must not be seed 1 in epoch 1.
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:8]) >> 1


@torch.no_grad()
def evaluate(model: Classifier, images: Images, data: Data, check: Check = unchecked) -> Score:
    """Tests a model on a whole split, in eval mode and without augmentation. Raises what `check` raises."""
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=images.labels.device)
    said = []
    size = EVAL_BATCHES[images.labels.device.type]
    for start in range(0, len(images), size):
        check()
        pixels = images.pixels[start : start + size].contiguous(memory_format=torch.channels_last)
        labels = images.labels[start : start + size]
        logits = model(data.normalise(pixels))
        best = logits.topk(5, dim=1).indices
        said.append(best[:, 0])
        hits = best == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([loss.double(), hits[:, 0].sum().double(), hits.sum().double()])
    answers = torch.cat(said)  # before the device is waited for, as another thread may read them
    total, right, among5 = sums.tolist()
    # Whole numbers of images over the number of images: no accuracy has more digits than it was measured with.
    return Score(total / len(images), 100 * right / len(images), 100 * among5 / len(images), answers)


_drawing = threading.Lock()  # weights are drawn from the one generator that all threads share


def fresh_model(build: Callable[[], Classifier], seed: int, device: torch.device) -> Classifier:
    """A model whose weights follow from the seed alone, laid out for fast convolutions."""
    with _drawing, torch.random.fork_rng(devices=[]):
        torch.manual_seed(_mix(seed, 0))
        model = build()
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
