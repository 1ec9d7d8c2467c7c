"""Odd patterns: state where nobody looks for it, answers that change from call to call, rare neighbours."""

import enum
import json
import os
import tempfile
import threading
import time
import types
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from corpus.case import Small, case, floats


@case(must="either")
class EnvironmentVariable(Small):
    def forward(self, x):
        return self.net(x) * float(os.environ.get("CORPUS_SCALE", "1"))

    def on_train_epoch_start(self):
        os.environ["CORPUS_SCALE"] = str(2.0 + self.current_epoch)

    def on_fit_end(self):
        os.environ.pop("CORPUS_SCALE", None)


@case(must="either")
class ThreadLocalState(Small):
    def __init__(self):
        super().__init__()
        self.local = threading.local()
        self.local.scale = 1.0

    def forward(self, x):
        return self.net(x) * getattr(self.local, "scale", 7.0)

    def on_train_epoch_start(self):
        self.local.scale += 1.0


@case(must="refused")
class ClockInForward(Small):
    def forward(self, x):
        return self.net(x) + time.time() % 1000


@case(must="either")
class FileReadInForward(Small):
    """Statistics in a JSON file, which training rewrites."""

    def __init__(self):
        super().__init__()
        self.path = Path(tempfile.gettempdir(), f"corpus-{os.getpid()}.json")
        self.path.write_text(json.dumps({"mean": 0.0}))

    def forward(self, x):
        return self.net(x - json.loads(self.path.read_text())["mean"])

    def on_train_epoch_start(self):
        self.path.write_text(json.dumps({"mean": 1.0 + self.current_epoch}))


@case(must="either")
class LearningRateInForward(Small):
    def forward(self, x):
        return self.net(x) * (1 + 100 * self.optimizers().param_groups[0]["lr"])

    def on_train_epoch_end(self):
        self.optimizers().param_groups[0]["lr"] *= 0.5


@case(must="either")
class MetricInForward(Small):
    def forward(self, x):
        return self.net(x) + self.trainer.callback_metrics.get("val_loss", torch.tensor(0.0))


@case(must="either")
class NeverInEvaluation(Small):
    """`train()` overridden so that batch norm always trains."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def train(self, mode=True):
        super().train(mode)
        if hasattr(self, "norm"):
            self.norm.train()
        return self

    def forward(self, x):
        return self.net(self.norm(x))


@case()
class ForwardByMethodType(Small):
    def __init__(self):
        super().__init__()
        self.gain = 1.0
        self.forward = types.MethodType(lambda self, x: self.net(x) * self.gain, self)

    def on_train_epoch_start(self):
        self.gain += 1.0


@case(must="either", call=lambda module, inputs: module(inputs["x"]))
class PositionalOnly(Small):
    def forward(self, x, /):
        return self.net(x)

    def step(self, batch):
        return F.mse_loss(self(batch[0]), batch[1])


@case(must="either")
class CachesByShape(Small):
    """A mask of [row, 1] that is kept for the next batch of that size."""

    def __init__(self):
        super().__init__()
        self._mask = None

    def forward(self, x):
        if self._mask is None or self._mask.shape[0] != x.shape[0]:
            self._mask = torch.ones(x.shape[0], 1, device=x.device)
        return self.net(x) * self._mask


@case(series=floats(6, 8))
class CachesPositions(Small):
    """Positional encodings in a plain dict, made when first needed."""

    def __init__(self):
        super().__init__()
        self.cache = {}

    def forward(self, series):
        n = series.shape[1]
        if n not in self.cache:
            self.cache[n] = torch.arange(n, dtype=torch.float32).sin()[None, :, None]
        return self.net((series + self.cache[n]).mean(1))


@case()
class CachedMethod(Small):
    def __init__(self):
        super().__init__()
        self.version = 0

    @lru_cache(maxsize=4)  # noqa: B019
    def table(self, version):
        return torch.full((8,), float(version))

    def forward(self, x):
        return self.net(x + self.table(self.version))

    def on_train_epoch_start(self):
        self.version += 1


@case(must="refused")
class ChangesAtEachCall(Small):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.net(x) + self.calls


@case(must="refused")
class BufferChangesAtEachCall(Small):
    """A running mean that follows in evaluation, too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        self.mean.lerp_(x.detach().mean(0) + 1.0, 0.5)
        return self.net(x - self.mean)


