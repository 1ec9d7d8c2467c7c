"""Random numbers that are a function of seed, epoch and batch, so that a resumed run draws the same."""

import random
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from unitrain.loaders import OwnGenerators

TRAIN, VALIDATE, EPOCH, SANITY, REQUEST = 1, 2, 3, 4, 5


class Clock:
    """The point that a training has reached, as the seed of all that is drawn there.

    Attributes:
        seed: `seed_everything`; None where `step_seeding` is off: nothing is seeded.
        round: pass over a loader's data: (TRAIN, epoch), or (VALIDATE, epoch, optimizer step).
        step: what the training process's own random numbers are a function of.
        loaders: those of a stage that have been set up, which tells their random numbers apart.
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = seed
        self.round: tuple[int, ...] = (TRAIN, 0)
        self.step: tuple[int, ...] = (TRAIN, 0, 0)
        self.loaders = 0
        self.own: OwnGenerators | None = None

    def watch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed from now on what module and callbacks keep for themselves, too: `self.rng = np.random.default_rng(0)`."""
        base = vars(LightningModule())
        parts: list[Any] = [
            {name: value for name, value in vars(part).items() if name not in base}
            for part in pl_module.modules()
        ]
        parts += [
            vars(callback)
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if not type(callback).__module__.startswith(("pytorch_lightning.", "lightning.", "unitrain."))
        ]
        apart = (Trainer, LightningDataModule, nn.Module, DataLoader)
        self.own = OwnGenerators(parts, apart)

    def at(self, *step: int) -> None:
        """Seed for a step: torch, numpy, Python, and the module's own generators."""
        self.step = step
        self.reseed()
        if self.own is not None and self.seed is not None:
            self.own.seed((self.seed, *step), epoch=step[1])

    def reseed(self) -> None:
        """Seed for the same step again, after something else was drawn in between."""
        if self.seed is not None:
            seed_process(self.seed, *self.step)


def seed_process(*keys: int) -> None:
    """Seed torch, numpy and Python by the keys; Python's hash of integers is the same in every process."""
    seed = hash(keys) & (2**63 - 1)
    _seed_torch(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the generator that people's code draws from


class ValidationSeeding(Callback):
    """Seeds each validation, in fit and of a checkpoint, so that both draw the same."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        kind = SANITY if trainer.sanity_checking else VALIDATE
        self.clock.at(kind, trainer.current_epoch, trainer.global_step)


def _seed_torch(seed: int) -> None:
    """`torch.manual_seed` for the devices that are in use: it looks for all there might be, at 200 µs a call."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
