"""Random numbers that follow from a trial's seed and what they are for, never from what was drawn before."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

_Built = TypeVar("_Built")
MODEL, LOSS = 0, -1  # what weights are drawn for; an epoch's order and views are drawn with its number, from 1
_drawing = threading.Lock()  # weights are drawn from the one generator that all threads share


def mix(seed: int, purpose: int) -> int:
    """A seed for one purpose. It is a digest, as with a sum seed 0 in epoch 2 would be seed 1 in epoch 1."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8]) >> 1


def build_seeded(build: Callable[[], _Built], seed: int, device: torch.device, purpose: int = MODEL) -> _Built:
    """What `build` returns. A module's weights follow from the seed alone, and are laid out for fast convolutions."""
    with _drawing, torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(seed, purpose))
        built = build()
    if isinstance(built, nn.Module):
        built.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return built
