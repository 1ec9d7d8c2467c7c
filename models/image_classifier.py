"""A convolutional classifier of small images, with calibrated probabilities."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from unitrain.errors import HookError
from unitrain.figures import calibration, confusion_matrix
from unitrain.module import Tensors, UnitrainModule

_LEAST, _GREATEST = 0.05, 20.0
"""Temperatures that are looked at."""


class ImageClassifier(UnitrainModule):
    """A convolutional network that predicts the class of an image.

    Serves `image`, uint8 [batch, n_channels, height, width] →

    - `probabilities`, float32 [batch, class], calibrated by temperature scaling (Guo et al. 2017,
      https://arxiv.org/abs/1706.04599): logits over a temperature that is fitted after each validation, on
      its samples, for the averaged weights. With several processes it is the main one's share of them;
    - `logits`, float32 [batch, class], as they were trained.

    A batch is a mapping of `image` and `label`, int64 [batch], a place in `class_names`.

    Args:
        class_names: names of the classes in order.
        n_channels: number of channels of an image.
        channel_means: mean of each channel over the training images, in grey levels.
        channel_stds: standard deviation of each channel.
        width: channels after the first stage; each stage has twice as many as the one before.
        depth: stages; each halves the size.
        dropout: share of the pooled features that are dropped in training.
        label_smoothing: label smoothing of the cross entropy.
        lr: AdamW's learning rate.
        weight_decay: AdamW's.

    Raises:
        HookError: there is not one mean and one standard deviation a channel.
    """

    def __init__(
        self,
        *,
        class_names: Sequence[str],
        n_channels: int = 1,
        channel_means: Sequence[float] = (0.0,),
        channel_stds: Sequence[float] = (255.0,),
        width: int = 32,
        depth: int = 2,
        dropout: float = 0.2,
        label_smoothing: float = 0.0,
        lr: float = 3e-3,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__()
        if not len(channel_means) == len(channel_stds) == n_channels:
            raise HookError(
                f"ImageClassifier: expected a mean and a standard deviation for each of {n_channels} channels, got "
                f"{len(channel_means)} and {len(channel_stds)}"
            )
        self.save_hyperparameters()
        self.names = list(class_names)
        self.class_names = {"probabilities": self.names}
        self.means: Tensor
        self.stds: Tensor
        self.temperature: Tensor
        self.register_buffer("means", torch.tensor(channel_means).reshape(n_channels, 1, 1))
        self.register_buffer("stds", torch.tensor(channel_stds).reshape(n_channels, 1, 1))
        self.register_buffer("temperature", torch.ones(()))
        widths = [n_channels, *(width << stage for stage in range(depth))]
        self.stages = nn.Sequential(*(_stage(before, after) for before, after in pairwise(widths)))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], len(self.names))
        self.cross_entropy = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self._validated: list[tuple[Tensor, Tensor]] = []

    def preprocess(self, inputs: Tensors) -> Tensors:
        return {"image": (inputs["image"].float() - self.means) / self.stds}

    def forward(self, image: Tensor) -> Tensors:
        features = self.stages(image).mean((2, 3))
        return {"logits": self.head(self.dropout(features)), "features": features}

    def postprocess(self, outputs: Tensors) -> Tensors:
        logits = outputs["logits"]
        return {"probabilities": (logits / self.temperature).softmax(1), "logits": logits}

    def loss(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Tensor:
        loss: Tensor = self.cross_entropy(outputs["logits"], batch["label"])
        return loss

    def metrics(self) -> MetricCollection:
        classes = len(self.names)
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(classes, average="micro"),
                "calibration_error": MulticlassCalibrationError(classes),
            }
        )

    def metric_args(self, inputs: Tensors, outputs: Tensors, batch: Any) -> tuple[Tensor, Tensor]:
        return outputs["logits"].softmax(1), batch["label"]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        found = super().validation_step(batch, batch_idx, dataloader_idx)
        self._validated.append((found["outputs"]["logits"].detach(), batch["label"]))
        return found

    def on_validation_epoch_start(self) -> None:
        self._validated.clear()

    def on_validation_epoch_end(self) -> None:
        logits, labels = (torch.cat(parts) for parts in zip(*self._validated, strict=True))
        self._validated.clear()
        if not self.trainer.sanity_checking:
            self.temperature.fill_(fitted_temperature(logits, labels))
            self.log("val_temperature", self.temperature)

    def embeddings(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Tensors:
        return {"image": inputs["image"], "features": outputs["features"], "logits": outputs["logits"]}

    def labels(self, batch: Any) -> Mapping[str, Sequence[Any] | Tensor]:
        return {"class": [self.names[i] for i in batch["label"].tolist()]}

    def summaries(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Mapping[str, Any]:
        served = self.postprocess(outputs)
        return {
            "confusion": confusion_matrix(served["logits"], batch["label"], self.names),
            "calibration/before": calibration(served["logits"].softmax(1), batch["label"]),
            "calibration/after": calibration(served["probabilities"], batch["label"]),
        }

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
        )


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature at which softmax(logits / temperature) makes the labels most likely, in [0.05, 20].

    The cross entropy is convex in the temperature's inverse, so the place where its slope is 0 is found by
    halving; there is no optimizer to tune.

    Args:
        logits: float [row, class].
        labels: int64 [row].
    """
    scores = logits.double()
    true = scores.gather(1, labels[:, None])[:, 0]
    low, high = 1 / _GREATEST, 1 / _LEAST
    for _ in range(60):
        inverse = (low * high) ** 0.5
        expected = ((scores * inverse).softmax(1) * scores).sum(1)
        if float((expected - true).mean()) < 0:
            low = inverse
        else:
            high = inverse
    return float(1 / (low * high) ** 0.5)


def _stage(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n in (before, after):
        # By groups of an image's own channels: nothing of the batch that the average of the weights could miss.
        layers += [nn.Conv2d(n, after, 3, padding=1), nn.GroupNorm(8, after), nn.GELU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2, ceil_mode=True))
