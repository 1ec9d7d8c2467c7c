"""One trial of a search: a training that publishes nothing, and what it came to."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import unitrain
from unitrain.errors import SettingsError

QUIET = {"publish": None, "embeddings": None, "summaries": None}
"""What only the winner needs: trials leave their settings, scalars and checkpoints."""


@dataclass(frozen=True)
class Objective:
    """Objective of a search by a settings file.

    Attributes:
        config: the settings file.
        settings: its content.
        metric: monitored metric.
        mode: min or max.
        overrides: settings that hold for every trial, by dotted name.
    """

    config: Path
    settings: Mapping[str, Any]
    metric: str
    mode: str
    overrides: Mapping[str, Any]

    @classmethod
    def read(cls, config: Path, overrides: Mapping[str, Any]) -> "Objective":
        """The objective of a settings file.

        Raises:
            SettingsError: it can't be read.
        """
        try:
            settings = yaml.safe_load(config.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise SettingsError(
                f"{config} can't be read as settings: {' '.join(str(error).split())}"
            ) from error
        if not isinstance(settings, dict):
            raise SettingsError(f"{config}: expected settings, got {type(settings).__name__}")
        monitor = settings.get("monitor") or {}
        return cls(config, settings, monitor.get("metric", "val_loss"), monitor.get("mode", "min"), overrides)

    @property
    def experiment(self) -> str:
        """Name of the experiment, of its runs' folder and of the served model."""
        return str(self.settings.get("experiment") or self.config.absolute().parent.name)

    @property
    def search_dir(self) -> Path:
        """Return the folder of a search's files, beside the experiment's runs."""
        return Path(str(self.overrides.get("experiments_dir", "experiments"))) / f"{self.experiment}.search"

    @property
    def epochs(self) -> int:
        """The epochs of a trial that nothing ends early."""
        epochs = self.overrides.get(
            "trainer.max_epochs", (self.settings.get("trainer") or {}).get("max_epochs")
        )
        return int(epochs or 0)


@dataclass(frozen=True)
class TrialResult:
    """Result of a trial.

    Attributes:
        value: the monitored metric's best; None if it was never measured.
        epochs: trained epochs.
        duration_s: seconds from start to end.
        run_dir: its run's folder.
        interrupted: exit code of the signal that interrupted it; 0 without one.
    """

    value: float | None
    epochs: int
    duration_s: float
    run_dir: Path
    interrupted: int


def train_trial(
    objective: Objective, values: Mapping[str, Any], look_on: Callable[[int, float], bool]
) -> TrialResult:
    """Train with some values.

    Args:
        objective: description of the training.
        values: values of the searched settings, by dotted name.
        look_on: function of (epoch, monitored metric) that is called after each validation; True ends the training.

    Raises:
        UnitrainError: the settings are wrong, or the training failed (for example, its loss was not a number).
    """
    watcher, fit = _watcher(objective.metric, look_on), unitrain.fit  # the first time this imports Lightning
    overrides = {**QUIET, **objective.overrides, **values}
    started = time.monotonic()
    result = fit(objective.config, overrides, callbacks=[watcher], quiet=True)
    return TrialResult(
        value=None if result.best is None else float(result.best["value"]),
        epochs=watcher.epochs,
        duration_s=time.monotonic() - started,
        run_dir=result.run_dir,
        interrupted=result.exit_code,
    )


def _watcher(metric: str, look_on: Callable[[int, float], bool]) -> Any:
    """A Lightning callback; Lightning is imported when a trial begins, not for `--help`."""
    from pytorch_lightning import Callback, LightningModule, Trainer

    class Watcher(Callback):
        epochs = 0

        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.epochs = trainer.current_epoch + 1

        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            value = trainer.callback_metrics.get(metric)
            if (
                not trainer.sanity_checking
                and value is not None
                and look_on(trainer.current_epoch, float(value))
            ):
                trainer.should_stop = True

    return Watcher()


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Settings from a command line: `--trainer.max_epochs 5` is {"trainer.max_epochs": 5}.

    Raises:
        SettingsError: a word is no option, or an option has no value.
    """
    found: dict[str, Any] = {}
    rest = list(words)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        known = "." in name or name[2:] in ("seed_everything", "experiments_dir")
        if not (name.startswith("--") and known):
            raise SettingsError(
                f"there is no option {name}; settings are given by dotted name, as for fit (see --help)"
            )
        if not equals:
            if not rest:
                raise SettingsError(f"{name}: expected a value")
            value = rest.pop(0)
        found[name[2:]] = yaml.safe_load(value)
    return found
