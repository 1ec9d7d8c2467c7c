"""Element types: half, double, bfloat16, complex, integers, bytes, mixed precision."""

import torch
from torch import nn
from torch.nn import functional as F

from corpus.case import Classifier, Small, bools, case, classes, ints, mapping


def doubles(*shape):
    return lambda g, n: torch.randn(n, *shape, generator=g, dtype=torch.float64)


def halves(*shape):
    return lambda g, n: torch.randn(n, *shape, generator=g).half()


@case(x=doubles(8))
class DoublePrecision(Small):
    def __init__(self):
        super().__init__()
        self.double()

    def step(self, batch):
        return F.mse_loss(self(batch[0]), batch[1].double())


@case(trainer={"precision": "64-true"}, x=doubles(8), must="either")
class TrainerIn64(Small):
    def step(self, batch):
        return F.mse_loss(self(batch[0]), batch[1])


@case(trainer={"precision": "bf16-mixed"})
class MixedBfloat(Small):
    pass


@case(trainer={"precision": "bf16-true"}, must="refused")
class TrueBfloat(Small):
    """Weights and inputs in bfloat16: no request can hold them."""


@case(must="either", call=lambda module, inputs: module(inputs["x"]))
class BfloatInside(Small):
    """Float32 in and out, bfloat16 between."""

    def forward(self, x):
        return self.net(x.bfloat16().float())


@case(x=halves(8))
class HalfInputs(Small):
    def forward(self, x):
        return self.net(x.float()).half()

    def step(self, batch):
        return F.mse_loss(self(batch[0]).float(), batch[1])


@case(must="either")
class AutocastInForward(Small):
    """`with torch.autocast` inside of forward."""

    def forward(self, x):
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            y = self.net(x)
        return y.float()


@case(must="either", x=lambda g, n: torch.randn(n, 8, generator=g, dtype=torch.cfloat))
class ComplexInput(Small):
    def forward(self, x):
        return self.net(x.abs())


@case(must="either")
class ComplexOutput(Small):
    def forward(self, x):
        return {"y": self.net(x), "spectrum": torch.fft.rfft(x)}

    def step(self, batch):
        return F.mse_loss(self(batch[0])["y"], batch[1])


@case(must="either")
class ComplexInside(Small):
    """A complex product by view_as_complex and view_as_real."""

    def __init__(self):
        super().__init__()
        self.rotation = nn.Parameter(torch.randn(4, 2))

    def forward(self, x):
        z = torch.view_as_complex(x.view(-1, 4, 2)) * torch.view_as_complex(self.rotation)
        return self.net(torch.view_as_real(z).flatten(1))


@case(
    target=classes(3), layout=mapping, x=ints(100, 8, dtype=torch.int32), small=ints(5, 2, dtype=torch.int8)
)
class ShortIntegers(Classifier):
    def __init__(self):
        super().__init__(10)

    def forward(self, x, small):
        return self.net(torch.cat([x.float() / 100, small.float()], 1))

    def step(self, batch):
        return F.cross_entropy(self(batch["x"], batch["small"]), batch["y"])


@case(image=ints(256, 3, 8, 8, dtype=torch.uint8))
class BytesInAndOut(Small):
    """Image to image, uint8 at both ends."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, image):
        y = self.conv(image / 255.0)
        return y if self.training else (y.clamp(0, 1) * 255).to(torch.uint8)

    def step(self, batch):
        return (self(batch[0]).float() - batch[0] / 255.0).square().mean()


@case(must="either", x=bools(8))
class BoolInput(Small):
    def forward(self, x):
        return {"y": self.net(x.float()), "none": ~x.any(1), "flipped": ~x}

    def step(self, batch):
        return F.mse_loss(self(batch[0])["y"], batch[1])


@case(must="either", x=ints(1 << 40, 4))
class LargeIntegers(Small):
    """Hashing of 64-bit identifiers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, 8)

    def forward(self, x):
        return {"y": self.net(self.embed(x % 64).mean(1)), "next": x + 1}

    def step(self, batch):
        return F.mse_loss(self(batch[0])["y"], batch[1])


@case(must="either")
class DoubleInside(Small):
    """Double precision for a sum, float32 at the end."""

    def forward(self, x):
        return self.net((x.double() - x.double().mean(1, keepdim=True)).float())


@case(must="either")
class HalfWeights(Small):
    """A layer in float16 on a float32 trunk."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 1).half()

    def forward(self, x):
        return self.head(self.net(x).half())

    def step(self, batch):
        return F.mse_loss(self(batch[0]).float(), batch[1])
