"""Multichannel signals: few of them, and many draws of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from torch import Generator, Tensor

from examples.signals_clustering.basic_motions import (
    CLASS_NAMES,
    N_CHANNELS,
    N_STEPS,
    LabelledSignals,
    load_basic_motions,
)
from unitrain.errors import HookError
from unitrain.loaders import ArrayLoader


class BasicMotions(LightningDataModule):
    """Movements of four classes recorded by a smart watch: 6 channels of 100 steps.

    Training and validation share the data set's 40 training signals; the 40 held-out ones are the test
    set and take part in nothing else. Batches are mappings of `signals`, float32 [batch, 6, 100] in the
    sensors' units, and `label`, int64 [batch], a place in `class_names`.

    Args:
        batch_size: signals a batch.
        repeats: draws of each training signal that make one epoch, each augmented differently.
        validation_per_class: training signals of each class that are kept for validation.
        validation_shifts: circular shifts of each validation signal, evenly spaced, the first by 0 steps.
        max_stretch: time runs faster or slower by a factor of at most 1 + this; 0: off.
        gain: standard deviation of the logarithm of a signal's amplification; 0: off.
        channel_gain: the same, drawn for each channel.
        mixup: share of the signals that another one is mixed into, in [0, 1].
        seed: seed of the choice of validation signals.

    Raises:
        HookError: a class would be left without training or validation signals.
    """

    def __init__(
        self,
        *,
        batch_size: int = 64,
        repeats: int = 64,
        validation_per_class: int = 2,
        validation_shifts: int = 5,
        max_stretch: float = 0.25,
        gain: float = 0.2,
        channel_gain: float = 0.1,
        mixup: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.repeats = repeats
        self.validation_shifts = validation_shifts
        known = load_basic_motions("TRAIN")
        self.train_rows, self.validation_rows = split_rows(known.labels, validation_per_class, seed)
        signals = known.signals[self.train_rows]
        self.train = LabelledSignals(signals, known.labels[self.train_rows])
        self.validation = LabelledSignals(
            known.signals[self.validation_rows], known.labels[self.validation_rows]
        )
        self.channel_means = [float(value) for value in signals.mean((0, 2), dtype=np.float64)]
        self.channel_stds = [float(value) for value in signals.std((0, 2), dtype=np.float64)]
        self.augmentation = Augmentation(self.channel_means, max_stretch, gain, channel_gain, mixup)

    @property
    def n_channels(self) -> int:
        """Channels of a signal."""
        return N_CHANNELS

    @property
    def n_steps(self) -> int:
        """Steps of a signal."""
        return N_STEPS

    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of the labels."""
        return list(CLASS_NAMES)

    def train_dataloader(self) -> ArrayLoader:
        return ArrayLoader(
            _columns(self.train),
            batch_size=self.batch_size,
            shuffle=True,
            repeats=self.repeats,
            transform=self.augmentation,
        )

    def val_dataloader(self) -> ArrayLoader:
        # Where in a movement the recording began is chance; a few fixed shifts make more of few signals.
        steps = [i * N_STEPS // self.validation_shifts for i in range(self.validation_shifts)]
        signals = np.concatenate([np.roll(self.validation.signals, s, axis=-1) for s in steps])
        labels = np.tile(self.validation.labels, self.validation_shifts)
        return ArrayLoader(_columns(LabelledSignals(signals, labels)), batch_size=256)

    def test_dataloader(self) -> ArrayLoader:
        return ArrayLoader(_columns(load_basic_motions("TEST")), batch_size=256)


def split_rows(
    labels: NDArray[np.int64], validation_per_class: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(training rows, validation rows), ascending and disjoint, the same number of each class in validation.

    Raises:
        HookError: a class would be left without training or validation signals.
    """
    smallest = int(np.bincount(labels).min())
    if not 0 < validation_per_class < smallest:
        raise HookError(
            f"validation_per_class: expected 1 to {smallest - 1} of a class's {smallest} signals, "
            f"got {validation_per_class}"
        )
    generator = np.random.default_rng(seed)
    chosen = [
        generator.choice(np.flatnonzero(labels == label), validation_per_class, replace=False)
        for label in np.unique(labels)
    ]
    validation = np.sort(np.concatenate(chosen))
    return np.setdiff1d(np.arange(len(labels)), validation), validation


@dataclass(frozen=True)
class Augmentation:
    """New signals from known ones: shifted in time, stretched, amplified and mixed.

    A movement has no first step, so signals are shifted circularly; movements are faster or slower, and
    more or less; a mixture keeps the class of the signal that makes up most of it.

    Attributes: see `BasicMotions`; `channel_means` is what amplification leaves in place.
    """

    channel_means: Sequence[float]
    max_stretch: float
    gain: float
    channel_gain: float
    mixup: float

    def __call__(self, batch: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """A new batch, all its randomness drawn from `generator`."""
        signals = batch["signals"]
        drawn = self._draw(signals, generator)
        if self.mixup > 0:
            other = self._draw(signals[torch.randperm(len(signals), generator=generator)], generator)
            share = torch.rand(len(signals), 1, 1, generator=generator) / 2
            share *= torch.rand(len(signals), 1, 1, generator=generator) < self.mixup
            drawn = torch.lerp(drawn, other, share)
        return {**batch, "signals": drawn}

    def _draw(self, signals: Tensor, generator: Generator) -> Tensor:
        n, channels, steps = signals.shape
        first = torch.rand(n, 1, generator=generator) * steps
        speed = torch.exp((2 * torch.rand(n, 1, generator=generator) - 1) * log(1 + self.max_stretch))
        places = (first + speed * torch.arange(steps)) % steps
        # Linear interpolation between the two known steps around each place, the end joined to the beginning.
        before = places.long() % steps
        share = (places - before)[:, None]
        at = before[:, None].expand(-1, channels, -1)
        moved = torch.lerp(signals.gather(2, at), signals.gather(2, (at + 1) % steps), share)
        means = torch.tensor(self.channel_means)[:, None]
        logarithm = self.gain * torch.randn(n, 1, 1, generator=generator)
        logarithm = logarithm + self.channel_gain * torch.randn(n, channels, 1, generator=generator)
        return means + torch.exp(logarithm) * (moved - means)


def _columns(part: LabelledSignals) -> dict[str, NDArray[Any]]:
    return {"signals": part.signals, "label": part.labels}
