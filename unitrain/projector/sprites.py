"""sprites.png: a sheet of thumbnails, by which a point can be recognised."""

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from unitrain.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]

LARGEST_SHEET_PX = 8192
"""The page shows no larger sheet."""

_IMAGE_AXES = (3, 4)  # without and with channels
_PNG_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}
_PNG_UP_FILTER = 2


def write_sprites(path: Path, images: Array) -> tuple[int, int]:
    """Write the sheet and return a thumbnail's width and height in it, in pixels.

    The sheet is filled row by row and has as many rows as columns, since the page divides a point's number by
    the rows where it means the columns: in any other sheet it shows the wrong thumbnails. They are made smaller
    where it would be larger than the page shows.

    Args:
        path: of the PNG file.
        images: uint8, or float in [0, 1]: [rows, height, width] or [rows, height, width, 1, 3 or 4].

    Raises:
        DataError: the images have another shape or dtype.
    """
    images = _as_bytes(images)
    rows = len(images)
    side = math.ceil(math.sqrt(rows))
    images = _shrunk(images, LARGEST_SHEET_PX // side)
    _, height, width, channels = images.shape
    sheet = np.zeros((side * side, height, width, channels), np.uint8)
    sheet[:rows] = images
    sheet = sheet.reshape(side, side, height, width, channels).swapaxes(1, 2)
    sheet = sheet.reshape(side * height, side * width, channels)
    path.write_bytes(_png(sheet))
    return width, height


def _png(sheet: Array) -> bytes:
    """A PNG file (ISO/IEC 15948) of uint8 [height, width, channels].

    One filter for all lines and run lengths only: a quarter of the time that choosing them takes, for a
    file as small.
    """
    height, width, channels = sheet.shape
    pixels = sheet.reshape(height, width * channels)
    lines = np.empty((height, 1 + width * channels), np.uint8)
    lines[:, 0] = _PNG_UP_FILTER
    lines[0, 1:] = pixels[0]
    np.subtract(pixels[1:], pixels[:-1], out=lines[1:, 1:])
    packer = zlib.compressobj(1, strategy=zlib.Z_RLE)
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLOUR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", packer.compress(lines.data) + packer.flush()), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _as_bytes(images: Array) -> Array:
    images = np.asarray(images)
    if images.ndim == _IMAGE_AXES[0]:
        images = images[..., None]
    if images.ndim != _IMAGE_AXES[1] or images.shape[-1] not in (1, 3, 4) or 0 in images.shape:
        raise DataError(
            f"embeddings: sprites have shape {list(images.shape)}, "
            "expected [rows, height, width] or [rows, height, width, 1, 3 or 4]"
        )
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise DataError(f"embeddings: sprites have dtype {images.dtype}, expected uint8 or float in [0, 1]")
    unit: Array = np.nan_to_num(images, nan=0.0).clip(0.0, 1.0)
    return (unit * 255.0 + 0.5).astype(np.uint8)


def _shrunk(images: Array, largest_px: int) -> Array:
    _, height, width, _ = images.shape
    ratio = largest_px / max(height, width)
    if ratio >= 1:
        return images
    rows = _sampled(height, max(1, int(height * ratio)))
    columns = _sampled(width, max(1, int(width * ratio)))
    return np.ascontiguousarray(images[:, rows][:, :, columns])


def _sampled(size: int, smaller: int) -> Array:
    """The indices of `smaller` pixels, evenly spread over `size`, each in the middle of its part."""
    return ((np.arange(smaller) + 0.5) * size / smaller).astype(np.intp)
