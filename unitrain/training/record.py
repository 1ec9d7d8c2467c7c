"""Keeps run.json up to date, and refuses a monitored metric that nobody logs."""

import difflib
import math
import time
from collections.abc import Iterable
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch.nn.parameter import is_lazy

from unitrain.errors import HookError, RunError, SettingsError
from unitrain.runs import RunFolder
from unitrain.settings import Monitor
from unitrain.training.console import Console
from unitrain.training.schedule import has_validation

WRITE_EVERY_S = 2.0
"""A record is flushed to the disk each time, which a fast training would feel."""


class RunRecord(Callback):
    """Writes status, progress, metrics and the best metric into the run's record."""

    def __init__(self, run: RunFolder, monitor: Monitor, console: Console, *, required: bool) -> None:
        self._run = run
        self._monitor = monitor
        self._console = console
        self._required = required
        self._written_s = 0.0
        self.best: dict[str, Any] | None = None
        self.metrics: dict[str, float] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_shapes(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._run.update(status="running")
        if not has_validation(trainer):
            self._console.say(
                "no validation data: there is no best checkpoint and no early stopping, and an epoch counts as a "
                "validation for publishing and embeddings"
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.metrics = {name: float(v) for name, v in trainer.callback_metrics.items() if v.numel() == 1}
        value = self.metrics.get(self._monitor.metric)
        if value is None:
            if self._required:
                raise never_logged(self._monitor.metric, pl_module, self.metrics)
        elif improves(value, self.best["value"] if self.best else None, self._monitor.mode):
            self.best = {
                "metric": self._monitor.metric,
                "value": value,
                "step": trainer.global_step,
                "epoch": trainer.current_epoch,
            }
        if time.monotonic() - self._written_s >= WRITE_EVERY_S:
            self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.metrics |= {name: float(v) for name, v in trainer.callback_metrics.items() if v.numel() == 1}
        self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def _write(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        try:
            self._run.update(
                epoch=trainer.current_epoch, step=trainer.global_step, metrics=self.metrics, best=self.best
            )
        except RunError as error:  # a full disk must not end the training
            self._console.warn(str(error))
        self._written_s = time.monotonic()


def improves(value: float, best: float | None, mode: str) -> bool:
    """Whether a metric is better than its best so far, as best.ckpt has it: a tie is not, nor is NaN."""
    if math.isnan(value):
        return False
    return best is None or (value < best if mode == "min" else value > best)


def check_shapes(module: LightningModule) -> None:
    """Refuse a module with lazy layers that no forward has shaped yet.

    Raises:
        HookError: it has one.
    """
    lazy = [name for name, parameter in module.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise HookError(
            f"{type(module).__name__}: {lazy[0]} has no shape at the start of the training; run forward once on a "
            "sample at the end of __init__ or in setup, which shapes lazy layers"
        )


def never_logged(metric: str, module: LightningModule, logged: Iterable[str]) -> SettingsError:
    """What is said of a monitored metric that is not among those that the module logs."""
    names = sorted(logged)
    near = difflib.get_close_matches(metric, names, n=1)
    hint = f"did you mean {near[0]}?" if near else "name one of those under monitor.metric"
    return SettingsError(
        f"monitor.metric: {type(module).__name__} never logs {metric}; it logs {', '.join(names) or 'nothing'}; {hint}"
    )
