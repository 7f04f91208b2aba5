"""Tests a model on a split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.data.tensors import Data, Images
from orchestrator.models.base import Classifier

# Fixed, so that the batch size of training cannot change an evaluation. A GPU is idle between small ones; on a CPU
# large ones do not fit its caches (a ResNet-20 tests 1.3 times as many images a second with 100 as with 500).
EVAL_BATCHES = {"cpu": 100, "cuda": 2500}

Check = Callable[[], None]  # called between steps; an exception that it raises ends the training there


def unchecked() -> None:
    """The check of work that nothing may stop."""


@dataclass(frozen=True)
class Score:
    """A model's result on a split. Accuracies are percentages; `predictions` [N] is the class that it predicts."""

    loss: float
    acc: float
    top5: float
    predictions: Tensor


@torch.no_grad()
def evaluate(model: Classifier, images: Images, data: Data, check: Check = unchecked) -> Score:
    """Tests a model on an entire split, in eval mode and without augmentation. Raises what `check` raises.

    On a CPU batch norms are folded into convolutions, which changes outputs only by float32 rounding.
    """
    model.eval()
    if images.labels.device.type == "cpu":
        model = model.folded()
    sums = torch.zeros(3, dtype=torch.float64, device=images.labels.device)
    predictions = []
    size = EVAL_BATCHES[images.labels.device.type]
    for start in range(0, len(images), size):
        check()
        pixels = images.pixels[start : start + size].contiguous(memory_format=torch.channels_last)
        labels = images.labels[start : start + size]
        logits = model(data.normalise(pixels))
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        predictions.append(best[:, 0])
        hits = best == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([loss.double(), hits[:, 0].sum().double(), hits.sum().double()])
    predicted = torch.cat(predictions)  # before waiting for the device, as another thread may read them
    total, right, among5 = sums.tolist()
    # Integer counts divided by the number of images: no accuracy has more digits than were measured.
    return Score(total / len(images), 100 * right / len(images), 100 * among5 / len(images), predicted)
