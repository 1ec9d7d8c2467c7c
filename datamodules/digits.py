"""scikit-learn's handwritten digits with their classes."""

import numpy as np

from datamodules.digit_arrays import load_digit_arrays
from datamodules.labelled_images import LabelledImages


class Digits(LabelledImages):
    """1,797 digits of 8 by 8 pixels with ink from 0 to 16: 1,197 for training, 200 for validation, 400 held out.

    Args:
        batch_size: images a training batch.
        max_shift: of a training image along each axis at most, in pixels.
        max_turn: of it at most, in degrees.
        max_scale: share by which it is made larger or smaller at most.
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
            class_names=[str(digit) for digit in range(10)],
            batch_size=batch_size,
            max_shift=max_shift,
            max_turn=max_turn,
            max_scale=max_scale,
        )
