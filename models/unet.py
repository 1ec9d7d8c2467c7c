"""A U-Net: a class for every pixel of an image, or every voxel of a volume."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassJaccardIndex

from unitrain.errors import HookError
from unitrain.figures import segmentation
from unitrain.models.losses import LOSSES
from unitrain.module import Tensors, UnitrainModule

_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_AXES = {2: ("height", "width"), 3: ("depth", "height", "width")}


class UNet(UnitrainModule):
    """A U-Net (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597) in two or three dimensions.

    Serves `image`, uint8 [batch, n_channels, (depth,) height, width], of any size → `classes`, uint8
    [batch, (depth,) height, width], a place in `class_names` each.

    Standardisation is part of the graph. Normalisation by batch, not by image: a pixel's class depends on
    nothing but pixels within `margin` pixels of it, so large images can be answered in tiles.

    A batch is a mapping of `image` and `mask`, integers [batch, (depth,) height, width].

    Args:
        class_names: names of the classes in order; the first one is the background.
        dimensions: 2 for images, 3 for volumes.
        n_channels: number of channels of an image.
        channel_means: mean of each channel over the training images, in grey levels.
        channel_stds: standard deviation of each channel.
        width: channels after the first convolution; each level below has twice as many.
        depth: number of times the size is halved.
        losses: weights of the losses, by their names in `unitrain.models.losses.LOSSES`.
        lr: AdamW's learning rate.
        weight_decay: AdamW's.

    Raises:
        HookError: a value is out of range, or there is no such loss.
    """

    def __init__(
        self,
        *,
        class_names: Sequence[str],
        dimensions: Literal[2, 3] = 2,
        n_channels: int = 1,
        channel_means: Sequence[float] = (0.0,),
        channel_stds: Sequence[float] = (255.0,),
        width: int = 16,
        depth: int = 2,
        losses: Mapping[str, float] | None = None,
        lr: float = 3e-3,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__()
        self.losses = {"dice": 1.0, "focal": 1.0} if losses is None else dict(losses)
        if dimensions not in _AXES or depth < 1:
            raise HookError(
                f"UNet: expected 2 or 3 dimensions and a depth of at least 1, got {dimensions} and {depth}"
            )
        if not len(channel_means) == len(channel_stds) == n_channels:
            raise HookError(
                f"UNet: expected a mean and a standard deviation for each of {n_channels} channels, got "
                f"{len(channel_means)} and {len(channel_stds)}"
            )
        unknown = sorted(set(self.losses) - set(LOSSES))
        if unknown or not self.losses:
            raise HookError(
                f"UNet: expected losses of {', '.join(LOSSES)}, got {', '.join(unknown) or 'none'}"
            )
        self.save_hyperparameters()
        self.class_names = list(class_names)
        self.dynamic_axes = {"image": dict(enumerate(_AXES[dimensions], start=2))}
        self.means: Tensor
        self.stds: Tensor
        axes = [1] * dimensions
        self.register_buffer("means", torch.tensor(channel_means).reshape(n_channels, *axes))
        self.register_buffer("stds", torch.tensor(channel_stds).reshape(n_channels, *axes))
        widths = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            _block(dimensions, before, after)
            for before, after in zip([n_channels, *widths], widths, strict=False)
        )
        self.pool = _POOL[dimensions](2, ceil_mode=True)
        self.up = nn.ModuleList(
            _block(dimensions, widths[level] + widths[level + 1], widths[level])
            for level in reversed(range(depth))
        )
        self.head = _CONVOLUTION[dimensions](width, len(self.class_names), 1)

    @property
    def margin(self) -> int:
        """Maximum distance of two pixels of which one affects the other's class, in pixels."""
        depth = int(self.hparams["depth"])
        # Two convolutions a block reach 2 pixels of their level; halving and doubling reach 1 of the level above.
        levels = [2 * (2 << level) for level in range(depth)] + [2 << depth]
        return sum(levels) + 2 * sum(1 << level for level in range(depth))

    def preprocess(self, inputs: Tensors) -> Tensors:
        return {"image": (inputs["image"].float() - self.means) / self.stds}

    def forward(self, image: Tensor) -> Tensors:
        skips: list[Tensor] = []
        x = image
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        features = skips.pop().flatten(2).mean(2)
        for block in self.up:
            skip = skips.pop()
            # To the skipped one's size, not twice its own: any size of image will do.
            x = nn.functional.interpolate(x, size=skip.shape[2:], mode="nearest")
            x = block(torch.cat([skip, x], dim=1))
        return {"logits": self.head(x), "features": features}

    def postprocess(self, outputs: Tensors) -> Tensors:
        return {"classes": outputs["logits"].argmax(1).to(torch.uint8)}

    def loss(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Tensors:
        mask = batch["mask"].long()
        return {name: weight * LOSSES[name](outputs["logits"], mask) for name, weight in self.losses.items()}

    def metrics(self) -> MetricCollection:
        return MetricCollection({"iou": ForegroundIoU(len(self.class_names))})

    def metric_args(self, inputs: Tensors, outputs: Tensors, batch: Any) -> tuple[Tensor, Tensor]:
        return outputs["logits"].argmax(1), batch["mask"].long()

    def embeddings(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Tensors:
        return {"features": outputs["features"]}

    def labels(self, batch: Any) -> Mapping[str, Sequence[Any] | Tensor]:
        mask = batch["mask"].flatten(1)
        shares = [((mask == i).float().mean(1) * 100).round().long() for i in range(len(self.class_names))]
        return {
            f"percent_{name}": share for name, share in list(zip(self.class_names, shares, strict=True))[1:]
        }

    def summaries(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Mapping[str, Any]:
        image, classes, mask = inputs["image"], outputs["logits"].argmax(1), batch["mask"]
        if mask.dim() > len(("row", "height", "width")):  # the slice in the middle of a volume
            middle = mask.shape[1] // 2
            image, classes, mask = image[:, :, middle], classes[:, middle], mask[:, middle]
        names = dict(enumerate(self.class_names))
        return {"segmentation": segmentation(image, classes, mask, names)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
        )


class ForegroundIoU(MulticlassJaccardIndex):
    """Intersection over union of all pixels together, the mean over all classes but the first."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none")

    def compute(self) -> Tensor:
        return super().compute()[1:].mean()


def _block(dimensions: int, before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n in (before, after):
        layers += [
            # With a bias, though a norm follows: torch 2.13 exports a Conv3d without one to a wrong graph.
            _CONVOLUTION[dimensions](n, after, 3, padding=1),
            _NORM[dimensions](after),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
