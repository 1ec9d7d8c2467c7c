"""Large images in tiles that overlap, and their answers stitched together."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tile:
    """A part of an image, and what of its answer is kept.

    Attributes:
        source: part of the image to send, along each axis.
        kept: kept part of the answer, along each axis of the tile.
        target: place of the kept part in the image.
    """

    source: tuple[slice, ...]
    kept: tuple[slice, ...]
    target: tuple[slice, ...]


def tiles(shape: tuple[int, ...], size: int, margin: int, multiple: int = 4) -> list[Tile]:
    """Tiles that cover an image; each pixel is kept of one tile alone, at least `margin` pixels from its edges.

    The image's own edges are no tile's: there is nothing beyond them to look at. With a margin that is the
    model's reach, and tiles that begin where the model halves the size evenly, the stitched answer is that of
    the whole image.

    Args:
        shape: shape of the image, without channels.
        size: maximum size of a tile along each axis, in pixels.
        margin: pixels at a tile's edges that are not kept.
        multiple: divisor of the tiles' starts, 2 to the power of the U-Net's depth.

    Raises:
        ValueError: nothing would be kept of a tile.
    """
    before = -(-margin // multiple) * multiple  # a tile begins that far before what is kept of it
    step = (size - before - margin) // multiple * multiple
    if step < 1:
        raise ValueError(
            f"tiles: expected a size of {before + margin + multiple} or more for a margin of {margin}, got {size}"
        )
    found = []
    for targets in itertools.product(*(_cuts(length, size, step, margin) for length in shape)):
        sources = [
            slice(max(0, a - before), min(length, b + margin))
            for (a, b), length in zip(targets, shape, strict=True)
        ]
        kept = [slice(a - s.start, b - s.start) for (a, b), s in zip(targets, sources, strict=True)]
        found.append(Tile(tuple(sources), tuple(kept), tuple(slice(a, b) for a, b in targets)))
    return found


def stitch(shape: tuple[int, ...], answers: list[tuple[Tile, NDArray[Any]]]) -> NDArray[Any]:
    """The answers to tiles as one image, of the answers' dtype; 0 where there is none."""
    whole = np.zeros(shape, answers[0][1].dtype if answers else np.uint8)
    for tile, answer in answers:
        whole[tile.target] = answer[tile.kept]
    return whole


def _cuts(length: int, size: int, step: int, margin: int) -> list[tuple[int, int]]:
    """Return begin and end of the kept part along an axis."""
    if length <= size:
        return [(0, length)]
    starts = list(range(0, length, step))
    if len(starts) > 1 and length - starts[-1] <= margin:
        starts.pop()  # the last tile's margin reaches the end
    return list(zip(starts, [*starts[1:], length], strict=True))
