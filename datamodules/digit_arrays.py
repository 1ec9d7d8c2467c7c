"""The handwritten digits that ship with scikit-learn, in numpy alone, so that clients need no torch to read them.

1,797 digits of 43 writers, 8 by 8 pixels with ink from 0 to 16, from the UCI Machine Learning Repository
(Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, https://doi.org/10.24432/C50P49; CC BY 4.0).
"""

import gzip
from importlib.resources import files
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

INK = 16.0
SIDE = 8
N_HELD_OUT, N_VALIDATION = 400, 200
Part = Literal["train", "validation", "held_out"]


class LabelledDigits(NamedTuple):
    """Digits with what they stand for.

    Attributes:
        images: float32 [digit, channel = 1, row = 8, column = 8], ink from 0 to 16.
        labels: int64 [digit], 0 to 9.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]


def load_digit_arrays(part: Part) -> LabelledDigits:
    """The digits of a part: 400 are held out, 200 for validation, 1,197 for training; the same ones each time.

    Raises:
        ModuleNotFoundError: scikit-learn, whose package contains the data, is not installed.
    """
    # scikit-learn's own loader gives the same arrays, but takes a second to import.
    packed = files("sklearn") / "datasets" / "data" / "digits.csv.gz"
    with packed.open("rb") as raw, gzip.open(raw) as text:
        rows = np.loadtxt(text, delimiter=",", dtype=np.float32)
    order = np.random.default_rng(0).permutation(len(rows))
    cuts = np.split(rows[order], [N_HELD_OUT, N_HELD_OUT + N_VALIDATION])
    chosen = dict(zip(("held_out", "validation", "train"), cuts, strict=True))[part]
    return LabelledDigits(chosen[:, :-1].reshape(-1, 1, SIDE, SIDE), chosen[:, -1].astype(np.int64))
