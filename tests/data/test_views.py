"""The space of views: its size, each view compared with a slow reference, and what a table relies on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torchvision import transforms

from orchestrator.data.views import ViewSpace
from orchestrator.records import PADDINGS, TableKey


def random_images(count: int, side: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def reference(image: NDArray[np.uint8], view: int, padding: int, mode: str = "reflect") -> NDArray[np.uint8]:
    """One view of one image [3, S, S], computed slowly."""
    side, span = image.shape[-1], 2 * padding + 1
    flip, offset = divmod(view, span * span)
    row, column = divmod(offset, span)
    padded = np.zeros((3, side + 2 * padding, side + 2 * padding), np.uint8)
    if mode == "reflect":
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
    padded[:, padding : padding + side, padding : padding + side] = image
    crop = padded[:, row : row + side, column : column + side]
    return crop[:, :, ::-1] if flip else crop


@pytest.mark.parametrize(
    ("padding", "flip", "size"),
    [(4, True, 162), (4, False, 81), (1, False, 9), (1, True, 18), (0, True, 2), (0, False, 1)],
)
def test_size(padding: int, flip: bool, size: int) -> None:
    assert ViewSpace(padding, flip).size == size
    assert TableKey("0" * 12, "logits", padding, flip, 1).views == size  # a table has a row for each


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_centre_is_the_image(padding: int) -> None:
    images = random_images(3, 8)
    space = ViewSpace(padding, True)
    centre = padding * (2 * padding + 1) + padding  # the offset in rows, then that in columns
    assert torch.equal(space.pad(images).take(torch.arange(3), torch.full((3,), centre)), images)


@settings(max_examples=60)
@given(
    side=st.integers(2, 9),
    padding=st.integers(0, 4),
    flip=st.booleans(),
    mode=st.sampled_from(PADDINGS),
    seed=st.integers(0, 2**32),
)
def test_every_view_against_the_reference(side: int, padding: int, flip: bool, mode: str, seed: int) -> None:
    padding = min(padding, side - 1)  # reflection allows no more
    space = ViewSpace(padding, flip, mode)
    images = random_images(2, side, seed)
    padded = space.pad(images)
    views = torch.arange(space.size)
    for number, image in enumerate(images.numpy()):
        expected = np.stack([reference(image, view, padding, mode) for view in range(space.size)])
        np.testing.assert_array_equal(padded.take(torch.full_like(views, number), views).numpy(), expected)


def test_zero_padding_equals_the_random_crops_of_torchvision() -> None:
    images = random_images(1, 8)
    space = ViewSpace(2, True, "zero")
    taken = space.pad(images).take(torch.zeros(space.size, dtype=torch.int64), torch.arange(space.size))
    crop = transforms.Compose([transforms.RandomCrop(8, padding=2), transforms.RandomHorizontalFlip()])
    pil = transforms.functional.to_pil_image(images[0])
    torch.manual_seed(0)
    drawn = {np.asarray(crop(pil)).transpose(2, 0, 1).tobytes() for _ in range(1000)}
    assert drawn == {view.contiguous().numpy().tobytes() for view in taken}


def test_all_views_of_an_image_differ() -> None:
    space = ViewSpace(4, True)
    taken = space.pad(random_images(1, 32)).take(torch.zeros(space.size, dtype=torch.int64), torch.arange(space.size))
    assert len(torch.unique(taken.flatten(1), dim=0)) == space.size == 162


@settings(max_examples=30)
@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 17)), min_size=1, max_size=8))
def test_batch_is_its_images_one_by_one(pairs: list[tuple[int, int]]) -> None:
    padded = ViewSpace(1, True).pad(random_images(5, 8))
    index, view = torch.tensor(pairs).T
    single = [padded.take(index[[at]], view[[at]]) for at in range(len(pairs))]
    assert torch.equal(padded.take(index, view), torch.cat(single))


def test_same_index_and_view_give_the_same_pixels() -> None:
    images = random_images(4, 8)
    index, view = torch.tensor([2, 2, 0]), torch.tensor([7, 7, 7])
    padded = ViewSpace(2, False).pad(images)
    first = padded.take(index, view)
    assert torch.equal(first[0], first[1])
    assert torch.equal(first, padded.take(index, view))
    # Padding some images and not others changes nothing either: a table is built and checked on subsets.
    assert torch.equal(first[0], ViewSpace(2, False).pad(images[2:3]).take(torch.tensor([0]), torch.tensor([7]))[0])


def test_layout_is_channels_last_bytes() -> None:
    taken = ViewSpace(1, True).pad(random_images(4, 8)).take(torch.tensor([3, 1]), torch.tensor([0, 17]))
    assert taken.shape == (2, 3, 8, 8)
    assert taken.dtype == torch.uint8
    assert taken.is_contiguous(memory_format=torch.channels_last)
