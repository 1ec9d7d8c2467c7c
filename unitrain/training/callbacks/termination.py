"""How a training ends early: by a signal, at a batch after which it can go on, or by a loss that is no number."""

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
from unitrain.training.validation_batches import nonfinite_values

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C, an orderly end, and the warning of a batch system (SLURM's --signal=USR1@60) that time is up."""
CHECK_EVERY_N_STEPS_ON_GPU = 50
"""Looking at a loss waits for the device; on the CPU it costs microseconds, and every step is looked at."""

_LOSS = 1000
"""What a process says to the others of a loss that is no number; of a signal it says its number."""


class SignalStop(UnitrainError):  # noqa: N818 - an ending, not a fault
    """A signal asked the training to stop, and it has."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class NonFiniteLossError(UnitrainError):
    """The loss is NaN or infinite."""


class Endings(Callback):
    """Stops on signals with a checkpoint to resume from, and on a loss that is no number.

    `last.ckpt` is written after each epoch, after each validation within one, and on the first signal, once
    the batch in hand has ended. A second signal ends the process at once.
    """

    def __init__(self, run: RunFolder, last_path: Path, console: Console, *, checkpoints: bool) -> None:
        self._run = run
        self._last_path = last_path
        self._console = console
        self._checkpoints = checkpoints
        self._received: int | None = None
        self._agreed = 0
        self._previous: dict[int, Any] = {}
        self._resumable = False
        self._bad = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._resumable = resumable_in_an_epoch(trainer)
        loop: Any = trainer.fit_loop
        loop.on_boundary = functools.partial(self.on_boundary, trainer)
        self._state_exactness(trainer, pl_module)
        if self._received is not None and self._checkpoints and loop.resumed is None:
            loop.save(self._last_path, "epoch")
        self._stop_where_asked()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_signals()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_signals()
        self._stop_where_asked()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """A step that optimizes by hand need not return its losses."""
        if (
            not pl_module.automatic_optimization and trainer.precision != "16-mixed"
        ):  # its scaled ones may be infinite
            self._bad = self._bad or self._is_bad(loss, trainer.fit_loop.batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._agree(trainer, _LOSS if self._bad or self._is_bad(outputs, batch_idx) else 0) == _LOSS:
            in_data = nonfinite_values(batch, trainer)
            remedy = (
                f"{in_data}; remove or fill those values in the data module"
                if in_data
                else "lower the learning rate or clip the gradients (trainer.gradient_clip_val)"
            )
            raise NonFiniteLossError(
                f"the loss of {type(pl_module).__name__} is NaN or infinite at epoch {trainer.current_epoch}, step "
                f"{trainer.global_step}; {remedy}"
            )

    def on_boundary(self, trainer: Trainer, kind: Boundary, validated: bool) -> None:
        """Write what a run resumes from, and stop if a signal said so; between two batches or epochs.

        A signal to one process of several counts once all have agreed on it, after the next batch.
        """
        stops = self._agreed if trainer.world_size > 1 else self._received
        due = kind == "epoch" or validated or stops
        if due and self._checkpoints and (kind == "epoch" or self._resumable):
            loop: Any = trainer.fit_loop
            loop.save(self._last_path, kind)
        if stops:
            raise SignalStop(stops)

    def _state_exactness(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write into run.json from where the run resumes, and whether exactly; print what is not."""
        loop: Any = trainer.fit_loop
        reasons = inexact_reasons(
            trainer, pl_module, seeded=loop.clock.seed is not None, checkpoints=self._checkpoints
        )
        earlier = [
            entry["inexact"] for entry in self._run.record().get("resumed", ()) if entry.get("inexact")
        ]
        reasons += list(dict.fromkeys(reason for entry in earlier for reason in entry))
        if trainer.is_global_zero:
            self._run.update(
                resumes_from="mid-epoch" if self._resumable else "epoch end",
                exact_resume={"exact": not reasons, "reasons": reasons},
            )
            for reason in reasons:
                self._console.say(f"resuming is not exact: {reason}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _take_signals(self) -> None:
        """Lightning puts handlers of its own in the place of ours when a training begins."""
        if self._previous:
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

    def _stop_where_asked(self) -> None:
        if self._received is not None:
            raise SignalStop(self._received)

    @staticmethod
    def _is_bad(outputs: Any, batch_idx: int) -> bool:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            return False
        if loss.device.type != "cpu" and (batch_idx + 1) % CHECK_EVERY_N_STEPS_ON_GPU:
            return False
        return not math.isfinite(loss.item())

    def _agree(self, trainer: Trainer, word: int) -> int:
        """The loudest word of all processes: one that stopped alone would leave the others waiting."""
        word = max(word, self._received or 0)
        if trainer.world_size > 1:
            said = torch.tensor(word, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
            word = int(said)
        if 0 < word < _LOSS:
            self._agreed = word
            self._received = self._received or word
        return word


def resumable_in_an_epoch(trainer: Trainer) -> bool:
    """Whether every training loader keeps its position, so that a run can resume in the middle of an epoch."""
    loaders = trainer.fit_loop._combined_loader  # noqa: SLF001 - Lightning has no public name for it
    flat = [] if loaders is None else loaders.flattened
    return bool(flat) and all(map(is_stateful, flat))
