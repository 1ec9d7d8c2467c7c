"""A large image in tiles that overlap, answered by the served model and stitched."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.segmentation.nuclei import load_nuclei
from examples.segmentation.pictures import write_mask, write_overlay
from examples.segmentation.scores import foreground_iou
from examples.segmentation.tiling import Tile, stitch, tiles
from unitrain.client import ClientIO, ModelInfo
from unitrain.datamodules.image_files import channels_first, grey_levels, open_array
from unitrain.errors import DataError


class TilesIO(ClientIO):
    """Queries the classes of an image tile by tile, and writes them as a mask and laid over the image.

    Args:
        model: description of the served model, which takes one image in two or three dimensions.
        image: a .png, .tif or .npy file; empty: stardist's nuclei in as many dimensions, whose held-out part
            is then also scored.
        value_range: grey values of the file that become 0 and 255, for files of more than 8 bit.
        tile: pixels along each axis of one request.
        margin: pixels at a tile's edges that another tile answers; the U-Net's `margin` makes stitching exact.
        mask: file of the stitched classes: .npy, or .png of an image; empty: none.
        overlay: .png of the image with the classes laid over it; empty: none.

    Attributes:
        classes: uint8 [(depth,) height, width], the stitched answer; after `finalize`.
        iou: intersection over union of all classes but 0, on the held-out part; NaN where the truth is not known.
    """

    def __init__(
        self,
        model: ModelInfo,
        *,
        image: str = "",
        value_range: Sequence[float] | None = None,
        tile: int = 160,
        margin: int = 26,
        mask: str = "",
        overlay: str = "",
    ) -> None:
        super().__init__(model)
        dimensions = len(model.inputs[0].dims) - 1
        self._nuclei = None if image else load_nuclei(dimensions)
        self._image = _read(image, dimensions, value_range) if self._nuclei is None else self._nuclei.image
        self._tiles = tiles(self._image.shape[1:], tile, margin)
        self.total = len(self._tiles)
        self._answers: list[tuple[Tile, NDArray[np.uint8]]] = []
        self._versions: set[int] = set()
        self._mask, self._overlay = mask, overlay
        self.classes: NDArray[np.uint8] | None = None
        self.iou = float("nan")

    def inputs(self) -> Iterator[dict[str, NDArray[np.uint8]]]:
        (name,) = (spec.name for spec in self.model.inputs)
        for tile in self._tiles:
            yield {name: self._image[:, *tile.source]}

    def decode(self, index: int, outputs: dict[str, Any], version: int) -> None:
        self._answers.append((self._tiles[index], outputs["classes"]))
        self._versions.add(version)

    def finalize(self) -> None:
        missing = len(self._tiles) - len(self._answers)
        if missing:
            print(f"{missing} of {len(self._tiles)} tiles have no answer: nothing is written")
            return
        self.classes = stitch(self._image.shape[1:], self._answers)
        versions = ", ".join(map(str, sorted(self._versions)))
        size = " by ".join(map(str, self.classes.shape))
        print(
            f"{size} pixels, tiles: {len(self._tiles)}, {(self.classes > 0).mean():.1%} of them foreground, "
            f"version {versions}"
        )
        if self._nuclei is not None:
            part = self._nuclei.held_out
            self.iou = foreground_iou(self.classes[part] > 0, self._nuclei.mask[part])
            print(f"IoU of nuclei on the held-out part {self.iou:.3f}")
        if self._mask:
            write_mask(Path(self._mask), self.classes)
            print(f"mask {self._mask}")
        if self._overlay:
            truth = None if self._nuclei is None else self._nuclei.mask
            write_overlay(Path(self._overlay), self._image, self.classes, truth)
            print(f"overlay {self._overlay}")


def _read(path: str, dimensions: int, value_range: Sequence[float] | None) -> NDArray[np.uint8]:
    array = channels_first(open_array(path), dimensions, path)
    if value_range is not None:
        return grey_levels(array, value_range)
    if array.dtype != np.uint8:
        raise DataError(
            f"{path}: expected 8-bit grey values, got {array.dtype}; --io.value-range '[LOW, HIGH]' sets which become 0 and 255"
        )
    return np.asarray(array)
