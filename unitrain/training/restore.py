"""Restore a run's module, data module and trainer from its folder."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningDataModule, LightningModule, Trainer

from unitrain.errors import RunError, UnitrainError
from unitrain.runs import RunFolder
from unitrain.training.parsing.settings_errors import explained, own_error
from unitrain.training.parsing.settings_file import config_word
from unitrain.training.parsing.settings_parser import (
    SettingsCLI,
    absolute,
    check_classes,
    known_settings,
    read_settings,
)
from unitrain.training.provenance import changed_sources, trusted_root


@dataclass(frozen=True)
class RestoredRun:
    """Parts of a run, with the weights that their `__init__` gives them.

    Attributes:
        run: the run's folder, opened without its lock.
        module: module on the CPU.
        datamodule: data module, neither prepared nor set up; None if the module has the loaders.
        trainer: trainer with the run's arguments, but without logger, callbacks, checkpoints and progress bar.
        cli: the parsed settings; `cli.section("publish")` returns a section.
        root: root of the project that the run was started from.
        resolved: the resolved settings as YAML.
        changed_sources: files of the project that have changed since the run began.
    """

    run: RunFolder
    module: LightningModule
    datamodule: LightningDataModule | None
    trainer: Trainer
    cli: SettingsCLI
    root: Path
    resolved: str
    changed_sources: list[str]


def restore_run(run_dir: Path, overrides: Sequence[str] = (), *, trust: bool = False) -> RestoredRun:
    """Create a run's module, data module and trainer again, by the settings in its folder and the current code.

    Args:
        run_dir: the run's folder.
        overrides: changed settings as flags: `["--data.init_args.batch_size", "16"]`.
        trust: import code from any project root that the run names.

    Raises:
        RunError: the folder has no settings.
        UsageError: the settings no longer fit the code, the overrides are wrong, or the root is not trusted.
    """
    run = RunFolder.open(run_dir)
    if not run.settings_path.is_file():
        raise RunError(
            f"{run.path} has no {run.settings_path.name}: the run was refused or is another tool's"
        )
    root = trusted_root(run.path, run.record(), trust=trust)
    raw = read_settings(run.settings_path)
    overrides = [word for pair in absolute(overrides) for word in pair]
    check_classes(raw, overrides, root)
    with warnings.catch_warnings():
        # The run has printed them already.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            cli = SettingsCLI(
                ["--config", config_word(run.settings_path, raw), *overrides], raw, _bare_trainer
            )
        except UnitrainError:
            raise
        except Exception as error:
            wrong = (ArgumentError, MisconfigurationException, TypeError, ValueError)
            if isinstance(error, wrong) or own_error(error):
                raise explained(error, known_settings()) from error
            raise
    changed = changed_sources(root, run.sources_dir)
    return RestoredRun(run, cli.model, cli.datamodule, cli.trainer, cli, root, cli.resolved(), changed)


def _bare_trainer(_cli: SettingsCLI, arguments: dict[str, Any]) -> Trainer:
    """Create the run's trainer for one process, without logger, callbacks and checkpoints.

    Several processes would repeat samples to get equal shares, which changes the metrics.
    """
    devices = arguments.get("devices")
    off = {
        "devices": devices[:1] if isinstance(devices, list) else 1,
        "num_nodes": 1,
        "strategy": "auto",
        "callbacks": [],
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**arguments | off)
