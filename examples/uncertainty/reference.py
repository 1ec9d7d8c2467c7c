"""Scikit-learn's references on the same points: a Gaussian process, and gradient boosting of two quantiles.

`python -m examples.uncertainty.reference` prints the client's figures for both.
"""

import argparse
import time

import numpy as np
from numpy.typing import NDArray

from examples.uncertainty.bands import Bands
from examples.uncertainty.points import X_MAX, X_MIN, draw_points, true_curve

N_POINTS, POINTS_SEED = 1000, 0
N_FRESH, FRESH_SEED = 2000, 99


def gaussian_process(x: NDArray[np.float32], y: NDArray[np.float32], queried: NDArray[np.float32]) -> Bands:
    """The bands of a Gaussian process at the queried points; its noise is one number for all of them.

    Args:
        x: known points, [point, 1].
        y: observed there, [point, 1].
        queried: points of the predictions, [point, 1].
    """
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    kernel = ConstantKernel(10) * Matern(1, nu=1.5) + WhiteKernel(0.05)
    process = GaussianProcessRegressor(kernel, normalize_y=True).fit(x, y[:, 0])
    mean, total = process.predict(queried, return_std=True)
    noise = np.sqrt(process.kernel_.k2.noise_level) * y.std()
    epistemic = np.sqrt(np.maximum(total**2 - noise**2, 0))
    return Bands(mean, epistemic, np.full_like(mean, noise))


def boosted_quantiles(
    x: NDArray[np.float32], y: NDArray[np.float32], queried: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The 5 % and the 95 % quantile at the queried points, by gradient boosting; arguments as above."""
    from sklearn.ensemble import GradientBoostingRegressor

    low, high = (
        GradientBoostingRegressor(loss="quantile", alpha=alpha, random_state=0)
        .fit(x, y[:, 0])
        .predict(queried)
        for alpha in (0.05, 0.95)
    )
    return low, high


def main() -> None:
    """Fit both and print their figures."""
    argparse.ArgumentParser(prog="python -m examples.uncertainty.reference", description=__doc__).parse_args()
    x, y = draw_points(N_POINTS, POINTS_SEED)
    fresh, fresh_y = draw_points(N_FRESH, FRESH_SEED)
    grid = np.linspace(-3, 3, 241, dtype=np.float32)[:, None]
    inside = (grid[:, 0] >= X_MIN) & (grid[:, 0] <= X_MAX)

    started = time.perf_counter()
    bands = gaussian_process(x, y, np.concatenate([fresh, grid]))
    queried, line = bands.rows(slice(len(fresh))), bands.rows(slice(len(fresh), None))
    error = queried.mean - true_curve(fresh)[:, 0]
    print(f"Gaussian process (Matérn 3/2 and white noise), {time.perf_counter() - started:.1f} s")
    print(f"  coverage of the 90 % band {queried.coverage(fresh_y[:, 0]):.3f}")
    print(f"  RMSE of the mean to the true curve {np.sqrt(np.mean(error**2)):.3f}")
    print(f"  aleatoric deviation {line.aleatoric[0]:.3f}")
    print(f"  epistemic deviation {line.epistemic[inside].mean():.3f} in range, ", end="")
    print(f"{line.epistemic[~inside].mean():.3f} outside")

    started = time.perf_counter()
    low, high = boosted_quantiles(x, y, fresh)
    covered = (fresh_y[:, 0] >= low) & (fresh_y[:, 0] <= high)
    print(f"gradient boosting of two quantiles, {time.perf_counter() - started:.1f} s")
    print(f"  coverage of the 90 % band {covered.mean():.3f}")


if __name__ == "__main__":
    main()
