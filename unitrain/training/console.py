"""What a training tells people: a progress bar on a terminal, plain lines elsewhere."""

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
    """0 in the main process, and in an ordinary training; known before any process group is made."""
    return int(getattr(rank_zero_only, "rank", 0))


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """A block in which Lightning tells neither devices nor advice."""
    names = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")
    before = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers", UserWarning)
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
        # Lightning calls jsonargparse by names that the latter has since replaced.
        warnings.filterwarnings(
            "ignore", category=DeprecationWarning, module=r"(pytorch_lightning|lightning|jsonargparse)\b"
        )
        warnings.filterwarnings(
            "ignore", r"\s*(.|\n)*(JsonargparseDeprecation|add_instantiator)", DeprecationWarning
        )
        for name in names:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)


REFRESHES_A_SECOND = 4
"""Lightning's default of 100 costs a small model several times its training."""
LINE_EVERY_S = 2.0


class Console:
    """Lines for people, on standard error, above the progress bar where there is one."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    def say(self, text: str) -> None:
        """Tell what happens."""
        if not self.quiet:
            self._print(text)

    def warn(self, text: str) -> None:
        """Tell what went wrong and did not end the training; also when quiet."""
        self._print(f"warning: {text}")

    @staticmethod
    def _print(text: str) -> None:
        say(text, to=sys.stderr)


def progress(console: Console, metric: str) -> Callback:
    """A rich progress bar with that metric on a terminal, otherwise a line for a validation now and then."""
    if sys.stderr.isatty() and sys.stdout.isatty():
        return MetricBar(metric)
    return ProgressLines(console)


class MetricBar(RichProgressBar):
    """Lightning's rich bar, with the training loss and the monitored metric beside it."""

    def __init__(self, metric: str) -> None:
        super().__init__(refresh_rate=REFRESHES_A_SECOND)
        self._shown = dict.fromkeys(("train_loss", metric))

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        values = trainer.callback_metrics
        return {name: f"{float(values[name]):.4g}" for name in self._shown if name in values}


class ProgressLines(Callback):
    """A line with the metrics after a validation, at most one every two seconds, and after the last."""

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
