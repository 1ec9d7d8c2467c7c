"""Nuclei under the microscope, in patches."""

from collections.abc import Sequence
from typing import Literal

from examples.segmentation.nuclei import (
    CLASS_NAMES,
    GAP,
    SPLIT_AXIS,
    TEST_SHARE,
    VALIDATION_SHARE,
    VALUE_RANGE,
    nuclei_paths,
)
from unitrain.datamodules.image_masks import ImageMasks


class NucleiPatches(ImageMasks):
    """Patches of one image, or one volume, of nuclei; cut by space, so that no test pixel is trained on.

    Args:
        dimensions: 2 for the image, 3 for the volume.
        patch_shape: pixels along each axis, or one number for all.
        patches: training patches an epoch.
        batch_size: patches a batch.
        gain: standard deviation of the logarithm of a training patch's amplification; 0: off.
    """

    def __init__(
        self,
        *,
        dimensions: Literal[2, 3] = 2,
        patch_shape: int | Sequence[int] = 64,
        patches: int = 512,
        batch_size: int = 16,
        gain: float = 0.2,
    ) -> None:
        image, mask = nuclei_paths(dimensions)
        super().__init__(
            str(image),
            str(mask),
            class_names=CLASS_NAMES,
            dimensions=dimensions,
            patch_shape=patch_shape,
            patches=patches,
            batch_size=batch_size,
            instances=True,
            value_range=VALUE_RANGE[dimensions],
            split="space",
            split_axis=SPLIT_AXIS[dimensions],
            validation_share=VALIDATION_SHARE,
            test_share=TEST_SHARE,
            gap=GAP[dimensions],
            gain=gain,
        )
