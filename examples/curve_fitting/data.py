"""Noisy points of a known curve, for training."""

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule

from examples.curve_fitting.points import draw_points
from unitrain.errors import HookError
from unitrain.loaders import ArrayLoader


class NoisyCurve(LightningDataModule):
    """Points of y = x² + noise of standard deviation 1, x uniform in [-5, 5].

    Batches are mappings of `x` and `y`, float32 [batch, 1] each.

    Args:
        n_points: points in all.
        validation_share: share of them kept for validation, in (0, 1).
        batch_size: points a training batch.
        seed: seed of the points, which depend on nothing else that is random in a run.

    Raises:
        HookError: a part would have no points.
    """

    def __init__(
        self, n_points: int = 1000, validation_share: float = 0.2, batch_size: int = 64, seed: int = 0
    ) -> None:
        super().__init__()
        n_validation = round(n_points * validation_share)
        if not 0 < n_validation < n_points:
            raise HookError(
                f"NoisyCurve: expected points for training and for validation, got n_points {n_points} and "
                f"validation_share {validation_share}; choose a share in (0, 1) and enough points"
            )
        self.batch_size = batch_size
        x, y = draw_points(n_points, seed)
        # The points are drawn independently: the first ones are as good a sample as any.
        self.validation: dict[str, NDArray[np.float32]] = {"x": x[:n_validation], "y": y[:n_validation]}
        self.train: dict[str, NDArray[np.float32]] = {"x": x[n_validation:], "y": y[n_validation:]}

    def train_dataloader(self) -> ArrayLoader:
        return ArrayLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> ArrayLoader:
        return ArrayLoader(self.validation, batch_size=1024)
