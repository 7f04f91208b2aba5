"""Decodes images into pixels: the only module that imports Pillow."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from orchestrator.data.order import Pixels

FORMATS = ("PNG", "WEBP", "BMP", "JPEG")  # Pillow knows many more, some of which start other programs
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # 8 bits per channel, can be converted to RGB
_REPLACE = "replace the file, or remove it"
_LARGEST = 64_000_000  # pixels of an image; Pillow itself warns from 89 million on


def decode(raw: bytes, side: int) -> Pixels:
    """Decodes an image into pixels [side, side, 3]. Raises ValueError where it is damaged or has another size."""
    image = _open(raw)
    if image.size != (side, side):  # checked before decoding, which may fill the memory
        width, height = image.size
        raise ValueError(f"is {width}×{height}, expected {side}×{side}")
    return _to_rgb(image)


def decode_square(raw: bytes, size: int | None) -> Pixels:
    """Decodes an image of any size and mode into pixels [S, S, 3].

    If `size` is given, S = `size`: the shorter side is resized to it (bilinear, with antialiasing) and the centre is
    cut out, as torchvision's Resize and CenterCrop do. Raises ValueError for an image that is damaged, that is not
    square where no `size` is given, or that has no obvious conversion to 8-bit RGB, so that the user must decide.
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
        raise ValueError(f"has the mode {image.mode}, expected 8 bits per channel; save it as an RGB PNG")
    if size is None and width != height:
        raise ValueError(f"is {width}×{height}, expected a square")
    try:
        return _to_rgb(image) if size is None else _resize(image, size)
    except ValueError as error:
        raise ValueError(f"{error}; {_REPLACE}") from None


def _open(raw: bytes) -> Any:
    try:
        return Image.open(io.BytesIO(raw), formats=FORMATS)
    except Exception as error:  # a damaged image makes Pillow raise errors of a dozen types
        raise ValueError(f"cannot be decoded ({_describe_error(error)})") from None


def _to_rgb(image: Any) -> Pixels:
    try:
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA")  # a direct conversion makes Pillow warn about transparent palettes
        return np.asarray(image.convert("RGB"))
    except Exception as error:
        raise ValueError(f"cannot be decoded ({_describe_error(error)})") from None


def _resize(image: Any, size: int) -> Pixels:
    pixels = _to_rgb(image)
    height, width = pixels.shape[:2]
    short = min(width, height)
    wide, high = (size if edge == short else int(size * edge / short) for edge in (width, height))
    scaled = Image.fromarray(pixels)
    if (wide, high) != (width, height):
        scaled = scaled.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    return np.asarray(scaled.crop((left, top, left + size, top + size)))


def _describe_error(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"  # Pillow's own words name an object in memory
    return (str(error).splitlines() or [type(error).__name__])[0]
