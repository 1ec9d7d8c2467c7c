"""Points on a curve, as dicts by our loader and as tuples by torch's."""

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from unitrain.loaders import ArrayLoader, DatasetLoader


def _points(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.uniform(-5, 5, (n, 1)).astype(np.float32)
    return x, (x**2 + rng.normal(size=x.shape)).astype(np.float32)


class Points(LightningDataModule):
    """Batches {x, target}."""

    def __init__(self, n: int = 320, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size
        x, y = _points(n)
        self.train = {"x": x[64:], "target": y[64:]}
        self.val = {"x": x[:64], "target": y[:64]}
        self.scale = 5.0

    def train_dataloader(self):
        return ArrayLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return ArrayLoader(self.val, batch_size=64)


class TuplePoints(LightningDataModule):
    """Batches (x, target) from torch's own DataLoader."""

    def setup(self, stage):
        x, y = map(torch.from_numpy, _points(320))
        self.train, self.val = TensorDataset(x[64:], y[64:]), TensorDataset(x[:64], y[:64])

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=32, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=32)


class NoValidation(Points):
    """Training data only."""

    val_dataloader = LightningDataModule.val_dataloader


class DictPoints(Points):
    """The same batches from torch's own DataLoader, which shuffles and can't be resumed in mid-epoch."""

    def __init__(self, num_workers: int = 0) -> None:
        super().__init__()
        self.num_workers = num_workers

    def train_dataloader(self):
        rows = [
            {k: torch.from_numpy(v[i]) for k, v in self.train.items()} for i in range(len(self.train["x"]))
        ]
        return DataLoader(rows, batch_size=32, shuffle=True, num_workers=self.num_workers)


class _NoisySamples:
    """Samples with a little noise that is drawn when they are fetched."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays["x"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = {key: torch.from_numpy(value[index]) for key, value in self.arrays.items()}
        return sample | {"x": sample["x"] + 0.01 * torch.randn(1)}


class SampledPoints(DictPoints):
    """Fetched by sample, by our own loader."""

    def train_dataloader(self):
        return DatasetLoader(
            _NoisySamples(self.train), batch_size=32, shuffle=True, num_workers=self.num_workers
        )


class _Stream(IterableDataset):
    """Points one by one, without a length, once or for ever."""

    def __init__(self, endless: bool) -> None:
        self.endless = endless

    def __iter__(self):
        x, y = map(torch.from_numpy, _points(64))
        yield from zip(x, y, strict=True)
        while self.endless:
            yield from zip(x, y, strict=True)


class Streams(LightningDataModule):
    """Training data without an end, validation data without a length."""

    def train_dataloader(self):
        return DataLoader(_Stream(endless=True), batch_size=32)

    def val_dataloader(self):
        return DataLoader(_Stream(endless=False), batch_size=32)


class TwoValidations(Points):
    """The second validation set is other data."""

    def val_dataloader(self):
        far = {key: 2 * value for key, value in self.val.items()}
        return [ArrayLoader(data, batch_size=64) for data in (self.val, far)]


class NoisyValidation(DictPoints):
    """Validation samples with other noise each time, as nobody should have them."""

    def val_dataloader(self):
        return DataLoader(_NoisySamples(self.val), batch_size=32)
