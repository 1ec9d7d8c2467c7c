"""Modules whose losses have operands of one shape, or not."""

import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset


class Rows(LightningDataModule):
    """Batches (x [16, 4], y [16]), of which a value may be NaN."""

    def __init__(self, nan_at: int = -1, column: bool = False) -> None:
        super().__init__()
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        y = x.sum(1, keepdim=column)
        if nan_at >= 0:
            x[nan_at, 1] = float("nan")
        self.rows = TensorDataset(x, y)

    def train_dataloader(self):
        return DataLoader(self.rows, 16)

    val_dataloader = train_dataloader


class Right(LightningModule):
    """Its targets are of the outputs' shape."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)

    def forward(self, x):
        return self.net(x)

    def loss(self, x, y):
        return F.mse_loss(self(x)[:, 0], y)

    def training_step(self, batch, batch_idx):
        return self.loss(*batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(*batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-2)


class Mse(Right):
    def loss(self, x, y):
        return F.mse_loss(self(x), y)


class Huber(Right):
    def loss(self, x, y):
        return nn.HuberLoss()(input=self(x), target=y)


class ByHand(Right):
    def loss(self, x, y):
        return ((self(x) - y) ** 2).mean()


class Weighted(Right):
    def loss(self, x, y):
        return (F.mse_loss(self(x), y[:, None], reduction="none") * x[:, 0]).mean()


class OnlyInValidation(Right):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", (self(batch[0]) - batch[1]).abs().mean())


class Purposeful(Right):
    """Pairs of samples, distances, a scalar target, a bias: all broadcast on purpose."""

    def loss(self, x, y):
        z = self(x)
        pairs = (y[:, None] - y).abs().mean() + (y.unsqueeze(1).float() * y).mean()
        squares = (x**2).sum(1, keepdim=True) + (x**2).sum(1) - 2 * x @ x.T
        scaled = (x / x.norm(dim=1, keepdim=True)).mean() + (z * self.net.bias).mean()
        real = F.mse_loss(z, torch.tensor([0.0]))
        contrast = torch.eq(y.view(-1, 1), y.view(1, -1)).float().mean()
        return F.mse_loss(z[:, 0], y) + 1e-6 * (pairs + squares.mean() + scaled + real + contrast)


class LogsLate(Right):
    """Logs `val_score` each second validation only."""

    def on_validation_epoch_end(self):
        if self.current_epoch % 2 and not self.trainer.sanity_checking:
            self.log("val_score", 1.0 / (1 + self.current_epoch))


class LogsInTraining(Right):
    """Logs `train_loss`, and nothing else, by an f-string."""

    def training_step(self, batch, batch_idx):
        loss = self.loss(*batch)
        self.log(f"{'train'}_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.loss(*batch)
