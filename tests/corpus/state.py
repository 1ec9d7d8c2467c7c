"""State outside the weights: attributes, dicts, plain tensors, hyper-parameters, the trainer's own counters."""

import argparse
import collections
import copy
import dataclasses
import functools
import types

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from corpus.case import Classifier, Small, case, classes, distances, floats


@case()
class PrivateTemperature(Small):
    def __init__(self):
        super().__init__()
        self._temperature = 1.0

    def forward(self, x):
        return self.net(x) / self._temperature

    def on_train_epoch_end(self):
        self._temperature *= 3.0


@case()
class PublicTemperature(Small):
    temperature = 1.0

    def forward(self, x):
        return self.net(x) / self.temperature

    def on_train_epoch_end(self):
        self.temperature = self.temperature * 3.0


@case()
class DictOfState(Small):
    def __init__(self):
        super().__init__()
        self.state = {"scale": 1.0, "names": ["a"], "nested": {"shift": 0.0}}

    def forward(self, x):
        return self.net(x) * self.state["scale"] + self.state["nested"]["shift"]

    def on_train_epoch_start(self):
        self.state["scale"] += 2.0
        self.state["nested"]["shift"] -= 3.0


@case()
class PlainTensorInFitStart(Small):
    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(8)

    def forward(self, x):
        return self.net(x - self.mean)

    def on_fit_start(self):
        self.mean = torch.full((8,), 5.0)


@case()
class PlainTensorInPlace(Small):
    """Momentum of the inputs' mean, in a tensor that is no buffer."""

    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(8)

    def forward(self, x):
        return self.net(x - self.mean)

    def training_step(self, batch, batch_idx):
        self.mean.mul_(0.5).add_(batch[0].mean(0) + 2.0)
        return self.step(batch)


@case()
class HyperParameterChanges(Small):
    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.save_hyperparameters()

    def forward(self, x):
        return self.net(x) * self.hparams.scale

    def on_train_epoch_start(self):
        self.hparams.scale *= 4.0


@case()
class CurrentEpoch(Small):
    """Fades a branch in over the epochs."""

    def forward(self, x):
        return self.net(x) + min(1.0, self.current_epoch / 2) * x.sum(1, keepdim=True)


@case()
class GlobalStep(Small):
    def forward(self, x):
        return self.net(x) * (1.0 + self.global_step)


@case()
class AnnealedProperty(Small):
    @property
    def tau(self):
        return max(0.1, 1.0 - 0.4 * self.trainer.current_epoch)

    def forward(self, x):
        return torch.softmax(self.net[0](x) / self.tau, -1)

    def step(self, batch):
        return (self(batch[0])[:, :1] - batch[1]).square().mean()


@case()
class NumpyStatisticsInFitStart(Small):
    def __init__(self):
        super().__init__()
        self.mean, self.std = np.zeros(8, np.float32), np.ones(8, np.float32)

    def forward(self, x):
        return self.net(
            (x - torch.from_numpy(self.mean).to(x.device)) / torch.from_numpy(self.std).to(x.device)
        )

    def on_fit_start(self):
        rows = np.stack([row[0] for row in self.trainer.datamodule.case.samples("train")])
        self.mean, self.std = rows.mean(0) + 3.0, rows.std(0) * 0.5


@case()
class StatisticsInTrainStart(Small):
    def __init__(self):
        super().__init__()
        self.stats = None

    def forward(self, x):
        return self.net(x if self.stats is None else (x - self.stats[0]) / self.stats[1])

    def on_train_start(self):
        self.stats = (torch.full((8,), 2.0), torch.full((8,), 0.5))


@case()
class StatisticsInSetup(Small):
    """`setup` reads the data module, as tabular tutorials do."""

    def setup(self, stage=None):
        self.register_buffer("mean", self.trainer.datamodule.mean.clone())

    def forward(self, x):
        return self.net(x - self.mean)


@case()
class LayersInConfigureModel(Small):
    def __init__(self):
        super().__init__()
        self.head = None

    def configure_model(self):
        if self.head is None:
            self.head = nn.Linear(1, 1)

    def forward(self, x):
        return self.head(self.net(x))


