"""Scikit-learn's diabetes data and its split, in numpy alone, so that clients need no torch to read them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FEATURE_NAMES = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")


class Rows(NamedTuple):
    """Patients.

    Attributes:
        features: float32 [row, 10], in the units they were measured in.
        target: float32 [row, 1], the disease's progression after one year, 25 to 346.
    """

    features: NDArray[np.float32]
    target: NDArray[np.float32]


class Parts(NamedTuple):
    """The three parts of the data, disjoint."""

    train: Rows
    validation: Rows
    held_out: Rows


def load_diabetes_parts(seed: int = 0) -> Parts:
    """266 of the 442 patients for training, 88 for validation, 88 held out, by chance.

    Args:
        seed: seed of the split.

    Raises:
        ModuleNotFoundError: scikit-learn, whose package contains the data, is not installed.
    """
    from sklearn.datasets import load_diabetes

    features, target = load_diabetes(return_X_y=True, scaled=False)
    order = np.random.default_rng(seed).permutation(len(target))
    pieces = np.split(order, [88, 176])
    held_out, validation, train = (
        Rows(features[rows].astype(np.float32), target[rows, None].astype(np.float32)) for rows in pieces
    )
    return Parts(train, validation, held_out)
