"""The next values of a series, from its past and from what is known of past and future."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, MetricCollection

from unitrain.figures import truth_against_prediction
from unitrain.models.tcn import TCN
from unitrain.module import Tensors, UnitrainModule


class Forecaster(UnitrainModule):
    """A temporal convolutional network that predicts the complete horizon at once.

    Serves two inputs, `series`, float32 [batch, 1, n_past], and `calendar`, float32
    [batch, n_calendar, n_past + horizon], → `forecast`, float32 [batch, horizon], in the series' unit. A batch
    is a mapping with these and `future`, float32 [batch, horizon].

    The network sees the past as differences from its last value, and predicts the future as differences: a trend takes it
    nowhere that it has not been. The future's calendar goes through the same network, the differences being 0
    there, and a step's forecast is read at that step. What is linear in the past needs no network: a linear
    map from past to future stands beside it, as in https://arxiv.org/abs/1703.07015.

    Args:
        n_past: steps that are known.
        horizon: steps to predict.
        change_std: root mean square of the future's distance from the last known value, in the series' unit.
        n_calendar: values a step that are known of past and future.
        channels: channels of the network.
        n_blocks: residual blocks of the network; block i has the dilation 2**i.
        kernel_size: kernel size of its convolutions.
        dropout: share of its values that are dropped in training.
        lr: AdamW's learning rate.
        weight_decay: AdamW's.
    """

    def __init__(
        self,
        *,
        n_past: int = 104,
        horizon: int = 26,
        change_std: float = 1.0,
        n_calendar: int = 2,
        channels: int = 16,
        n_blocks: int = 5,
        kernel_size: int = 3,
        dropout: float = 0.1,
        lr: float = 3e-3,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.horizon, self.change_std = horizon, change_std
        # One further channel marks the known steps.
        self.network = TCN(
            2 + n_calendar, channels, n_blocks=n_blocks, kernel_size=kernel_size, dropout=dropout
        )
        self.head = nn.Conv1d(channels, 1, 1)
        self.linear = nn.Linear(n_past, horizon)
        nn.init.zeros_(self.linear.weight)

    def forward(self, series: Tensor, calendar: Tensor) -> Tensors:
        last = series[:, :, -1:]
        before = (series - last) / self.change_std
        past = nn.functional.pad(before, (0, self.horizon))
        known = nn.functional.pad(torch.ones_like(series), (0, self.horizon))
        change = self.head(self.network(torch.cat([past, known, calendar], 1)))[:, 0, -self.horizon :]
        return {"forecast": last[:, 0] + self.change_std * (change + self.linear(before[:, 0]))}

    def loss(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Tensor:
        return nn.functional.mse_loss(
            outputs["forecast"] / self.change_std, batch["future"] / self.change_std
        )

    def metrics(self) -> MetricCollection:
        return MetricCollection({"rmse": MeanSquaredError(squared=False)})

    def metric_args(self, inputs: Tensors, outputs: Tensors, batch: Any) -> tuple[Tensor, Tensor]:
        return outputs["forecast"].flatten(), batch["future"].flatten()

    def embeddings(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Tensors:
        return {"change": outputs["forecast"] - inputs["series"][:, 0, -1:]}

    def labels(self, batch: Any) -> Mapping[str, Tensor]:
        # The time of year that the forecast begins at, as an angle.
        begin = batch["calendar"][:, :2, -self.horizon]
        return {"time of year": torch.atan2(begin[:, 0], begin[:, 1])}

    def summaries(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Mapping[str, Any]:
        return {
            "forecast": truth_against_prediction(
                outputs["forecast"][:, -1:], batch["future"][:, -1:], name="ppmv, last week of the horizon"
            )
        }

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
        )
