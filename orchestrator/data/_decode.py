"""Encoded images as pixels: the one door to Pillow."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from orchestrator.data.order import Pixels

FORMATS = ("PNG", "WEBP", "BMP", "JPEG")  # Pillow knows many more, some of which start other programs
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # 8 bits a channel, which convert to RGB
_REPLACE = "replace the file, or remove it"
_LARGEST = 64_000_000  # pixels of an image; Pillow itself warns from 89 million on


def decode(raw: bytes, side: int) -> Pixels:
    """The pixels [side, side, 3] of an image. Raises ValueError where it is damaged or of another size."""
    image = _open(raw)
    if image.size != (side, side):  # before it is decoded, as it may fill the memory
        width, height = image.size
        raise ValueError(f"is {width}×{height}, expected {side}×{side}")
    return _pixels(image)


def decode_square(raw: bytes, size: int | None) -> Pixels:
    """The pixels [S, S, 3] of an image of whatever size and mode.

    With a `size` S is that: the shorter side is resized to it (bilinear, with antialiasing) and the middle is cut out,
    as torchvision's Resize and CenterCrop do. Raises ValueError for an image that is damaged, is not square where there
    is no `size`, or cannot become RGB in 8 bits without a decision that is the user's.
    """
    try:
        image = _open(raw)
    except ValueError as error:
        raise ValueError(f"{error}; {_REPLACE}") from None
    width, height = image.size
    if width * height > _LARGEST:
        raise ValueError(f"is {width}×{height}, more than {_LARGEST // 10**6} megapixels; make it smaller")
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"has {image.n_frames} frames, expected a still image; save one frame of it")
    if image.mode not in _MODES:
        raise ValueError(f"has the mode {image.mode}, expected 8 bits a channel; save it as an RGB PNG")
    if size is None and width != height:
        raise ValueError(f"is {width}×{height}, expected a square")
    try:
        return _pixels(image) if size is None else _resize(image, size)
    except ValueError as error:
        raise ValueError(f"{error}; {_REPLACE}") from None


def _open(raw: bytes) -> Any:
    try:
        return Image.open(io.BytesIO(raw), formats=FORMATS)
    except Exception as error:  # a damaged image makes Pillow raise errors of a dozen types
        raise ValueError(f"cannot be decoded ({_reason(error)})") from None


def _pixels(image: Any) -> Pixels:
    try:
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA")  # on the direct way Pillow warns of a palette with transparency
        return np.asarray(image.convert("RGB"))
    except Exception as error:
        raise ValueError(f"cannot be decoded ({_reason(error)})") from None


def _resize(image: Any, size: int) -> Pixels:
    pixels = _pixels(image)
    height, width = pixels.shape[:2]
    short = min(width, height)
    wide, high = (size if edge == short else int(size * edge / short) for edge in (width, height))
    scaled = Image.fromarray(pixels)
    if (wide, high) != (width, height):
        scaled = scaled.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    return np.asarray(scaled.crop((left, top, left + size, top + size)))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"  # Pillow's own words name an object in memory
    return (str(error).splitlines() or [type(error).__name__])[0]
