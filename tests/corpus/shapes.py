"""Outputs of every shape and kind, and names that meet an exporter's own."""

import dataclasses
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from corpus.case import ByName, Classifier, Small, case, classes, distances, floats, ints, mapping


@case()
class Squeezed(Small):
    def forward(self, x):
        return self.net(x).squeeze(-1)

    def step(self, batch):
        return F.mse_loss(self(batch[0]), batch[1].squeeze(-1))


@case(must="either")
class SqueezedFully(Small):
    """`squeeze()` without an axis takes the batch's away, too, at one row."""

    def forward(self, x):
        return self.net(x).squeeze()

    def step(self, batch):
        return F.mse_loss(self(batch[0]), batch[1].squeeze())


@case(target=classes(3), x=floats(8))
class ArgmaxAndProbabilities(Classifier):
    def forward(self, x):
        logits = self.net(x)
        return {"logits": logits, "probability": logits.softmax(-1).amax(-1), "label": logits.argmax(-1)}

    def step(self, batch):
        return F.cross_entropy(self(batch[0])["logits"], batch[1])


@case()
class LossAmongOutputs(Small):
    def forward(self, x):
        y = self.net(x)
        return {"y": y, "loss": y.square().mean()}

    def step(self, batch):
        return F.mse_loss(self(batch[0])["y"], batch[1])


@case(layout=mapping, target=classes(3), x=floats(8))
class OptionalLabels(Classifier):
    """As Hugging Face's: `labels` are optional, and make a loss."""

    def forward(self, x, labels=None):
        logits = self.net(x)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}

    def step(self, batch):
        return self(batch["x"], batch["y"])["loss"]


def labelled(inputs, target):
    return {**inputs, "labels": target}


@case(layout=labelled, target=classes(3), input_ids=ints(20, 6), attention_mask=ints(2, 6))
class LabelsInBatch(Classifier):
    """A sequence classifier trained as `self(**batch)`."""

    def __init__(self):
        super().__init__(16)
        self.embed = nn.Embedding(20, 16)

    def forward(self, input_ids=None, attention_mask=None, labels=None, return_dict=True):
        hidden = self.embed(input_ids) * (attention_mask[..., None] + 0.1)
        logits = self.net(hidden.mean(1))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits, labels)
        return ModelOutput(loss=loss, logits=logits)

    def step(self, batch):
        return self(**batch).loss


class ModelOutput(OrderedDict):
    """As transformers' ModelOutput: keys without a value are left out, and are attributes."""

    def __init__(self, **values):
        super().__init__({k: v for k, v in values.items() if v is not None})

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to_tuple(self):
        return tuple(self.values())


class Outputs(NamedTuple):
    mean: torch.Tensor
    scale: torch.Tensor


@case()
class NamedTupleOutput(Small):
    def forward(self, x):
        y = self.net(x)
        return Outputs(y, F.softplus(y))

    def step(self, batch):
        return F.mse_loss(self(batch[0]).mean, batch[1])


@dataclasses.dataclass
class Prediction:
    value: torch.Tensor
    hidden: torch.Tensor | None = None
    note: str = ""


@case(must="either")
class DataclassWithText(Small):
    def forward(self, x):
        hidden = self.net[:2](x)
        return Prediction(self.net[2](hidden), hidden, note="ok")

    def step(self, batch):
        return F.mse_loss(self(batch[0]).value, batch[1])


@case()
class DataclassOutput(Small):
    def forward(self, x):
        @dataclasses.dataclass
        class Output:
            value: torch.Tensor
            hidden: torch.Tensor

        hidden = self.net[:2](x)
        return Output(self.net[2](hidden), hidden)

    def step(self, batch):
        return F.mse_loss(self(batch[0]).value, batch[1])


@case()
class TupleOutput(Small):
    def forward(self, x):
        hidden = self.net[:2](x)
        return self.net[2](hidden), hidden

    def step(self, batch):
        return F.mse_loss(self(batch[0])[0], batch[1])


@case()
class ListOutput(Small):
    """Deep supervision: a list of heads."""

    def forward(self, x):
        hidden = self.net[0](x)
        return [hidden, torch.relu(hidden), self.net[2](torch.relu(hidden))]

    def step(self, batch):
        return F.mse_loss(self(batch[0])[-1], batch[1])


@case()
class NestedOutput(Small):
    def forward(self, x):
        y = self.net(x)
        return {"heads": {"a": y, "b": [y * 2, y * 3]}, "aux": (y + 1, None)}

    def step(self, batch):
        return F.mse_loss(self(batch[0])["heads"]["a"], batch[1])


@case()
class IdentityOutput(Small):
    """An output that is the input itself, beside a view of it."""

    def forward(self, x):
        return {"y": self.net(x), "same": x, "view": x[:, ::2], "reshaped": x.view(-1, 2, 4)}

    def step(self, batch):
        return F.mse_loss(self(batch[0])["y"], batch[1])


