"""Architectures that a tool for everybody must export, each with real-looking inputs."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from unitrain import UnitrainModule


class MLP(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2))

    def forward(self, x):
        return self.net(x)


class Residual(LightningModule):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, image):
        x = torch.relu(self.norms[0](self.first(image)))
        x = x + torch.relu(self.norms[1](self.second(x)))
        return {"logits": self.head(x.mean((2, 3)))}


class UNet(LightningModule):
    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.out = nn.Conv2d(5, 2, 1)

    def forward(self, image):
        low = torch.relu(self.down(image))
        high = nn.functional.interpolate(low, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.out(torch.cat([image, self.up(low) + high], 1))


class Recurrent(LightningModule):
    def __init__(self, kind):
        super().__init__()
        self.rnn = kind(3, 6, num_layers=2, batch_first=True)
        self.head = nn.Linear(6, 1)

    def forward(self, series):
        return self.head(self.rnn(series)[0][:, -1])


class TCN(LightningModule):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv1d(2 if i == 0 else 6, 6, 3, dilation=2**i) for i in range(3)])

    def forward(self, series):
        for i, conv in enumerate(self.convs):
            series = torch.relu(conv(nn.functional.pad(series, (2 * 2**i, 0))))
        return series[:, :, -1]


class Transformer(LightningModule):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.1)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.register_buffer("positions", torch.arange(7), persistent=False)
        self.place = nn.Embedding(7, 16)

    def forward(self, tokens):
        return {"first": self.encoder(self.embed(tokens) + self.place(self.positions))[:, 0]}


class TiedWeights(LightningModule):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 6)
        self.head = nn.Linear(6, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.embed(tokens).mean(1))


class Sums(NamedTuple):
    total: Tensor
    largest: Tensor


class SeveralInputs(LightningModule):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, series, calendar, mask):
        x = torch.where(mask[:, None], self.a(series) + self.b(calendar), torch.zeros(()))
        return Sums(x.sum(1), x.max(1).values)


class Variational(LightningModule):
    """Draws in training only, as one that is served must."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def forward(self, x):
        mean, log_var = self.encoder(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp() if self.training else mean
        return {"z": z, "decoded": self.decoder(z)}


class PixelClasses(UnitrainModule):
    """uint8 in, uint8 out, normalised and decided inside the graph."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(120.0))
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def preprocess(self, inputs):
        return {"image": (inputs["image"].float() - self.mean) / 60.0}

    def forward(self, image):
        return {"logits": self.conv(image)}

    def postprocess(self, outputs):
        top = outputs["logits"].topk(2, dim=1)
        return {"classes": outputs["logits"].argmax(1).to(torch.uint8), "scores": top.values}


class Sampler(LightningModule):
    def __init__(self):
        super().__init__()
        self.offsets = nn.Linear(2, 2)

    def forward(self, image, shift):
        n = image.shape[0]
        theta = torch.eye(2, 3).expand(n, 2, 3) + nn.functional.pad(self.offsets(shift)[:, :, None], (2, 0))
        grid = nn.functional.affine_grid(theta, [n, 1, 6, 6], align_corners=False)
        return nn.functional.grid_sample(image, grid, align_corners=False)


@dataclass
class Parts:
    mean: Tensor
    nested: dict[str, Tensor]


class DataclassOutputs(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        y = self.layer(x)
        return Parts(y.mean(1), {"a": y, "b": -y})


class AnyLength(UnitrainModule):
    """A further axis of any length beside the batch."""

    dynamic_axes = {"series": {2: "steps"}}  # noqa: RUF012 - read only

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 3, padding=1)

    def forward(self, series):
        y = self.conv(series)
        return {"mean": y.mean(2), "each": y}


class Spectral(LightningModule):
    """A Fourier layer: its complex weight is no initializer that a graph could hold as it is."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 7, dtype=torch.cfloat))
        self.out = nn.Linear(14, 2)

    def forward(self, series):
        spectrum, weight = torch.view_as_real(torch.fft.rfft(series)), torch.view_as_real(self.weight)
        real = spectrum[..., 0] * weight[..., 0] - spectrum[..., 1] * weight[..., 1]
        imaginary = spectrum[..., 0] * weight[..., 1] + spectrum[..., 1] * weight[..., 0]
        return self.out(torch.cat([real, imaginary], 1))


class HalfInside(LightningModule):
    """float16 weights behind float32 inputs and outputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3).to(torch.float16)

    def forward(self, x):
        return self.layer(x.to(torch.float16)).float()


def _ints(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(0))


def _floats(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


ZOO = {
    "mlp": (MLP, {"x": _floats(5, 4)}),
    "residual conv with batch norm": (Residual, {"image": _floats(5, 3, 8, 8)}),
    "u-net with interpolation": (UNet, {"image": _floats(5, 1, 8, 8)}),
    "lstm": (lambda: Recurrent(nn.LSTM), {"series": _floats(5, 9, 3)}),
    "gru": (lambda: Recurrent(nn.GRU), {"series": _floats(5, 9, 3)}),
    "tcn": (TCN, {"series": _floats(5, 2, 12)}),
    "transformer with a buffer that is not saved": (Transformer, {"tokens": _ints(20, 5, 7)}),
    "tied weights": (TiedWeights, {"tokens": _ints(12, 5, 4)}),
    "several inputs, bool, named tuple": (
        SeveralInputs,
        {"series": _floats(5, 3), "calendar": _floats(5, 2), "mask": _ints(2, 5).bool()},
    ),
    "variational": (Variational, {"x": _floats(5, 6)}),
    "uint8 in and out, argmax, topk": (PixelClasses, {"image": _ints(256, 5, 3, 6, 6).to(torch.uint8)}),
    "grid_sample": (Sampler, {"image": _floats(5, 1, 6, 6), "shift": _floats(5, 2)}),
    "dataclass with a dict": (DataclassOutputs, {"x": _floats(5, 2)}),
    "spectral layer with complex weights": (Spectral, {"series": _floats(5, 12)}),
    "half precision inside": (HalfInside, {"x": _floats(5, 4)}),
    "a further axis of any length": (AnyLength, {"series": _floats(5, 2, 10)}),
}
