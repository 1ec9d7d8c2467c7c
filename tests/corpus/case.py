"""A pattern of the corpus: a Lightning module, its data, and the accepted verdicts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, default_collate

Draw = Callable[[torch.Generator, int], Any]
"""Draws that many rows of an input."""

CASES: dict[str, "Case"] = {}
ROWS = {"train": 32, "val": 24}


@dataclass(frozen=True)
class Case:
    """A pattern.

    Attributes:
        inputs: served inputs by name, each with its draw.
        must: `equal` or `refused` where only that verdict is right, `either` where both are; `late` where what
            the training does to the module can't be known before it, so that a late refusal is right, too.
        layout: one sample of the data set, from its inputs and its target.
        target: targets [row, ...] from the inputs.
        collate: samples to a batch.
        settings: sections beside model, data and trainer.
        trainer: further keys of the trainer section.
        call: outputs of the live module on inputs by name; default: `module(**inputs)`.
        loaders: the data module's loaders by stage, in the place of the default ones.
    """

    name: str
    module: type[pl.LightningModule]
    inputs: Mapping[str, Draw]
    must: Literal["equal", "refused", "either", "late"]
    layout: Callable[[dict[str, Any], Tensor], Any]
    target: Callable[[dict[str, Any]], Tensor]
    collate: Callable[[list[Any]], Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    call: Callable[[Any, dict[str, Any]], Any] | None = None
    loaders: Callable[["Case", str], Any] | None = None

    @property
    def group(self) -> str:
        """The file that the pattern is in."""
        return self.module.__module__.rpartition(".")[2]

    def rows(self, count: int, seed: int) -> dict[str, Any]:
        """Fresh inputs by name, the same ones for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        return {name: draw(generator, count) for name, draw in self.inputs.items()}

    def samples(self, stage: str) -> list[Any]:
        """The data set of a stage."""
        inputs = self.rows(ROWS[stage], seed=1 if stage == "train" else 2)
        targets = self.target(inputs)
        return [
            self.layout({name: value[i] for name, value in inputs.items()}, targets[i])
            for i in range(ROWS[stage])
        ]


def total(inputs: Mapping[str, Any]) -> Tensor:
    """Targets [row, 1]: the mean of the first input that is a tensor."""
    first = next(value for value in inputs.values() if isinstance(value, Tensor))
    first = torch.view_as_real(first) if first.is_complex() else first
    return first.float().flatten(1).mean(1, keepdim=True)


def classes(count: int) -> Callable[[Mapping[str, Any]], Tensor]:
    """Targets [row]: int64 classes by rank of the mean of the first input."""
    return lambda inputs: total(inputs)[:, 0].argsort().argsort() % count


def pair(inputs: dict[str, Any], target: Tensor) -> Any:
    """A sample as a tuple: the inputs in order, then the target."""
    return (*inputs.values(), target)


def mapping(inputs: dict[str, Any], target: Tensor) -> Any:
    """A sample as a dict: the inputs by name, and `y`."""
    return {**inputs, "y": target}


def alone(inputs: dict[str, Any], target: Tensor) -> Any:
    """A sample that is the only input."""
    [only] = inputs.values()
    return only


def floats(*shape: int) -> Draw:
    """Standard normal float32 rows."""
    return lambda generator, n: torch.randn(n, *shape, generator=generator)


def ints(high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Draw:
    """Integer rows in [0, high)."""
    return lambda generator, n: torch.randint(0, high, (n, *shape), generator=generator).to(dtype)


def bools(*shape: int) -> Draw:
    """Masks, of which the first entry of each row is true."""

    def draw(generator: torch.Generator, n: int) -> Tensor:
        mask = torch.rand(n, *shape, generator=generator) > 0.3
        mask[..., 0] = True
        return mask

    return draw


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances [row of a, row of b]; torch's exporter has no `torch.cdist`."""
    return (a[:, None] - b[None]).square().sum(-1)


def case(
    name: str | None = None,
    *,
    must: Literal["equal", "refused", "either", "late"] = "equal",
    layout: Callable[..., Any] = pair,
    target: Callable[..., Tensor] = total,
    collate: Callable[..., Any] = default_collate,
    settings: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    call: Callable[[Any, dict[str, Any]], Any] | None = None,
    loaders: Callable[[Case, str], Any] | None = None,
    **inputs: Draw,
) -> Callable[[type], type]:
    """Add the decorated module to the corpus; inputs default to `x`, 8 floats a row."""

    def add(module: type) -> type:
        key = name or module.__name__
        if key in CASES:
            raise ValueError(f"two patterns are named {key}")
        CASES[key] = Case(
            key, module, inputs or {"x": floats(8)}, must, layout, target, collate,
            settings or {}, trainer or {}, call, loaders,
        )  # fmt: skip
        return module

    return add


class CaseData(pl.LightningDataModule):
    """The data of a pattern: 32 training and 24 validation samples, in batches of 16."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case = CASES[case]
        self.mean = torch.full((8,), 0.25)

    def train_dataloader(self):
        return self._loader("train")

    def val_dataloader(self):
        return self._loader("val")

    def _loader(self, stage: str) -> Any:
        if self.case.loaders is not None:
            return self.case.loaders(self.case, stage)
        return DataLoader(self.case.samples(stage), 16, collate_fn=self.case.collate)


class Small(pl.LightningModule):
    """What most patterns vary: a small network, a mean squared error, Adam."""

    def __init__(self, width: int = 8, out: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, out))

    def forward(self, x):
        return self.net(x)

    def step(self, batch):
        x, y = batch
        return F.mse_loss(self(x), y)

    def training_step(self, batch, batch_idx):
        return self.step(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.step(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


class Classifier(Small):
    """The same with classes: logits and cross entropy."""

    def __init__(self, width: int = 8, out: int = 3) -> None:
        super().__init__(width, out)

    def step(self, batch):
        *inputs, y = batch
        return F.cross_entropy(self(*inputs), y)


class ByName(Small):
    """The same with dict batches, whose `y` is the target."""

    def step(self, batch):
        inputs = {name: value for name, value in batch.items() if name != "y"}
        return F.mse_loss(self(**inputs), batch["y"])
