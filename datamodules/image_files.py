"""Images and masks from files, mapped into memory where the format allows it; numpy alone, so that clients need no torch."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unitrain.errors import DataError

Array = NDArray[Any]

SUFFIXES = (".png", ".tif", ".tiff", ".npy")
_MOST_OPEN = 128
"""Files that are held open at once: a mapped one has a file descriptor."""


@dataclass(frozen=True)
class Pair:
    """An image's file and that of its mask."""

    image: Path
    mask: Path


def find_pairs(images: str | Path, masks: str | Path) -> list[Pair]:
    """The images of a folder by name, each with the mask of the same stem in another folder; or two files.

    Raises:
        DataError: there are no images, two have one stem, or a mask is missing.
    """
    image_path, mask_path = Path(images), Path(masks)
    if image_path.is_file() and mask_path.is_file():
        return [Pair(image_path, mask_path)]
    stems: dict[str, Path] = {}
    for path in _files(image_path):
        if path.stem in stems:
            raise DataError(
                f"{path}: expected one image of a stem, got {stems[path.stem].name} too; rename one"
            )
        stems[path.stem] = path
    known = {path.stem: path for path in _files(mask_path)}
    for stem, path in stems.items():
        if stem not in known:
            expected = ", ".join(stem + suffix for suffix in SUFFIXES)
            raise DataError(f"{path}: its mask is missing, expected one of {expected} in {mask_path}")
    return [Pair(path, known[stem]) for stem, path in stems.items()]


def open_array(path: str | Path, *, indices: bool = False) -> Array:
    """Return a file's array, [height, width], [depth, height, width], or with colours last.

    `.npy` and uncompressed TIFF are mapped into memory and read where they are looked at; others are decoded.

    Args:
        path: path of the file.
        indices: return the palette's indices of a PNG, as in a mask, rather than its colours.

    Raises:
        DataError: it can't be read, or is of no kind that is known.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: expected a file of {', '.join(SUFFIXES)}")
    try:
        if suffix == ".npy":
            array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        elif suffix in (".tif", ".tiff"):
            array = _open_tiff(path)
        else:
            from PIL import Image

            with Image.open(path) as image:
                array = np.asarray(image if indices or image.mode != "P" else image.convert("RGB"))
    except Exception as error:  # the decoders raise many kinds for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: can't be read as an image: {reason}") from error
    if array.dtype.kind not in "buif":
        raise DataError(f"{path}: expected numbers, got {array.dtype}")
    return array


def channels_first(array: Array, dimensions: int, where: str | Path) -> Array:
    """A view [channel, (depth,) height, width] of an image that may have colours in its last axis.

    Raises:
        DataError: it has another number of axes.
    """
    if array.ndim == dimensions:
        return array[None]
    if array.ndim == dimensions + 1:
        return np.moveaxis(array, -1, 0)
    raise DataError(
        f"{where}: expected {dimensions} axes, or {dimensions + 1} with colours in the last, got the shape "
        f"{list(array.shape)}"
    )


def grey_levels(array: Array, value_range: Sequence[float]) -> NDArray[np.uint8]:
    """uint8 of the same shape: 0 at the range's lower end and below, 255 at its upper end and above."""
    low, high = value_range
    scaled = (np.asarray(array, np.float32) - low) * (255 / (high - low))
    levels: NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return levels


class OpenFiles:
    """Files' arrays, a cache of those used last.

    Args:
        kept_bytes: maximum size of cached decoded arrays; a mapped one counts as 0.
    """

    def __init__(self, kept_bytes: int) -> None:
        self.kept_bytes = kept_bytes
        self._arrays: OrderedDict[Path, Array] = OrderedDict()

    def get(self, path: Path, *, indices: bool = False) -> Array:
        """Return a file's array, by `open_array`."""
        array = self._arrays.pop(path, None)
        if array is None:
            array = open_array(path, indices=indices)
        self._arrays[path] = array
        held = sum(_decoded_bytes(a) for a in self._arrays.values())
        while len(self._arrays) > 1 and (held > self.kept_bytes or len(self._arrays) > _MOST_OPEN):
            held -= _decoded_bytes(self._arrays.popitem(last=False)[1])
        return array

    def __getstate__(self) -> dict[str, Any]:
        # A worker process opens its own.
        return {"kept_bytes": self.kept_bytes, "_arrays": OrderedDict()}


def _decoded_bytes(array: Array) -> int:
    return 0 if isinstance(array, np.memmap) else array.nbytes


def _open_tiff(path: Path) -> Array:
    import tifffile

    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        if series.dataoffset is not None and series.keyframe.is_memmappable:
            array: Array = tifffile.memmap(path, mode="r")
        else:
            array = series.asarray()
    return array


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of {', '.join(SUFFIXES)} files, but there is none")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise DataError(f"{folder}: expected files of {', '.join(SUFFIXES)}, got none")
    return found
