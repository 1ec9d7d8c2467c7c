"""Patches of images with masks: allowed regions and balanced classes; numpy alone."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unitrain.datamodules.image_files import OpenFiles, Pair, channels_first, grey_levels
from unitrain.errors import DataError

Array = NDArray[Any]
Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")


class Region(NamedTuple):
    """A box in one of several images: from `start` to `stop`, exclusive, along each axis."""

    image: int
    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels along each axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))


def space_parts(
    extent: int, validation_share: float, test_share: float, gap: int = 0
) -> dict[Part, tuple[int, int]]:
    """Return begin and end of each part along an axis: training, validation, test, with `gap` unused pixels between.

    An empty part's begin is its end.
    """
    test_start = extent - round(extent * test_share)
    validation_start = test_start - round(extent * validation_share)
    validation_stop = max(validation_start, test_start - gap) if test_start < extent else extent
    train_stop = max(0, validation_start - gap) if validation_start < extent else extent
    return {
        "train": (0, train_stop),
        "validation": (validation_start, validation_stop),
        "test": (test_start, extent),
    }


class MaskedImages:
    """Images with a class for every pixel, in files, read where they are looked at.

    Args:
        pairs: the files.
        dimensions: 2 or 3.
        n_classes: number of classes in the masks, from 0.
        instances: masks number the things in the image: each above 0 is of class 1.
        value_range: grey values that become 0 and 255; None: as they are.
        kept_bytes: maximum size of cached decoded files.

    Attributes:
        shapes: of each image, without channels.
        n_channels: of every image.

    Raises:
        DataError: a file can't be read, a mask is not as large as its image or holds no integers, or images
            differ in their channels.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        dimensions: int,
        n_classes: int,
        instances: bool,
        value_range: Sequence[float] | None,
        kept_bytes: int,
    ) -> None:
        self.pairs = list(pairs)
        self.dimensions = dimensions
        self.n_classes = n_classes
        self.instances = instances
        self.value_range = value_range
        self._files = OpenFiles(kept_bytes)
        shapes = [self._checked_shape(pair) for pair in self.pairs]
        self.shapes = [shape[1:] for shape in shapes]
        self.n_channels = shapes[0][0]
        for pair, (n_channels, *_) in zip(self.pairs, shapes, strict=True):
            if n_channels != self.n_channels:
                raise DataError(
                    f"{pair.image}: expected {self.n_channels} channels as in {self.pairs[0].image.name}, got {n_channels}"
                )

    def image(self, region: Region) -> Array:
        """[channel, (depth,) height, width]: uint8 with a value range or of 8-bit files, else float32."""
        path = self.pairs[region.image].image
        array = self._image(path)[:, *_box(region)]
        if self.value_range is not None:
            return grey_levels(array, self.value_range)
        return np.array(array, np.uint8 if array.dtype == np.uint8 else np.float32)

    def mask(self, region: Region) -> NDArray[np.uint8]:
        """The classes, uint8 [(depth,) height, width].

        Raises:
            DataError: there is a value that is no class.
        """
        path = self.pairs[region.image].mask
        array = self._files.get(path, indices=True)[_box(region)]
        if self.instances:
            return (array > 0).astype(np.uint8)
        wrong = (array < 0) | (array >= self.n_classes)
        if wrong.any():
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            at = [i + first for i, first in zip(place, region.start, strict=True)]
            raise DataError(
                f"{path}: expected classes from 0 to {self.n_classes - 1}, got {array[place]} at {at}; name more "
                "classes, or set `instances: true`"
            )
        return array.astype(np.uint8)

    def _image(self, path: Path) -> Array:
        return channels_first(self._files.get(path), self.dimensions, path)

    def _checked_shape(self, pair: Pair) -> tuple[int, ...]:
        image = self._image(pair.image)
        mask = self._files.get(pair.mask, indices=True)
        if image.dtype != self._image(self.pairs[0].image).dtype and self.value_range is None:
            raise DataError(
                f"{pair.image}: expected {self._image(self.pairs[0].image).dtype} as in {self.pairs[0].image.name}, got "
                f"{image.dtype}; a value_range brings them to one scale"
            )
        if mask.shape != image.shape[1:]:
            raise DataError(
                f"{pair.mask}: expected the shape {list(image.shape[1:])} of {pair.image.name}, got {list(mask.shape)}"
            )
        if mask.dtype.kind not in "bui":
            raise DataError(f"{pair.mask}: expected integers, got {mask.dtype}")
        return image.shape


