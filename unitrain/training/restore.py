"""Restore a run's module, data module and trainer from its folder."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytorch_lightning import LightningDataModule, LightningModule, Trainer

from unitrain.errors import RunError
from unitrain.runs import RunFolder
from unitrain.training.parsing.settings_parser import ParsedSettings, load_settings
from unitrain.training.provenance import changed_sources, trusted_root


@dataclass(frozen=True)
class RestoredRun:
    """Parts of a run, with the weights that their `__init__` gives them.

    Attributes:
        run: the run's folder, opened without its lock.
        module: module on the CPU.
        datamodule: data module, neither prepared nor set up; None if the module has the loaders.
        trainer: trainer with the run's arguments, but without logger, callbacks, checkpoints and progress bar.
        settings: the parsed settings; `settings.section("publish")` returns a section.
        root: root of the project that the run was started from.
        changed_sources: files of the project that have changed since the run began.
    """

    run: RunFolder
    module: LightningModule
    datamodule: LightningDataModule | None
    trainer: Trainer
    settings: ParsedSettings
    root: Path
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
    with warnings.catch_warnings():
        # The run has printed them already.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        settings = load_settings(run.settings_path, overrides, root=root, experiment=run.experiment)
        trainer = _bare_trainer(settings)
    changed = changed_sources(root, run.sources_dir)
    return RestoredRun(run, settings.model, settings.datamodule, trainer, settings, root, changed)


def _bare_trainer(settings: ParsedSettings) -> Trainer:
    """Create the run's trainer for one process, without logger, callbacks and checkpoints.

    Several processes would repeat samples to get equal shares, which changes the metrics.
    """
    devices = settings.trainer_args.get("devices")
    return settings.make_trainer(
        devices=devices[:1] if isinstance(devices, list) else 1,
        num_nodes=1,
        strategy="auto",
        callbacks=[],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
