"""Batches and forward signatures of every layout."""

import dataclasses
from collections import namedtuple
from typing import NamedTuple

import torch
from pytorch_lightning.utilities import CombinedLoader
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from corpus.case import ByName, Classifier, Small, alone, bools, case, classes, floats, ints, mapping


@case(layout=mapping, x=floats(8))
class DictBatch(ByName):
    pass


@case(layout=alone, x=floats(8))
class TensorBatch(Small):
    """An autoencoder on bare tensors."""

    def __init__(self):
        super().__init__(out=8)

    def step(self, batch):
        return F.mse_loss(self(batch), batch)


Sample = namedtuple("Sample", ["features", "label"])


@case(layout=lambda inputs, y: Sample(inputs["x"], y))
class NamedTupleBatch(Small):
    def step(self, batch):
        return F.mse_loss(self(batch.features), batch.label)


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    y: torch.Tensor


@case(
    must="either",
    collate=lambda samples: Batch(torch.stack([s[0] for s in samples]), torch.stack([s[1] for s in samples])),
)
class DataclassBatch(Small):
    def step(self, batch):
        return F.mse_loss(self(batch.x), batch.y)


@case(
    layout=lambda inputs, y: {
        "x": inputs["x"],
        "y": y,
        "id": f"row-{float(y):.3f}",
        "meta": {"source": "a", "index": 3},
    }
)
class StringsInBatch(Small):
    def step(self, batch):
        return F.mse_loss(self(batch["x"]), batch["y"])


@case(must="either", layout=lambda inputs, y: {"data": {"x": inputs["x"]}, "y": y})
class NestedDictBatch(Small):
    def step(self, batch):
        return F.mse_loss(self(batch["data"]["x"]), batch["y"])


@case(must="either", layout=lambda inputs, y: {"features": inputs["x"], "y": y})
class KeyIsNotTheArgument(Small):
    """The batch's key differs from forward's argument; an example_input_array gives the shape."""

    def __init__(self):
        super().__init__()
        self.example_input_array = torch.zeros(2, 8)

    def step(self, batch):
        return F.mse_loss(self(batch["features"]), batch["y"])


@case(layout=mapping, x=floats(8), z=floats(8))
class KeywordOnly(ByName):
    def forward(self, *, x, z):
        return self.net(x - z)


@case(must="either", call=lambda module, inputs: module(inputs["x"]))
class StarArguments(Small):
    def __init__(self):
        super().__init__()
        self.example_input_array = torch.zeros(2, 8)

    def forward(self, *args):
        return self.net(args[0])


@case(must="either", layout=mapping, x=floats(8), z=floats(8))
class KeywordDict(ByName):
    """`forward(**batch)` alone, with a mapping as example."""

    def __init__(self):
        super().__init__()
        self.example_input_array = {"x": torch.zeros(2, 8), "z": torch.zeros(2, 8)}

    def forward(self, **inputs):
        return self.net(inputs["x"] + inputs["z"])


@case(a=floats(8), b=floats(3, 4), c=ints(7))
class ManyInputs(Small):
    def __init__(self):
        super().__init__(8 + 12 + 2)
        self.embed = nn.Embedding(7, 2)

    def forward(self, a, b, c):
        return self.net(torch.cat([a, b.flatten(1), self.embed(c)], 1))

    def step(self, batch):
        return F.mse_loss(self(*batch[:-1]), batch[-1])


@case(layout=mapping, x=floats(8), mask=bools(8))
class OptionalMaskInDict(ByName):
    def forward(self, x, mask=None):
        return self.net(x if mask is None else x * mask)


@case(must="either", layout=lambda inputs, y: (inputs["x"], inputs["x"] * 2, y))
class OptionalPositional(Small):
    """`forward(x, b=None)` trained as `self(x, b)` on tuples, and served as `forward(x)`."""

    def forward(self, x, b=None):
        return self.net(x if b is None else x + b)

    def step(self, batch):
        return F.mse_loss(self(*batch[:2]), batch[2])