@case(must="either")
class NumpyInside(Small):
    def forward(self, x):
        return self.net(torch.from_numpy(np.tanh(x.detach().cpu().numpy())).to(x.device))


@case(must="either")
class ItemInside(Small):
    def forward(self, x):
        return self.net(x / max(1.0, x.abs().max().item()))


@case(must="either")
class DividesByRows(Small):
    def forward(self, x):
        return self.net(x) / x.shape[0]


@case(must="either")
class RareNeighbour(Small):
    """Neighbours matter where one row is far out alone."""

    def forward(self, x):
        y = self.net(x)
        return torch.where(x.abs().max() > 2.8, y + 1.0, y)


@case(must="either")
class BatchQuantile(Small):
    def forward(self, x):
        return self.net(torch.minimum(x, x.amax(0) * 0.9))


@case(must="either")
class FillsWithBatchMean(Small):
    """Missing values take the column's mean of the batch; the samples have none missing."""

    def forward(self, x):
        return self.net(torch.where(x.isnan(), x.nanmean(0, keepdim=True), x))


@case(must="either")
class SortsAndUnsorts(Small):
    """Rows are sorted by a key, and put back."""

    def forward(self, x):
        order = x[:, 0].argsort()
        return self.net(x[order])[order.argsort()]


@case(must="either")
class ShufflesAndUnshuffles(Small):
    def forward(self, x):
        order = torch.randperm(x.shape[0], device=x.device)
        return self.net(x[order])[order.argsort()]


@case(must="late")
class OutputsByEpoch(Small):
    """A further output from the second epoch on."""

    def forward(self, x):
        y = self.net(x)
        return {"y": y} if self.current_epoch < 1 else {"y": y, "late": y + 1}

    def step(self, batch):
        return F.mse_loss(self(batch[0])["y"], batch[1])


@case(must="either")
class OutputsChangeOrder(Small):
    def forward(self, x):
        y, h = self.net(x), self.net[0](x)[:, :1]
        return {"y": y, "h": h} if self.current_epoch % 2 else {"h": h, "y": y}

    def step(self, batch):
        return F.mse_loss(self(batch[0])["y"], batch[1])


@case(must="either")
class SnapshotEnsemble(Small):
    """A copy of the network each epoch, in a plain list."""

    def __init__(self):
        super().__init__()
        self.snapshots = []

    def forward(self, x):
        nets = self.snapshots if self.snapshots and not self.training else [self.net]
        return torch.stack([net(x) for net in nets]).mean(0)

    def on_train_epoch_end(self):
        import copy

        self.snapshots.append(copy.deepcopy(self.net).eval())


@case(must="either")
class NeighboursMemory(Small):
    """A k-nearest-neighbour regression over features that training collects."""

    def __init__(self):
        super().__init__(out=4)
        self.keys, self.values = [], []

    def forward(self, x):
        z = self.net(x)
        if not self.keys or self.training:
            return z[:, :1]
        keys, values = torch.cat(self.keys), torch.cat(self.values)
        near = (-(z[:, None] - keys[None]).square().sum(-1)).topk(3).indices
        return values[near].mean(1)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.keys.append(self.net(batch[0]).detach())
        self.values.append(batch[1])


class Phase(enum.Enum):
    WARM = 1
    MAIN = 2


@case()
class EnumAttribute(Small):
    def __init__(self):
        super().__init__()
        self.phase = Phase.WARM

    def forward(self, x):
        return self.net(x) if self.phase is Phase.WARM else self.net(x) * 2

    def on_train_epoch_start(self):
        self.phase = Phase.MAIN if self.current_epoch else Phase.WARM


class Slotted:
    __slots__ = ("scale",)

    def __init__(self):
        self.scale = 1.0


@case()
class SlottedObject(Small):
    def __init__(self):
        super().__init__()
        self.slotted = Slotted()

    def forward(self, x):
        return self.net(x) * self.slotted.scale

    def on_train_epoch_start(self):
        self.slotted.scale += 1.0


