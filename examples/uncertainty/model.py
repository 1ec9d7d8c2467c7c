"""A function of one variable, with what is not known of it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, MetricCollection

from unitrain.figures import truth_against_prediction
from unitrain.models.mlp import ACTIVATIONS, Activation
from unitrain.models.seeded_dropout import ConcreteDropout
from unitrain.module import Tensors, UnitrainModule


class UncertainRegressor(UnitrainModule):
    """A network whose weights are uncertain and that predicts the noise of its target.

    Each seed is one draw of the network by Monte-Carlo dropout: the same seed masks the same units for
    every x, so the answers to one seed are one smooth function. Over several seeds, the variance of `mean`
    is epistemic (what the data leave unknown), the mean of exp(`log_variance`) aleatoric (the noise).

    Serves `x`, float32 [batch, 1], and `seed`, int64 [batch, 1] →

    - `mean`, float32 [batch, 1], in y's unit;
    - `log_variance`, float32 [batch, 1]: the logarithm of the noise's variance, in y's unit squared.

    A batch is a mapping of `x`, `seed` and `y`, float32 [batch, 1].

    Args:
        n_points: number of points of the training set.
        y_mean: mean over the training points, in y's unit.
        y_std: standard deviation over the training points, in y's unit.
        hidden: units of the hidden layers, first to last.
        activation: after each hidden layer.
        rate: initial dropout rate of each layer; it is learned (concrete dropout).
        length_scale: length scale of the prior over the weights; a smaller one allows larger weights.
        lr: Adam's learning rate.
    """

    def __init__(
        self,
        *,
        n_points: int,
        y_mean: float = 0.0,
        y_std: float = 1.0,
        hidden: Sequence[int] = (128, 128, 128),
        activation: Activation = "relu",
        rate: float = 0.1,
        length_scale: float = 1e-2,
        lr: float = 3e-3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.n_points, self.y_mean, self.y_std = n_points, y_mean, y_std
        self.length_scale = length_scale
        sizes = (1, *hidden, 2)
        self.linears = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in pairwise(sizes))
        self.dropouts = nn.ModuleList(ConcreteDropout(n, rate, stream=i) for i, n in enumerate(hidden))
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor, seed: Tensor) -> Tensors:
        values = self.linears[0](x)
        for dropout, linear in self._dropped():
            values = linear(dropout(self.activation(values), seed))
        mean, log_variance = values.split(1, dim=1)
        return {"mean": mean, "log_variance": log_variance}

    def postprocess(self, outputs: Tensors) -> Tensors:
        return {
            "mean": outputs["mean"] * self.y_std + self.y_mean,
            "log_variance": outputs["log_variance"] + 2 * math.log(self.y_std),
        }

    def loss(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Tensors:
        """The negative log-likelihood of standardised targets, and what the prior adds to it."""
        y = (batch["y"] - self.y_mean) / self.y_std
        log_variance = outputs["log_variance"]
        error = (y - outputs["mean"]).square() * torch.exp(-log_variance)
        terms = [
            dropout.regularisation(linear, self.length_scale, self.n_points)
            for dropout, linear in self._dropped()
        ]
        return {"nll": (error + log_variance).mean() / 2, "prior": torch.stack(terms).sum()}

    def metrics(self) -> MetricCollection:
        return MetricCollection({"rmse": MeanSquaredError(squared=False)})

    def metric_args(self, inputs: Tensors, outputs: Tensors, batch: Any) -> tuple[Tensor, Tensor]:
        return self.postprocess(outputs)["mean"], batch["y"]

    def summaries(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Mapping[str, Any]:
        rates = ", ".join(f"{dropout.rate:.3f}" for dropout, _ in self._dropped())
        mean = self.postprocess(outputs)["mean"]
        return {"fit": truth_against_prediction(mean, batch["y"], name="y"), "dropout_rates": rates}

    def _dropped(self) -> Iterator[tuple[ConcreteDropout, nn.Linear]]:
        """Each dropout with the linear layer that it feeds."""
        pairs = zip(self.dropouts, list(self.linears)[1:], strict=True)
        return cast("Iterator[tuple[ConcreteDropout, nn.Linear]]", pairs)
