"""Patients' measurements and what became of them, as a LightningDataModule that knows nothing of unitrain."""

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from examples.bring_your_own.patients import Rows, load_diabetes_parts

Batches = DataLoader[tuple[torch.Tensor, ...]]


class Diabetes(LightningDataModule):
    """Scikit-learn's diabetes data: ten measurements of 442 patients, and the disease's progression.

    Batches are pairs (features, target), float32 [batch, 10] and [batch, 1].

    Args:
        batch_size: patients a training batch.
        seed: seed of the split into 266 patients for training, 88 for validation and 88 held out.
    """

    def __init__(self, batch_size: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.parts = load_diabetes_parts(seed)

    @property
    def feature_means(self) -> list[float]:
        """Mean of each feature over the training patients."""
        return [float(value) for value in self.parts.train.features.mean(0)]

    @property
    def feature_stds(self) -> list[float]:
        """Standard deviation of each feature over the training patients."""
        return [float(value) for value in self.parts.train.features.std(0)]

    @property
    def target_mean(self) -> float:
        """Mean of the target over the training patients."""
        return float(self.parts.train.target.mean())

    @property
    def target_std(self) -> float:
        """Standard deviation of the target over the training patients."""
        return float(self.parts.train.target.std())

    def train_dataloader(self) -> Batches:
        return DataLoader(_dataset(self.parts.train), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> Batches:
        return DataLoader(_dataset(self.parts.validation), batch_size=256)

    def test_dataloader(self) -> Batches:
        return DataLoader(_dataset(self.parts.held_out), batch_size=256)


def _dataset(rows: Rows) -> TensorDataset:
    return TensorDataset(*map(torch.from_numpy, rows))