@case()
class ExpandedOutput(Small):
    def forward(self, x):
        y = self.net(x)
        return {"y": y, "wide": y.expand(-1, 5), "turned": self.net[0](x).view(-1, 4, 4).transpose(1, 2)}

    def step(self, batch):
        return F.mse_loss(self(batch[0])["y"], batch[1])


@case(must="either")
class OutputNamedAsInput(Small):
    def forward(self, x):
        return {"x": x * 2, "y": self.net(x)}

    def step(self, batch):
        return F.mse_loss(self(batch[0])["y"], batch[1])


@case()
class SameTensorTwice(Small):
    def forward(self, x):
        y = self.net(x)
        return {"a": y, "b": y}

    def step(self, batch):
        return F.mse_loss(self(batch[0])["a"], batch[1])


@case(layout=mapping, num=floats(8), cat=ints(5))
class InputNamedCat(ByName):
    def __init__(self):
        super().__init__(11)
        self.embed = nn.Embedding(5, 3)

    def forward(self, num, cat):
        return self.net(torch.cat([num, self.embed(cat)], -1))


@case(
    layout=mapping,
    add=floats(8),
    relu=floats(8),
    linear=floats(8),
    Relu=floats(8),
    output=floats(8),
    val_0=floats(8),
)
class InputsNamedAsNodes(ByName):
    def forward(self, add, relu, linear, Relu, output, val_0):  # noqa: N803 - a name that the exporter has
        return {"result": self.net(add + torch.relu(relu) + linear * Relu - output + val_0)}

    def step(self, batch):
        y = batch.pop("y")
        return F.mse_loss(self(**batch)["result"], y)


@case()
class OutputsNamedAsNodes(Small):
    def forward(self, x):
        y = self.net(x)
        return {
            "add": y + 1,
            "relu": y * 2,
            "linear_1": y * 3,
            "node_relu": torch.relu(y),
            "net.0.weight": y * 5,
        }

    def step(self, batch):
        return F.mse_loss(self(batch[0])["relu"], batch[1])


@case(layout=mapping, input=floats(8), self_=floats(8))
class InputNamedInput(ByName):
    def forward(self, input, self_):  # noqa: A002
        return self.net(input * self_)


@case(must="either", layout=mapping, weight=floats(8), module=floats(8))
class InputNamedModule(ByName):
    def forward(self, weight, module):
        return self.net(weight + module)


@case()
class IntegerAndBoolOutputs(Small):
    def forward(self, x):
        y = self.net(x)
        return {
            "y": y, "sign": y > 0, "level": (y * 10).round().int(), "byte": (y.sigmoid() * 255).to(torch.uint8),
            "top": torch.topk(self.net[0](x), 3).indices,
        }  # fmt: skip

    def step(self, batch):
        return F.mse_loss(self(batch[0])["y"], batch[1])


@case(must="either")
class PythonNumberOutput(Small):
    def forward(self, x):
        return {"y": self.net(x), "rows": x.shape[0], "version": 3, "scale": 0.5}

    def step(self, batch):
        return F.mse_loss(self(batch[0])["y"], batch[1])


@case(must="either")
class ConstantOutput(Small):
    """Prototypes, which have no batch axis, are given out beside the distances to them."""

    def __init__(self):
        super().__init__(out=4)
        self.prototypes = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        return {"distance": distances(self.net(x), self.prototypes), "prototypes": self.prototypes}

    def step(self, batch):
        return self(batch[0])["distance"].amin(1).mean()


@case(must="either")
class TwoRowsPerRow(Small):
    """Each sample becomes two rows: the first axis is no batch axis."""

    def forward(self, x):
        return self.net(torch.cat([x, -x]))

    def step(self, batch):
        return F.mse_loss(self(batch[0]), batch[1].repeat(2, 1))


@case(must="either")
class PoolsTheBatch(Small):
    def forward(self, x):
        return self.net(x).mean(0)

    def step(self, batch):
        return F.mse_loss(self(batch[0]), batch[1].mean(0))


@case(must="either", series=floats(5, 8))
class SequenceFirst(Small):
    """An LSTM with the batch as its second axis; forward turns the batch."""

    def __init__(self):
        super().__init__(16)
        self.rnn = nn.LSTM(8, 16)

    def forward(self, series):
        out, (h, _) = self.rnn(series.transpose(0, 1))
        return {"y": self.net(h[-1]), "steps": out}

    def step(self, batch):
        return F.mse_loss(self(batch[0])["y"], batch[1])


@case(target=classes(3), x=floats(8))
class ManyHeads(Classifier):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleDict({f"task-{i}": nn.Linear(8, i + 1) for i in range(4)})

    def forward(self, x):
        return {name: head(x) for name, head in self.heads.items()} | {"main": self.net(x)}

    def step(self, batch):
        return F.cross_entropy(self(batch[0])["main"], batch[1])
