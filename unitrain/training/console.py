"""Output of a training: a progress bar on a terminal, plain lines elsewhere, and Lightning silenced."""

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.utilities import rank_zero_only

from unitrain.terminal_output import say


def process_rank() -> int:
    """Return the rank of this process, also before a process group exists; 0 in a training of one process."""
    return int(getattr(rank_zero_only, "rank", 0))


_LIGHTNING_LOGGERS = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")
_IGNORED_WARNINGS = (
    r".*does not have many workers which may be a bottleneck",
    r".*The number of training batches .* is smaller than the logging interval",
    r".*The `srun` command is available",
    r".*Checkpoint directory .* exists and is not empty",
    r".*isinstance\(treespec, LeafSpec\)",
    r".*have no `val_dataloader`",
)
"""Warnings that a user who trains by settings can't act on."""


def silence_lightning() -> None:
    """Turn off Lightning's logs below warnings, and warnings that users can't act on.

    Call it within `warnings.catch_warnings`. Python's development mode (`-X dev`) keeps the logs.
    """
    for text in _IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", text)
    # Lightning calls jsonargparse by deprecated names.
    warnings.filterwarnings(
        "ignore", category=DeprecationWarning, module=r"(pytorch_lightning|lightning|jsonargparse)\b"
    )
    warnings.filterwarnings(
        "ignore", r"\s*(.|\n)*(JsonargparseDeprecation|add_instantiator)", DeprecationWarning
    )
    if not sys.flags.dev_mode:
        for name in _LIGHTNING_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning within a block."""
    before = {name: logging.getLogger(name).level for name in _LIGHTNING_LOGGERS}
    with warnings.catch_warnings():
        silence_lightning()
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)


REFRESHES_A_SECOND = 4
"""Refreshes of the progress bar; Lightning's 100 take several times the training time of a small model."""
LINE_EVERY_S = 2.0
"""Minimum time between two progress lines."""


class Console:
    """Print lines for the user on standard error, above the progress bar if there is one.

    Args:
        quiet: print warnings only.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    def say(self, text: str) -> None:
        """Print a line; nothing when quiet."""
        if not self.quiet:
            self._print(text)

    def warn(self, text: str) -> None:
        """Print a warning, also when quiet."""
        self._print(f"warning: {text}")

    @staticmethod
    def _print(text: str) -> None:
        say(text, to=sys.stderr)


def progress(console: Console, metric: str) -> Callback:
    """Return a progress bar that shows the metric on a terminal, else a callback that prints progress lines."""
    if sys.stderr.isatty() and sys.stdout.isatty():
        return MetricBar(metric)
    return ProgressLines(console)


class MetricBar(RichProgressBar):
    """Lightning's rich progress bar with the training loss and the monitored metric."""

    def __init__(self, metric: str) -> None:
        super().__init__(refresh_rate=REFRESHES_A_SECOND)
        self._shown = dict.fromkeys(("train_loss", metric))

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        values = trainer.callback_metrics
        return {name: f"{float(values[name]):.4g}" for name in self._shown if name in values}


class ProgressLines(Callback):
    """Print the metrics after a validation, at most every two seconds, and after the last one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last_s = 0.0
        self._pending: str | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        metrics = {name: float(v) for name, v in trainer.callback_metrics.items() if v.numel() == 1}
        shown = ", ".join(f"{name} {value:.5g}" for name, value in metrics.items())
        self._pending = f"epoch {trainer.current_epoch + 1}, step {trainer.global_step}: {shown}"
        if time.monotonic() - self._last_s >= LINE_EVERY_S:
            self._flush()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._flush()

    def _flush(self) -> None:
        if self._pending is not None:
            self._console.say(self._pending)
            self._pending = None
            self._last_s = time.monotonic()
