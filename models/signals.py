"""Multichannel signals compressed to a short code and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection, R2Score

from unitrain.errors import HookError
from unitrain.figures import reconstructions
from unitrain.module import Tensors, UnitrainModule, batch_targets


class SignalsAutoencoder(UnitrainModule):
    """A convolutional autoencoder of multichannel signals.

    Serves `signals`, float32 [batch, n_channels, n_steps] in the sensors' units →

    - `code`, float32 [batch, code_size];
    - `reconstruction`, float32 [batch, n_channels, n_steps], in the sensors' units again.

    Standardisation by channel is part of the graph: `forward` sees standardised signals and gives
    standardised reconstructions. A batch is a mapping with `signals` and, for looking at the codes, any
    labels: `label`, int64 [batch], a place in `class_names`, and others, numbers or texts, one a signal.

    Args:
        channel_means: mean of each channel over the training signals, in the sensors' units.
        channel_stds: standard deviation of each channel.
        n_channels: channels of a signal.
        n_steps: steps of a signal; a multiple of 4.
        code_size: values of a code.
        width: channels after the first convolution; the deeper ones have twice as many.
        code_weight: weight of the codes' mean square in the loss, which keeps their scale near 1.
        lr: AdamW's learning rate.
        weight_decay: AdamW's.
        class_names: names of the labels; None: the numbers are shown.

    Raises:
        ValueError: n_steps is no multiple of 4.
        HookError: in a step, signals of another number of channels.
    """

    def __init__(
        self,
        *,
        channel_means: Sequence[float],
        channel_stds: Sequence[float],
        n_channels: int = 6,
        n_steps: int = 100,
        code_size: int = 24,
        width: int = 32,
        code_weight: float = 1e-3,
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if n_steps % 4:
            raise ValueError(f"SignalsAutoencoder: expected n_steps to be a multiple of 4, got {n_steps}")
        self.save_hyperparameters()
        self.code_weight = code_weight
        self.class_names = class_names
        self.means: Tensor
        self.stds: Tensor
        self.register_buffer("means", torch.tensor(channel_means).reshape(n_channels, 1))
        self.register_buffer("stds", torch.tensor(channel_stds).reshape(n_channels, 1))
        deep, quarter = 2 * width, n_steps // 4
        eighth = -(-quarter // 2)
        self.encoder = nn.Sequential(
            nn.Conv1d(n_channels, width, 7, stride=2, padding=3), nn.GELU(),
            nn.Conv1d(width, deep, 5, stride=2, padding=2), nn.GELU(),
            nn.Conv1d(deep, deep, 5, stride=2, padding=2), nn.GELU(),
            nn.Flatten(), nn.Linear(deep * eighth, code_size),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(code_size, deep * quarter), nn.Unflatten(1, (deep, quarter)), nn.GELU(),
            nn.Conv1d(deep, deep, 5, padding=2), nn.GELU(),
            nn.ConvTranspose1d(deep, width, 6, stride=2, padding=2), nn.GELU(),
            nn.ConvTranspose1d(width, n_channels, 6, stride=2, padding=2),
        )  # fmt: skip

    def preprocess(self, inputs: Tensors) -> Tensors:
        signals = inputs["signals"]
        if signals.shape[1] != len(self.means):
            raise HookError(
                f"SignalsAutoencoder: expected signals of {len(self.means)} channels, got {list(signals.shape)}; link "
                "n_channels, channel_means and channel_stds to the data"
            )
        return {"signals": (signals - self.means) / self.stds}

    def forward(self, signals: Tensor) -> Tensors:
        code = self.encoder(signals)
        return {"code": code, "reconstruction": self.decoder(code)}

    def postprocess(self, outputs: Tensors) -> Tensors:
        return {
            "code": outputs["code"],
            "reconstruction": outputs["reconstruction"] * self.stds + self.means,
        }

    def loss(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Tensors:
        return {
            "reconstruction": nn.functional.mse_loss(outputs["reconstruction"], inputs["signals"]),
            "code": self.code_weight * outputs["code"].square().mean(),
        }

    def metrics(self) -> MetricCollection:
        # Of all values together. torchmetrics' ExplainedVariance would forgive a constant error; R² does not.
        return MetricCollection({"explained_variance": R2Score()})

    def metric_args(self, inputs: Tensors, outputs: Tensors, batch: Any) -> tuple[Tensor, Tensor]:
        return outputs["reconstruction"].flatten(), inputs["signals"].flatten()

    def labels(self, batch: Any) -> Mapping[str, Sequence[Any] | Tensor]:
        labels = batch_targets(self, batch)
        if "label" in labels:
            label = labels.pop("label")
            names = self.class_names
            labels["class"] = label if names is None else [names[i] for i in label.tolist()]
        return labels

    def summaries(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Mapping[str, Any]:
        names = next((list(map(str, label)) for label in self.labels(batch).values()), None)
        return {"reconstruction": reconstructions(inputs["signals"], outputs["reconstruction"], names)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
        )
