"""The state of a training: everything that its next step depends on, so that it can stop anywhere and resume."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from orchestrator.errors import ResourceError
from orchestrator.losses.base import Loss, StudentOutputs
from orchestrator.models.base import Classifier
from orchestrator.records import TrialConfig
from orchestrator.training import optimizers
from orchestrator.training.evaluation import Score
from orchestrator.training.gpu.casts import embed_rounded
from orchestrator.training.gpu.counters import keep_on_host
from orchestrator.training.gpu.scaling import LossScaling

_MOMENTUM = "momentum."  # the beginning of the names of SGD's buffers in checkpoints of earlier versions
_OPTIMIZER = "optimizer."


@dataclass
class Position:
    """How far a training is, and what may not change until it ends.

    `epoch` counts from 1 and is the epoch to resume in; `images` of it are done, in `seconds`. `with_teacher` is true
    if the loss has a teacher's term. `compute_dtype` is the type in which convolutions are computed. `teacher_mode` is
    `table` or `live`, or None without a teacher. `threads` are the CPU threads that train it, on which the rounding of
    sums depends; None on a GPU.
    """

    epoch: int = 1
    images: int = 0
    seconds: float = 0.0
    with_teacher: bool = False
    compute_dtype: str = "float32"
    teacher_mode: str | None = None
    threads: int | None = None


class AveragedModel:
    """A copy of a model whose weights are an exponential moving average of the model's: it starts at its first weights.

    The statistics of batch norms are averaged as the weights are, and counters are copied. Its tensors never move, so
    that an update can be captured.
    """

    def __init__(self, model: Classifier, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]
        self._average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the model's current weights, and does not wait for the device."""
        own, current = zip(*self._averaged, strict=True)
        self._average(own, current, 0)
        self.copy_buffers()

    @torch.no_grad()
    def copy_buffers(self) -> None:
        """Copies what has no average."""
        if self._copied:
            own, current = zip(*self._copied, strict=True)
            torch._foreach_copy_(own, current)


