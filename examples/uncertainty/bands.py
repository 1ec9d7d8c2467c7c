"""Bands of what is not known, from several draws of a network; numpy alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.uncertainty.points import X_MAX, X_MIN, draw_points, true_curve

Floats = NDArray[np.floating[Any]]
Z_90 = 1.6449
"""Half width of the central 90 % interval of a normal variable, in standard deviations."""


@dataclass(frozen=True)
class Bands:
    """Predictions with their uncertainty, in y's unit, [point].

    Attributes:
        mean: over the draws.
        epistemic: standard deviation that the draws have about it: what the data leave unknown.
        aleatoric: standard deviation of the noise, as predicted.
    """

    mean: Floats
    epistemic: Floats
    aleatoric: Floats

    @property
    def total(self) -> Floats:
        """The standard deviation of both together."""
        return np.hypot(self.epistemic, self.aleatoric)

    def rows(self, chosen: slice) -> "Bands":
        """Some of the points."""
        return Bands(self.mean[chosen], self.epistemic[chosen], self.aleatoric[chosen])

    def coverage(self, y: Floats) -> float:
        """Share of the observations, [point], inside the 90 % band."""
        return float((np.abs(y - self.mean) <= Z_90 * self.total).mean())


def bands_of_draws(mean: Floats, log_variance: Floats) -> Bands:
    """The bands of draws of a network, [draw, point] each.

    Args:
        mean: predicted.
        log_variance: predicted logarithm of the noise's variance.
    """
    return Bands(mean.mean(0), mean.std(0, ddof=1), np.sqrt(np.exp(log_variance).mean(0)))


def draw_bands(path: Path, x: Floats, bands: Bands, draws: Floats, *, title: str) -> None:
    """Write the picture: both bands with some of the draws, and the deviations below.

    Args:
        path: path of the .png file.
        x: the points, ascending.
        bands: at these points.
        draws: the means of each draw, [draw, point].
        title: title of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6.4), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    data_x, data_y = draw_points(1000, seed=0)
    axes.scatter(data_x, data_y, s=4, color="0.7", label="training data")
    for half, colour, name in (
        (Z_90 * bands.total, "C0", "90 % band of both"),
        (Z_90 * bands.epistemic, "C1", "of the epistemic part"),
    ):
        axes.fill_between(x, bands.mean - half, bands.mean + half, color=colour, alpha=0.25, label=name)
    for draw in draws[:5]:
        axes.plot(x, draw, color="C1", linewidth=0.6, alpha=0.6)
    axes.plot(x, true_curve(np.asarray(x, np.float32)), color="C2", linestyle="--", label="truth")
    axes.plot(x, bands.mean, color="C0", label="mean")
    axes.set(ylabel="y", title=title)
    axes.legend(loc="lower right")
    below.plot(x, bands.epistemic, color="C1", label="epistemic")
    below.plot(x, bands.aleatoric, color="C0", label="aleatoric")
    below.set(xlabel="x", ylabel="deviation", ylim=(0, None))
    below.legend(loc="lower left")
    for panel in (axes, below):
        for edge in (X_MIN, X_MAX):
            panel.axvline(edge, color="0.5", linestyle=":")
    figure.savefig(path, dpi=80)
