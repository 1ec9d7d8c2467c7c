"""The BasicMotions signals as they ship with aeon, in numpy alone, so that clients need no torch to read them.

Four students performed four activities wearing a smart watch; each signal is ten seconds of its 3D
accelerometer and 3D gyroscope at 10 Hz. 40 signals are for training and 40 are held out, ten of each
class in both. See https://www.timeseriesclassification.com/description.php?Dataset=BasicMotions.
"""

from importlib.resources import files
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

CLASS_NAMES = ("Badminton", "Running", "Standing", "Walking")
N_CHANNELS, N_STEPS = 6, 100


class LabelledSignals(NamedTuple):
    """Signals with their classes.

    Attributes:
        signals: float32 [signal, channel = 6, step = 100], in the sensors' units.
        labels: int64 [signal], places in `CLASS_NAMES`.
    """

    signals: NDArray[np.float32]
    labels: NDArray[np.int64]


def load_basic_motions(part: Literal["TRAIN", "TEST"]) -> LabelledSignals:
    """The 40 signals of a part, in the file's order.

    Raises:
        ModuleNotFoundError: aeon, whose package contains the data, is not installed.
    """
    # aeon's own loader gives the same arrays but takes seconds to import (numba, scikit-learn, pandas).
    path = files("aeon") / "datasets" / "data" / "BasicMotions" / f"BasicMotions_{part}.ts"
    _, _, body = path.read_text(encoding="utf-8").partition("@data")
    signals, labels = [], []
    for line in body.split():
        *channels, name = line.split(":")
        signals.append([[float(value) for value in channel.split(",")] for channel in channels])
        labels.append(CLASS_NAMES.index(name.capitalize()))
    return LabelledSignals(np.array(signals, np.float32), np.array(labels, np.int64))
