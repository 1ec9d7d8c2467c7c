"""Noisy points of a curve with a kink, in numpy alone, so that clients need no torch to draw them."""

import numpy as np
from numpy.typing import NDArray

X_MIN, X_MAX = -2.0, 2.0
"""Range of the points; a model has no data beyond it."""
NOISE_STD = 0.2


def draw_points(n_points: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(x, y), float32 [point, 1] each: x uniform in [-2, 2], y the curve + noise of standard deviation 0.2.

    Args:
        n_points: points in all.
        seed: the same seed gives the same points, whatever else is random in the process.
    """
    generator = np.random.default_rng(seed)
    x = generator.uniform(X_MIN, X_MAX, (n_points, 1)).astype(np.float32)
    noise = NOISE_STD * generator.standard_normal((n_points, 1)).astype(np.float32)
    return x, true_curve(x) + noise


def true_curve(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The curve under the noise: x² up to 0, 5√x above, whose slope at 0 is infinite."""
    curve: NDArray[np.float32] = np.where(x <= 0, x**2, 5 * np.sqrt(np.maximum(x, 0))).astype(np.float32)
    return curve
