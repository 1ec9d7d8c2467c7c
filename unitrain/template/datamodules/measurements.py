"""Data of the regression: rows of features, and a target for each."""

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule

from unitrain.loaders import ArrayLoader


def load(seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return features, float32 [rows, n_features], and targets, float32 [rows, 1].

    They are random here; read your files instead.
    """
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(2000, 3)).astype(np.float32)
    targets = np.sin(features[:, :1]) + features[:, 1:2] * features[:, 2:]
    return features, (targets + 0.1 * generator.normal(size=targets.shape)).astype(np.float32)


class Measurements(LightningDataModule):
    """Batches with `features`, float32 [batch, n_features], and `target`, float32 [batch, 1].

    Args:
        batch_size: number of rows in a training batch.
        validation_rows: number of rows for validation, drawn at random.
        seed: seed of the data and of the split.

    Attributes:
        means, stds: mean and standard deviation of each feature over the training rows, for the model.
        target_mean, target_std: mean and standard deviation of the training targets.
    """

    def __init__(self, batch_size: int = 64, validation_rows: int = 400, seed: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        features, targets = load(seed)
        order = np.random.default_rng(seed).permutation(len(features))
        validation, train = order[:validation_rows], order[validation_rows:]
        self.validation = {"features": features[validation], "target": targets[validation]}
        self.train = {"features": features[train], "target": targets[train]}
        self.means: list[float] = features[train].mean(0).tolist()
        stds = features[train].std(0)
        self.stds: list[float] = np.where(stds > 0, stds, 1).tolist()
        self.target_mean, self.target_std = float(targets[train].mean()), float(targets[train].std())

    def train_dataloader(self) -> ArrayLoader:
        return ArrayLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> ArrayLoader:
        return ArrayLoader(self.validation, batch_size=1024)
