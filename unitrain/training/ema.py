"""Exponential moving average (EMA) of the weights, validated, saved, tested and served."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from unitrain.export.weights import weights_of


class EMA(WeightAveraging):
    """Lightning's WeightAveraging with its faults mended and its cost taken out.

    What differs from Lightning's EMAWeightAveraging:

    - warm-up, as in TensorFlow's ExponentialMovingAverage(num_updates): the decay at update n is
      min(decay, (1 + n) / (10 + n));
    - one fused update over cached lists of tensors, rather than a Python loop over parameters;
    - integer buffers are copied, never averaged, floating-point ones averaged only if asked for;
    - the whole validation sees the average: the module's and the callbacks' hooks at its end too, when
      this callback is the last one before the checkpoints;
    - a swap is undone when validation raises, and a checkpoint saved while swapped is right;
    - outside of fit it does nothing: `Trainer.test(ckpt_path="best")` tests the average.

    In a checkpoint `state_dict` is the average, `current_model_state` the raw weights.

    Args:
        decay: share of the average kept at each update, in [0, 1).
        warm_up: see above.
        every_n_steps: update once every that many optimizer steps.
        average_buffers: average floating-point buffers too, rather than copying them.
    """

    def __init__(
        self,
        decay: float = 0.998,
        *,
        warm_up: bool = True,
        every_n_steps: int = 1,
        average_buffers: bool = False,
    ) -> None:
        super().__init__(use_buffers=False)
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.decay = decay
        self.warm_up = warm_up
        self.every_n_steps = every_n_steps
        self.average_buffers = average_buffers
        self._average_model: LightningModule | None = None  # type: ignore[assignment]
        self._updates = 0
        self._swapped = False
        self._paired: tuple[list[Tensor], list[Tensor]] = ([], [])  # the average's, the module's

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing: the module's own `setup`, which may build layers, comes after this one."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the module's weights, unless a checkpoint has brought an average, and pair the tensors."""
        self._average_model = self._average_model or copy.deepcopy(pl_module)
        self._average_model.to(pl_module.device)
        self._swapped = False
        self._pair(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step <= self._latest_update_step or step % self.every_n_steps:
            return
        self._latest_update_step = step
        n = self._updates
        self._updates = n + 1
        decay = min(self.decay, (1 + n) / (10 + n)) if self.warm_up else self.decay
        if self.average_buffers:
            self._pair(pl_module)
        with torch.no_grad():
            torch._foreach_lerp_(*self._paired, 1 - decay)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: updates go by steps."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: the whole validation is swapped, not only its batches."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: the module's own hook comes after this one, and must see the average."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._average_model is not None and not self._swapped:
            self._pair(pl_module)
            self._swap()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._swapped:
            self._swap()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._swapped:
            self._swap()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The module ends with the average as its weights."""
        if not self._swapped:
            self._pair(pl_module)
            self._swap()
        self._swapped = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._average_model = None
        self._paired = ([], [])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """A block in which the module has the average as its weights."""
        swap = self._average_model is not None and not self._swapped
        if swap:
            self._swap()
        try:
            yield
        finally:
            if swap:
                self._swap()

    def weights(self, pl_module: LightningModule) -> dict[str, Tensor]:
        """Copies of the averaged weights by name, on the CPU."""
        if self._average_model is None or self._swapped:
            return weights_of(pl_module)
        return weights_of(pl_module, self._followers())

    def distance(self) -> float:
        """How far the average is from the raw weights: the norm of their difference over the raw ones' norm."""
        ours, theirs = (list(tensors) for tensors in self._paired)
        if not ours or self._average_model is None:
            return 0.0
        raw = ours if self._swapped else theirs
        with torch.no_grad():
            apart = torch.stack([(a - b).float().square().sum() for a, b in zip(ours, theirs, strict=True)])
            whole = torch.stack([tensor.float().square().sum() for tensor in raw])
            return float((apart.sum() / whole.sum().clamp_min(1e-30)).sqrt())

    def state_dict(self) -> dict[str, Any]:
        return {"latest_update_step": self._latest_update_step, "updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._latest_update_step = state_dict["latest_update_step"]
        self._updates = state_dict["updates"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._average_model is None:
            return
        saved = checkpoint["state_dict"]
        other = saved | {name: t.detach() for name, t in self._followers().items() if name in saved}
        average, raw = (saved, other) if self._swapped else (other, saved)
        checkpoint["state_dict"], checkpoint["current_model_state"] = average, raw
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self._updates)}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._average_model = copy.deepcopy(pl_module)  # Lightning has loaded the average into the module
        if "current_model_state" in checkpoint:
            pl_module.load_state_dict(checkpoint["current_model_state"])

    def _followers(self) -> dict[str, Tensor]:
        """The average's own tensors by name, a tied one under each of its names; all others are the module's."""
        average = self._average_model
        if average is None:
            raise RuntimeError("the averaged weights exist only while fit runs")
        named: dict[str, Tensor] = {**dict(average.named_parameters(remove_duplicate=False))}
        if self.average_buffers:
            named |= dict(average.named_buffers(remove_duplicate=False))
        return {name: t for name, t in named.items() if t.is_floating_point() or t.is_complex()}

    def _pair(self, pl_module: LightningModule) -> None:
        """Put each tensor of the average beside the module's: `module.buffer = ...` gives the module another one."""
        theirs: dict[str, Tensor] = {
            **dict(pl_module.named_parameters(remove_duplicate=False)),
            **dict(pl_module.named_buffers(remove_duplicate=False)),
        }
        pairs = {id(ours): (ours, theirs[name]) for name, ours in self._followers().items() if name in theirs}
        self._paired = [ours for ours, _ in pairs.values()], [each for _, each in pairs.values()]

    def _swap(self) -> None:
        """Exchange the values of the average and of the module, in place."""
        ours, theirs = self._paired
        if ours:
            with torch.no_grad():
                held = [tensor.clone() for tensor in ours]
                torch._foreach_copy_(ours, theirs)
                torch._foreach_copy_(theirs, held)
        self._swapped = not self._swapped
