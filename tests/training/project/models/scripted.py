"""A module whose validation metric is given in advance, one value an epoch."""

import torch
from models.small import Plain


class Scripted(Plain):
    """Logs `values[epoch]`; its weight counts the optimizer steps, so that a version tells when it was taken."""

    def __init__(self, values: list[float], metric: str = "val_loss") -> None:
        super().__init__()
        self.values, self.metric = values, metric
        with torch.no_grad():
            self.layer.weight.zero_()
            self.layer.bias.zero_()

    def training_step(self, batch, batch_idx):
        return -self(torch.ones(1, 1)).sum()  # each step adds the learning rate, 1, to the weight

    def validation_step(self, batch, batch_idx):
        self.log(self.metric, self.values[min(self.current_epoch, len(self.values) - 1)], batch_size=64)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class OtherDefinition(Scripted):
    """The same metric's name, computed in another way."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)


class TwoSets(Scripted):
    """Validates on two sets, the second of which is the one that counts."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        value = self.values[self.current_epoch] if dataloader_idx else -float(self.current_epoch)
        self.log("val_loss", value, batch_size=64)


class Unmeasured(Scripted):
    """Never logs the monitored metric."""

    def validation_step(self, batch, batch_idx):
        self.log("val_other", 1.0, batch_size=64)


class Dying(Scripted):
    """Ends its process without a word, as a power cut does, in the training batches of one epoch."""

    def __init__(self, values: list[float], dies_in_epoch: int, metric: str = "val_loss") -> None:
        super().__init__(values, metric)
        self.dies_in_epoch = dies_in_epoch

    def training_step(self, batch, batch_idx):
        if self.current_epoch == self.dies_in_epoch and batch_idx == 4:
            raise KeyboardInterrupt
        return super().training_step(batch, batch_idx)
