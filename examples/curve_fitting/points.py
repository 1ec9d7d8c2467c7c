"""Noisy points of a known curve, in numpy alone, so that clients need no torch to draw them."""

import numpy as np
from numpy.typing import NDArray

X_MIN, X_MAX = -5.0, 5.0


def draw_points(n_points: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(x, y), float32 [point, 1] each: x uniform in [-5, 5], y = x² + noise of standard deviation 1.

    Args:
        n_points: points in all.
        seed: the same seed gives the same points, whatever else is random in the process.
    """
    generator = np.random.default_rng(seed)
    x = generator.uniform(X_MIN, X_MAX, (n_points, 1)).astype(np.float32)
    noise = generator.standard_normal((n_points, 1)).astype(np.float32)
    return x, true_curve(x) + noise


def true_curve(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The curve under the noise, y = x²."""
    return x**2
