"""Query the served curve with many seeds, and draw the mean, its uncertainty and the band's coverage."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.uncertainty.bands import Bands, bands_of_draws, draw_bands
from examples.uncertainty.points import X_MAX, X_MIN, draw_points, true_curve
from unitrain.client import ClientIO, ModelInfo

Floats = NDArray[np.float32]


class BandsIO(ClientIO):
    """Queries each point with each seed, prints the bands' coverage, and draws them.

    Args:
        model: description of the served model.
        seeds: draws of the network, with the seeds 0, 1, ...; at least 2.
        x_min: the drawn grid's first point.
        x_max: the drawn grid's last point.
        n_grid: points of the grid.
        n_fresh: noisy points in the trained range by which coverage is measured.
        fresh_seed: seed of those points, another one than a training's default.
        plot: the picture's path, relative to the working folder; empty: none.

    Attributes:
        grid: the bands on the grid; None before `finalize`.
        coverage: share of the fresh points inside the 90 % band; None before `finalize`.

    Raises:
        ValueError: fewer than 2 seeds.
    """

    def __init__(
        self,
        model: ModelInfo,
        *,
        seeds: int = 20,
        x_min: float = -3.0,
        x_max: float = 3.0,
        n_grid: int = 241,
        n_fresh: int = 2000,
        fresh_seed: int = 99,
        plot: str = "experiments/uncertainty/served.png",
    ) -> None:
        super().__init__(model)
        if seeds < 2:
            raise ValueError(f"BandsIO: a spread needs at least 2 seeds, got {seeds}")
        self._fresh, self._fresh_y = draw_points(n_fresh, fresh_seed)
        self._line = np.linspace(x_min, x_max, n_grid, dtype=np.float32)[:, None]
        self._x = np.concatenate([self._line, self._fresh])
        self._seeds = seeds
        self._plot = Path(plot) if plot else None
        shape = (seeds, len(self._x))
        self._mean = np.full(shape, np.nan, np.float32)
        self._log_variance = np.full(shape, np.nan, np.float32)
        self._versions: set[int] = set()
        self.grid: Bands | None = None
        self.coverage: float | None = None

    def inputs(self) -> Iterator[dict[str, NDArray[np.generic]]]:
        for seed in range(self._seeds):
            for x in self._x:
                yield {"x": x, "seed": np.array([seed], np.int64)}

    def decode(self, index: int, outputs: dict[str, Floats], version: int) -> None:
        place = divmod(index, len(self._x))
        self._mean[place] = outputs["mean"][0]
        self._log_variance[place] = outputs["log_variance"][0]
        self._versions.add(version)

    def finalize(self) -> None:
        if not np.isfinite(self._mean).all():
            missing = int(np.isnan(self._mean).sum())
            print(f"{missing} of {self._mean.size} answers are missing: there are no bands")
            return
        bands = bands_of_draws(self._mean, self._log_variance)
        self.grid, fresh = bands.rows(slice(len(self._line))), bands.rows(slice(len(self._line), None))
        self.coverage = fresh.coverage(self._fresh_y[:, 0])
        x = self._line[:, 0]
        inside = (x >= X_MIN) & (x <= X_MAX)
        error = fresh.mean - true_curve(self._fresh)[:, 0]
        versions = ", ".join(map(str, sorted(self._versions)))
        print(f"{self._seeds} draws at {len(self._x)} points, version {versions}")
        print(f"coverage of the 90 % band {self.coverage:.3f}, of {len(self._fresh)} fresh points in range")
        print(f"RMSE of the mean to the true curve {np.sqrt(np.mean(error**2)):.3f}")
        print(f"aleatoric deviation in range {self.grid.aleatoric[inside].mean():.3f} (the noise's: 0.2)")
        if inside.any() and not inside.all():
            known, unknown = self.grid.epistemic[inside].mean(), self.grid.epistemic[~inside].mean()
            print(
                f"epistemic deviation {known:.3f} in range, {unknown:.3f} outside: {unknown / known:.1f} times"
            )
        if self._plot is not None:
            self._plot.parent.mkdir(parents=True, exist_ok=True)
            draw_bands(self._plot, x, self.grid, self._mean[:, : len(x)], title=self.model.name)
            print(f"plot {self._plot}")
