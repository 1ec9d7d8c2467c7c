"""Thumbnails of samples, drawn with numpy alone (smaller pictures, curves of signals), and their sprite sheet."""

import itertools
import math
import struct
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unitrain.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]
Pixels = NDArray[np.uint8]

CURVE_PX = 10
"""Minimum height of a curve: a signal's first channels are drawn below each other, three in 32 pixels."""

_MOST_CHANNELS = 16  # [16, steps] is a signal, [17, steps] is a picture of one
_FEWEST_STEPS = 8
_STEPS_A_COLUMN = 2  # a curve's peaks are seen, though a column is wider than a step
_PICTURE_AXES, _SIGNAL_AXES, _VECTOR_AXES = 3, 2, 1
_COLOUR_CHANNELS = 3
_WHITE, _INK = 255, 64  # not black, or the tint of a signal that fills its thumbnail would be lost
_CHUNK_ROWS = 512
LARGEST_SHEET_PX = 8192
"""Largest side of a sprite sheet that the page shows."""
_IMAGE_AXES = (3, 4)  # without and with channels
_PNG_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}
_PNG_UP_FILTER = 2


@lru_cache(maxsize=64)
def thumbnail_index(shape: tuple[int, ...], size_px: int) -> tuple[Any, ...] | None:
    """Return an index of the part of a sample that is drawn; None if it can't be drawn.

    [channel, height, width] is a picture; [channel, step] a signal, or a picture where there are more
    channels than curves can show; [step] a signal of one channel. Of a signal's channels the first
    are drawn, one for each 10 pixels of `size_px`; of a picture's, the first three as colours, or the first.

    Args:
        shape: shape of a sample, without the batch.
        size_px: longer side of the thumbnail.
    """
    if 0 in shape or len(shape) not in (_VECTOR_AXES, _SIGNAL_AXES, _PICTURE_AXES):
        return None
    if len(shape) == _PICTURE_AXES:
        channels = slice(0, _COLOUR_CHANNELS if shape[0] >= _COLOUR_CHANNELS else 1)
        longer = max(shape[1:])
        if longer <= size_px:
            return channels, slice(None), slice(None)
        rows, columns = (_spread(n, max(1, n * size_px // longer)) for n in shape[1:])
        return channels, rows[:, None], columns
    if len(shape) == _SIGNAL_AXES and shape[0] > _MOST_CHANNELS:
        return _spread(shape[0], size_px)[:, None], _spread(shape[1], size_px)
    if shape[-1] < _FEWEST_STEPS:
        return None
    most = _STEPS_A_COLUMN * size_px
    # A slice takes a view, which costs the training nothing.
    steps = _spread(shape[-1], most) if shape[-1] > most else slice(None)
    return (slice(0, max(1, size_px // CURVE_PX)), steps) if len(shape) == _SIGNAL_AXES else (steps,)


def draw_thumbnails(samples: Array, size_px: int) -> Pixels:
    """Draw the parts of samples that `thumbnail_index` selected, as uint8 [row, height, width(, 3)].

    All rows share a channel's scale, from the 1st to the 99th percentile, so that a weak signal looks weak.
    Curves are dark on white, since the page tints a thumbnail with its label's colour.

    Args:
        samples: float [row, channel, height, width], [row, channel, step], [row, height, width] of more
            channels than a signal has, or [row, step].
    """
    if samples.ndim == _PICTURE_AXES + 1:
        pixels = np.stack([_levels(samples[:, c]) for c in range(samples.shape[1])], axis=-1)
        return pixels if pixels.shape[-1] == _COLOUR_CHANNELS else pixels[..., 0]
    if samples.ndim == _SIGNAL_AXES + 1 and samples.shape[1] > _MOST_CHANNELS:
        return _levels(samples)
    signals = samples if samples.ndim == _SIGNAL_AXES + 1 else samples[:, None]
    drawn = np.full((len(signals), size_px, size_px), _WHITE, np.uint8)
    edges = np.arange(signals.shape[1] + 1) * size_px // signals.shape[1]
    for channel, (top, bottom) in enumerate(itertools.pairwise(edges.tolist())):
        levels = _levels(signals[:, channel])
        for first in range(0, len(drawn), _CHUNK_ROWS):
            rows = slice(first, first + _CHUNK_ROWS)
            _draw(drawn[rows, top:bottom], levels[rows])
    return drawn


def _draw(drawn: Pixels, levels: Pixels) -> None:
    """Draw one curve per row, in place: each column spans its values and the next column's first one."""
    height_px, size_px = drawn.shape[1:]
    if levels.shape[1] < size_px:
        levels = levels[:, np.round(np.linspace(0, levels.shape[1] - 1, size_px)).astype(np.intp)]
    heights = (height_px - 1) - levels.astype(np.int16) * (height_px - 1) // 255
    starts = np.arange(size_px) * levels.shape[1] // size_px
    following = heights[:, np.append(starts[1:], levels.shape[1] - 1)]
    low = np.minimum(np.minimum.reduceat(heights, starts, axis=1), following)[:, None]
    high = np.maximum(np.maximum.reduceat(heights, starts, axis=1), following)[:, None]
    line = np.arange(height_px, dtype=np.int16)[None, :, None]
    drawn[(line >= low) & (line <= high)] = _INK


def _levels(values: Array) -> Pixels:
    """Scale the 1st to 99th percentile of finite values to 0 to 255; values that are not finite become 127."""
    finite = np.isfinite(values)
    known = values[finite]
    if not known.size:
        return np.full(values.shape, 127, np.uint8)
    known = known[:: max(1, known.size // 100_000)]
    low, high = np.percentile(known.astype(np.float64), (1, 99))
    span = float(high - low) or 1.0
    with np.errstate(all="ignore"):
        scaled = np.clip((values - low) / span, 0, 1) * 255
    scaled[~finite] = 127
    levels: Pixels = scaled.astype(np.uint8)
    return levels


def _spread(size: int, count: int) -> NDArray[np.intp]:
    """Return `count` indices, or all if there are fewer, evenly over `size`."""
    return np.round(np.linspace(0, size - 1, min(size, count))).astype(np.intp)


def write_sprites(path: Path, images: Array) -> tuple[int, int]:
    """Write the sheet and return a thumbnail's width and height in it, in pixels.

    The sheet is filled row by row and has as many rows as columns, since the page divides a point's number by
    the rows where it means the columns: in any other sheet it shows the wrong thumbnails. They are made smaller
    where it would be larger than the page shows.

    Args:
        path: path of the PNG file.
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
