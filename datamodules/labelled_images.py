"""Images with a class each, in memory."""

from collections.abc import Sequence
from math import pi
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, grid_sample

from unitrain.errors import HookError
from unitrain.loaders import ArrayLoader

Images = NDArray[np.uint8]
Labelled = tuple[Images, NDArray[np.int64]]


class LabelledImages(LightningDataModule):
    """Images in arrays, which a subclass loads. Training images are shifted, rotated and scaled a little.

    Batches are mappings of `image`, uint8 [batch, channel, height, width], and `label`, int64 [batch], a place
    in `class_names`. A validation is one batch.

    Args:
        train: (images, labels) for training.
        validation: others.
        test: others.
        class_names: names of the classes in order.
        batch_size: images a training batch.
        max_shift: maximum shift of a training image along each axis, in pixels.
        max_turn: maximum rotation of it, in degrees.
        max_scale: maximum change of its size, as a share.

    Raises:
        HookError: a label is no place in `class_names`, or a channel never varies.
    """

    def __init__(
        self,
        train: Labelled,
        validation: Labelled,
        test: Labelled,
        *,
        class_names: Sequence[str],
        batch_size: int,
        max_shift: float,
        max_turn: float,
        max_scale: float,
    ) -> None:
        super().__init__()
        self.class_names = list(class_names)
        self.batch_size = batch_size
        self.max_shift, self.max_turn, self.max_scale = max_shift, max_turn, max_scale
        self.train, self.validation, self.test = train, validation, test
        for _, labels in (train, validation, test):
            if not 0 <= int(labels.min()) <= int(labels.max()) < len(self.class_names):
                raise HookError(
                    f"{type(self).__name__}: expected labels from 0 to {len(self.class_names) - 1}, one a class name, "
                    f"got {labels.min()} to {labels.max()}"
                )
        values = train[0].astype(np.float64)
        self.channel_means = [float(v) for v in values.mean((0, 2, 3))]
        self.channel_stds = [float(v) for v in values.std((0, 2, 3))]
        if min(self.channel_stds) == 0:
            channel = self.channel_stds.index(0.0)
            raise HookError(
                f"{type(self).__name__}: expected every channel of the training images to vary, but channel {channel} is "
                f"{values[0, channel, 0, 0]:g} everywhere; leave it out"
            )

    @property
    def n_channels(self) -> int:
        """Number of channels of an image."""
        return int(self.train[0].shape[1])

    def train_dataloader(self) -> ArrayLoader:
        return ArrayLoader(
            _columns(self.train),
            batch_size=self.batch_size,
            shuffle=True,
            drop_last=len(self.train[0]) >= self.batch_size,
            transform=self._moved,
        )

    def val_dataloader(self) -> ArrayLoader:
        return ArrayLoader(_columns(self.validation), batch_size=len(self.validation[0]))

    def test_dataloader(self) -> ArrayLoader:
        return ArrayLoader(_columns(self.test), batch_size=len(self.test[0]))

    def _moved(self, batch: dict[str, Tensor], generator: Generator) -> dict[str, Any]:
        """Each image shifted, turned and scaled by chance; what comes in from beyond its edges is 0."""
        image = batch["image"]
        n, height, width = len(image), image.shape[2], image.shape[3]
        shift, turn, scale = (2 * torch.rand(n, k, generator=generator) - 1 for k in (2, 1, 1))
        angle = turn[:, 0] * self.max_turn * pi / 180
        size = torch.exp(scale[:, 0] * self.max_scale)
        # The grid goes from -1 to 1, so a pixel is 2 / width of it.
        across, down = shift[:, 0] * 2 * self.max_shift / width, shift[:, 1] * 2 * self.max_shift / height
        cosine, sine = torch.cos(angle) * size, torch.sin(angle) * size
        rows = [torch.stack([cosine, -sine, across], 1), torch.stack([sine, cosine, down], 1)]
        grid = affine_grid(torch.stack(rows, 1), list(image.shape), align_corners=False)
        moved = grid_sample(image.float(), grid, align_corners=False)
        return batch | {"image": moved.round().to(torch.uint8)}


def _columns(part: Labelled) -> dict[str, NDArray[Any]]:
    return {"image": part[0], "label": part[1]}
