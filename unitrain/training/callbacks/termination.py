"""End a training early: on a signal, with a checkpoint to resume from, or on a loss that is NaN or infinite."""

import functools
import math
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from unitrain.errors import UnitrainError
from unitrain.runs import RunFolder
from unitrain.training.console import Console
from unitrain.training.resuming.exactness import inexact_reasons
from unitrain.training.resuming.replayed_loaders import is_stateful
from unitrain.training.resuming.resumable_loops import Boundary
from unitrain.training.sample_batches import nonfinite_values

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C, the request to terminate, and the warning of a batch system (SLURM's --signal=USR1@60)."""
CHECK_EVERY_N_STEPS_ON_GPU = 50
"""Reading a loss waits for the GPU; on the CPU it costs microseconds, and every step is checked."""

_NON_FINITE_LOSS = 1000
"""Stop reason of a loss that is NaN or infinite; the stop reason of a signal is its number."""


class SignalStop(UnitrainError):  # noqa: N818 - a regular way to stop
    """The training has stopped because of a signal.

    Attributes:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class NonFiniteLossError(UnitrainError):
    """The loss is NaN or infinite."""


class GracefulTermination(Callback):
    """Stop on signals with a checkpoint to resume from, and on a loss that is NaN or infinite.

    `last.ckpt` is written before the first epoch, after each epoch, after each validation within an epoch, and
    after the current batch when a signal arrives. A second signal ends the process at once.

    Args:
        run: run folder.
        last_path: path of `last.ckpt`.
        console: prints the signals, and reasons why a resumed run is not exact.
        checkpoints: write `last.ckpt`.
    """

    def __init__(self, run: RunFolder, last_path: Path, console: Console, *, checkpoints: bool) -> None:
        self._run = run
        self._last_path = last_path
        self._console = console
        self._checkpoints = checkpoints
        self._received: int | None = None
        self._agreed_signal = 0
        self._previous_handlers: dict[int, Any] = {}
        self._mid_epoch = False
        self._non_finite = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mid_epoch = resumes_mid_epoch(trainer)
        loop: Any = trainer.fit_loop
        loop.on_boundary = functools.partial(self.on_boundary, trainer)
        self._record_exactness(trainer, pl_module)
        if self._checkpoints and loop.resumed is None:
            # A process that is killed before the first epoch has ended can resume exactly.
            loop.save(self._last_path, "epoch")
        self._raise_if_signalled()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install_handlers()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install_handlers()
        self._raise_if_signalled()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check the loss of manual optimization, which a training step need not return."""
        scaled = trainer.precision == "16-mixed"  # a scaled loss may be infinite
        if not pl_module.automatic_optimization and not scaled:
            self._non_finite = self._non_finite or self._is_non_finite(loss, trainer.fit_loop.batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        non_finite = self._non_finite or self._is_non_finite(outputs, batch_idx)
        if self._all_reduce(trainer, _NON_FINITE_LOSS if non_finite else 0) == _NON_FINITE_LOSS:
            in_data = nonfinite_values(batch, trainer)
            remedy = (
                f"{in_data}; remove or fill those values in the data module"
                if in_data
                else "lower the learning rate or clip the gradients (trainer.gradient_clip_val)"
            )
            raise NonFiniteLossError(
                f"the loss of {type(pl_module).__name__} is NaN or infinite at epoch {trainer.current_epoch + 1}, step "
                f"{trainer.global_step}; {remedy}"
            )

    def on_boundary(self, trainer: Trainer, kind: Boundary, validated: bool) -> None:
        """Write `last.ckpt` between two batches or epochs, and stop if a signal has arrived.

        With several processes a signal counts once all of them know of it, after the next batch.
        """
        stops = self._agreed_signal if trainer.world_size > 1 else self._received
        due = kind == "epoch" or validated or stops
        if due and self._checkpoints and (kind == "epoch" or self._mid_epoch):
            loop: Any = trainer.fit_loop
            loop.save(self._last_path, kind)
        if stops:
            raise SignalStop(stops)

    def _record_exactness(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record in run.json where the run can resume and whether exactly; print the reasons if not."""
        loop: Any = trainer.fit_loop
        reasons = inexact_reasons(
            trainer, pl_module, seeded=loop.seeder.seed is not None, checkpoints=self._checkpoints
        )
        earlier = [
            entry["inexact"] for entry in self._run.record().get("resumed", ()) if entry.get("inexact")
        ]
        reasons += list(dict.fromkeys(reason for entry in earlier for reason in entry))
        if trainer.is_global_zero:
            self._run.update(
                resumes_from="mid-epoch" if self._mid_epoch else "epoch end",
                exact_resume={"exact": not reasons, "reasons": reasons},
            )
            for reason in reasons:
                self._console.say(f"resuming is not exact: {reason}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}

    def _install_handlers(self) -> None:
        """Install the signal handlers again, since Lightning replaces them when a training begins."""
        if self._previous_handlers:
            for number in SIGNALS:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._received is None:
            self._received = number
            self._console.warn(f"{name}: stopping after this step; a second signal quits at once")
            return
        try:
            self._run.update(status="interrupted", reason=f"two signals, {name} last")
        finally:
            os._exit(128 + number)

    def _raise_if_signalled(self) -> None:
        if self._received is not None:
            raise SignalStop(self._received)

    @staticmethod
    def _is_non_finite(outputs: Any, batch_idx: int) -> bool:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            return False
        if loss.device.type != "cpu" and (batch_idx + 1) % CHECK_EVERY_N_STEPS_ON_GPU:
            return False
        return not math.isfinite(loss.item())

    def _all_reduce(self, trainer: Trainer, reason: int) -> int:
        """All-reduce (max) of the stop reason: a process that stopped alone would leave the others waiting."""
        reason = max(reason, self._received or 0)
        if trainer.world_size > 1:
            shared = torch.tensor(reason, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
            reason = int(shared)
        if 0 < reason < _NON_FINITE_LOSS:
            self._agreed_signal = reason
            self._received = self._received or reason
        return reason


def resumes_mid_epoch(trainer: Trainer) -> bool:
    """Return True if every training loader keeps its position, which a run needs to resume mid-epoch."""
    loaders = trainer.fit_loop._combined_loader  # noqa: SLF001 - Lightning has no public name for it
    flat = [] if loaders is None else loaders.flattened
    return bool(flat) and all(map(is_stateful, flat))