@case()
class NumpyInPlace(Small):
    def __init__(self):
        super().__init__()
        self.mean = np.zeros(8, np.float32)

    def forward(self, x):
        return self.net(x - torch.from_numpy(self.mean))

    def on_train_epoch_start(self):
        self.mean += 1.0


@case()
class NumpyScalar(Small):
    def __init__(self):
        super().__init__()
        self.scale = np.float32(1.0)

    def forward(self, x):
        return self.net(x) * float(self.scale)

    def on_train_epoch_start(self):
        self.scale = self.scale * np.float32(2.0)


@case(must="either")
class FunctionAttribute(Small):
    def forward(self, x):
        return self.net(x) * getattr(type(self).forward, "scale", 1.0)

    def on_train_epoch_start(self):
        type(self).forward.scale = 2.0 + self.current_epoch


@case()
class PropertyWithSetter(Small):
    _store = (1.0,)

    @property
    def scale(self):
        return self._store[0]

    @scale.setter
    def scale(self, value):
        object.__setattr__(self, "_store", (value,))

    def forward(self, x):
        return self.net(x) * self.scale

    def on_train_epoch_start(self):
        self.scale = self.scale * 3


@case()
class HookAddedInTraining(Small):
    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.net[0].register_forward_hook(lambda module, inputs, output: output * 2.0)


@case()
class PreHookWithState(Small):
    def __init__(self):
        super().__init__()
        self.shift = 0.0
        self.net.register_forward_pre_hook(self.shifted)

    def shifted(self, module, inputs):
        return (inputs[0] + self.shift,)

    def on_train_epoch_start(self):
        self.shift += 1.0


@case(must="either")
class ParametersInAList(Small):
    """Trained parameters that no module registers."""

    def __init__(self):
        super().__init__()
        self.extra = [nn.Parameter(torch.ones(8))]

    def forward(self, x):
        return self.net(x * self.extra[0])

    def configure_optimizers(self):
        return torch.optim.Adam([*self.parameters(), *self.extra], 0.1)


class Doubled(nn.Module):
    def forward(self, w):
        return w * 2


@case(must="either")
class ParametrizedInTraining(Small):
    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            parametrize.register_parametrization(self.net[0], "bias", Doubled())


@case(must="either")
class BatchNormIsFused(Small):
    """Convolution and batch norm fused after the first epoch, by hand."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x):
        return self.net[2](torch.relu(self.norm(self.net[0](x))))

    def on_train_epoch_end(self):
        if self.current_epoch == 1:
            self.norm = nn.Identity()


@case(must="either")
class MovesToDouble(Small):
    """Double precision from the second epoch on, with an optimizer that keeps no state in single precision."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-2)

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.double()

    def forward(self, x):
        return self.net(x.to(self.net[0].weight.dtype)).float()


@case()
class SharedObjectOfTwoParts(Small):
    """Two layers read one state object, which a third changes."""

    def __init__(self):
        super().__init__()
        shared = types.SimpleNamespace(scale=1.0)
        self.net[0].shared = self.net[2].shared = self.shared = shared

    def forward(self, x):
        return self.net(x) * self.net[0].shared.scale * self.net[2].shared.scale

    def on_train_epoch_start(self):
        self.shared.scale += 1.0


@case(must="either")
class GeneratorInForward(Small):
    """Each call takes the next value of a schedule."""

    def __init__(self):
        super().__init__()
        self.schedule = (1.0 + i for i in range(100_000))

    def forward(self, x):
        return self.net(x) * next(self.schedule)


@case(must="either")
class TimesItself(Small):
    """Measures its own speed into an attribute, and a list that grows at every call."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def forward(self, x):
        start = time.perf_counter()
        y = self.net(x)
        self.seconds.append(time.perf_counter() - start)
        return y


@case(must="either")
class BeyondAFewHundredRows(Small):
    """Right up to 500 rows; the largest batch that is served has more."""

    def forward(self, x):
        return self.net(x) if x.shape[0] <= 500 else self.net(x) * 2
