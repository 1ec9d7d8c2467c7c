"""Nuclei under the microscope, an image and a volume, that ship with stardist; numpy alone.

The image is one of the Data Science Bowl 2018 (Caicedo et al. 2019, https://doi.org/10.1038/s41592-019-0612-7;
BBBC038), fluorescence, 512 by 512 pixels with 125 nuclei. The volume has 31 by 61 by 57 voxels and 51 nuclei; by
stardist's own words they are synthetic. The package is under BSD-3-Clause; it is not imported, which would take TensorFlow.
"""

from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unitrain.datamodules.image_files import grey_levels, open_array
from unitrain.datamodules.image_patches import space_parts

SPLIT_AXIS = {2: 0, 3: 2}
"""By dimensions, the axis that is cut into training, validation and test."""
VALIDATION_SHARE, TEST_SHARE = 0.15, 0.25
GAP = {2: 8, 3: 2}
"""Pixels between the parts that are for none."""
VALUE_RANGE = {2: (0, 255), 3: (100, 355)}
"""Grey values that become 0 and 255: no value is rounded, and few are clipped."""
CLASS_NAMES = ("background", "nucleus")


class Nuclei(NamedTuple):
    """An image and what is a nucleus in it.

    Attributes:
        image: uint8 [channel = 1, (depth,) height, width].
        mask: bool [(depth,) height, width].
        held_out: the part of the mask that is for the test alone.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    held_out: tuple[slice, ...]


def nuclei_paths(dimensions: int) -> tuple[Path, Path]:
    """(image, mask) of the two-dimensional or the three-dimensional nuclei.

    Raises:
        ModuleNotFoundError: stardist is not installed.
    """
    folder = Path(str(files("stardist"))) / "data" / "images"
    return folder / f"img{dimensions}d.tif", folder / f"mask{dimensions}d.tif"


def load_nuclei(dimensions: int) -> Nuclei:
    """The nuclei in two or three dimensions.

    Raises:
        ModuleNotFoundError: stardist is not installed.
    """
    image, mask = (open_array(path) for path in nuclei_paths(dimensions))
    return Nuclei(
        grey_levels(image, VALUE_RANGE[dimensions])[None], np.asarray(mask) > 0, held_out(mask.shape)
    )


def held_out(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The part of an image of that shape that is for the test alone."""
    axis = SPLIT_AXIS[len(shape)]
    parts = space_parts(shape[axis], VALIDATION_SHARE, TEST_SHARE, GAP[len(shape)])
    return tuple(slice(*parts["test"]) if i == axis else slice(0, n) for i, n in enumerate(shape))
