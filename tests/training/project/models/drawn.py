"""A module whose every part that makes a resume hard can be switched on, for the property test of resuming."""

# ruff: noqa: PLR0917, ARG005

import os
import random
import signal

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule
from torch import nn
from torchmetrics import MeanAbsoluteError, MeanMetric, MetricCollection


class Drawn(LightningModule):
    """A small regression on images [1, 6, 6]; the settings are drawn."""

    def __init__(
        self,
        frozen_norm: bool = False,
        dropout: str = "none",
        optimizer: str = "adam",
        scheduler: str = "none",
        estimated: bool = False,
        manual: bool = False,
        optimizers: int = 1,
        noise: str = "none",
        hooks: bool = False,
        metrics: bool = False,
        max_steps: int = 24,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        drop = {"none": nn.Identity, "plain": lambda: nn.Dropout(0.2), "2d": lambda: nn.Dropout2d(0.2)}[
            dropout
        ]()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), drop, nn.AdaptiveAvgPool2d(2)
        )
        self.head = nn.Linear(16, 1)
        self.register_buffer("follower", torch.zeros(1, 16))
        self.temperature = 1.0
        self.own = np.random.default_rng(3)
        self.automatic_optimization = not manual
        self.mae = MeanAbsoluteError()
        self.collected = MetricCollection({"a": MeanAbsoluteError(), "b": MeanMetric()} if metrics else {})

    def train(self, mode: bool = True):
        super().train(mode)
        if self.hparams.frozen_norm:
            self.features[1].eval()
        return self

    def forward(self, x):
        return self.head(self.features(x).flatten(1))

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if self.training and self.hparams.noise == "transfer":
            return batch | {"x": batch["x"] + 0.1 * torch.randn_like(batch["x"])}
        return batch

    def training_step(self, batch, batch_idx):
        x, y = batch["x"], batch["y"]
        if self.hparams.noise == "numpy":
            x = x * float(np.random.beta(2, 2))  # noqa: NPY002
        elif self.hparams.noise == "python":
            x = x.flip(-1) if random.random() < 0.5 else x
        elif self.hparams.noise == "own":
            x = x + float(self.own.normal()) * 0.1
        prediction = self(x) / self.temperature
        loss = nn.functional.mse_loss(prediction, y)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        if self.hparams.metrics:
            self.mae(prediction, y)
            self.log("train_mae", self.mae, on_step=True, on_epoch=True)
        if self.hparams.manual:
            optimizers = self.optimizers()
            for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(self(x), y)
                self.manual_backward(loss)
                self.clip_gradients(optimizer, 1.0, "norm")
                optimizer.step()
            schedulers = self.lr_schedulers()
            for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
                if scheduler is not None and not isinstance(
                    scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau
                ):
                    scheduler.step()
            return None
        return loss

    def on_train_epoch_start(self):
        if self.hparams.hooks:
            self.temperature = 1.0 + 0.1 * self.current_epoch

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.hparams.hooks:  # as momentum encoders and target networks do
            with torch.no_grad():
                self.follower.lerp_(self.head.weight, 0.1)
                self.head.weight.add_(0.01 * torch.randn_like(self.head.weight))

    def validation_step(self, batch, batch_idx):
        prediction = self(batch["x"])
        self.log("val_loss", nn.functional.mse_loss(prediction, batch["y"]))
        if self.hparams.metrics:
            self.collected["a"].update(prediction, batch["y"])
            self.collected["b"].update(prediction.mean())
            self.log_dict(self.collected)

    def configure_optimizers(self):
        parts = [list(self.features.parameters()), list(self.head.parameters())]
        groups = parts if self.hparams.optimizers > 1 else [parts[0] + parts[1]]
        kinds = {
            "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
            "adam": lambda p: torch.optim.Adam(p, lr=0.01),
            "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
        }
        optimizers = [kinds[self.hparams.optimizer](group) for group in groups]
        total = (
            int(self.trainer.estimated_stepping_batches) if self.hparams.estimated else self.hparams.max_steps
        )
        lr = torch.optim.lr_scheduler
        made = {
            "none": lambda o: None,
            "onecycle": lambda o: {"scheduler": lr.OneCycleLR(o, 0.05, total_steps=total + 8), "interval": "step"},
            "cosine": lambda o: {"scheduler": lr.CosineAnnealingLR(o, total), "interval": "step"},
            "step": lambda o: {"scheduler": lr.StepLR(o, 1, 0.7), "interval": "epoch"},
            "plateau": lambda o: {
                "scheduler": lr.ReduceLROnPlateau(o, patience=0, factor=0.5, threshold=0.5),
                "monitor": "val_loss", "interval": "epoch", "strict": False,
            },
            "plateau_step": lambda o: {
                "scheduler": lr.ReduceLROnPlateau(o, patience=3, factor=0.5, threshold=0.5),
                "monitor": "train_loss", "interval": "step", "frequency": 1, "strict": False,
            },
        }[self.hparams.scheduler]  # fmt: skip
        schedulers = [s for s in map(made, optimizers) if s is not None]
        return optimizers, schedulers


class Interrupter(Callback):
    """Sends its own process a signal at an event: `UNITRAIN_INTERRUPT=event:count:signal`."""

    def __init__(self) -> None:
        event, count, number = (os.environ.get("UNITRAIN_INTERRUPT") or "none:0:0").split(":")
        self.event, self.left, self.number = event, int(count), int(number)

    def happens(self, event: str) -> None:
        if event == self.event:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.number)
                if self.number == signal.SIGKILL:
                    signal.pause()

    def setup(self, trainer, pl_module, stage):
        self.happens("setup")

    def on_fit_start(self, trainer, pl_module):
        self.happens("fit_start")

    def on_train_start(self, trainer, pl_module):
        self.happens("train_start")

    def on_train_epoch_start(self, trainer, pl_module):
        self.happens("epoch_start")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.happens("batch_start")

    def on_after_backward(self, trainer, pl_module):
        self.happens("backward")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.happens("batch_end")

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            self.happens("validation")

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.happens("validation_end")

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.happens("saving")

    def on_train_epoch_end(self, trainer, pl_module):
        self.happens("epoch_end")

    def on_train_end(self, trainer, pl_module):
        self.happens("train_end")


class Counter(Callback):
    """A callback with a state that acts: from the tenth batch on it halves the gradients."""

    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches += 1

    def on_after_backward(self, trainer, pl_module):
        if self.batches > 10:
            for parameter in pl_module.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(0.5)

    def state_dict(self):
        return {"batches": self.batches}

    def load_state_dict(self, state_dict):
        self.batches = state_dict["batches"]
