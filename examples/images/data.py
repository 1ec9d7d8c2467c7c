"""Handwritten digits of scikit-learn and of MNIST with their classes, for training."""

import numpy as np

from examples.images.mnist import load_mnist
from unitrain.datamodules.digit_arrays import load_digit_arrays
from unitrain.datamodules.labelled_images import LabelledImages

CLASS_NAMES = [str(digit) for digit in range(10)]


class Digits(LabelledImages):
    """1,797 digits of 8 by 8 pixels with ink from 0 to 16: 1,197 for training, 200 for validation, 400 held out.

    Args:
        batch_size: images per training batch.
        max_shift: maximum shift of a training image along each axis, in pixels.
        max_turn: maximum rotation of a training image, in degrees.
        max_scale: maximum change of a training image's size, as a share of it.
    """

    def __init__(
        self, *, batch_size: int = 64, max_shift: float = 0.5, max_turn: float = 10, max_scale: float = 0.1
    ) -> None:
        parts = [load_digit_arrays(part) for part in ("train", "validation", "held_out")]
        train, validation, test = ((part.images.astype(np.uint8), part.labels) for part in parts)
        super().__init__(
            train,
            validation,
            test,
            class_names=CLASS_NAMES,
            batch_size=batch_size,
            max_shift=max_shift,
            max_turn=max_turn,
            max_scale=max_scale,
        )


class Mnist(LabelledImages):
    """5,000 digits of 28 by 28 pixels with ink from 0 to 255: 3,500 for training, 500 for validation, 1,000 held out.

    Args:
        batch_size: images per training batch.
        max_shift: maximum shift of a training image along each axis, in pixels.
        max_turn: maximum rotation of a training image, in degrees.
        max_scale: maximum change of a training image's size, as a share of it.
    """

    def __init__(
        self, *, batch_size: int = 64, max_shift: float = 2, max_turn: float = 10, max_scale: float = 0.1
    ) -> None:
        train, validation, test = (load_mnist(part) for part in ("train", "validation", "held_out"))
        super().__init__(
            train,
            validation,
            test,
            class_names=CLASS_NAMES,
            batch_size=batch_size,
            max_shift=max_shift,
            max_turn=max_turn,
            max_scale=max_scale,
        )