@dataclass(frozen=True)
class Augmentation:
    """New patches from known ones.

    Attributes:
        flips: mirror along each axis, and exchange height and width, each by chance.
        gain: standard deviation of the logarithm of a patch's amplification; 0: off.
    """

    flips: bool
    gain: float

    def __call__(self, image: Array, mask: Array, generator: np.random.Generator) -> tuple[Array, Array]:
        """Return (image, mask) changed, of the same shapes and dtypes."""
        if self.flips:
            axes = tuple(-1 - axis for axis in range(mask.ndim) if generator.random() < 1 / 2)
            image, mask = np.flip(image, axes), np.flip(mask, axes)
            if mask.shape[-1] == mask.shape[-2] and generator.random() < 1 / 2:
                image, mask = image.swapaxes(-1, -2), mask.swapaxes(-1, -2)
        if self.gain:
            louder = image * np.float32(np.exp(self.gain * generator.standard_normal()))
            image = np.clip(np.rint(louder), 0, 255).astype(np.uint8) if image.dtype == np.uint8 else louder
        return np.ascontiguousarray(image), np.ascontiguousarray(mask)


class BalancedPatches:
    """A data set of patches drawn at random, each class in turn in the next one: balanced however rare it is.

    Which classes are where is counted once, in blocks of half a patch, so that the masks need not be in memory.
    Sample i has a pixel of class i modulo the number of classes; the loader's seed chooses it.

    Args:
        images: source of the patches.
        regions: allowed regions of the patches.
        patch_shape: pixels along each axis.
        n_patches: the data set's length.
        augmentation: random change of each patch.

    Raises:
        DataError: a region is smaller than a patch, or a class is nowhere in them.
    """

    def __init__(
        self,
        images: MaskedImages,
        regions: Sequence[Region],
        *,
        patch_shape: Sequence[int],
        n_patches: int,
        augmentation: Augmentation,
    ) -> None:
        self.images = images
        self.patch_shape = tuple(patch_shape)
        self.n_patches = n_patches
        self.augmentation = augmentation
        for region in regions:
            if any(n < p for n, p in zip(region.shape, self.patch_shape, strict=True)):
                raise DataError(
                    f"{images.pairs[region.image].image}: its training part is of {list(region.shape)} pixels, which is "
                    f"smaller than a patch of {list(self.patch_shape)}; make patch_shape smaller"
                )
        self._regions = list(regions)
        edges = [max(1, p // 2) for p in self.patch_shape]
        self._blocks = [(r, block) for r, region in enumerate(regions) for block in blocks(region, edges)]
        counts = np.array([self._count(block) for _, block in self._blocks])
        for label, n in enumerate(counts.sum(0)):
            if not n:
                raise DataError(
                    f"{images.pairs[regions[0].image].mask.parent}: no training pixel is of class {label}; training could "
                    "not be balanced"
                )
        self._cumulative = counts.cumsum(0)

    def __len__(self) -> int:
        return self.n_patches

    def __getitem__(self, index: int) -> dict[str, Array]:
        # The loader seeds numpy's global generator for each batch, in worker processes too.
        generator = np.random.default_rng(np.random.randint(2**31, size=4))  # noqa: NPY002 - see above
        cumulative = self._cumulative[:, index % self.images.n_classes]
        place = int(np.searchsorted(cumulative, generator.integers(cumulative[-1]), side="right"))
        number, block = self._blocks[place]
        region = self._regions[number]
        # A patch that holds the whole block holds its pixels of the class.
        start = tuple(
            int(generator.integers(max(first, above - p), min(below, last - p) + 1))
            for first, last, below, above, p in zip(
                region.start, region.stop, block.start, block.stop, self.patch_shape, strict=True
            )
        )
        stop = tuple(a + p for a, p in zip(start, self.patch_shape, strict=True))
        patch = Region(region.image, start, stop)
        image, mask = self.augmentation(self.images.image(patch), self.images.mask(patch), generator)
        return {"image": image, "mask": mask}

    def _count(self, block: Region) -> NDArray[np.int64]:
        return np.bincount(self.images.mask(block).reshape(-1), minlength=self.images.n_classes)


class GridPatches:
    """A data set of patches that cover regions, side by side; the last along an axis may overlap the one before.

    Args:
        images: source of the patches.
        regions: regions to cover.
        patch_shape: maximum pixels along each axis; fewer where a region has fewer.
    """

    def __init__(self, images: MaskedImages, regions: Sequence[Region], patch_shape: Sequence[int]) -> None:
        self.images = images
        smallest = [min(lengths) for lengths in zip(*(region.shape for region in regions), strict=True)]
        shape = [min(p, n) for p, n in zip(patch_shape, smallest, strict=True)]
        self.patches = [
            Region(block.image, start, block.stop)
            for region in regions
            for block in blocks(region, shape)
            for start in [tuple(stop - n for stop, n in zip(block.stop, shape, strict=True))]
        ]

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> dict[str, Array]:
        patch = self.patches[index]
        return {"image": self.images.image(patch), "mask": self.images.mask(patch)}


def blocks(region: Region, edges: Sequence[int]) -> list[Region]:
    """A region in blocks of `edges` pixels; the last ones along an axis are what is left."""
    starts = [range(a, b, edge) for a, b, edge in zip(region.start, region.stop, edges, strict=True)]
    return [
        Region(
            region.image,
            start,
            tuple(min(a + e, b) for a, e, b in zip(start, edges, region.stop, strict=True)),
        )
        for start in itertools.product(*starts)
    ]


def _box(region: Region) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(region.start, region.stop, strict=True))
