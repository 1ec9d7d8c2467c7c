"""Update run.json during a training, and refuse a monitored metric that is never logged."""

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
from unitrain.training.callbacks.base import has_validation
from unitrain.training.console import Console
from unitrain.training.metric_names_in_source import LoggedNames

WRITE_EVERY_S = 2.0
"""Minimum time between two writes, since each write waits for the disk."""


class RunRecord(Callback):
    """Write status, progress, metrics and the best metric into the run's record.

    Args:
        run: run folder.
        monitor: monitored metric.
        console: prints warnings.
        required: the best checkpoint or early stopping needs the metric.

    Attributes:
        best: best value of the metric, with its `step` and `epoch` (counted from 0); None before the first one.
        metrics: last value of each logged metric.
    """

    def __init__(self, run: RunFolder, monitor: Monitor, console: Console, *, required: bool) -> None:
        self._run = run
        self._monitor = monitor
        self._console = console
        self._required = required
        self._written_s = 0.0
        self._warned = False
        self.best: dict[str, Any] | None = None
        self.metrics: dict[str, float] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_lazy(pl_module)

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
            self._check_at_start(trainer, pl_module)
            return
        self.metrics = {name: float(v) for name, v in trainer.callback_metrics.items() if v.numel() == 1}
        value = self.metrics.get(self._monitor.metric)
        if value is None:
            if self._required:
                self._check_logged(trainer, pl_module)
        elif improves(value, self.best["value"] if self.best else None, self._monitor.mode):
            self.best = {
                "metric": self._monitor.metric,
                "value": value,
                "step": trainer.global_step,
                "epoch": trainer.current_epoch,
            }
        if time.monotonic() - self._written_s >= WRITE_EVERY_S:
            self._write(trainer)

    def _check_at_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a metric that the sanity check did not log, if the code can log no other names."""
        metric, logged = self._monitor.metric, trainer.callback_metrics
        several = len(trainer.num_sanity_val_batches) > 1  # their names are not known yet
        if several or not logged or not self._required or metric in logged or metric.startswith("train"):
            return
        names = LoggedNames.from_source(pl_module, trainer.callbacks)  # type: ignore[attr-defined]
        if names.complete and not names.may_hold(metric):
            raise never_logged(metric, pl_module, logged)

    def _check_logged(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a metric that a validation did not log, unless the code names it and a later one may log it."""
        metric = self._monitor.metric
        names = LoggedNames.from_source(pl_module, trainer.callbacks)  # type: ignore[attr-defined]
        if not names.may_hold(metric, logged=self.metrics):
            raise never_logged(metric, pl_module, self.metrics)
        if not self._warned:
            self._warned = True
            self._console.warn(
                f"monitor.metric: {metric} is not logged yet; until it is, there is no best checkpoint and no early stopping"
            )

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
    """Return True if a metric is better than the best one so far, by the rule of best.ckpt: no tie, no NaN.

    >>> improves(0.5, None, "min"), improves(0.5, 0.5, "min"), improves(0.4, 0.5, "min")
    (True, False, True)
    """
    if math.isnan(value):
        return False
    return best is None or (value < best if mode == "min" else value > best)


class UnloggedMetricError(SettingsError):
    """The monitored metric is not among those that the module logs."""


def never_logged(metric: str, module: LightningModule, logged: Iterable[str]) -> UnloggedMetricError:
    """Return the error for a monitored metric that is not among those that the module logs."""
    names = sorted(logged)
    near = difflib.get_close_matches(metric, names, n=1)
    hint = f"did you mean {near[0]}?" if near else "name one of those under monitor.metric"
    return UnloggedMetricError(
        f"monitor.metric: {type(module).__name__} never logs {metric}; it logs {', '.join(names) or 'nothing'}; {hint}"
    )


def check_lazy(module: LightningModule) -> None:
    """Refuse parameters without a shape, which can be neither averaged nor exported.

    Raises:
        HookError: a lazy layer has seen no data.
    """
    lazy = [name for name, parameter in module.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise HookError(
            f"{type(module).__name__}: {lazy[0]} has no shape at the start of the training; run forward once on a "
            "sample at the end of __init__ or in setup, which shapes lazy layers"
        )
