"""Patches of images with masks in folders, for segmentation in two or three dimensions."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pytorch_lightning import LightningDataModule

from unitrain.datamodules.image_files import Pair, find_pairs
from unitrain.datamodules.image_patches import (
    PARTS,
    Augmentation,
    BalancedPatches,
    GridPatches,
    MaskedImages,
    Part,
    Region,
    blocks,
    space_parts,
)
from unitrain.errors import DataError, HookError
from unitrain.loaders import DatasetLoader

_MOST_CLASSES = 256
_STATISTICS_PATCHES = 256


class ImageMasks(LightningDataModule):
    """Patches of the images of a folder, with the classes of their pixels from a folder of masks.

    A mask has its image's stem. Files are .png, .tif or .npy, [height, width] or [depth, height, width], images
    with colours last if they have some. `.npy` and uncompressed TIFF are mapped into memory, so they may be larger.

    Training patches are drawn at random, as many of each class; validation and test are covered side by side.
    Batches are mappings of `image`, uint8 (of 8-bit files, or with `value_range`) or float32 [batch, channel,
    (depth,) height, width], and `mask`, uint8 [batch, (depth,) height, width], a place in `class_names` each.

    Args:
        images: folder of the images, or one image.
        masks: folder of their masks, or that image's mask.
        class_names: names of the classes in order; the first one is the background.
        dimensions: 2 for images, 3 for volumes.
        patch_shape: pixels along each axis, or one number for all.
        patches: training patches an epoch.
        batch_size: patches a batch.
        instances: masks number the things in the image: each above 0 is of class 1.
        value_range: grey values that become 0 and 255; needed for files of more than 8 bit that are to be served
            as uint8; None: values stay as they are.
        split: `files` gives whole files to training, validation and test, drawn by `seed`; `space` cuts each
            file along `split_axis`: its beginning is for training, its end for the test.
        split_axis: axis of the split by `space`; 0 is the first of (depth,) height, width.
        validation_share: share of the files or of the axis.
        test_share: share of the files or of the axis for the test; 0: no test.
        gap: pixels between the parts of a file that are for none of them.
        flips: mirror training patches, and exchange height and width, each by chance.
        gain: standard deviation of the logarithm of a training patch's amplification; 0: off.
        num_workers: processes that read; 0: this one.
        kept_bytes: maximum size of cached decoded files (PNG, compressed TIFF) per process.
        seed: seed of the files' split.

    Raises:
        DataError: a file can't be read, has another shape than its mask, or holds what is no class; a mask is
            missing; a part would be empty, or a class not be in training.
        HookError: an argument is out of range.
    """

    def __init__(
        self,
        images: str,
        masks: str,
        *,
        class_names: Sequence[str] = ("background", "foreground"),
        dimensions: Literal[2, 3] = 2,
        patch_shape: int | Sequence[int] = 64,
        patches: int = 512,
        batch_size: int = 16,
        instances: bool = False,
        value_range: tuple[float, float] | None = None,
        split: Literal["files", "space"] = "files",
        split_axis: int = 0,
        validation_share: float = 0.2,
        test_share: float = 0.0,
        gap: int = 0,
        flips: bool = True,
        gain: float = 0.0,
        num_workers: int = 0,
        kept_bytes: int = 1 << 30,
        seed: int = 0,
    ) -> None:
        super().__init__()
        shape = [patch_shape] * dimensions if isinstance(patch_shape, int) else list(patch_shape)
        _check_shape(shape, dimensions, split_axis)
        _check_values(class_names, validation_share, test_share, value_range)
        self.class_names = list(class_names)
        self.dimensions = dimensions
        self.patch_shape = shape
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.images = MaskedImages(
            find_pairs(images, masks),
            dimensions=dimensions,
            n_classes=len(self.class_names),
            instances=instances,
            value_range=value_range,
            kept_bytes=kept_bytes,
        )
        if split == "space":
            self.regions = _cut(self.images.shapes, split_axis, validation_share, test_share, gap)
        else:
            self.regions = _dealt(self.images, validation_share, test_share, seed)
        self._check_parts(test_share)
        self._check_masks("validation")
        self._check_masks("test")
        self.train = BalancedPatches(
            self.images,
            self.regions["train"],
            patch_shape=shape,
            n_patches=patches,
            augmentation=Augmentation(flips, gain),
        )
        self.channel_means, self.channel_stds = self._statistics()

    @property
    def n_channels(self) -> int:
        """Number of channels of an image."""
        return self.images.n_channels

    def pairs_of(self, part: Part) -> list[Pair]:
        """Return the files of a part."""
        return [self.images.pairs[region.image] for region in self.regions[part]]

    def train_dataloader(self) -> DatasetLoader:
        return DatasetLoader(self.train, batch_size=self.batch_size, num_workers=self.num_workers)

    def val_dataloader(self) -> DatasetLoader:
        return self._covering("validation")

    def test_dataloader(self) -> DatasetLoader:
        return self._covering("test")

    def _covering(self, part: Part) -> DatasetLoader:
        if not self.regions[part]:
            raise HookError(
                f"{type(self).__name__}: there is no {part} part; give {part}_share a value above 0"
            )
        patches = GridPatches(self.images, self.regions[part], self.patch_shape)
        return DatasetLoader(patches, batch_size=self.batch_size, num_workers=self.num_workers)

    def _check_parts(self, test_share: float) -> None:
        needed: list[Part] = ["train", "validation", *(["test"] if test_share else [])]  # type: ignore[list-item]
        for part in needed:
            if not self.regions[part]:
                raise DataError(
                    f"{self.images.pairs[0].image.parent}: nothing would be left for {part}; got {len(self.images.pairs)} "
                    "files: change the shares or the gap"
                )

    def _check_masks(self, part: Part) -> None:
        """Find invalid classes now rather than after an epoch; the training part's masks are counted anyway."""
        for region in self.regions[part]:
            for block in blocks(region, self.patch_shape):
                self.images.mask(block)

    def _statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over patches spread evenly over the training part."""
        grid = GridPatches(self.images, self.regions["train"], self.patch_shape).patches
        step = -(-len(grid) // _STATISTICS_PATCHES)
        sums = np.zeros((2, self.n_channels))
        for patch in grid[::step]:
            values = self.images.image(patch).reshape(self.n_channels, -1).astype(np.float64)
            sums += values.mean(1), np.square(values).mean(1)
        mean, square = sums / len(grid[::step])
        std = np.sqrt(np.maximum(square - mean**2, 0))
        if not std.all():
            raise DataError(
                f"{self.images.pairs[0].image.parent}: channel {int(std.argmin())} of the training images has one value only; "
                "leave it out of the files (a fourth one is opacity)"
            )
        return [float(v) for v in mean], [float(v) for v in std]


def _cut(
    shapes: Sequence[Sequence[int]], axis: int, validation_share: float, test_share: float, gap: int
) -> dict[Part, list[Region]]:
    """The parts of each image along an axis."""
    regions: dict[Part, list[Region]] = {part: [] for part in PARTS}
    for number, shape in enumerate(shapes):
        for part, (first, last) in space_parts(shape[axis], validation_share, test_share, gap).items():
            if first < last:
                start, stop = [0] * len(shape), list(shape)
                start[axis], stop[axis] = first, last
                regions[part].append(Region(number, tuple(start), tuple(stop)))
    return regions


def _dealt(
    images: MaskedImages, validation_share: float, test_share: float, seed: int
) -> dict[Part, list[Region]]:
    """Whole files for each part."""
    order = np.random.default_rng(seed).permutation(len(images.pairs)).tolist()
    whole = [Region(i, (0,) * len(shape), tuple(shape)) for i, shape in enumerate(images.shapes)]
    parts = space_parts(len(order), validation_share, test_share)
    return {part: [whole[i] for i in sorted(order[a:b])] for part, (a, b) in parts.items()}


def _check_shape(patch_shape: Sequence[int], dimensions: int, split_axis: int) -> None:
    if dimensions not in {2, 3}:
        raise HookError(f"ImageMasks: expected dimensions to be 2 or 3, got {dimensions}")
    if len(patch_shape) != dimensions or min(patch_shape) < 1:
        raise HookError(
            f"ImageMasks: expected a patch_shape of {dimensions} lengths, got {list(patch_shape)}"
        )
    if not 0 <= split_axis < dimensions:
        raise HookError(f"ImageMasks: expected a split_axis from 0 to {dimensions - 1}, got {split_axis}")


def _check_values(
    class_names: Sequence[str],
    validation_share: float,
    test_share: float,
    value_range: Sequence[float] | None,
) -> None:
    if not 1 < len(class_names) <= _MOST_CLASSES:
        raise HookError(f"ImageMasks: expected 2 to {_MOST_CLASSES} class_names, got {len(class_names)}")
    if min(validation_share, test_share) < 0 or validation_share + test_share >= 1:
        raise HookError(
            f"ImageMasks: expected validation_share and test_share that leave something for training, got "
            f"{validation_share} and {test_share}"
        )
    if value_range is not None and value_range[0] >= value_range[1]:
        raise HookError(f"ImageMasks: expected a value_range that ascends, got {list(value_range)}")
