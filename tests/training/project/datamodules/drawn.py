"""Data whose loader, workers, sampler and augmentation are drawn, for the property test of resuming."""

# ruff: noqa: PLR0917, PLW0108

import random

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, Sampler, WeightedRandomSampler

from unitrain.loaders import ArrayLoader, DatasetLoader

SAMPLES, BATCH = 46, 8


def arrays(samples: int, seed: int) -> dict[str, np.ndarray]:
    """Images and a number that follows from each."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, 1, 6, 6)).astype(np.float32)
    return {"x": x, "y": x.mean((1, 2, 3), keepdims=True)[:, :, 0, 0] * 3}


class Samples:
    """Each sample is augmented when it is fetched."""

    def __init__(self, data: dict[str, np.ndarray], source: str) -> None:
        self.data, self.source = data, source
        self.generator = np.random.default_rng(11)
        self.drawn = random.Random(5)

    def __len__(self) -> int:
        return len(self.data["x"])

    def noise(self) -> float:
        draws = {
            "none": lambda: 0.0,
            "random": lambda: random.random(),
            "numpy": lambda: float(np.random.normal()),  # noqa: NPY002
            "torch": lambda: float(torch.randn(())),
            "generator": lambda: float(self.generator.normal()) + self.drawn.random(),
        }
        if self.source == "all":
            return sum(draw() for draw in draws.values())
        return draws[self.source]()

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x, y = (torch.from_numpy(self.data[name][index]) for name in ("x", "y"))
        return {"x": x + 0.1 * self.noise(), "y": y}


class Stream(IterableDataset):
    """The same samples one by one, in an order that it draws; workers share them."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        order = torch.randperm(len(self.samples)).tolist()
        for index in order[worker.id :: worker.num_workers] if worker else order:
            yield self.samples[index]


class Halves(Sampler):
    """A sampler with a generator of its own, which goes on from epoch to epoch."""

    def __init__(self, length: int) -> None:
        self.length, self.rng = length, np.random.default_rng(8)

    def __iter__(self):
        return iter(self.rng.permutation(self.length).tolist())

    def __len__(self) -> int:
        return self.length


class PythonShuffled(Halves):
    """It draws from Python's global generator."""

    def __iter__(self):
        order = list(range(self.length))
        random.shuffle(order)
        return iter(order)


class DrawnData(LightningDataModule):
    """Training and validation loaders of the drawn kind."""

    def __init__(
        self,
        loader: str = "torch",
        workers: int = 0,
        persistent: bool = False,
        prefetch: int = 2,
        source: str = "none",
        shuffle: bool = True,
        sampler: str = "none",
        noisy_validation: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()

    def options(self) -> dict:
        kept = self.hparams
        extra = (
            {"persistent_workers": kept.persistent, "prefetch_factor": kept.prefetch} if kept.workers else {}
        )
        return {"num_workers": kept.workers, **extra}

    def train_dataloader(self):
        kept, data = self.hparams, arrays(SAMPLES, 0)
        samples = Samples(data, kept.source)
        if kept.loader == "array":
            noise = (lambda b, g: b | {"x": b["x"] + torch.rand(b["x"].shape, generator=g)}) if kept.source != "none" else None  # fmt: skip
            return ArrayLoader(data, batch_size=BATCH, shuffle=kept.shuffle, transform=noise)
        if kept.loader == "dataset":
            return DatasetLoader(samples, batch_size=BATCH, shuffle=kept.shuffle, **self.options())
        if kept.loader == "stream":
            return DataLoader(Stream(samples), batch_size=BATCH, **self.options())
        if kept.loader == "two":
            second = DataLoader(samples, batch_size=BATCH, shuffle=True, **self.options())
            first = DataLoader(samples, batch_size=5, shuffle=True)
            return {"a": first, "b": second}
        if kept.sampler == "none":
            return DataLoader(samples, batch_size=BATCH, shuffle=kept.shuffle, **self.options())
        sampler = {
            "replacement": lambda: RandomSampler(samples, replacement=True, num_samples=40),
            "weighted": lambda: WeightedRandomSampler(np.linspace(1, 2, SAMPLES).tolist(), 44),
            "own_torch": lambda: RandomSampler(samples, generator=torch.Generator().manual_seed(4)),
            "own_numpy": lambda: Halves(SAMPLES),
            "python": lambda: PythonShuffled(SAMPLES),
        }[kept.sampler]()
        return DataLoader(samples, batch_size=BATCH, sampler=sampler, **self.options())

    def on_before_batch_transfer(self, batch, dataloader_idx):
        if "a" in batch:  # of two loaders
            return {key: torch.cat([batch["a"][key], batch["b"][key]]) for key in ("x", "y")}
        return batch

    def val_dataloader(self):
        samples = Samples(arrays(20, 1), "all" if self.hparams.noisy_validation else "none")
        return DataLoader(samples, batch_size=BATCH, **self.options())
