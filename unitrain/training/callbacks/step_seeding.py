"""Random seeds that are a function of run seed, epoch and batch, so that a resumed run draws the same numbers."""

import random
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from unitrain.loaders import OwnGenerators

TRAIN, VALIDATE, EPOCH, SANITY, REQUEST = 1, 2, 3, 4, 5


class StepSeeder:
    """Seed all random generators at each step of a training.

    Attributes:
        seed: `seed_everything`; None if `step_seeding` is off, and nothing is seeded.
        epoch_key: current iteration of the loaders: (TRAIN, epoch), or (VALIDATE, epoch, optimizer step).
        step_key: numbers from which, with `seed`, this process's generators are seeded.
        loader_count: number of loaders set up in the current stage; it gives each loader its own seed.
        generators: generators that are attributes of the module and of callbacks; None before `track_generators`.

    >>> seeder = StepSeeder(seed=0)
    >>> seeder.seed_step(TRAIN, 3, 1)  # epoch 3, batch 1
    >>> first = torch.rand(1)
    >>> seeder.reseed()
    >>> bool(torch.rand(1) == first)
    True
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = seed
        self.epoch_key: tuple[int, ...] = (TRAIN, 0)
        self.step_key: tuple[int, ...] = (TRAIN, 0, 0)
        self.loader_count = 0
        self.generators: OwnGenerators | None = None

    def track_generators(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed from now on the generators of module and callbacks: `self.rng = np.random.default_rng(0)`."""
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
        self.generators = OwnGenerators(parts, apart)

    def seed_step(self, *key: int) -> None:
        """Seed torch, numpy, Python and the tracked generators for a step.

        Args:
            key: kind of the step (TRAIN, VALIDATE, ...), epoch, and the number within the epoch.
        """
        self.step_key = key
        self.reseed()
        if self.generators is not None and self.seed is not None:
            self.generators.seed((self.seed, *key), epoch=key[1])

    def reseed(self) -> None:
        """Seed torch, numpy and Python for the current step again, after other code has drawn numbers."""
        if self.seed is not None:
            seed_process(self.seed, *self.step_key)


def seed_process(*keys: int) -> None:
    """Seed torch, numpy and Python by integers; Python's hash of integers is the same in every process."""
    seed = hash(keys) & (2**63 - 1)
    _seed_torch(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - users' code draws from this generator


class ValidationSeeding(Callback):
    """Seed each validation, in fit and in `validate`, so that both draw the same numbers."""

    def __init__(self, seeder: StepSeeder) -> None:
        self.seeder = seeder

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        kind = SANITY if trainer.sanity_checking else VALIDATE
        self.seeder.seed_step(kind, trainer.current_epoch, trainer.global_step)


def _seed_torch(seed: int) -> None:
    """Seed torch for the devices in use; `torch.manual_seed` looks for all kinds, at 200 µs a call."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
