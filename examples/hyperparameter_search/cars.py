"""Cars and their fuel consumption, as they ship with mlxtend, in numpy alone, so that clients need no torch to read them.

392 cars of 1970 to 1982 (Quinlan 1993, Auto MPG, UCI Machine Learning Repository,
https://doi.org/10.24432/C5859H; CC BY 4.0).
"""

import csv
import gzip
from importlib.resources import files
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

FEATURES = (
    "cylinders", "displacement", "horsepower", "weight", "acceleration", "model_year",
    "from_usa", "from_europe", "from_japan",
)  # fmt: skip
"""In the file's units: cubic inches, pounds, seconds to 60 miles an hour, years since 1900; the last three are 0 or 1."""
N_HELD_OUT, N_VALIDATION = 80, 80
Part = Literal["train", "validation", "held_out"]


class Cars(NamedTuple):
    """Cars with what they consume.

    Attributes:
        features: float32 [car, feature], in the order of `FEATURES`.
        miles_per_gallon: float32 [car, 1].
    """

    features: NDArray[np.float32]
    miles_per_gallon: NDArray[np.float32]


def load_cars(part: Part) -> Cars:
    """The cars of a part: 80 are held out, 80 for validation, 232 for training; the same ones each time.

    Raises:
        ModuleNotFoundError: mlxtend, whose package contains the data, is not installed.
    """
    packed = files("mlxtend") / "data" / "data" / "autompg.csv.gz"
    with packed.open("rb") as raw, gzip.open(raw, "rt", encoding="utf-8") as text:
        # The seventh column is the car's origin by number, the eighth its name.
        table = [
            [*row[:6], *(str(int(row[6] == origin)) for origin in "123"), row[8]] for row in csv.reader(text)
        ]
    rows = np.array(table, np.float32)
    order = np.random.default_rng(0).permutation(len(rows))
    cuts = np.split(rows[order], [N_HELD_OUT, N_HELD_OUT + N_VALIDATION])
    chosen = dict(zip(("held_out", "validation", "train"), cuts, strict=True))[part]
    return Cars(chosen[:, :-1], chosen[:, -1:])
