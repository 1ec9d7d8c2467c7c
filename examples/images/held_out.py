"""The held-out digits of either data set, and figures of how a classifier answers them; numpy alone."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from examples.images.mnist import load_mnist
from unitrain.datamodules.digit_arrays import load_digit_arrays

Data = Literal["digits", "mnist"]
Part = Literal["train", "validation", "held_out"]
Floats = NDArray[Any]


def load_part(data: Data, part: Part = "held_out") -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(images, uint8 [digit, channel = 1, height, width]; labels, int64 [digit]) of a part of a data set.

    Raises:
        ValueError: there is no such data set.
    """
    if data == "digits":
        images, labels = load_digit_arrays(part)
        return images.astype(np.uint8), labels
    if data == "mnist":
        return load_mnist(part)
    raise ValueError(f"data: expected digits or mnist, got {data}")


def softmax(logits: Floats) -> Floats:
    """Probabilities [row, class] of logits [row, class]."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probabilities: Floats = shifted / shifted.sum(1, keepdims=True)
    return probabilities


def expected_calibration_error(probabilities: Floats, labels: NDArray[np.int64], n_bins: int = 15) -> float:
    """Return the distance of confidence from accuracy, the mean over bins of equal width, weighted by their samples.

    Guo et al. 2017, https://arxiv.org/abs/1706.04599.

    Args:
        probabilities: [row, class].
        labels: [row], each a class.
        n_bins: bins of the confidence, from 0 to 1.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.clip(np.ceil(confidence * n_bins).astype(np.int64) - 1, 0, n_bins - 1)
    gaps = np.bincount(place, right - confidence, n_bins)
    return float(np.abs(gaps).sum() / len(labels))


def log_loss(probabilities: Floats, labels: NDArray[np.int64]) -> float:
    """The mean of -log of the probability that the true class was given, in nats."""
    given = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(given, 1e-12)).mean())
