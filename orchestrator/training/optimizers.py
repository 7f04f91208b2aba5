"""The optimizers that a study file can name. Reading the table does not import torch; `build` does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.losses import Option
from orchestrator.records import TrialConfig
from orchestrator.training._entries import build_entry

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from torch.optim import Optimizer as TorchOptimizer


@dataclass(frozen=True)
class Optimizer:
    """An optimizer with its own defaults of `lr` and `weight_decay`, which every optimizer has.

    `builder` is `module:attribute`, called with the parameters and, as keywords, `lr`, `weight_decay`, `momentum` where
    `has_momentum`, and the options. `lr` may be a tensor on a GPU; a state must then be kept on the device as well.
    """

    builder: str
    doc: str
    lr: float
    weight_decay: float
    has_momentum: bool = False
    options: Mapping[str, Option] = field(default_factory=dict)


OPTIMIZERS: Mapping[str, Optimizer] = {
    "sgd": Optimizer(
        "orchestrator.training._sgd:build",
        "SGD with momentum",
        0.1,
        1e-4,
        has_momentum=True,
        options={"nesterov": Option(False, "take the gradient where the momentum leads: Nesterov's momentum")},
    ),
    "adamw": Optimizer(
        "orchestrator.training._adamw:build",
        "Adam with decoupled weight decay (arXiv 1711.05101)",
        1e-3,
        1e-2,
        options={
            "beta1": Option(0.9, "decay of the mean of the gradients", most=1 - 1e-6),
            "beta2": Option(0.999, "decay of the mean of the squared gradients", most=1 - 1e-9),
            "eps": Option(1e-8, "what is added to the denominator", exclusive=True, most=1.0),
        },
    ),
}


def build(config: TrialConfig, parameters: Iterable[Parameter], lr: float | Tensor) -> TorchOptimizer:
    """Builds the optimizer of a trial for its parameters, which are all on one device."""
    facts = OPTIMIZERS[config.optimizer]
    settings = {"momentum": config.momentum} if facts.has_momentum else {}
    optimizer: TorchOptimizer = build_entry(
        facts.builder, facts.options, config.optimizer_options, parameters,
        lr=lr, weight_decay=config.weight_decay, **settings,
    )  # fmt: skip
    return optimizer
