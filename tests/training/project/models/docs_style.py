"""Modules as Lightning's documentation writes them, by `import lightning as L`, and a factory of one."""

import lightning as L  # noqa: N812
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Model(L.LightningModule):
    """A regression."""

    def __init__(self, hidden: int = 4, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.hparams.lr)


class Data(L.LightningDataModule):
    """Batches (x, y)."""

    def __init__(self, n: int = 64, batch_size: int = 16) -> None:
        super().__init__()
        self.n, self.batch_size = n, batch_size

    def train_dataloader(self):
        x = torch.randn(self.n, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), self.batch_size)

    val_dataloader = train_dataloader


class Counts(Callback):
    """Writes down that it was called."""

    @rank_zero_only
    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.log("epochs_counted", float(trainer.current_epoch))


class Fails(Model):
    """Its own __init__ raises."""

    def __init__(self, hidden: int = 4) -> None:
        super().__init__(hidden)
        {}["missing"]


def factory(width: int = 4) -> Model:
    """A function that a class path may name."""
    return Model(hidden=width)


def bare(width=4):
    """A function that does not say what it returns."""
    return Model(hidden=width)
