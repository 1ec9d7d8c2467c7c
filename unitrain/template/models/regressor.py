"""A number from a row of features."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MetricCollection

from unitrain import ServableModule


class Regressor(ServableModule):
    """A multilayer perceptron.

    Serves `features`, float32 [batch, n_features] → `value`, float32 [batch, 1].

    Args:
        n_features: values of a row.
        hidden: units of the hidden layer.
        lr: Adam's learning rate.
    """

    def __init__(self, n_features: int, hidden: int = 32, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Linear(n_features, hidden), nn.SiLU(), nn.Linear(hidden, 1))

    def preprocess(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """In training, in validation and in the served graph: scaling, clipping, decoding."""
        return {"features": inputs["features"].clamp(-10, 10)}

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"value": self.layers(features)}

    def loss(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor], batch: Any) -> Tensor:
        return nn.functional.mse_loss(outputs["value"], batch["target"])

    def metrics(self) -> MetricCollection:
        """Logged as val_mae."""
        return MetricCollection({"mae": MeanAbsoluteError()})

    def metric_args(
        self, inputs: dict[str, Tensor], outputs: dict[str, Tensor], batch: Any
    ) -> tuple[Tensor, Tensor]:
        return outputs["value"], batch["target"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])