@dataclass(kw_only=True)
class TrainingState(Position):
    """The student, the loss, the optimizer of both, and the position; `totals` are over the epoch's images so far.

    They are the sums of the total loss, its cross-entropy, its teacher's term, the number of right predictions, and the
    number of steps that this process skipped, as float16 could not hold their gradients.
    `scaling` is there if convolutions compute in float16.
    """

    model: Classifier
    loss: Loss
    optimizer: torch.optim.Optimizer
    totals: Tensor  # float64 [5]
    one: Tensor  # the gradient of the loss by itself, which would be made in every step
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    averaged: AveragedModel | None = None
    scaling: LossScaling | None = None
    tested: Score | None = None  # at the end of the last epoch, if this process trained it
    uncaptured: str | None = None  # why its steps do not run as a CUDA graph, if that was tried
    counters: Sequence[Tensor] = ()  # of batch norms, kept on the host
    rounds_together: bool = False  # all weights of convolutions, before they are used

    @classmethod
    def start(cls, model: Classifier, loss: Loss, config: TrialConfig) -> TrainingState:
        """Starts the training of a fresh model. Raises ResourceError where its device lacks the requested precision."""
        device = next(model.parameters()).device
        is_gpu = device.type == "cuda"
        counters = keep_on_host(_modules(model, loss).values()) if is_gpu else ()
        # A GPU reads the learning rate from its memory, so that a captured step sees changes.
        lr = torch.tensor(config.lr, device=device) if is_gpu else config.lr
        parameters = [parameter for module in _modules(model, loss).values() for parameter in module.parameters()]
        optimizer = optimizers.build(config, parameters, lr)
        dtype = compute_dtype(config.precision, device)
        return cls(
            model=model,
            loss=loss,
            optimizer=optimizer,
            totals=torch.zeros(5, dtype=torch.float64, device=device),
            one=torch.ones((), device=device),
            compute_dtype=dtype,
            label_smoothing=config.label_smoothing,
            clip_norm=config.clip_norm,
            averaged=AveragedModel(model, config.ema) if config.ema else None,
            scaling=LossScaling(optimizer, device) if dtype == "float16" else None,
            counters=counters,
            rounds_together=is_gpu and not config.own_names(),  # a user's model may have convolutions in float32
        )

    @property
    def device(self) -> torch.device:
        """The device that trains."""
        return self.totals.device

    @property
    def sums(self) -> Tensor:
        """The totals of a result, float64 [4]."""
        return self.totals[:4]

    @property
    def skipped(self) -> Tensor:
        """The number of skipped steps."""
        return self.totals[4]

    def embed(self, images: Tensor) -> StudentOutputs:
        """The student's outputs, under autocast."""
        if self.rounds_together and self.compute_dtype != "float32":
            outputs: StudentOutputs = embed_rounded(self.model, images, getattr(torch, self.compute_dtype))
            return outputs
        return self.model.embed(images)

    @property
    def result(self) -> Classifier:
        """The model that is tested, saved and teaches: the average of the weights, or the model itself without one."""
        return self.averaged.model if self.averaged else self.model

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The trained modules, by the prefix of their tensors' names in a checkpoint."""
        return _modules(self.model, self.loss)

    @property
    def position(self) -> Position:
        """Its position alone."""
        return Position(*(getattr(self, field.name) for field in fields(Position)))

    def move_to(self, position: Position) -> None:
        """Takes over a position; its tensors were restored before."""
        for field in fields(Position):
            setattr(self, field.name, getattr(position, field.name))

    def tensors(self) -> dict[str, Tensor]:
        """Its weights, buffers, sums, and the complete state of its optimizer by the names of the parameters."""
        states = {
            f"{_OPTIMIZER}{key}.{name}": value
            for name, parameter in self._parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if value is not None
        }
        return {**self._module_tensors(), **states, "sums": self.sums}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores what `tensors` returned. Raises ValueError for a missing or unknown name, and for another shape."""
        given, tensors = tensors, {_current_name(name): tensor for name, tensor in tensors.items()}
        if len(tensors) < len(given):
            raise ValueError("a momentum buffer is there twice")
        own = {**self._module_tensors(), "sums": self.sums}
        states = self._optimizer_layout(tensors)
        expected = {**own, **{name: layout for name, (_, _, layout) in states.items()}}
        wrong = sorted(set(expected) ^ set(tensors)) or [
            name
            for name, tensor in expected.items()
            if (tensors[name].shape, tensors[name].dtype) != (tensor.shape, tensor.dtype)
        ]
        if wrong:
            raise ValueError(f"{wrong[0]} is missing, unknown or of another shape")
        copies = {  # made before anything is changed, as the memory may not suffice
            name: torch.empty_like(layout).copy_(tensors[name]) for name, (_, _, layout) in states.items()
        }
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        for name, (parameter, key, _) in states.items():
            self.optimizer.state[parameter][key] = copies[name]

    def _module_tensors(self) -> dict[str, Tensor]:
        modules = {**self.modules, **({"ema": self.averaged.model} if self.averaged else {})}
        return {
            f"{prefix}.{name}": tensor for prefix, each in modules.items() for name, tensor in each.state_dict().items()
        }

    def compute_gradients(self, loss: Tensor) -> None:
        """Sets the gradients of all trained parameters to those of the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(self.scaling.scale if self.scaling else self.one)  # type: ignore[no-untyped-call]
        if self.scaling:
            self.scaling.unscale(parameter.grad for _, parameter in self._parameters())

    def clip_gradients(self) -> None:
        """Scales the gradients of all trained parameters down, if their norm is above `clip_norm`."""
        if self.clip_norm:
            nn.utils.clip_grad_norm_([parameter for _, parameter in self._parameters()], self.clip_norm)

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for prefix, module in self.modules.items():
            for name, parameter in module.named_parameters():
                yield f"{prefix}.{name}", parameter

    def _optimizer_layout(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[nn.Parameter, str, Tensor]]:
        """The optimizer's state as stored: name → parameter, key, and a tensor of the shape that is expected.

        Optimizers create their state in the first step, in the same way for all parameters: a tensor of its shape or a
        scalar for each key.
        """
        keys = {name.split(".")[1] for name in tensors if name.startswith(_OPTIMIZER)}
        layout = {}
        for key in sorted(keys):
            for name, parameter in self._parameters():
                stored = tensors.get(f"{_OPTIMIZER}{key}.{name}")
                is_scalar = stored is not None and stored.dim() == 0
                expected = torch.zeros((), device=parameter.device) if is_scalar else parameter
                layout[f"{_OPTIMIZER}{key}.{name}"] = parameter, key, expected
        return layout


def _modules(model: Classifier, loss: Loss) -> dict[str, nn.Module]:
    return {"model": model, "loss": loss} if isinstance(loss, nn.Module) else {"model": model}


def _current_name(name: str) -> str:
    """The current name of a tensor, which an earlier version may have written."""
    return f"{_OPTIMIZER}momentum_buffer.model.{name.removeprefix(_MOMENTUM)}" if name.startswith(_MOMENTUM) else name


def compute_dtype(precision: str, device: torch.device) -> str:
    """Chooses the compute dtype: what `precision` requires; `auto` is `bfloat16` if the device supports it.

    Raises ResourceError where the device does not support what `precision` requires.
    """
    if precision == "float32" or (precision == "auto" and not supports_bfloat16(device)):
        return "float32"
    if precision == "float16":
        if device.type != "cuda":
            raise ResourceError("precision: float16 needs a GPU; set precision: auto or float32")
        return "float16"
    if not supports_bfloat16(device):
        raise ResourceError(
            "precision: bfloat16 needs a GPU or CPU that computes in it (NVIDIA from Ampere on, AVX-512 BF16, AMX); "
            "others take a hundred times as long: set precision: auto or float32"
        )
    return "bfloat16"


def supports_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    facts = cpu_facts()
    return bool(facts.get("avx512_bf16") or facts.get("amx_bf16"))


def use_threads(count: int) -> None:
    """Makes this thread of Python compute with that many CPU threads."""
    torch.get_num_threads()  # PyTorch sets those of a new thread once, which may not happen later
    torch.set_num_threads(count)


def cpu_facts() -> Mapping[str, Any]:
    """The features of this CPU, by PyTorch's names; empty where PyTorch is too old to report them."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
