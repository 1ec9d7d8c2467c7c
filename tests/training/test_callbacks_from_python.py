"""Callbacks that a program hands to `unitrain.fit`, and how a training ends that one of them stopped."""

import json
from pathlib import Path

from pytorch_lightning import Callback

import unitrain


class StopsAfter(Callback):
    """Asks for the end after some validations, and keeps what it saw."""

    def __init__(self, n_validations: int) -> None:
        self.left = n_validations
        self.seen: list[float] = []

    def on_validation_end(self, trainer, pl_module) -> None:
        if trainer.sanity_checking:
            return
        self.seen.append(float(trainer.callback_metrics["val_loss"]))
        self.left -= 1
        trainer.should_stop = not self.left


def test_a_callback_from_python_looks_on_and_may_stop_the_training(settings: Path) -> None:
    """It sees each validation's metric; the run ends as stopped, whole, and says by what."""
    callback = StopsAfter(2)
    result = unitrain.fit(settings, {"publish": None}, callbacks=[callback], quiet=True)
    assert len(callback.seen) == 2
    assert (result.status, result.reason) == ("stopped", "a callback stopped it (trainer.should_stop)")
    assert json.loads((result.run_dir / "run.json").read_text())["epoch"] == 2
    assert result.last_checkpoint is not None


def test_a_training_that_time_ended_is_finished(settings: Path) -> None:
    """`trainer.max_time` is told from a callback's wish."""
    overrides = {"publish": None, "trainer.max_epochs": -1, "trainer.max_time": "00:00:00:01"}
    result = unitrain.fit(settings, overrides | {"early_stopping": None}, quiet=True)
    assert (result.status, result.reason) == ("finished", "trainer.max_time was reached")
