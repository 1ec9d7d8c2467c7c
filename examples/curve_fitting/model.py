"""A function of one variable."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchmetrics import MeanSquaredError, MetricCollection

from unitrain.figures import truth_against_prediction
from unitrain.module import Tensors, UnitrainModule


class CurveRegressor(UnitrainModule):
    """A multilayer perceptron for y(x).

    Serves `x`, float32 [batch, 1] → `y`, float32 [batch, 1], both in the data's own units. A batch is a
    mapping with those two keys.

    Args:
        hidden: units in each of the two hidden layers.
        lr: Adam's learning rate.
    """

    def __init__(self, hidden: int = 64, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            nn.Linear(1, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1)
        )

    def forward(self, x: Tensor) -> Tensors:
        return {"y": self.layers(x)}

    def loss(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Tensor:
        return nn.functional.mse_loss(outputs["y"], batch["y"])

    def metrics(self) -> MetricCollection:
        return MetricCollection({"rmse": MeanSquaredError(squared=False)})

    def metric_args(self, inputs: Tensors, outputs: Tensors, batch: Any) -> tuple[Tensor, Tensor]:
        return outputs["y"], batch["y"]

    def summaries(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Mapping[str, Any]:
        return {"fit": truth_against_prediction(outputs["y"], batch["y"], name="y")}
