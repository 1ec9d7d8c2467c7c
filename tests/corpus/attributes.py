"""Attributes that can't be copied or pickled, and code that is compiled, scripted or wrapped."""

import logging
import queue
import tempfile
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanSquaredError, MetricCollection

from corpus.case import Small, case


@case()
class NonLeafTensor(Small):
    """`self.generated = self(x)` in the training step, as in Lightning's GAN tutorial."""

    def training_step(self, batch, batch_idx):
        self.generated = self(batch[0])
        return F.mse_loss(self.generated, batch[1])


@case()
class NonLeafInList(Small):
    def __init__(self):
        super().__init__()
        self.outputs = []

    def training_step(self, batch, batch_idx):
        self.outputs.append(self(batch[0]))
        return F.mse_loss(self.outputs[-1], batch[1])

    def on_train_epoch_end(self):
        self.last = torch.cat(self.outputs)
        self.outputs.clear()


@case()
class HoldsALock(Small):
    def __init__(self):
        super().__init__()
        self.lock, self.queue = threading.Lock(), queue.Queue()

    def forward(self, x):
        with self.lock:
            return self.net(x)


@case()
class HoldsALockUnused(Small):
    """The lock is for logging; forward does not take it."""

    def __init__(self):
        super().__init__()
        self.lock, self.event = threading.RLock(), threading.Event()

    def training_step(self, batch, batch_idx):
        with self.lock:
            return self.step(batch)


@case()
class OpenFile(Small):
    def on_fit_start(self):
        self.file = tempfile.TemporaryFile("w")

    def training_step(self, batch, batch_idx):
        loss = self.step(batch)
        self.file.write(f"{float(loss)}\n")
        return loss

    def on_fit_end(self):
        self.file.close()


@case()
class LoaderIterator(Small):
    """A second loader's iterator, as semi-supervised code keeps it."""

    def on_train_start(self):
        self.unlabelled = iter(self.trainer.datamodule.train_dataloader())

    def training_step(self, batch, batch_idx):
        try:
            extra = next(self.unlabelled)
        except StopIteration:
            self.unlabelled = iter(self.trainer.datamodule.train_dataloader())
            extra = next(self.unlabelled)
        return self.step(batch) + 0.1 * self(extra[0]).square().mean()


@case()
class PythonGenerator(Small):
    def __init__(self):
        super().__init__()
        self.schedule = (1.0 / (i + 1) for i in range(1000))
        self.weight_now = 1.0

    def forward(self, x):
        return self.net(x) * self.weight_now

    def on_train_epoch_start(self):
        self.weight_now = next(self.schedule) + 1.0


@case()
class TorchGenerator(Small):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def training_step(self, batch, batch_idx):
        return self.step((batch[0] + 0.1 * torch.randn(batch[0].shape, generator=self.generator), batch[1]))


@case()
class ThreadPool(Small):
    def __init__(self):
        super().__init__()
        self.pool = ThreadPoolExecutor(1)
        self.logger_ = logging.getLogger("corpus")

    def on_train_epoch_end(self):
        self.pool.submit(self.logger_.debug, "epoch").result()


@case()
class LambdaAttributes(Small):
    def __init__(self):
        super().__init__()
        self.act = lambda x: F.gelu(x) * 1.1
        self.reduce = partial(torch.mean, dim=1, keepdim=True)

    def forward(self, x):
        return self.net[2](self.act(self.net[0](x))) + self.reduce(x)


@case()
class ParentReference(Small):
    """A child that points back to the module, weakly and in a list."""

    def __init__(self):
        super().__init__()
        child = nn.Linear(1, 1)
        child.parent, child.owner = [self], weakref.ref(self)
        self.child = child

    def forward(self, x):
        return self.child(self.net(x))


@case()
class MetricsAsAttributes(Small):
    def __init__(self):
        super().__init__()
        self.val_metrics = MetricCollection([MeanSquaredError()], prefix="val_")
        self.train_mse = MeanSquaredError()

    def training_step(self, batch, batch_idx):
        self.train_mse(self(batch[0]), batch[1])
        self.log("train_mse", self.train_mse, on_step=True, on_epoch=True)
        return self.step(batch)

    def validation_step(self, batch, batch_idx):
        self.val_metrics.update(self(batch[0]), batch[1])
        self.log("val_loss", self.step(batch))
        self.log_dict(self.val_metrics)


@case()
class LargeNumpyAttribute(Small):
    """A table that forward looks up by index."""

    def __init__(self):
        super().__init__()
        self.table = np.linspace(0, 1, 100_000, dtype=np.float32)

    def forward(self, x):
        return self.net(x) + torch.from_numpy(self.table[:8]).to(x).sum()


@case(must="either")
class CompiledSubmodule(Small):
    def __init__(self):
        super().__init__()
        self.net = torch.compile(self.net, backend="eager")


@case(must="either")
class CompiledInConfigureModel(Small):
    def configure_model(self):
        self.compile(backend="eager")


@case(must="either")
class ScriptedSubmodule(Small):
    def __init__(self):
        super().__init__()
        self.net = torch.jit.script(self.net)


@torch.jit.script
def swish(x):
    return x * x.sigmoid()


@case(must="either")
class ScriptedFunction(Small):
    def forward(self, x):
        return self.net(swish(x))


@case()
class NoGradForward(Small):
    @torch.no_grad()
    def forward(self, x):
        return self.net(x)

    def step(self, batch):
        return F.mse_loss(self.net(batch[0]), batch[1])


@case(must="either")
class InferenceModeForward(Small):
    @torch.inference_mode()
    def forward(self, x):
        return self.net(x)

    def step(self, batch):
        return F.mse_loss(self.net(batch[0]), batch[1])


def timed(function):
    @wraps(function)
    def wrapper(self, *args, **kwargs):
        self.calls = getattr(self, "calls", 0) + 1
        return function(self, *args, **kwargs)

    return wrapper


@case()
class DecoratedForward(Small):
    @timed
    def forward(self, x):
        return self.net(x)


@case()
class FunctionallySwitched(Small):
    """`forward` takes other ways in training and in evaluation."""

    def forward(self, x):
        if self.training:
            return self.net(x), self.net[0](x)
        return self.net(x)

    def training_step(self, batch, batch_idx):
        y, hidden = self(batch[0])
        return F.mse_loss(y, batch[1]) + 0.01 * hidden.square().mean()


@case()
class CachesItsFeatures(Small):
    """Forward leaves its last features in an attribute."""

    def forward(self, x):
        self.features = self.net[:2](x)
        return self.net[2](self.features)


@case()
class PrintsAndAsserts(Small):
    def forward(self, x):
        assert x.dim() == 2, x.shape
        if x.shape[1] != 8:
            raise ValueError(f"expected 8 features, got {x.shape}")
        return self.net(x)


@case(must="either")
class LogsInForward(Small):
    def forward(self, x):
        y = self.net(x)
        if self.training:
            self.log("mean", y.mean())
        return y


@case(must="either")
class ChecksForNaN(Small):
    """A data-dependent guard."""

    def forward(self, x):
        y = self.net(x)
        if torch.isnan(y).any():
            raise RuntimeError("NaN")
        return y


@case(must="either")
class BranchOnData(Small):
    def forward(self, x):
        return self.net(x) if x.sum() > 0 else self.net(-x)


@case()
class GradientCheckpointing(Small):
    def forward(self, x):
        hidden = (
            torch.utils.checkpoint.checkpoint(self.net[0], x, use_reentrant=False)
            if self.training
            else self.net[0](x)
        )
        return self.net[2](torch.relu(hidden))
