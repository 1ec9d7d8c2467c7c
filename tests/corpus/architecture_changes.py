"""Layers that are replaced, appended, built late, frozen or chosen while the training runs."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BackboneFinetuning
from torch import nn

from corpus.case import Small, case, floats


@case()
class ActivationIsReplaced(Small):
    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.net[1] = nn.Tanh()


@case(must="either")
class LayerIsAppended(Small):
    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.net.append(nn.Linear(1, 1))
            self.optimizers().add_param_group({"params": self.net[3].parameters()})


@case(must="either")
class HeadIsReplaced(Small):
    """A new head by assignment, with other weights of the same shape."""

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.net[2] = nn.Linear(16, 1)
            self.optimizers().add_param_group({"params": self.net[2].parameters()})


@case()
class HeadInFitStart(Small):
    """A head as wide as the data say, built when fit starts."""

    def on_fit_start(self):
        width = self.trainer.datamodule.mean.numel()
        if not hasattr(self, "head"):
            self.head = nn.Linear(1, width).to(self.device)

    def forward(self, x):
        y = self.net(x)
        return self.head(y) if hasattr(self, "head") else y

    def step(self, batch):
        return (self(batch[0]).mean(1, keepdim=True) - batch[1]).square().mean()


@case()
class GradualUnfreezing(Small):
    def __init__(self):
        super().__init__()
        self.net[0].requires_grad_(False)

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.net[0].requires_grad_(True)


@case()
class ProgressiveGrowing(Small):
    """A stage and an alpha that fades the new block in."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.stage, self.alpha = 0, 1.0

    def forward(self, x):
        for block in self.blocks[: self.stage]:
            x = torch.relu(block(x))
        new = torch.relu(self.blocks[self.stage](x))
        return self.net(self.alpha * new + (1 - self.alpha) * x)

    def on_train_epoch_start(self):
        self.stage, self.alpha = min(self.current_epoch, 2), 0.5


@case(must="either")
class LazyLayers(Small):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(1))


@case(must="either", image=floats(1, 8, 8))
class LazyConvolutions(Small):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(1)
        )

    def forward(self, image):
        return self.net(image)


@case()
class LazyWithExample(Small):
    """Lazy layers that the constructor has run once."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(1))
        self.net(torch.zeros(2, 8))


@case()
class ActiveBranchByName(Small):
    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleDict({"easy": nn.Linear(8, 1), "hard": nn.Linear(8, 1)})
        self.active = "easy"

    def forward(self, x):
        return self.branches[self.active](x)

    def on_train_epoch_start(self):
        if self.current_epoch:
            self.active = "hard"


@case()
class FrozenBackbone(Small):
    """Batch norm that stays in evaluation mode: `train()` overridden."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.backbone.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x):
        with torch.no_grad():
            features = self.backbone(x)
        return self.net(features)


class Backboned(Small):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))

    def forward(self, x):
        return self.net(torch.relu(self.backbone(x)))


@case()
class BackboneFinetuningCallback(Backboned):
    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), 1e-2)

    def configure_callbacks(self):
        return [BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False)]


@case()
class SubmoduleByObject(Small):
    """A network kept out of the children on purpose, and changed in training."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "frozen", nn.Linear(8, 8))

    def forward(self, x):
        return self.net(torch.relu(self.frozen(x)))

    def on_train_epoch_end(self):
        self.frozen.weight.data.mul_(2.0)


@case(must="late")
class ForwardIsReplaced(Small):
    """`self.forward = ...` after a warm-up, as forum posts suggest."""

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.forward = self.sharper

    def sharper(self, x):
        return self.net(x) * 3.0


@case()
class FusedInValidation(Small):
    """Batch norm whose statistics are reset before each epoch."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))

    def on_train_epoch_start(self):
        self.net[1].reset_running_stats()


@case(must="late")
class GrowsByClass(Small):
    """Class-incremental: the head gains a row each epoch."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 2)

    def forward(self, x):
        return self.head(self.net(x))

    def step(self, batch):
        return (self(batch[0])[:, :1] - batch[1]).square().mean()

    def on_train_epoch_start(self):
        if self.current_epoch:
            old = self.head
            self.head = nn.Linear(1, old.out_features + 1)
            self.head.weight.data[: old.out_features] = old.weight.data
            self.optimizers().add_param_group({"params": self.head.parameters()})


@case()
class BareLightningModule(pl.LightningModule):
    """Layers as attributes, one of them unused."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.unused = nn.Linear(8, 4), nn.Linear(4, 1), nn.Linear(3, 3)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-2)
