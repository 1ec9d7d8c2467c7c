"""Regression: a number from a row of features."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MetricCollection

from unitrain import UnitrainModule


class Regressor(UnitrainModule):
    """Multilayer perceptron.

    Serves `features`, float32 [batch, n_features] → `value`, float32 [batch, 1], both in the data's units.
    The served graph standardizes the features and converts the value back.

    Args:
        means: mean of each feature over the training rows.
        stds: standard deviation of each feature, above 0.
        target_mean: mean of the training targets.
        target_std: standard deviation of the training targets, above 0.
        hidden: number of hidden units.
        lr: learning rate of Adam.
    """

    def __init__(
        self,
        *,
        means: Sequence[float],
        stds: Sequence[float],
        target_mean: float,
        target_std: float,
        hidden: int = 32,
        lr: float = 3e-3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.means: Tensor
        self.stds: Tensor
        self.register_buffer("means", torch.tensor(means))
        self.register_buffer("stds", torch.tensor(stds))
        self.target_mean, self.target_std = target_mean, target_std
        self.layers = nn.Sequential(nn.Linear(len(means), hidden), nn.SiLU(), nn.Linear(hidden, 1))

    def preprocess(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scale the inputs, in training, validation and the served graph."""
        return {"features": (inputs["features"] - self.means) / self.stds}

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"value": self.layers(features)}

    def postprocess(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert the value to the target's unit, in the served graph only."""
        return {"value": outputs["value"] * self.target_std + self.target_mean}

    def loss(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor], batch: Any) -> Tensor:
        return nn.functional.mse_loss(
            outputs["value"], (batch["target"] - self.target_mean) / self.target_std
        )

    def metrics(self) -> MetricCollection:
        """Return the metrics, logged as val_mae, in the target's unit."""
        return MetricCollection({"mae": MeanAbsoluteError()})

    def metric_args(
        self, inputs: dict[str, Tensor], outputs: dict[str, Tensor], batch: Any
    ) -> tuple[Tensor, Tensor]:
        return self.postprocess(outputs)["value"], batch["target"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])
