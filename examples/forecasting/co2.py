"""The weekly carbon dioxide of Mauna Loa and its windows, in numpy alone, so that clients need no torch.

In parts per million by volume (ppmv), Saturdays from March 1958 to December 2001, by C. D. Keeling and T. P.
Whorf; it ships with statsmodels and is in the public domain.
"""

from importlib.resources import files
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PERIOD = 52
"""Weeks of a year, as forecasting counts them."""
FIRST_VALIDATION, FIRST_HELD_OUT = np.datetime64("1985-01-01"), np.datetime64("1990-01-01")
_WEEK = np.timedelta64(7, "D")
_YEAR_D = 365.2425


class Series(NamedTuple):
    """A value a week, without gaps.

    Attributes:
        dates: datetime64[D] [week].
        values: float64 [week], in ppmv.
    """

    dates: NDArray[np.datetime64]
    values: NDArray[np.float64]


class Windows(NamedTuple):
    """Pasts with what came after.

    Attributes:
        series: float32 [window, 1, n_past], in ppmv.
        calendar: float32 [window, 2, n_past + horizon], sine and cosine of the time of year of past and future.
        future: float32 [window, horizon], in ppmv.
        origins: int64 [window], the week that the future begins with, a place in the series.
    """

    series: NDArray[np.float32]
    calendar: NDArray[np.float32]
    future: NDArray[np.float32]
    origins: NDArray[np.int64]


def load_co2() -> Series:
    """The 2284 weeks; the 59 that were not measured are interpolated linearly.

    Raises:
        ModuleNotFoundError: statsmodels, whose package contains the data, is not installed.
    """
    # The file is read by itself: statsmodels takes seconds to import.
    text = (files("statsmodels") / "datasets" / "co2" / "co2.csv").read_text(encoding="utf-8")
    rows = [line.split(",") for line in text.split()[1:]]
    dates = np.array(
        [f"{d[:4]}-{d[4:6]}-{d[6:]}" for d in (row[0].strip('"') for row in rows)], "datetime64[D]"
    )
    values = np.array([float(row[1] or "nan") for row in rows])
    weeks = np.arange(dates[0], dates[-1] + _WEEK, _WEEK)
    known = np.isfinite(values)
    days = [array.astype(np.float64) for array in (weeks, dates[known])]
    return Series(weeks, np.interp(days[0], days[1], values[known]))


def calendar(dates: NDArray[np.datetime64]) -> NDArray[np.float32]:
    """Sine and cosine of the time of year, float32 [2, date]."""
    days = (dates - dates.astype("datetime64[Y]").astype("datetime64[D]")).astype(np.float64)
    angle = 2 * np.pi * days / _YEAR_D
    return np.stack([np.sin(angle), np.cos(angle)]).astype(np.float32)


def windows(series: Series, origins: NDArray[np.int64], n_past: int, horizon: int) -> Windows:
    """The windows whose futures begin at given weeks."""
    past = origins[:, None] + np.arange(-n_past, 0)
    future = origins[:, None] + np.arange(horizon)
    times = calendar(series.dates)
    return Windows(
        series.values[past][:, None].astype(np.float32),
        np.moveaxis(times[:, np.concatenate([past, future], axis=1)], 0, 1).copy(),
        series.values[future].astype(np.float32),
        origins,
    )


def split_origins(
    series: Series, n_past: int, horizon: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the starts of the futures for training, validation and held out: no future reaches into the next part's.

    Training has every week until 1985, validation every week from 1985 to 1990, held out every fourth week after.
    """
    first_validation, first_held_out = (
        int(np.searchsorted(series.dates, date)) for date in (FIRST_VALIDATION, FIRST_HELD_OUT)
    )
    return (
        np.arange(n_past, first_validation - horizon + 1),
        np.arange(first_validation, first_held_out - horizon + 1),
        np.arange(first_held_out, len(series.values) - horizon + 1, 4),
    )
