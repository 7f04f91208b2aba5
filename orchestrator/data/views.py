"""The finite space of views of an image (flip × crop offset), computed for an entire batch at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.records import view_count


@dataclass(frozen=True)
class ViewSpace:
    """Every augmented version of a square image: V = flips · (2p+1)², p the crop padding.

    View v is offset (v % (2p+1), v // (2p+1) % (2p+1)) in (columns, rows) of the padded image, and is flipped left to
    right if v // (2p+1)² is 1. The `padding` is a reflection of the image (`reflect`), or black pixels (`zero`).
    """

    crop_padding: int
    flip: bool
    padding: str = "reflect"

    @property
    def size(self) -> int:
        """V, the number of views."""
        return view_count(self.crop_padding, self.flip)

    def pad(self, images: Tensor) -> Padded:
        """Prepares uint8 images [N, 3, S, S] for `Padded.take`."""
        side, p = images.shape[-1], self.crop_padding
        if self.padding == "zero":
            return Padded.of(F.pad(images.permute(0, 2, 3, 1), (0, 0, p, p, p, p)).contiguous(), side, self)
        line = (torch.arange(-p, side + p, device=images.device)).abs()
        line = torch.where(line < side, line, 2 * (side - 1) - line)  # reflects without repeating the edge
        pixels = images.permute(0, 2, 3, 1)[:, line[:, None], line[None, :]]
        return Padded.of(pixels.contiguous(), side, self)


class Places(NamedTuple):
    """Where views are in the pixels of `Padded`, int64: the first pixel of each line, and the step to the next."""

    lines: Tensor  # [S, B]
    step: Tensor  # [B], −1 for a view that is flipped


@dataclass(frozen=True)
class Padded:
    """Images with a border, [N, S+2p, S+2p, 3], on the device that trains: as uint8, or as a model gets them.

    `columns` [S] are the numbers of the pixels in a line of a view.
    """

    pixels: Tensor
    space: ViewSpace
    columns: Tensor

    @classmethod
    def of(cls, pixels: Tensor, side: int, space: ViewSpace) -> Padded:
        """The images with border that `pixels` are, for views of `side` pixels."""
        return cls(pixels, space, torch.arange(side, device=pixels.device))

    def locate(self, index: Tensor, view: Tensor) -> Places:
        """Finds the given view of each given image, from `index` and `view` [B]."""
        span, side, width = 2 * self.space.crop_padding + 1, len(self.columns), self.pixels.shape[2]
        flipped = view // (span * span)
        rows = index * width + view // span % span + self.columns[:, None]  # [S, B]
        return Places(rows * width + view % span + flipped * (side - 1), 1 - 2 * flipped)

    def gather(self, places: Places) -> Tensor:
        """The views at these places: [B, 3, S, S], channels last."""
        lines, step = places.lines.mT[:, :, None], places.step[:, None, None]
        indices = lines.new_empty(*lines.shape[:2], len(self.columns))  # as it is, its layout would be that of `lines`
        torch.addcmul(lines, step, self.columns, out=indices)
        # A single gather of whole pixels; as [B, 3, S, S] this is already the channels-last layout.
        return self.pixels.view(-1, 3)[indices].permute(0, 3, 1, 2)

    def take(self, index: Tensor, view: Tensor) -> Tensor:
        """The given view of each given image: [B, 3, S, S], channels last, from `index` and `view` [B].

        The same (index, view) always gives the same pixels.
        """
        return self.gather(self.locate(index, view))
