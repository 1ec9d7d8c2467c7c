"""Own training loops, several optimizers, and Lightning's callbacks that change weights or layers."""

import torch
from torch import nn
from torch.nn import functional as F

from corpus.case import Small, case
from unitrain import UnitrainModule

CALLBACKS = "pytorch_lightning.callbacks"


def callback(name, **arguments):
    return {"callbacks": [{"class_path": f"{CALLBACKS}.{name}", "init_args": arguments}]}


@case()
class ManualOptimization(Small):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.step(batch))
        self.clip_gradients(optimizer, gradient_clip_val=1.0)
        optimizer.step()


@case()
class AlternatingOptimizers(Small):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        first, second = (
            torch.optim.SGD(self.net[0].parameters(), 1e-2),
            torch.optim.Adam(self.net[2].parameters(), 1e-2),
        )
        return [first, second], [
            torch.optim.lr_scheduler.StepLR(first, 1),
            torch.optim.lr_scheduler.StepLR(second, 1),
        ]

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()[batch_idx % 2]
        optimizer.zero_grad()
        self.manual_backward(self.step(batch))
        optimizer.step()

    def on_train_epoch_end(self):
        for scheduler in self.lr_schedulers():
            scheduler.step()


@case(trainer={"accumulate_grad_batches": 2, "gradient_clip_val": 0.5})
class Accumulates(Small):
    pass


@case()
class SchedulerByStep(Small):
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 1e-2, total_steps=self.trainer.estimated_stepping_batches
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@case()
class PlateauScheduler(Small):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 1e-2)
        return {
            "optimizer": optimizer,
            "lr_scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
            "monitor": "val_loss",
        }


@case(must="either", trainer=callback("StochasticWeightAveraging", swa_lrs=1e-2, swa_epoch_start=1))
class StochasticWeightAverage(Small):
    pass


@case(
    must="either",
    trainer=callback("StochasticWeightAveraging", swa_lrs=1e-2, swa_epoch_start=1),
    settings={"ema": None},
)
class StochasticWeightAverageAlone(Small):
    pass


@case(must="either", trainer=callback("ModelPruning", pruning_fn="l1_unstructured", amount=0.5))
class PruningCallback(Small):
    pass


@case(
    must="either",
    trainer=callback("ModelPruning", pruning_fn="l1_unstructured", amount=0.5),
    settings={"ema": None},
)
class PruningCallbackAlone(Small):
    pass


@case(trainer=callback("GradientAccumulationScheduler", scheduling={1: 2}))
class AccumulationCallback(Small):
    pass


@case(must="either", trainer=callback("LearningRateFinder", num_training_steps=4))
class LearningRateFinderCallback(Small):
    def __init__(self):
        super().__init__()
        self.lr = 1e-3

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


@case(trainer=callback("LambdaCallback"))
class OwnCallbacks(Small):
    """A callback of the module's own, which changes weights at each epoch."""

    def configure_callbacks(self):
        from pytorch_lightning.callbacks import LambdaCallback

        return [LambdaCallback(on_train_epoch_end=lambda trainer, module: module.net[2].bias.data.add_(1.0))]


@case(trainer={"val_check_interval": 1, "max_epochs": 2})
class ValidatesEveryStep(Small):
    pass


@case(trainer={"check_val_every_n_epoch": 2, "max_epochs": 4})
class ValidatesEverySecondEpoch(Small):
    pass


@case(trainer={"max_epochs": 2, "limit_val_batches": 1, "limit_train_batches": 1, "num_sanity_val_steps": 0})
class LimitedBatches(Small):
    pass


@case(must="either", settings={"ema": {"decay": 0.5, "decay_warmup": False}})
class WeightsChangeInValidation(Small):
    """Weights set by hand after the validation, which the average does not see."""

    def on_validation_epoch_end(self):
        with torch.no_grad():
            self.net[2].bias.add_(1.0)


@case()
class ResetsInTraining(Small):
    """Shrink and perturb: weights are drawn anew in part each epoch."""

    def on_train_epoch_start(self):
        with torch.no_grad():
            for p in self.net.parameters():
                p.mul_(0.5).add_(torch.randn_like(p) * 0.1)


@case()
class MeanTeacherByHook(Small):
    def __init__(self):
        super().__init__()
        self.average = torch.optim.swa_utils.AveragedModel(self.net)

    def forward(self, x):
        return self.net(x) if self.training else self.average(x)

    def on_before_zero_grad(self, optimizer):
        self.average.update_parameters(self.net)


@case()
class SharpnessAware(Small):
    """A closure that steps twice."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        for _ in range(2):
            optimizer.zero_grad()
            self.manual_backward(self.step(batch))
            optimizer.step()


@case()
class Servable(UnitrainModule):
    """unitrain's own hooks, with statistics that training changes."""

    def __init__(self):
        super().__init__()
        self.net, self.shift, self._gain = nn.Linear(8, 3), torch.zeros(8), 1.0

    def preprocess(self, inputs):
        return {"x": inputs["x"] - self.shift}

    def forward(self, x):
        return {"logits": self.net(x) * self._gain}

    def postprocess(self, outputs):
        return {"label": outputs["logits"].argmax(-1), "best": outputs["logits"].amax(-1)}

    def loss(self, inputs, outputs, batch):
        return F.mse_loss(outputs["logits"].mean(1, keepdim=True), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)

    def on_train_epoch_start(self):
        self.shift, self._gain = self.shift + 1.0, self._gain * -2.0


@case()
class ServableOneTensor(UnitrainModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 1)

    def forward(self, x):
        return self.net(x)[:, 0]

    def loss(self, inputs, outputs, batch):
        return F.mse_loss(outputs if isinstance(outputs, torch.Tensor) else outputs["output"], batch[1][:, 0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)
