"""Otsu's threshold on the held-out part of the nuclei, by scikit-image: `python -m examples.segmentation.reference`."""

import numpy as np
from numpy.typing import NDArray
from skimage.filters import gaussian, threshold_otsu

from examples.segmentation.nuclei import load_nuclei
from examples.segmentation.scores import foreground_iou

_SIGMA = 1.0


def otsu(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the pixels that are brighter than the threshold of the image."""
    bright: NDArray[np.bool_] = image > threshold_otsu(image)
    return bright


def smoothed_otsu(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The same of the image smoothed by a Gaussian of 1 pixel."""
    return otsu(gaussian(image, _SIGMA, preserve_range=True))


def main() -> None:
    """Print the intersection over union of each, in two and three dimensions."""
    print("IoU of nuclei on the held-out part")
    for dimensions in (2, 3):
        nuclei = load_nuclei(dimensions)
        image, part = nuclei.image[0], nuclei.held_out
        for name, method in (("Otsu", otsu), ("Gaussian, then Otsu", smoothed_otsu)):
            iou = foreground_iou(method(image)[part], nuclei.mask[part])
            print(f"{dimensions}D  {name:<20} {iou:.3f}")


if __name__ == "__main__":
    main()
