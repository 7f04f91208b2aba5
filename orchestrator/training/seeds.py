"""Random numbers that depend on a trial's seed and on their purpose, never on what was drawn before."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

_Built = TypeVar("_Built")
MODEL, LOSS = 0, -1  # purposes of weights; the purpose of an epoch's order and views is its number, from 1
_drawing = threading.Lock()  # weights are drawn from the one generator that all threads share


def mix(seed: int, purpose: int) -> int:
    """Mixes a seed for one purpose, as a digest: with a sum, seed 0 in epoch 2 would equal seed 1 in epoch 1."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8]) >> 1


def build_seeded(build: Callable[[], _Built], seed: int, device: torch.device, purpose: int = MODEL) -> _Built:
    """Calls `build` so that a module's weights depend only on the seed, and lays them out for fast convolutions."""
    with _drawing, torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(seed, purpose))
        built = build()
    if isinstance(built, nn.Module):
        built.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return built
