"""Shared parts of the callbacks: the run's context, a background writer, a schedule by validations."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from unitrain.publish import Lineage
from unitrain.runs import RunFolder
from unitrain.settings import Monitor
from unitrain.training.callbacks.ema import EMA
from unitrain.training.console import Console


@dataclass(frozen=True)
class RunContext:
    """Objects that the callbacks of one training share.

    Attributes:
        run: run folder, owned by this process.
        root: project root; relative paths of the settings start here.
        lineage: origin of the published versions: run, settings, sources and git commit.
        monitor: metric that decides on the best checkpoint, early stopping and publishing.
        ema: callback that averages the weights; None if `ema: null`.
        console: log for the user.
    """

    run: RunFolder
    root: Path
    lineage: Lineage
    monitor: Monitor
    ema: EMA | None
    console: Console


class BackgroundWriter:
    """Run one piece of work at a time in a thread; the next one waits until the last is done.

    A failure is printed once a reason, and never ends the training.

    Args:
        name: name of the work in warnings: "the embeddings".
        console: prints the warnings.
    """

    def __init__(self, name: str, console: Console) -> None:
        self._name = name
        self._console = console
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        self._told: set[str] = set()

    def run(self, work: Callable[[], None]) -> None:
        """Start the work when the work before is done."""
        self.wait()
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="unitrain-background")
        self._pending = self._thread.submit(work)

    def wait(self) -> None:
        """Wait until the current work is done."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:  # noqa: BLE001 - a picture is no reason to end a training
            reason = f"{type(error).__name__}: {error}"
            if reason not in self._told:
                self._told.add(reason)
                self._console.warn(f"{self._name} could not be written: {reason}")

    def finish(self) -> None:
        """Wait until the current work is done, and end the thread."""
        self.wait()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None


def batches_that_stepped(trainer: Trainer) -> int:
    """Return the step of Lightning's loggers: batches so far that ended in an optimizer step, without the current one."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)  # noqa: SLF001 - it has no public name


def logged_step(trainer: Trainer) -> int:
    """Return the step at which Lightning logs the metrics of a validation or of an epoch's end."""
    stepped = batches_that_stepped(trainer)
    return stepped if trainer.validating else max(0, stepped - 1)


def has_validation(trainer: Trainer) -> bool:
    """Return True if there are validation data; a stream's number of batches is infinite."""
    return any(trainer.num_val_batches)


class EveryNValidations(Callback):
    """Call `act` after every n validations, and at the end of the training.

    Without validation data a training epoch counts as a validation. The sanity check does not count.

    Args:
        every_n_validations: validations between two calls; 0 for the end of the training only.
    """

    def __init__(self, every_n_validations: int) -> None:
        self.every_n_validations = every_n_validations
        self._validations = 0
        self._acted_at = -1

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do the work of a subclass; the module has the averaged weights or the raw ones."""
        raise NotImplementedError

    def is_due(self, trainer: Trainer) -> bool:
        """Return True if `act` follows the validation that begins now; a stop within the validation is unknown here."""
        if trainer.sanity_checking:
            return False
        steps, epochs = trainer.max_steps, trainer.max_epochs
        last = 0 <= steps <= trainer.global_step or trainer.current_epoch + 1 == epochs
        n = self.every_n_validations
        return last or bool(n and (self._validations + 1) % n == 0)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._count(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not has_validation(trainer):
            self._count(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._acted_at != trainer.global_step and trainer.global_step:
            self._acted_at = trainer.global_step
            self.act(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations, "acted_at": self._acted_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]
        self._acted_at = state_dict["acted_at"]

    def _count(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validations += 1
        if self.every_n_validations and self._validations % self.every_n_validations == 0:
            self._acted_at = trainer.global_step
            self.act(trainer, pl_module)