@case()
class LayersInSetup(Small):
    def setup(self, stage=None):
        if not hasattr(self, "head"):
            self.head = nn.Linear(1, 1)

    def forward(self, x):
        return self.head(self.net(x))


@case(must="either")
class ReadsTheDataModule(Small):
    """Forward reads a statistic of the trainer's data module."""

    def forward(self, x):
        return self.net(x - self.trainer.datamodule.mean.to(x.device))


@case()
class AverageByHand(Small):
    """An EMA in a list of plain tensors, used in evaluation."""

    def __init__(self):
        super().__init__()
        self.shadow = [p.detach().clone() for p in self.net.parameters()]

    def forward(self, x):
        if self.training:
            return self.net(x)
        w1, b1, w2, b2 = self.shadow
        return F.linear(F.relu(F.linear(x, w1, b1)), w2, b2)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        for shadow, parameter in zip(self.shadow, self.net.parameters(), strict=True):
            shadow.lerp_(parameter.detach(), 0.5)


@case(settings={"ema": None})
class AverageByHandModule(Small):
    """A deep copy of the network, made in training, outside of the module's children."""

    def on_train_start(self):
        object.__setattr__(self, "ema_net", copy.deepcopy(self.net).eval())

    def forward(self, x):
        net = getattr(self, "ema_net", None)
        return self.net(x) if self.training or net is None else net(x)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        for ema, parameter in zip(self.ema_net.parameters(), self.net.parameters(), strict=True):
            ema.data.lerp_(parameter.data, 0.3)


@case()
class TeacherInList(Small):
    """A teacher hidden in a list, so that its weights are not trained; copied each epoch."""

    def __init__(self):
        super().__init__()
        self.teacher = [copy.deepcopy(self.net)]

    def forward(self, x):
        return self.net(x) + self.teacher[0](x)

    def on_train_epoch_end(self):
        self.teacher[0].load_state_dict(self.net.state_dict())
        self.teacher[0][2].bias.data += 1.0


@case()
class QueueBuffer(Small):
    """MoCo's queue of keys, a buffer written in the training step."""

    def __init__(self):
        super().__init__(out=4)
        self.register_buffer("queue", F.normalize(torch.randn(4, 32), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def forward(self, x):
        return F.normalize(self.net(x), dim=1) @ self.queue.clone().detach()

    def step(self, batch):
        logits = self(batch[0]) / 0.07
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))

    def training_step(self, batch, batch_idx):
        loss = self.step(batch)
        with torch.no_grad():
            keys, ptr = F.normalize(self.net(batch[0]), dim=1), int(self.queue_ptr)
            self.queue[:, ptr : ptr + len(keys)] = keys.T
            self.queue_ptr[0] = (ptr + len(keys)) % 32
        return loss


@case()
class Codebook(Small):
    """VQ-VAE whose codebook is updated by moving averages in forward, under training."""

    def __init__(self):
        super().__init__(out=4)
        self.decode = nn.Linear(4, 8)
        self.register_buffer("codes", torch.randn(6, 4))
        self.register_buffer("counts", torch.ones(6))

    def forward(self, x):
        z = self.net(x)
        index = distances(z, self.codes).argmin(1)
        if self.training:
            with torch.no_grad():
                one_hot = F.one_hot(index, 6).float()
                self.counts.lerp_(one_hot.sum(0), 0.1)
                self.codes.lerp_(one_hot.T @ z / (self.counts[:, None] + 1e-3), 0.1)
        quantized = self.codes[index]
        return {"reconstruction": self.decode(z + (quantized - z).detach()), "index": index}

    def step(self, batch):
        return F.mse_loss(self(batch[0])["reconstruction"], batch[0])


@case()
class RunningNormalizer(Small):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))
        self.register_buffer("count", torch.tensor(1e-4))

    def forward(self, x):
        return self.net((x - self.mean) / (self.var + 1e-5).sqrt())

    def training_step(self, batch, batch_idx):
        x = batch[0]
        self.count += len(x)
        self.mean += (x.mean(0) - self.mean) * len(x) / self.count
        self.var.lerp_(x.var(0), 0.5)
        return self.step(batch)


