"""Handwritten digits, each with a code drawn beside it, for models that generate."""

from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Generator, Tensor

from unitrain.datamodules.digit_arrays import SIDE, load_digit_arrays
from unitrain.loaders import ArrayLoader

VALIDATION_SEED = 0


class DigitsWithCodes(LightningDataModule):
    """scikit-learn's digits, and codes of the standard normal distribution to make digits of.

    Batches are mappings of `image`, float32 [batch, 1, 8, 8], ink from 0 to 16; `code`, float32
    [batch, code_size], drawn again for each training batch and always the same ones in validation; and
    `label`, int64 [batch].

    Args:
        code_size: values of a code.
        batch_size: digits a training batch.
        repeats: repetitions of the digits in one epoch.
    """

    def __init__(self, code_size: int = 12, batch_size: int = 128, repeats: int = 1) -> None:
        super().__init__()
        self.code_size = code_size
        self.height = self.width = SIDE
        self.batch_size = batch_size
        self.repeats = repeats
        self._train = load_digit_arrays("train")
        self._validation = load_digit_arrays("validation")

    def train_dataloader(self) -> ArrayLoader:
        return ArrayLoader(
            {"image": self._train.images, "label": self._train.labels},
            batch_size=self.batch_size,
            repeats=self.repeats,
            shuffle=True,
            drop_last=True,
            transform=self._with_codes,
        )

    def val_dataloader(self) -> ArrayLoader:
        images, labels = self._validation
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        batch = self._with_codes({"image": torch.from_numpy(images), "label": labels}, generator)
        return ArrayLoader(batch, batch_size=len(images))

    def _with_codes(self, batch: dict[str, Any], generator: Generator) -> dict[str, Any]:
        image: Tensor = batch["image"]
        return batch | {"code": torch.randn(len(image), self.code_size, generator=generator)}
