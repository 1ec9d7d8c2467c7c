"""Random numbers that are a function of seed, epoch and batch, so that a resumed run draws the same."""

import random
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

_TRAIN, _VALIDATE, _EPOCH = 1, 2, 3


class StepSeeding(Callback):
    """Seeds torch before every batch and validation, and Python and numpy too before every epoch.

    Lightning saves no state of random generators, and a loader that shuffles draws from them. With this a
    run that goes on after a failure has the dropout and the order that it would have had. `step_seeding:
    false` switches it off; resuming is then no longer exact for models that draw.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._epoch = 0
        self._fresh = True

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._epoch = int(checkpoint["epoch"])
        progress = (
            checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {}).get("current", {})
        )
        self._epoch = int(progress.get("processed", self._epoch))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first epoch's loader begins to draw before that epoch does."""
        self._fresh = True
        self._seed_epoch(self._epoch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._fresh:
            self._seed_epoch(trainer.current_epoch)
        self._fresh = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        _seed_torch(self._mix(_TRAIN, trainer.current_epoch, batch_idx))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            _seed_torch(self._mix(_VALIDATE, trainer.current_epoch, trainer.global_step))

    def _seed_epoch(self, epoch: int) -> None:
        seed = self._mix(_EPOCH, epoch, 0)
        _seed_torch(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the generator that people's data sets draw from

    def _mix(self, *keys: int) -> int:
        """A seed of 63 bits; Python's hash of integers is the same in every process."""
        return hash((self.seed, *keys)) & (2**63 - 1)


def _seed_torch(seed: int) -> None:
    """`torch.manual_seed` for the devices that are in use: it looks for all there might be, at 200 µs a call."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