@case()
class BufferIsReplaced(Small):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def forward(self, x):
        return self.net(x - self.mean) * self.scale

    def on_train_epoch_start(self):
        self.mean = torch.full((8,), float(self.current_epoch))
        self.scale = self.scale * 3.0


@case()
class BufferGrows(Small):
    """A memory bank that gains rows each epoch."""

    def __init__(self):
        super().__init__(out=4)
        self.register_buffer("bank", torch.randn(2, 4))

    def forward(self, x):
        return distances(self.net(x), self.bank).amin(1, keepdim=True)

    def on_train_epoch_start(self):
        self.bank = torch.cat([self.bank, torch.randn(2, 4)])


@case()
class ListOfThresholds(Small):
    def __init__(self):
        super().__init__()
        self.thresholds = [0.0, 0.0]

    def forward(self, x):
        y = self.net(x)
        return {"y": y, "above": torch.cat([y > t for t in self.thresholds], 1)}

    def step(self, batch):
        return F.mse_loss(self(batch[0])["y"], batch[1])

    def on_train_epoch_end(self):
        self.thresholds[1] += 0.3
        self.thresholds[0] -= 0.3


@case()
class DequeOfHistory(Small):
    def __init__(self):
        super().__init__()
        self.history = collections.deque(maxlen=3)

    def forward(self, x):
        return self.net(x - torch.stack(list(self.history)).mean(0) if self.history else x)

    def training_step(self, batch, batch_idx):
        self.history.append(batch[0].mean(0).detach() + 2.0)
        return self.step(batch)


class StandardScaler:
    """As scikit-learn's: fitted attributes end in an underscore."""

    def __init__(self):
        self.mean_, self.scale_ = np.zeros(8), np.ones(8)

    def fit(self, rows):
        self.mean_, self.scale_ = rows.mean(0) + 1.0, rows.std(0)

    def transform(self, x):
        return (x - torch.as_tensor(self.mean_, dtype=x.dtype)) / torch.as_tensor(self.scale_, dtype=x.dtype)


@case()
class ScalerObject(Small):
    def __init__(self):
        super().__init__()
        self.scaler = StandardScaler()

    def forward(self, x):
        return self.net(self.scaler.transform(x))

    def on_train_epoch_start(self):
        self.scaler.fit(
            np.stack([s[0] for s in self.trainer.datamodule.case.samples("train")]) * (1 + self.current_epoch)
        )


@case()
class CalibratedInValidation(Classifier):
    """A temperature fitted to the validation logits at the end of each validation."""

    def __init__(self):
        super().__init__()
        self.calibration = 1.0
        self.logits = []

    def forward(self, x):
        return self.net(x) * self.calibration

    def step(self, batch):
        return F.cross_entropy(self(batch[0]), batch[1][:, 0].gt(0).long())

    def validation_step(self, batch, batch_idx):
        self.logits.append(self(batch[0]))
        self.log("val_loss", self.step(batch))

    def on_validation_epoch_end(self):
        self.calibration = 1.0 / float(torch.cat(self.logits).std())
        self.logits.clear()


@case()
class LambdaIsReplaced(Small):
    def __init__(self):
        super().__init__()
        self.activation = lambda x: x

    def forward(self, x):
        return self.activation(self.net(x))

    def on_train_epoch_start(self):
        if self.current_epoch:
            self.activation = lambda x: torch.tanh(x) + 1.0


@case()
class PartialIsReplaced(Small):
    def __init__(self):
        super().__init__()
        self.act = functools.partial(F.leaky_relu, negative_slope=0.0)

    def forward(self, x):
        return self.act(self.net(x))

    def on_train_epoch_start(self):
        self.act = functools.partial(F.leaky_relu, negative_slope=float(self.current_epoch))


@case()
class ClosureOverState(Small):
    def __init__(self):
        super().__init__()
        scale = [1.0]
        self.grow = lambda: scale.__setitem__(0, scale[0] * 2)
        self.scaled = lambda x: x * scale[0]

    def forward(self, x):
        return self.scaled(self.net(x))

    def on_train_epoch_start(self):
        self.grow()


