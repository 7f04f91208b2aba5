"""The batches of an epoch: which images, in which order, under which views."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from orchestrator.data.shared import SharedValues
from orchestrator.data.tensors import Data
from orchestrator.data.views import Padded, Places, ViewSpace
from orchestrator.losses.base import TeacherOutputs
from orchestrator.records import TrialConfig
from orchestrator.training.seeds import mix


class Batch(NamedTuple):
    """B training images under one view each. `index` and `view` [B] are their numbers in a table of teacher outputs.

    `position` [B] is their position in the order of the epoch.
    """

    images: Tensor  # [B, 3, S, S], normalised
    labels: Tensor  # [B]
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which is never called
    view: Tensor
    position: Tensor


Teacher = Callable[[Batch], TeacherOutputs]  # computes or looks up the outputs that the loss needs


def ignores_images(teacher: Teacher) -> bool:
    """Whether a teacher says that it does without the images of a batch, which may then be rounded."""
    return getattr(teacher, "ignores_images", False)


class EpochOrder(NamedTuple):
    """The order of the images in an epoch, and the view of each; int64 [N] both, on the CPU."""

    order: Tensor
    views: Tensor


@runtime_checkable
class EpochPreparer(Protocol):
    """A teacher whose outputs are prepared for an entire epoch at a time."""

    def prepare(self, order: EpochOrder) -> None:
        """Prepares the outputs of the next epoch, while the device still works on this one."""

    def begin(self) -> None:
        """Switches to the outputs that were prepared last."""


_PART = 5000  # images that are normalised at a time, as float32 takes four times the memory
_padded: SharedValues[Padded] = SharedValues()  # 240 MB for CIFAR, which would be there once for each trial


def _pad(data: Data, space: ViewSpace, dtype: torch.dtype | None) -> Padded:
    """Training images with a border, which trials on the same images share. Whoever holds them must hold `data` too."""
    pixels = data.train.pixels
    key = pixels.data_ptr(), pixels.shape, pixels.stride(), pixels.device, space, dtype, data.facts

    def make() -> Padded:
        padded = space.pad(pixels)
        if dtype is None:
            return padded
        normal = torch.empty_like(padded.pixels, dtype=dtype)
        for part, given in zip(torch.split(normal, _PART), torch.split(padded.pixels, _PART), strict=True):
            part.copy_(data.normalise(given.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return replace(padded, pixels=normal)

    return _padded.get(key, make, pixels.device)


class EpochBatches:
    """Every training image once per epoch, in an order and under views that depend only on the seed and the epoch.

    The position in the epoch is on the device, so that taking a batch needs nothing from the host. What can be
    computed for an entire epoch is, because every small operation in a step costs a GPU as much as a convolution.
    """

    def __init__(self, data: Data, config: TrialConfig, dtype: torch.dtype | None = None) -> None:
        """With a `dtype`, images are stored as a model gets them and as autocast would round them."""
        count, device = len(data.train), data.train.labels.device
        self._data = data
        self._config = config
        self._padded = _pad(data, ViewSpace(config.crop_padding, config.flip, config.padding), dtype)
        self._numbers = torch.arange(config.batch_size, device=device)
        self._position = torch.zeros_like(self._numbers)  # of the images of the last batch
        # Of each image in the order of the epoch: its number, view, label, and the places of its pixels.
        self._plan = torch.zeros((4 + len(self._padded.columns), count), dtype=torch.int64, device=device)
        self._prepared: tuple[int, EpochOrder] | None = None

    def holds(self, epoch: int) -> bool:
        """Whether `epoch` is the one that was prepared last."""
        return self._prepared is not None and self._prepared[0] == epoch

    def prepare(self, epoch: int) -> EpochOrder:
        """Draws the order and the views of an epoch."""
        count, config = len(self._data.train), self._config
        generator = torch.Generator().manual_seed(
            mix(config.seed, epoch)
        )  # on the CPU, so that it is the same for every device
        order = torch.randperm(count, generator=generator)
        drawn = EpochOrder(order, torch.randint(self._padded.space.size, (count,), generator=generator))
        self._prepared = epoch, drawn
        return drawn

    def begin(self, done: int = 0) -> None:
        """Starts the prepared epoch after its first `done` images, which are complete batches or the entire epoch."""
        assert self._prepared is not None
        _, drawn = self._prepared
        index, view = drawn.order.to(self._plan.device), drawn.views.to(self._plan.device)
        places = self._padded.locate(index, view)
        facts = torch.stack([index, view, self._data.train.labels[index], places.step])
        torch.cat([facts, places.lines], out=self._plan)
        torch.add(self._numbers, done - len(self._numbers), out=self._position)

    def sizes(self, done: int = 0) -> Iterator[int]:
        """The sizes of the batches after the first `done` images."""
        count, size = len(self._data.train), self._config.batch_size
        for start in range(done, count, size):
            yield min(size, count - start)

    def take(self, size: int) -> Batch:
        """The next batch."""
        self._position += len(self._position)
        position = self._position[:size]
        found = self._plan.index_select(1, position)
        index, view, labels, step = found[:4]
        images = self._padded.gather(Places(found[4:], step))
        if images.dtype == torch.uint8:
            images = self._data.normalise(images)
        return Batch(images, labels, index, view, position)
