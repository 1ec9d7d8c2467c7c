"""Noisy points of a curve with a kink, each with the seed of its dropout masks, for training."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from torch import Generator, Tensor

from examples.uncertainty.points import draw_points
from unitrain.errors import HookError
from unitrain.loaders import ArrayLoader

SEED_LIMIT = 2**31


class KinkedCurve(LightningDataModule):
    """Points of y = x² for x ≤ 0 and 5√x above, x uniform in [-2, 2], with noise of standard deviation 0.2.

    Batches are mappings of `x` and `y`, float32 [batch, 1], and `seed`, int64 [batch, 1]: another one for
    each row of each training batch, always the same ones in validation.

    Args:
        n_points: points for training.
        n_validation: further ones for validation.
        batch_size: points a training batch.
        seed: seed of the points, which depend on nothing else that is random in a run.

    Raises:
        HookError: a part would have no points.
    """

    def __init__(
        self, n_points: int = 1000, n_validation: int = 500, batch_size: int = 64, seed: int = 0
    ) -> None:
        super().__init__()
        if min(n_points, n_validation) < 1:
            raise HookError(
                f"KinkedCurve: expected at least one point for training and one for validation, got n_points "
                f"{n_points} and n_validation {n_validation}"
            )
        self.batch_size = batch_size
        x, y = draw_points(n_points + n_validation, seed)
        # The points are drawn independently: the first ones are as good a sample as any.
        self.train: dict[str, NDArray[np.float32]] = {"x": x[:n_points], "y": y[:n_points]}
        self.validation: dict[str, NDArray[np.generic]] = {
            "x": x[n_points:],
            "y": y[n_points:],
            "seed": np.arange(n_validation, dtype=np.int64)[:, None],
        }

    @property
    def n_points(self) -> int:
        """Points for training, over which a model spreads its prior."""
        return len(self.train["x"])

    @property
    def y_mean(self) -> float:
        """The mean of the training points' y."""
        return float(self.train["y"].mean())

    @property
    def y_std(self) -> float:
        """The standard deviation of the training points' y."""
        return float(self.train["y"].std())

    def train_dataloader(self) -> ArrayLoader:
        return ArrayLoader(self.train, batch_size=self.batch_size, shuffle=True, transform=_with_seeds)

    def val_dataloader(self) -> ArrayLoader:
        return ArrayLoader(self.validation, batch_size=1024)


def _with_seeds(batch: dict[str, Tensor], generator: Generator) -> dict[str, Any]:
    return batch | {"seed": torch.randint(SEED_LIMIT, batch["x"].shape, generator=generator)}
