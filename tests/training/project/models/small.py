"""Models for the tests of training: small, quick, and wrong in known ways."""

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torchmetrics import MeanSquaredError, MetricCollection

from unitrain import UnitrainModule


class Curve(UnitrainModule):
    """A small regression with everything that makes training hard to repeat: dropout and batch norm."""

    def __init__(self, hidden: int = 16, scale: float = 1.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(1, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, 1)
        )

    def preprocess(self, inputs):
        return {"x": inputs["x"] / self.hparams["scale"]}

    def forward(self, x):
        return {"y": self.net(x), "hidden": self.net[0](x)}

    def postprocess(self, outputs):
        return {"y": outputs["y"], "positive": outputs["y"][:, 0] > 0}

    def loss(self, inputs, outputs, batch):
        return {
            "mse": nn.functional.mse_loss(outputs["y"], batch["target"]),
            "size": 1e-4 * outputs["hidden"].square().mean(),
        }

    def metrics(self):
        return MetricCollection({"MSE": MeanSquaredError()})

    def labels(self, batch):
        return {"side": ["left" if x < 0 else "right" for x in batch["x"][:, 0].tolist()]}


class Plain(LightningModule):
    """A LightningModule that knows nothing of unitrain."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        x, target = batch
        return nn.functional.mse_loss(self(x), target)

    def validation_step(self, batch, batch_idx):
        x, target = batch
        self.log("val_loss", nn.functional.mse_loss(self(x), target))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class DependsOnData(Curve):
    """Its forward branches on a value, which no graph can hold."""

    def forward(self, x):
        y = self.net(x) if x.sum() > 0 else -self.net(x)
        return {"y": y, "hidden": y}


class Explodes(Curve):
    """A weight of it turns to NaN after the second epoch, while its loss stays finite."""

    def __init__(self, hidden: int = 16, scale: float = 1.0) -> None:
        super().__init__(hidden, scale)
        self.unused = nn.Parameter(torch.zeros(3))

    def on_train_epoch_end(self):
        if self.current_epoch == 1:
            with torch.no_grad():
                self.unused.fill_(float("nan"))


class Raises(Curve):
    """Its own code fails in the second epoch."""

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            raise RuntimeError("the person's own fault")


class ByHand(Plain):
    """Optimizes by hand with two optimizers, and may tell a loss that is no number."""

    def __init__(self, nan_at: int = -1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.nan_at = nan_at

    def training_step(self, batch, batch_idx):
        x, target = batch.values()
        for optimizer in self.optimizers():
            loss = nn.functional.mse_loss(self(x), target)
            optimizer.zero_grad()
            self.manual_backward(loss * (float("nan") if self.current_epoch == self.nan_at else 1.0))
            optimizer.step()
        self.log("train_loss", loss)

    def validation_step(self, batch, batch_idx):
        super().validation_step(tuple(batch.values()), batch_idx)

    def configure_optimizers(self):
        return [torch.optim.SGD([parameter], lr=1e-3) for parameter in self.layer.parameters()]


class Generator(Plain):
    """Its forward takes what is in no batch, as a GAN's does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.example_input_array = torch.zeros(2, 3, 1)

    def forward(self, noise):
        return self.layer(noise[..., 0])

    def training_step(self, batch, batch_idx):
        return self(torch.randn(8, 3, 1)).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))


class NoForward(Plain):
    """As in Lightning's first example, where the steps do all."""

    forward = LightningModule.forward


class Takes(Plain):
    """Its steps give forward another shape than the batches have."""

    def forward(self, x):
        return self.layer(x.unflatten(1, (2, 1)))


class Lazy(Plain):
    """Its layer has no shape before it has seen data."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(1)


class BringsCallbacks(Curve):
    """Has callbacks of its own, and validates on several sets."""

    def configure_callbacks(self):
        stopping = EarlyStopping("val_MSE/dataloader_idx_1", patience=2, min_delta=1e9)
        return [ModelCheckpoint(filename="mine"), stopping]
