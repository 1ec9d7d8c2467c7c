"""The moving average: its arithmetic, and Lightning's faults that it must not have.

Each test of a fault fails on Lightning's own EMAWeightAveraging (`lightnings_own` shows how to try).
"""

import copy
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from unitrain.training.callbacks.ema import EMA


class Net(LightningModule):
    """A regression with batch norm: floating-point and integer buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        self.seen_at_validation_end: torch.Tensor | None = None

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.mse_loss(self(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", nn.functional.mse_loss(self(batch[0]), batch[1]))

    def on_validation_epoch_end(self):
        self.seen_at_validation_end = self.net[0].weight.detach().clone()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 2, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=16)


def trainer(tmp_path: Any, *callbacks: Callback, **options: Any) -> Trainer:
    defaults = {"max_epochs": 3, "logger": False, "accelerator": "cpu", "enable_progress_bar": False,
                "enable_model_summary": False, "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks)}  # fmt: skip
    return Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), **(defaults | options))


class Steps(Callback):
    """Keeps the raw weights after each optimizer step."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights.append(pl_module.net[0].weight.detach().clone())


def reference(
    start: torch.Tensor, steps: list[torch.Tensor], decay: float, *, warm_up: bool, every: int = 1
) -> torch.Tensor:
    """The average by its definition, in double precision."""
    average, n = start.double(), 0
    for i, weight in enumerate(steps, start=1):
        if i % every == 0:
            d = min(decay, (1 + n) / (10 + n)) if warm_up else decay
            average = d * average + (1 - d) * weight.double()
            n += 1
    return average