@case(layout=lambda inputs, y: {"x": inputs["x"], "y": y, "temperature": torch.tensor(2.0)})
class ScalarDefaultArgument(Small):
    """A switch with a default, which batches do not have."""

    def forward(self, x, scale: float = 2.0, normalise: bool = True):
        return self.net(F.normalize(x, dim=1) if normalise else x) * scale

    def step(self, batch):
        return F.mse_loss(self(batch["x"]), batch["y"])


@case(must="either", layout=lambda inputs, y: ([inputs["a"], inputs["b"]], y), a=floats(4), b=floats(4),
      call=lambda module, inputs: module([inputs["a"], inputs["b"]]))  # fmt: skip
class ListInput(Small):
    def forward(self, views):
        return self.net(torch.cat(views, 1))


@case(must="either", layout=lambda inputs, y: ({"a": inputs["a"], "b": inputs["b"]}, y), a=floats(4), b=floats(4),
      call=lambda module, inputs: module(inputs))  # fmt: skip
class DictInput(Small):
    """`forward(batch: dict)`."""

    def forward(self, batch):
        return self.net(torch.cat([batch["a"], batch["b"]], 1))


@case(must="either", layout=mapping, x=floats(8), call=lambda module, inputs: module(inputs))
class WholeBatchForward(Small):
    """Forward takes the batch as it is, target and all."""

    def forward(self, batch):
        return self.net(batch["x"])

    def step(self, batch):
        return F.mse_loss(self(batch), batch["y"])


@case(anchor=floats(8), positive=floats(8), negative=floats(8))
class Triplets(Small):
    def __init__(self):
        super().__init__(out=4)

    def forward(self, anchor, positive, negative):
        return tuple(self.net(x) for x in (anchor, positive, negative))

    def step(self, batch):
        return F.triplet_margin_loss(*self(*batch[:3]))


@case(must="equal", x=floats(8), layout=lambda inputs, y: (inputs["x"], inputs["x"] * 2, y))
class OnlyTheFirstOfTwoViews(Small):
    """Trains on two views of a sample and serves one."""

    def step(self, batch):
        a, b, y = batch
        return F.mse_loss(self(a) + self(b), y)


def two_loaders(case_, stage):
    loader = DataLoader(case_.samples(stage), 16)
    return [loader, DataLoader(case_.samples(stage), 8)] if stage == "val" else loader


@case(loaders=two_loaders)
class TwoValidationLoaders(Small):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        name = f"val_loss_{dataloader_idx}" if dataloader_idx else "val_loss"
        self.log(name, self.step(batch), add_dataloader_idx=False)


def combined(case_, stage):
    loader = DataLoader(case_.samples(stage), 16)
    return (
        loader if stage == "val" else CombinedLoader({"a": loader, "b": DataLoader(case_.samples(stage), 16)})
    )


@case(loaders=combined)
class CombinedTrainLoaders(Small):
    def training_step(self, batch, batch_idx):
        return self.step(batch["a"]) + self.step(batch["b"])


class Stream(IterableDataset):
    def __init__(self, samples):
        super().__init__()
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


@case(loaders=lambda case_, stage: DataLoader(Stream(case_.samples(stage)), 16))
class IterableData(Small):
    pass


@case(
    loaders=lambda case_, stage: DataLoader(case_.samples(stage), 16) if stage == "train" else [],
    settings={"ema": None, "monitor": {"metric": "train_loss"}},
    trainer={"enable_checkpointing": False},
    must="either",
)
class NoValidation(Small):
    def training_step(self, batch, batch_idx):
        loss = self.step(batch)
        self.log("train_loss", loss)
        return loss


