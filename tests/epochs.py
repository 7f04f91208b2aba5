"""The batches of an epoch, as training takes them."""

from __future__ import annotations

from orchestrator.data.data import Data
from orchestrator.records import TrialConfig
from orchestrator.training.training import Batch, Feed


def batches_of(images: Data, config: TrialConfig, epoch: int = 1) -> list[Batch]:
    """Every batch of an epoch."""
    feed = Feed(images, config)
    feed.prepare(epoch)
    feed.begin()
    return [feed.take(size) for size in feed.sizes()]