@case()
class ClassAttribute(Small):
    scale = 1.0

    def forward(self, x):
        return self.net(x) * type(self).scale

    def on_train_epoch_start(self):
        type(self).scale = 2.0 + self.current_epoch


_SHIFT = {"by": 0.0}


@case()
class ModuleGlobal(Small):
    def forward(self, x):
        return self.net(x) + _SHIFT["by"]

    def on_train_epoch_start(self):
        _SHIFT["by"] = 1.0 + self.current_epoch


@case()
class WarmUpFlag(Small):
    def __init__(self):
        super().__init__()
        self._warm = False

    def forward(self, x):
        return self.net(x) if self._warm else x[:, :1]

    def step(self, batch):
        return F.mse_loss(self(batch[0]), batch[1]) + 0 * self.net[2].bias.sum()

    def on_train_epoch_end(self):
        self._warm = True


@dataclasses.dataclass
class Config:
    scale: float = 1.0
    layers: list = dataclasses.field(default_factory=lambda: [1, 2])


@case()
class ConfigDataclass(Small):
    def __init__(self):
        super().__init__()
        self.cfg = Config()

    def forward(self, x):
        return self.net(x) * self.cfg.scale

    def on_train_epoch_start(self):
        self.cfg.scale += 1.0


@case()
class ArgparseNamespace(Small):
    def __init__(self):
        super().__init__()
        self.args = argparse.Namespace(tau=1.0, more=types.SimpleNamespace(shift=0.0))

    def forward(self, x):
        return self.net(x) / self.args.tau + self.args.more.shift

    def on_train_epoch_start(self):
        self.args.tau *= 2.0
        self.args.more.shift += 1.0


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self._scale = 1.0
        self.table = {}

    def forward(self, x):
        return x * self._scale + self.table.get("shift", 0.0)


@case()
class PrivateInSubmodule(Small):
    def __init__(self):
        super().__init__()
        self.net.append(Scaled())

    def on_train_epoch_start(self):
        self.net[3]._scale += 1.5
        self.net[3].table["shift"] = 2.0


@case()
class CountsItsCalls(Small):
    """A buffer that forward counts in, whatever the mode; the answer doesn't depend on it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        if self.training:
            self.calls += 1
        return self.net(x)


@case()
class AnnealedByABuffer(Small):
    """The number of training steps, in a buffer, drives a ramp."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        ramp = (self.steps.float() / 4).clamp(max=1.0)
        return self.net(x) * ramp + (1 - ramp) * x[:, :1]

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.steps += 1


@case()
class PrototypesByHand(Classifier):
    """A nearest-mean classifier: class means as a dict of tensors."""

    def __init__(self):
        super().__init__(out=4)
        self.means = {c: torch.randn(4) for c in range(3)}

    def forward(self, x):
        return -distances(self.net(x), torch.stack([self.means[c] for c in sorted(self.means)]))

    def step(self, batch):
        return F.cross_entropy(self(batch[0]), (batch[1][:, 0] * 3).long().clamp(0, 2))

    def on_train_epoch_end(self):
        self.means = {c: mean + 1.0 for c, mean in self.means.items()}


@case(target=classes(3), x=floats(8))
class ClassWeightsFromData(Classifier):
    """Logit adjustment by class counts, collected in the first epoch."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def forward(self, x):
        prior = torch.tensor([float(self.counts[c] + 1) for c in range(3)])
        return self.net(x) + prior.log()

    def training_step(self, batch, batch_idx):
        self.counts.update(batch[1].tolist())
        return self.step(batch)


@case()
class BestWeightsByHand(Small):
    """Keeps a state dict of its best weights, which forward never reads."""

    def __init__(self):
        super().__init__()
        self.best_state, self.best = None, float("inf")

    def on_validation_epoch_end(self):
        value = float(self.trainer.callback_metrics.get("val_loss", float("inf")))
        if value < self.best:
            self.best, self.best_state = value, copy.deepcopy(self.state_dict())
