"""Forecasts that no network made, on the held-out windows: seasonal naive and exponential smoothing."""

import sys
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.forecasting.co2 import FIRST_HELD_OUT, PERIOD, Series, load_co2, split_origins, windows

Floats = NDArray[np.float64]
SMOOTHING = (0.05, 0.01, 0.5)
"""Of level, trend and season: what `python -m examples.forecasting.reference --search` finds."""


def seasonal_naive(series: Series, origins: NDArray[np.int64], horizon: int) -> Floats:
    """The values of a year before, [window, horizon]."""
    weeks = np.arange(horizon) % PERIOD - PERIOD
    return series.values[origins[:, None] + weeks]


def seasonal_naive_with_drift(series: Series, origins: NDArray[np.int64], horizon: int) -> Floats:
    """The values of a year before, risen as much as the last known value has in a year, [window, horizon]."""
    rise = series.values[origins - 1] - series.values[origins - 1 - PERIOD]
    return seasonal_naive(series, origins, horizon) + rise[:, None]


def exponential_smoothing(series: Series, origins: NDArray[np.int64], horizon: int) -> Floats:
    """Holt and Winters' forecasts by statsmodels, additive trend and season, [window, horizon].

    Its smoothing is the one of `SMOOTHING`; every forecast starts from the level, trend and season of all weeks
    before it.
    """
    return _smoothed(series, origins, horizon, SMOOTHING)


def fitted_exponential_smoothing(series: Series, origins: NDArray[np.int64], horizon: int) -> Floats:
    """The same with the smoothing that statsmodels itself fits: the best for one week ahead, before 1990."""
    fitted = _model(known_values(series)).fit().params
    names = ("smoothing_level", "smoothing_trend", "smoothing_seasonal")
    return _smoothed(series, origins, horizon, tuple(fitted[name] for name in names))


def search_smoothing(series: Series, n_past: int, horizon: int) -> tuple[float, ...]:
    """The smoothing of a grid that has the least RMSE on the validation windows, by which the network is chosen too."""
    origins = split_origins(series, n_past, horizon)[1]
    future = series.values[origins[:, None] + np.arange(horizon)]
    grid = product(
        (0.02, 0.05, 0.1, 0.2, 0.4), (0.001, 0.003, 0.01, 0.03, 0.1), (0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
    )
    return min(grid, key=lambda smoothing: rmse(_smoothed(series, origins, horizon, smoothing), future))


def _smoothed(
    series: Series, origins: NDArray[np.int64], horizon: int, smoothing: tuple[float, ...]
) -> Floats:
    # One iteration through the series gives level, trend and season at every week, each from the weeks before it alone.
    names = ("smoothing_level", "smoothing_trend", "smoothing_seasonal")
    fitted = _model(series.values).fit(**dict(zip(names, smoothing, strict=True)), optimized=False)
    ahead = np.arange(horizon)
    last = origins[:, None] - 1
    season = fitted.season[origins[:, None] - PERIOD + ahead % PERIOD]
    forecast: Floats = fitted.level[last] + (1 + ahead) * fitted.trend[last] + season
    return forecast


def _model(values: Floats) -> Any:
    from statsmodels.tsa.holtwinters import ExponentialSmoothing

    return ExponentialSmoothing(
        values, trend="add", seasonal="add", seasonal_periods=PERIOD, initialization_method="heuristic"
    )


REFERENCES = {
    "seasonal naive": seasonal_naive,
    "seasonal naive with drift": seasonal_naive_with_drift,
    "exponential smoothing": exponential_smoothing,
    "the same, as fitted": fitted_exponential_smoothing,
}


def rmse(forecast: NDArray[np.floating], future: NDArray[np.floating]) -> float:
    """Root mean square error over all windows and weeks, in ppmv."""
    return float(np.sqrt(np.mean(np.square(forecast - future, dtype=np.float64))))


def mase(forecast: NDArray[np.floating], future: NDArray[np.floating], known: Floats) -> float:
    """Mean absolute error by that of the seasonal naive forecast of the known weeks, one year ahead."""
    naive = np.abs(known[PERIOD:] - known[:-PERIOD]).mean()
    return float(np.abs(forecast - future).mean() / naive)


def row(name: str, forecast: NDArray[np.floating], future: NDArray[np.floating], known: Floats) -> str:
    """A line of the table."""
    error, scaled = rmse(forecast, future), mase(forecast, future, known)
    return f"{name:26}  RMSE {error:.3f} ppmv  MASE {scaled:.3f}"


def known_values(series: Series) -> Floats:
    """All weeks before the held-out years."""
    return series.values[: int(np.searchsorted(series.dates, FIRST_HELD_OUT))]


def main(argv: Sequence[str], n_past: int = 104, horizon: int = 26) -> int:
    """Print the references' errors on the held-out windows; with `--search`, the smoothing to take."""
    series = load_co2()
    if "--search" in argv:
        print(f"SMOOTHING = {search_smoothing(series, n_past, horizon)}")
        return 0
    held_out = windows(series, split_origins(series, n_past, horizon)[2], n_past, horizon)
    for name, forecast in REFERENCES.items():
        print(row(name, forecast(series, held_out.origins, horizon), held_out.future, known_values(series)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
