"""Modules that only some of a training's parts can't take."""

import torch
from models.shapes import Right
from pytorch_lightning import LightningModule
from torch import nn
from torch.nn import functional as F  # noqa: N812


class KeepsOutputs(Right):
    """Keeps what its last step generated, as in Lightning's GAN tutorial: a tensor that no copy can be made of."""

    def training_step(self, batch, batch_idx):
        self.generated = self(batch[0])
        return F.mse_loss(self.generated[:, 0], batch[1])


class Lazy(Right):
    """Its layers have no shapes before the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(1))


class Branches(Right):
    """Its forward depends on its data."""

    def forward(self, x):
        return self.net(x) if x.sum() > 0 else -self.net(x)


class FailsInStep(Right):
    def training_step(self, batch, batch_idx):
        return batch["nothing"]


class FailsInValidation(Right):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", batch["nothing"])


class FailsInSetup(Right):
    def setup(self, stage):
        raise OSError("no such disk")


class NoOptimizer(Right):
    def configure_optimizers(self):
        raise RuntimeError("no optimizer today")


class NanLoss(Right):
    def training_step(self, batch, batch_idx):
        return self.loss(*batch) * float("nan")


class NoValidationStep(Right):
    validation_step = LightningModule.validation_step


class LogsNothing(Right):
    def validation_step(self, batch, batch_idx):
        self.loss(*batch)


class TwoOutputsOfOneName(Right):
    def forward(self, x):
        return {"a": {"b": self.net(x)}, "a_b": self.net(x)}

    def loss(self, x, y):
        return F.mse_loss(self(x)["a_b"][:, 0], y)


class ListInput(Right):
    """Its forward takes a list."""

    def forward(self, parts):
        return self.net(parts[0])

    def loss(self, x, y):
        return F.mse_loss(self([x])[:, 0], y)


class HyperParameters(Right):
    def __init__(self, width: int, depth: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(depth)), nn.Linear(4, 1))
        if width < 1:
            raise ValueError("width must be at least 1")


class Half(Right):
    """Its input is bfloat16."""

    def loss(self, x, y):
        return F.mse_loss(self(x)[:, 0], y)

    def forward(self, x):
        return self.net(torch.nan_to_num(x))