@case(layout=mapping, target=classes(4), image=ints(256, 3, 8, 8, dtype=torch.uint8))
class ByteImages(Classifier):
    def __init__(self):
        super().__init__(4, 4)
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6])[:, None, None])

    def forward(self, image):
        x = image.float() / 255.0 - self.mean
        return self.net(self.conv(x).mean((2, 3)))

    def step(self, batch):
        return F.cross_entropy(self(batch["image"]), batch["y"])


@case(layout=mapping, target=classes(2), tokens=ints(30, 6), mask=bools(6), segments=ints(2, 6))
class TokensAndMask(Classifier):
    def __init__(self):
        super().__init__(16, 2)
        self.tokens, self.segments = nn.Embedding(30, 16), nn.Embedding(2, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, tokens, mask, segments=None):
        hidden = self.tokens(tokens)
        if segments is not None:
            hidden = hidden + self.segments(segments)
        hidden = self.encoder(hidden, src_key_padding_mask=~mask)
        return self.net((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))

    def step(self, batch):
        return F.cross_entropy(self(batch["tokens"], batch["mask"], batch["segments"]), batch["y"])


@case(must="either", series=floats(5, 8), lengths=lambda g, n: torch.randint(1, 6, (n,), generator=g))
class PackedSequence(Small):
    def __init__(self):
        super().__init__(16)
        self.rnn = nn.GRU(8, 16, batch_first=True)

    def forward(self, series, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(
            series, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        return self.net(self.rnn(packed)[1][-1])

    def step(self, batch):
        return F.mse_loss(self(*batch[:2]), batch[2])


@case(must="either", series=floats(5, 8), lengths=lambda g, n: torch.randint(1, 6, (n,), generator=g))
class LastValidStep(Small):
    """Lengths by gathering, as exportable code has it."""

    def __init__(self):
        super().__init__(16)
        self.rnn = nn.GRU(8, 16, batch_first=True)

    def forward(self, series, lengths):
        out = self.rnn(series)[0]
        return self.net(out[torch.arange(len(out)), lengths - 1])

    def step(self, batch):
        return F.mse_loss(self(*batch[:2]), batch[2])


def ragged(samples):
    longest = max(len(x) for x, _ in samples)
    x = torch.stack([F.pad(x, (0, 0, 0, longest - len(x))) for x, _ in samples])
    return x, torch.stack([y for _, y in samples])


@case(collate=ragged, layout=lambda inputs, y: (inputs["series"][: 2 + int(abs(y) * 20) % 4], y), series=floats(5, 8),
      settings={"publish": {}}, must="either")  # fmt: skip
class RaggedSeries(Small):
    """Each batch is as long as its longest series."""

    def __init__(self):
        super().__init__(8)
        self.dynamic_axes = {"series": {1: "steps"}}

    def forward(self, series):
        return self.net(series.mean(1))


class Views(NamedTuple):
    x: torch.Tensor
    z: torch.Tensor


@case(must="either", layout=lambda inputs, y: (Views(inputs["x"], inputs["z"]), y), x=floats(8), z=floats(8))
class NamedTupleInTuple(Small):
    def forward(self, x, z):
        return self.net(x - z)

    def step(self, batch):
        (x, z), y = batch
        return F.mse_loss(self(x, z), y)


@case(layout=lambda inputs, y: (y, inputs["x"]), must="either")
class TargetFirst(Small):
    """The target comes first in the tuple; `example_input_array` has the input's shape."""

    def __init__(self):
        super().__init__()
        self.example_input_array = torch.zeros(2, 8)

    def step(self, batch):
        return F.mse_loss(self(batch[1]), batch[0])


@case()
class DictFromTransferHook(Small):
    """`on_after_batch_transfer` makes a dict of the tuple."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return {"x": batch[0], "y": batch[1]} if isinstance(batch, list | tuple) else batch

    def step(self, batch):
        return F.mse_loss(self(batch["x"]), batch["y"])


@case(must="either")
class NormalisedInTransferHook(Small):
    """The batch is normalised by `on_after_batch_transfer`; forward takes what comes of it."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return (batch[0] * 2 - 1, batch[1])
