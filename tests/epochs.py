"""The batches of an epoch, as training takes them."""

from __future__ import annotations

from orchestrator.data.tensors import Data
from orchestrator.records import TrialConfig
from orchestrator.training.batches import Batch, EpochBatches


def batches_of(images: Data, config: TrialConfig, epoch: int = 1) -> list[Batch]:
    """Every batch of an epoch."""
    feed = EpochBatches(images, config)
    feed.prepare(epoch)
    feed.begin()
    return [feed.take(size) for size in feed.sizes()]
