"""A temporal convolutional network (TCN), of Bai, Kolter and Koltun: https://arxiv.org/abs/1803.01271."""

from torch import Tensor, nn


class TCN(nn.Module):
    """Causal convolutions of growing dilation: an output step depends on its own and earlier input steps alone.

    Takes float [batch, in_channels, step], any number of steps, and gives [batch, channels, step].

    Args:
        in_channels: channels of the input.
        channels: channels of every layer and of the output.
        n_blocks: residual blocks; block i has the dilation 2**i.
        kernel_size: kernel size of each block's two convolutions.
        dropout: share of the values that are dropped in training.

    Attributes:
        receptive_field: steps that an output depends on.

    Raises:
        ValueError: an argument that must be at least 1 is not.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 32,
        *,
        n_blocks: int = 5,
        kernel_size: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(in_channels, channels, n_blocks, kernel_size) < 1:
            raise ValueError(
                f"TCN: expected in_channels, channels, n_blocks and kernel_size of at least 1, got {in_channels}, "
                f"{channels}, {n_blocks} and {kernel_size}"
            )
        widths = [in_channels, *[channels] * n_blocks]
        self.blocks = nn.Sequential(
            *(_Block(widths[i], channels, kernel_size, 2**i, dropout) for i in range(n_blocks))
        )
        self.receptive_field = 1 + 2 * (kernel_size - 1) * (2**n_blocks - 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(x)
        return y


class _Block(nn.Module):
    """Two causal convolutions beside a shortcut."""

    def __init__(
        self, in_channels: int, channels: int, kernel_size: int, dilation: int, dropout: float
    ) -> None:
        super().__init__()
        padding = (kernel_size - 1) * dilation
        layers: list[nn.Module] = []
        for n_in in (in_channels, channels):
            layers += [
                nn.ConstantPad1d((padding, 0), 0.0),
                nn.Conv1d(n_in, channels, kernel_size, dilation=dilation), nn.GELU(), nn.Dropout(dropout),
            ]  # fmt: skip
        self.layers = nn.Sequential(*layers)
        self.shortcut = nn.Identity() if in_channels == channels else nn.Conv1d(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = nn.functional.gelu(self.layers(x) + self.shortcut(x))
        return y
