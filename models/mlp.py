"""A multilayer perceptron for rows of numbers."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, MetricCollection, R2Score
from torchmetrics.classification import MulticlassAccuracy

from unitrain.errors import HookError
from unitrain.figures import confusion_matrix, truth_against_prediction
from unitrain.module import Tensors, UnitrainModule

Activation = Literal["relu", "gelu", "silu", "tanh", "elu"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "elu": nn.ELU,
}  # fmt: skip


class MLP(UnitrainModule):
    """A multilayer perceptron that predicts numbers from numbers.

    Serves `features`, float32 [batch, n_features] → `prediction`, float32 [batch, n_targets], both in the
    data's own units: standardisation and its inverse are part of the graph. A batch is a mapping of
    `features` and `target`, float32 [batch, n_targets].

    Args:
        feature_means: mean of each feature over the training rows; its length is the number of features.
        feature_stds: standard deviation of each feature, above 0.
        target_means: mean of each target; its length is the number of targets.
        target_stds: standard deviation of each target, above 0.
        hidden: units of the hidden layers, first to last; none: a linear regression.
        activation: after each hidden layer.
        dropout: share of a hidden layer's units dropped in each training step, in [0, 1).
        lr: AdamW's learning rate.
        weight_decay: AdamW's.

    Raises:
        ValueError: means and standard deviations differ in number, or one of the latter is not above 0.
        HookError: in a step, features or targets of another shape.
    """

    def __init__(
        self,
        *,
        feature_means: Sequence[float],
        feature_stds: Sequence[float],
        target_means: Sequence[float] = (0.0,),
        target_stds: Sequence[float] = (1.0,),
        hidden: Sequence[int] = (64, 64),
        activation: Activation = "silu",
        dropout: float = 0.0,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__()
        for name, means, stds in (
            ("feature", feature_means, feature_stds), ("target", target_means, target_stds),
        ):  # fmt: skip
            if len(means) != len(stds):
                raise ValueError(
                    f"MLP: expected as many {name}_stds as {name}_means, got {len(stds)} and {len(means)}"
                )
            if min(stds, default=1.0) <= 0:
                raise ValueError(f"MLP: expected {name}_stds above 0, got {min(stds)}")
        self.save_hyperparameters()
        self.feature_means: Tensor
        self.feature_stds: Tensor
        self.target_means: Tensor
        self.target_stds: Tensor
        self.register_buffer("feature_means", torch.tensor(feature_means, dtype=torch.float32))
        self.register_buffer("feature_stds", torch.tensor(feature_stds, dtype=torch.float32))
        self.register_buffer("target_means", torch.tensor(target_means, dtype=torch.float32))
        self.register_buffer("target_stds", torch.tensor(target_stds, dtype=torch.float32))
        sizes = (len(feature_means), *hidden, len(target_means))
        self.layers = perceptron(sizes, activation, dropout)

    def preprocess(self, inputs: Tensors) -> Tensors:
        return {"features": standardised(inputs["features"], self.feature_means, self.feature_stds)}

    def forward(self, features: Tensor) -> Tensors:
        return {"prediction": self.layers(features)}

    def postprocess(self, outputs: Tensors) -> Tensors:
        return {"prediction": outputs["prediction"] * self.target_stds + self.target_means}

    def loss(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Tensor:
        """The mean squared error of standardised targets, so that none outweighs another by its unit."""
        expected, target = outputs["prediction"].shape, batch["target"]
        if target.shape != expected:
            raise HookError(
                f"MLP: it predicts numbers and takes targets of shape {list(expected)}, got {list(target.shape)}; link "
                "target_means and target_stds, or take `unitrain.models.mlp.MLPClassifier` for classes"
            )
        return nn.functional.mse_loss(
            outputs["prediction"], standardised(target, self.target_means, self.target_stds)
        )

    def metrics(self) -> MetricCollection:
        return MetricCollection({"rmse": MeanSquaredError(squared=False), "r2": R2Score()})

    def metric_args(self, inputs: Tensors, outputs: Tensors, batch: Any) -> tuple[Tensor, Tensor]:
        return self.postprocess(outputs)["prediction"].flatten(), batch["target"].flatten()

    def summaries(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Mapping[str, Any]:
        return {"fit": truth_against_prediction(self.postprocess(outputs)["prediction"], batch["target"])}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        lr, weight_decay = self.hparams["lr"], self.hparams["weight_decay"]
        return torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=weight_decay)


class MLPClassifier(UnitrainModule):
    """A multilayer perceptron that predicts a class from numbers.

    Serves `features`, float32 [batch, n_features] in the data's own units → `probabilities`, float32 [batch, class],
    and `label`, int64 [batch, 1], the most probable class. A batch is a mapping of `features` and `target`, int64
    [batch], a place in `class_names`.

    Args:
        feature_means: mean of each feature over the training rows; its length is the number of features.
        feature_stds: standard deviation of each feature, above 0.
        class_names: names of the classes in order, two or more.
        hidden: units of the hidden layers, first to last; none: a logistic regression.
        activation: after each hidden layer.
        dropout: share of a hidden layer's units dropped in each training step, in [0, 1).
        lr: AdamW's learning rate.
        weight_decay: AdamW's.

    Raises:
        ValueError: means and standard deviations differ in number, or there are fewer than two classes.
        HookError: in a step, features of another shape or targets that are no classes.
    """

    def __init__(
        self,
        *,
        feature_means: Sequence[float],
        feature_stds: Sequence[float],
        class_names: Sequence[str],
        hidden: Sequence[int] = (64, 64),
        activation: Activation = "silu",
        dropout: float = 0.0,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__()
        if len(feature_means) != len(feature_stds):
            raise ValueError(
                f"MLPClassifier: expected as many feature_stds as feature_means, got {len(feature_stds)} and "
                f"{len(feature_means)}"
            )
        if min(feature_stds, default=1.0) <= 0:
            raise ValueError(f"MLPClassifier: expected feature_stds above 0, got {min(feature_stds)}")
        if len(class_names) < 2:  # noqa: PLR2004 - two classes
            raise ValueError(
                f"MLPClassifier: expected the names of two or more classes, got {', '.join(class_names) or 'none'}; a "
                "CsvTable has them with `target_is_category: true`"
            )
        self.save_hyperparameters()
        self.names = list(class_names)
        self.class_names = {"probabilities": self.names}
        self.feature_means: Tensor
        self.feature_stds: Tensor
        self.register_buffer("feature_means", torch.tensor(feature_means, dtype=torch.float32))
        self.register_buffer("feature_stds", torch.tensor(feature_stds, dtype=torch.float32))
        self.layers = perceptron((len(feature_means), *hidden, len(class_names)), activation, dropout)

    def preprocess(self, inputs: Tensors) -> Tensors:
        return {"features": standardised(inputs["features"], self.feature_means, self.feature_stds)}

    def forward(self, features: Tensor) -> Tensors:
        return {"logits": self.layers(features)}

    def postprocess(self, outputs: Tensors) -> Tensors:
        logits = outputs["logits"]
        return {"probabilities": logits.softmax(1), "label": logits.argmax(1, keepdim=True)}

    def loss(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Tensor:
        target = batch["target"]
        if target.dim() != 1 or target.is_floating_point():
            raise HookError(
                f"MLPClassifier: it takes classes, int64 [batch], as targets, got {target.dtype} {list(target.shape)}; a "
                "CsvTable gives classes with `target_is_category: true`"
            )
        return nn.functional.cross_entropy(outputs["logits"], target)

    def metrics(self) -> MetricCollection:
        return MetricCollection({"accuracy": MulticlassAccuracy(len(self.names), average="micro")})

    def metric_args(self, inputs: Tensors, outputs: Tensors, batch: Any) -> tuple[Tensor, Tensor]:
        return outputs["logits"], batch["target"]

    def labels(self, batch: Any) -> Mapping[str, Sequence[Any]]:
        return {"class": [self.names[i] for i in batch["target"].tolist()]}

    def summaries(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Mapping[str, Any]:
        return {"confusion": confusion_matrix(outputs["logits"], batch["target"], self.names)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        lr, weight_decay = self.hparams["lr"], self.hparams["weight_decay"]
        return torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=weight_decay)


def standardised(values: Tensor, means: Tensor, stds: Tensor) -> Tensor:
    """Values [batch, column] minus the columns' means, over their standard deviations.

    Raises:
        HookError: there are more or fewer columns than means.
    """
    if values.shape[1:] != means.shape:
        raise HookError(
            f"expected {len(means)} columns a row, as means were given, got {list(values.shape[1:])}"
        )
    return (values - means) / stds


def perceptron(sizes: Sequence[int], activation: Activation = "silu", dropout: float = 0.0) -> nn.Sequential:
    """Linear layers from each size to the next; all but the last with activation and, above 0, dropout."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes[:-1]):
        layers += [nn.Linear(n_in, n_out), ACTIVATIONS[activation]()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))
