"""Dropout whose masks are a function of a seed that comes as an input, the same in torch and in a served graph.

ONNX has random operators, but none takes its seed from an input. Here the random numbers are computed: a
few rounds of (v + key)⁵ modulo the prime 2³¹ - 1, which is the block cipher MiMC (Albrecht et al. 2016,
https://eprint.iacr.org/2016/492) over a small field. All of it is integer arithmetic that cannot overflow
64 bits, so every runtime gives the same numbers to the bit.
"""

import torch
from torch import Tensor, nn

PRIME = 2**31 - 1
"""x → x⁵ is one-to-one modulo this prime, since 5 does not divide 2³¹ - 2."""
_ROUNDS = 4
_RESOLUTION = 2**23
"""Uniform numbers are odd multiples of 2⁻²⁴: exact in float32, and never 0 or 1."""


class SeededUniform(nn.Module):
    """Uniform random numbers in (0, 1), `width` of them for each row's seed.

    Args:
        width: numbers a row.
        stream: number of the random stream; parts of a model with different streams draw different numbers for a seed.
    """

    def __init__(self, width: int, stream: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(stream)
        self.keys: Tensor
        self.register_buffer("keys", torch.randint(PRIME, (_ROUNDS, width), generator=generator))

    def forward(self, seed: Tensor) -> Tensor:
        """Numbers, float32 [batch, width], for seeds of int64 [batch, 1]."""
        value = seed % PRIME
        for keys in self.keys:
            base = (value + keys) % PRIME
            square = base * base % PRIME
            value = square * square % PRIME * base % PRIME
        return ((value % _RESOLUTION).float() + 0.5) / _RESOLUTION


class SeededDropout(nn.Module):
    """Dropout that is always on and draws its mask from a seed: the same seed drops the same units.

    Args:
        width: units.
        rate: share of the units that is dropped, in [0, 1).
        stream: number of the random stream; each layer of a model needs another one.
    """

    def __init__(self, width: int, rate: float, stream: int) -> None:
        super().__init__()
        self.rate = rate
        self.uniform = SeededUniform(width, stream)

    def forward(self, values: Tensor, seed: Tensor) -> Tensor:
        """Values [batch, width], masked and scaled up, for seeds of int64 [batch, 1]."""
        kept: Tensor = self.uniform(seed) >= self.rate
        return values * kept / (1 - self.rate)


class ConcreteDropout(nn.Module):
    """SeededDropout that learns its rate (Gal, Hron, Kendall 2017, https://arxiv.org/abs/1705.07832).

    The mask is a smooth one, from which the rate has a gradient; `regularisation` belongs to the loss.

    Args:
        width: units.
        rate: initial dropout rate, in (0, 1).
        stream: number of the random stream; each layer of a model needs another one.
        temperature: temperature of the mask; a lower one gives values nearer to 0 and 1.
    """

    def __init__(self, width: int, rate: float, stream: int, temperature: float = 0.1) -> None:
        super().__init__()
        self.width = width
        self.temperature = temperature
        self.logit_rate = nn.Parameter(torch.tensor(float(rate)).logit())
        self.uniform = SeededUniform(width, stream)

    @property
    def rate(self) -> Tensor:
        """The share of the units that is dropped, a scalar in (0, 1)."""
        return self.logit_rate.sigmoid()

    def forward(self, values: Tensor, seed: Tensor) -> Tensor:
        """Values [batch, width], masked and scaled up, for seeds of int64 [batch, 1]."""
        dropped = torch.sigmoid((self.logit_rate + torch.logit(self.uniform(seed))) / self.temperature)
        return values * (1 - dropped) / (1 - self.rate)

    def regularisation(self, layer: nn.Linear, length_scale: float, n_samples: int) -> Tensor:
        """Return the prior's term in the loss of one sample, for the layer after these units; a scalar.

        Args:
            layer: the linear layer after this dropout.
            length_scale: length scale of the prior over the layer's weights; a smaller one is a looser prior.
            n_samples: number of training samples, over which prior and entropy are spread.
        """
        rate = self.rate
        weights = layer.weight.square().sum() / (1 - rate)
        entropy = -(rate * rate.log() + (1 - rate) * (1 - rate).log())
        return (length_scale**2 * weights / 2 - self.width * entropy) / n_samples
