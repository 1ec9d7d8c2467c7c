"""Masks and overlays as PNG; Pillow is imported where one is written."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unitrain.errors import DataError

COLOURS = np.array(
    [[0, 0, 0], [255, 200, 0], [31, 119, 180], [44, 160, 44], [214, 39, 40], [148, 103, 189], [140, 86, 75]],
    np.uint8,
)
"""Of the classes 1, 2, ..., again from the second on after the last; class 0 is black."""
_MISSED, _WRONG = np.array([50, 110, 255], np.uint8), np.array([255, 40, 40], np.uint8)
_BORDER_SHARE, _FILL_SHARE = 1, 0.6  # of the colour in a pixel that it is laid over
_GAMMA = 0.8  # dim things are seen too
_LEVELS = 12
_SLICES, _COLUMNS = 8, 4
_WIDTH_PX = 640


def write_mask(path: Path, classes: NDArray[np.uint8]) -> None:
    """The classes as .npy, or as a .png whose pixel values are the classes, with a palette to look at.

    Raises:
        DataError: another suffix, or a .png of a volume.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, classes)
        return
    if path.suffix != ".png" or classes.ndim != 2:
        raise DataError(f"{path}: expected a .npy file, or a .png of an image in two dimensions")
    from PIL import Image

    picture = Image.fromarray(classes)
    picture.putpalette(_colours(256).tobytes())
    picture.save(path, optimize=True)


def write_overlay(
    path: Path, image: NDArray[Any], classes: NDArray[np.uint8], truth: NDArray[Any] | None = None
) -> None:
    """The image with each class's borders in its colour, and with what is missed in blue and what is wrong in red.

    Of a volume eight slices, evenly spaced, are shown.

    Args:
        path: a .png.
        image: [channel, (depth,) height, width].
        classes: [(depth,) height, width].
        truth: true classes of the same shape; 0 is background. None: misses and errors are not drawn.
    """
    from PIL import Image

    if classes.ndim > 2:
        rows = np.linspace(0, len(classes) - 1, min(_SLICES, len(classes))).round().astype(int)
        image, classes = _as_table(image[:, rows]), _as_table(classes[rows])
        truth = None if truth is None else _as_table(truth[rows])
    grey = image.astype(np.float64)
    low, high = np.percentile(grey, (10, 99.5))
    levels = np.clip((grey - low) / (high - low or 1), 0, 1) ** _GAMMA
    levels = np.rint(levels * _LEVELS) * (
        255 // _LEVELS
    )  # noise in finer ones would make the file three times as large
    pixels = np.moveaxis(levels if len(levels) == 3 else np.repeat(levels[:1], 3, axis=0), 0, -1)
    if truth is not None:
        _lay(pixels, (truth > 0) & (classes == 0), _MISSED, _FILL_SHARE)
        _lay(pixels, (truth == 0) & (classes > 0), _WRONG, _FILL_SHARE)
    zoom = max(1, round(_WIDTH_PX / pixels.shape[1]))
    pixels, classes = _larger(pixels, zoom), _larger(classes, zoom)
    _lay(pixels, at := _borders(classes), _colours(256)[classes[at]], _BORDER_SHARE)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).quantize(256).save(path, optimize=True)


def _lay(
    pixels: NDArray[np.float64], where: NDArray[np.bool_], colour: NDArray[np.uint8], share: float
) -> None:
    """A colour over some pixels, in place."""
    pixels[where] = (1 - share) * pixels[where] + share * colour


def _borders(classes: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels of a class above 0 that have one of another class beside them."""
    border = np.zeros(classes.shape, np.bool_)
    border[1:] |= classes[1:] != classes[:-1]
    border[:-1] |= classes[1:] != classes[:-1]
    border[:, 1:] |= classes[:, 1:] != classes[:, :-1]
    border[:, :-1] |= classes[:, 1:] != classes[:, :-1]
    return border & (classes > 0)


def _as_table(slices: NDArray[Any]) -> NDArray[Any]:
    """[..., slice, height, width] → [..., rows * (height + 1), columns * (width + 1)], with lines of 0 between."""
    *before, n, height, width = slices.shape
    padded = np.zeros((*before, -(-n // _COLUMNS) * _COLUMNS, height + 1, width + 1), slices.dtype)
    padded[..., :n, :-1, :-1] = slices
    table = padded.reshape(*before, -1, _COLUMNS, height + 1, width + 1).swapaxes(-3, -2)
    return table.reshape(*before, -1, _COLUMNS * (width + 1))


def _larger(pixels: NDArray[Any], zoom: int) -> NDArray[Any]:
    return pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)


def _colours(n: int) -> NDArray[np.uint8]:
    """RGB of the classes 0 to n - 1, uint8 [class, 3]."""
    places = np.arange(n)
    return COLOURS[np.where(places > 0, (places - 1) % (len(COLOURS) - 1) + 1, 0)]
