"""Query the served curve on a grid, compare it with the truth, and draw it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.curve_fitting.points import draw_points, true_curve
from unitrain.client import ClientIO, ModelInfo

TARGET_RMSE = 0.25


class CurveIO(ClientIO):
    """Queries y on a grid of x, prints the error to the true curve, and writes a plot.

    Args:
        model: description of the served model.
        x_min: the grid's first point.
        x_max: the grid's last point.
        n_points: points of the grid.
        plot: the picture's path, relative to the working folder; empty: none.
        n_data: points of the data that the plot shows.
        data_seed: seed of those points; the data module's `seed` gives the training points.

    Attributes:
        rmse: root mean square error of the answers to the true curve, in y's unit; NaN before any answer.
    """

    def __init__(
        self,
        model: ModelInfo,
        *,
        x_min: float = -4.5,
        x_max: float = 4.5,
        n_points: int = 200,
        plot: str = "experiments/curve_fitting/served.png",
        n_data: int = 1000,
        data_seed: int = 0,
    ) -> None:
        super().__init__(model)
        self._grid = np.linspace(x_min, x_max, n_points, dtype=np.float32)
        self._plot = Path(plot) if plot else None
        self._n_data, self._data_seed = n_data, data_seed
        self._x: list[float] = []
        self._y: list[float] = []
        self._versions: set[int] = set()
        self.rmse = float("nan")

    def inputs(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        for x in self._grid:
            yield {"x": x.reshape(1)}

    def decode(self, index: int, outputs: dict[str, NDArray[np.float32]], version: int) -> None:
        self._x.append(float(self._grid[index]))
        self._y.append(float(outputs["y"][0]))
        self._versions.add(version)

    def finalize(self) -> None:
        if not self._y:
            print("no answers: nothing to compare or draw")
            return
        x, y = np.array(self._x, np.float32), np.array(self._y, np.float32)
        self.rmse = float(np.sqrt(np.mean((y - true_curve(x)) ** 2)))
        versions = ", ".join(map(str, sorted(self._versions)))
        print(
            f"RMSE to the true curve {self.rmse:.3f} (target: {TARGET_RMSE} or less), "
            f"{len(y)} points, version {versions}"
        )
        if self._plot is not None:
            self._draw(x, y, self._plot)
            print(f"plot {self._plot}")

    def _draw(self, x: NDArray[np.float32], y: NDArray[np.float32], path: Path) -> None:
        # A figure of its own, without pyplot, is drawn by Agg: no display is needed.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        data_x, data_y = draw_points(self._n_data, self._data_seed)
        axes.scatter(data_x, data_y, s=4, color="0.7", label="data")
        axes.plot(x, true_curve(x), color="C2", linestyle="--", label="truth, x²")
        axes.plot(x, y, color="C0", label=f"served, RMSE {self.rmse:.3f}")
        axes.set(xlabel="x", ylabel="y", title=self.model.name)
        axes.legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
