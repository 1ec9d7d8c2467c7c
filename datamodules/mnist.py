"""5,000 handwritten digits of MNIST with their classes."""

from datamodules.labelled_images import LabelledImages
from datamodules.mnist_arrays import load_mnist


class Mnist(LabelledImages):
    """5,000 digits of 28 by 28 pixels with ink from 0 to 255: 3,500 for training, 500 for validation, 1,000 held out.

    Args:
        batch_size: images a training batch.
        max_shift: of a training image along each axis at most, in pixels.
        max_turn: of it at most, in degrees.
        max_scale: share by which it is made larger or smaller at most.
    """

    def __init__(
        self, *, batch_size: int = 64, max_shift: float = 2, max_turn: float = 10, max_scale: float = 0.1
    ) -> None:
        train, validation, test = (load_mnist(part) for part in ("train", "validation", "held_out"))
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
