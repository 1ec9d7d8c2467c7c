"""Progression of a disease from measurements, as a LightningModule that knows nothing of unitrain."""

from collections.abc import Sequence

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn


class DiabetesRegressor(LightningModule):
    """A small multilayer perceptron; scales of inputs and output are part of it.

    Takes `features`, float32 [batch, feature] as measured, and gives the progression, float32 [batch, 1].

    Args:
        feature_means: mean of each feature over the training data.
        feature_stds: standard deviation of each feature.
        target_mean: mean of the target over the training data.
        target_std: the standard deviation.
        hidden: units of the hidden layer.
        dropout: share of the hidden units that are dropped in training.
        lr: AdamW's learning rate.
        weight_decay: AdamW's.
    """

    def __init__(
        self,
        *,
        feature_means: Sequence[float],
        feature_stds: Sequence[float],
        target_mean: float,
        target_std: float,
        hidden: int = 32,
        dropout: float = 0.3,
        lr: float = 3e-3,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.target_mean, self.target_std = target_mean, target_std
        self.means: Tensor
        self.stds: Tensor
        self.register_buffer("means", torch.tensor(feature_means))
        self.register_buffer("stds", torch.tensor(feature_stds))
        self.layers = nn.Sequential(
            nn.Linear(len(feature_means), hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        z: Tensor = self.layers((features - self.means) / self.stds)
        return z * self.target_std + self.target_mean

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("test_loss", self._loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
        )

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        features, target = batch
        # In deviations of the target, so that the learning rate does not depend on its unit.
        return nn.functional.mse_loss(self(features) / self.target_std, target / self.target_std)