@pytest.mark.parametrize(("warm_up", "every"), [(True, 1), (False, 1), (True, 3)])
def test_average_is_what_its_definition_says(tmp_path: Any, warm_up: bool, every: int) -> None:
    """With and without warm-up, at every step and every third."""
    torch.manual_seed(0)
    module, steps = Net(), Steps()
    start = module.net[0].weight.detach().clone()
    ema = EMA(0.9, decay_warmup=warm_up, every_n_steps=every)
    trainer(tmp_path, steps, ema).fit(module, loader(), loader())
    expected = reference(start, steps.weights, 0.9, warm_up=warm_up, every=every)
    torch.testing.assert_close(module.net[0].weight.double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(module.net[0].weight, steps.weights[-1])


def test_best_checkpoint_is_tested_with_averaged_weights_on_the_same_trainer(tmp_path: Any) -> None:
    """Lightning's tests the raw ones after fit."""
    torch.manual_seed(0)
    module = Net()
    best = ModelCheckpoint(tmp_path / "c", monitor="val_loss")
    fitting = trainer(tmp_path, EMA(0.9), best)
    fitting.fit(module, loader(), loader())
    [tested] = fitting.test(module, loader(), ckpt_path="best", weights_only=True, verbose=False)
    assert tested["test_loss"] == pytest.approx(float(best.best_model_score), rel=1e-6)


def test_exception_in_validation_leaves_averaged_and_raw_weights_where_they_belong(tmp_path: Any) -> None:
    """Lightning's checkpoint of the exception has the two swapped."""

    class Fails(Net):
        def validation_step(self, batch, batch_idx):
            if self.trainer.current_epoch == 1:
                raise RuntimeError("in validation")

    torch.manual_seed(0)
    module, steps = Fails(), Steps()
    start = module.net[0].weight.detach().clone()
    saved = ModelCheckpoint(tmp_path / "c", save_on_exception=True, filename="e", every_n_epochs=100)
    with pytest.raises(RuntimeError, match="in validation"):
        trainer(tmp_path, steps, EMA(0.9), saved).fit(module, loader(), loader())
    [path] = (tmp_path / "c").glob("*.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    raw, average = checkpoint["current_model_state"], checkpoint["state_dict"]
    torch.testing.assert_close(raw["net.0.weight"], steps.weights[-1], rtol=0, atol=0)
    expected = reference(start, steps.weights, 0.9, warm_up=True)
    torch.testing.assert_close(average["net.0.weight"].double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(module.net[0].weight, steps.weights[-1], rtol=0, atol=0)


def test_hooks_at_the_end_of_validation_see_averaged_weights(tmp_path: Any) -> None:
    """The module's own, and those of callbacks listed before and after."""

    class Sees(Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            self.weight = pl_module.net[0].weight.detach().clone()

    before, after, module, steps = Sees(), Sees(), Net(), Steps()
    start = module.net[0].weight.detach().clone()
    trainer(tmp_path, steps, before, EMA(0.9), after).fit(module, loader(), loader())
    expected = reference(start, steps.weights, 0.9, warm_up=True)
    for seen in (before.weight, after.weight, module.seen_at_validation_end):
        torch.testing.assert_close(seen.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("average_buffers", [False, True])
def test_integer_buffers_are_copied_and_floating_ones_by_choice(tmp_path: Any, average_buffers: bool) -> None:
    """The counter of batches is exact; the running mean is the last one, or its average."""

    class LastBuffers(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.buffers = copy.deepcopy(dict(pl_module.named_buffers()))

    torch.manual_seed(0)
    module, last = Net(), LastBuffers()
    trainer(tmp_path, last, EMA(0.9, average_buffers=average_buffers)).fit(module, loader(), loader())
    buffers = dict(module.named_buffers())
    assert int(buffers["net.1.num_batches_tracked"]) == 12
    same = torch.equal(buffers["net.1.running_mean"], last.buffers["net.1.running_mean"])
    assert same is not average_buffers


def test_never_updating_is_refused() -> None:
    """Lightning's takes 0 and says nothing."""
    with pytest.raises(ValueError, match="every_n_steps must be at least 1"):
        EMA(every_n_steps=0)


@pytest.mark.filterwarnings("ignore:.*exists and is not empty:UserWarning")
def test_interrupted_and_resumed_average_equals_the_uninterrupted(tmp_path: Any) -> None:
    """Average, raw weights and the warm-up's counter come back from the checkpoint."""
    modules = []
    for stop_at in (None, 2):
        torch.manual_seed(0)
        module = Net()
        if stop_at:
            kept = ModelCheckpoint(tmp_path / "r", filename="last")
            trainer(tmp_path, EMA(0.99), kept, max_epochs=stop_at).fit(module, loader(), loader())
            module = Net()
            again = trainer(
                tmp_path, EMA(0.99), ModelCheckpoint(tmp_path / "r", filename="last"), max_epochs=4
            )
            again.fit(module, loader(), loader(), ckpt_path=kept.best_model_path, weights_only=True)
        else:
            trainer(tmp_path, EMA(0.99), max_epochs=4).fit(module, loader(), loader())
        modules.append(module.state_dict())
    assert all(torch.equal(modules[0][name], modules[1][name]) for name in modules[0])


def test_weights_are_the_same_inside_and_outside_of_validation(tmp_path: Any) -> None:
    """What is published does not depend on when it is asked for."""

    class Asks(Callback):
        def on_validation_end(self, trainer, pl_module):
            self.inside = ema.weights(pl_module)

        def on_train_epoch_end(self, trainer, pl_module):
            self.outside = ema.weights(pl_module)

    ema, asks = EMA(0.9), Asks()
    trainer(tmp_path, asks, ema).fit(Net(), loader(), loader())
    assert all(torch.equal(asks.inside[name], asks.outside[name]) for name in asks.inside)


def test_tensors_that_the_module_replaces_are_followed(tmp_path: Any) -> None:
    """A buffer that a step assigns anew, a parameter whose data it replaces, a layer that `setup` builds."""

    class Replaces(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("centre", torch.zeros(2))
            self.register_parameter("marks", nn.Parameter(torch.arange(3), requires_grad=False))

        def setup(self, stage):
            self.last = nn.Linear(1, 1)

        def forward(self, x):
            return self.last(self.net(x - self.centre))

        def training_step(self, batch, batch_idx):
            self.centre = 0.9 * self.centre + 0.1 * batch[0].mean(0)
            weight = self.net[0].weight
            weight.data = weight.data.clamp(-0.5, 0.5)
            return super().training_step(batch, batch_idx)

    class Last(Steps):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            super().on_train_batch_end(trainer, pl_module, *rest)
            self.raw = copy.deepcopy(pl_module.state_dict())

    torch.manual_seed(0)
    module, steps, ema = Replaces(), Last(), EMA(0.9)
    start = module.net[0].weight.detach().clone()
    saved = ModelCheckpoint(tmp_path / "c", filename="last")
    trainer(tmp_path, steps, ema, saved).fit(module, loader(), loader())
    content = torch.load(tmp_path / "c" / "last.ckpt", weights_only=True)
    average, raw = content["state_dict"], content["current_model_state"]
    expected = reference(start, steps.weights, 0.9, warm_up=True)
    torch.testing.assert_close(average["net.0.weight"].double(), expected, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(raw[name], steps.raw[name]) for name in raw)
    assert torch.equal(average["centre"], steps.raw["centre"])
    assert not torch.equal(average["last.weight"], raw["last.weight"])
    assert all(torch.equal(module.state_dict()[name], average[name]) for name in average)


def test_average_follows_a_layer_that_an_epoch_puts_in(tmp_path: Any) -> None:
    """It begins with the layer's own weights, before their first step."""

    class Grows(Net):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.last = nn.Linear(1, 1)
                self.first_weight = self.last.weight.detach().clone()
                self.optimizers().add_param_group({"params": self.last.parameters()})

        def forward(self, x):
            y = self.net(x)
            return self.last(y) if hasattr(self, "last") else y

    class Last(Callback):
        def __init__(self):
            self.weights: list[torch.Tensor] = []

        def on_train_batch_end(self, trainer, pl_module, *_):
            if hasattr(pl_module, "last"):
                self.weights.append(pl_module.last.weight.detach().clone())

    torch.manual_seed(0)
    module, last = Grows(), Last()
    trainer(tmp_path, last, EMA(0.9, decay_warmup=False)).fit(module, loader(), loader())
    expected = reference(module.first_weight, last.weights, 0.9, warm_up=False)
    torch.testing.assert_close(module.last.weight.double(), expected, rtol=1e-5, atol=1e-6)


def test_module_that_holds_a_tensor_with_a_history_is_averaged(tmp_path: Any) -> None:
    """Lightning's copies the module, which torch refuses then."""

    class Generates(Net):
        def __init__(self):
            super().__init__()
            self.generated = self.net[0](torch.ones(1, 2))

    torch.manual_seed(0)
    module = Generates()
    ema = EMA(0.9)
    trainer(tmp_path, ema).fit(module, loader(), loader())
    assert ema._updates == 12


def test_applied_average_moves_no_values_and_gives_the_raw_weights_back(tmp_path: Any) -> None:
    """Each tensor of the module lies where it lay before."""

    class Asks(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            weight = pl_module.net[0].weight
            raw, place = weight.detach().clone(), weight.data_ptr()
            with ema.applied():
                assert not torch.equal(weight, raw)
            assert torch.equal(weight, raw)
            assert weight.data_ptr() == place

    ema = EMA(0.9)
    trainer(tmp_path, Asks(), ema).fit(Net(), loader(), loader())
