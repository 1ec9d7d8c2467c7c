"""The held-out years forecast by the served model, beside forecasts that no network made."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.forecasting.co2 import load_co2, split_origins, windows
from examples.forecasting.reference import REFERENCES, known_values, rmse, row
from unitrain.client import ClientIO, ModelInfo


class ForecastIO(ClientIO):
    """Queries forecasts from every fourth week of the held-out years, prints their errors and draws some.

    Args:
        model: description of the served model; its signature has the lengths of past and horizon.
        plot: the picture's path, relative to the working folder; empty: none.

    Attributes:
        rmse: root mean square errors in ppmv by what forecast; empty before any answer.
    """

    def __init__(self, model: ModelInfo, *, plot: str = "experiments/forecasting/served.png") -> None:
        super().__init__(model)
        lengths = {spec.name: spec.dims[-1] for spec in (*model.signature.inputs, *model.signature.outputs)}
        self._horizon = lengths["forecast"]
        self._series = load_co2()
        origins = split_origins(self._series, lengths["series"], self._horizon)[2]
        self._windows = windows(self._series, origins, lengths["series"], self._horizon)
        self._plot = Path(plot) if plot else None
        self._answers: dict[int, NDArray[np.float32]] = {}
        self.rmse: dict[str, float] = {}

    def inputs(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        for series, calendar in zip(self._windows.series, self._windows.calendar, strict=True):
            yield {"series": series, "calendar": calendar}

    def decode(self, index: int, outputs: dict[str, NDArray[np.float32]], version: int) -> None:
        self._answers[index] = outputs["forecast"]

    def finalize(self) -> None:
        if not self._answers:
            print("no answers: nothing to compare or draw")
            return
        rows = list(self._answers)
        future, origins = self._windows.future[rows], self._windows.origins[rows]
        forecasts: dict[str, NDArray[np.floating]] = {"served": np.stack(list(self._answers.values()))}
        forecasts |= {
            name: predict(self._series, origins, self._horizon) for name, predict in REFERENCES.items()
        }
        known = known_values(self._series)
        print(f"{len(rows)} forecasts of {self._horizon} weeks, from {self._series.dates[origins[0]]} on")
        for name, forecast in forecasts.items():
            self.rmse[name] = rmse(forecast, future)
            print(row(name, forecast, future, known))
        if self._plot is not None:
            self._draw(forecasts, origins, self._plot)
            print(f"plot {self._plot}")

    def _draw(
        self, forecasts: dict[str, NDArray[np.floating]], origins: NDArray[np.int64], path: Path
    ) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        dates, values = self._series
        shown = slice(int(origins[0]) - 52, int(origins[0]) + 4 * 52)
        left.plot(dates[shown], values[shown], color="0.6", label="measured")
        # One after the other, the horizons of every half year.
        every = -(-self._horizon // 4)
        for place in range(0, len(origins), every):
            weeks = slice(int(origins[place]), int(origins[place]) + self._horizon)
            if weeks.stop <= shown.stop:
                label = None if place else "served"
                left.plot(dates[weeks], forecasts["served"][place], color="C0", label=label)
        left.set(ylabel="CO₂, ppmv", title=f"forecasts of {self._horizon} weeks")
        left.legend()
        future = self._windows.future[list(self._answers)]
        for name, forecast in forecasts.items():
            if name not in ("seasonal naive", "the same, as fitted"):  # several times the others
                errors = np.sqrt(np.mean(np.square(forecast - future), axis=0))
                right.plot(np.arange(1, self._horizon + 1), errors, label=name)
        right.set(xlabel="weeks ahead", ylabel="RMSE, ppmv", title="error by distance", ylim=(0, None))
        right.legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=80)
