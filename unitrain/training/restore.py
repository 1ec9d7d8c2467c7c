"""The module and the data module of a run, made again from its folder; weights from its checkpoints."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.utilities.model_helpers import is_overridden

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
from unitrain.training.resuming.resume_point import changed_sources, read_checkpoint, trusted_root, unsound

Kind = Literal["ema", "raw"]
CheckpointName = Literal["best", "last"]

_MADE_LATER = ("_val_metrics", "_test_metrics")
"""A UnitrainModule makes its metrics when they are first needed: a rebuilt one has none yet."""


@dataclass(frozen=True)
class Rebuilt:
    """A run's parts, with the weights that their `__init__` gives them.

    Attributes:
        run: its folder; not owned.
        module: on the CPU.
        datamodule: None where the module has its own loaders; neither prepared nor set up.
        trainer: with the run's own arguments, but without logger, callbacks, checkpoints and progress bar.
        cli: gives the sections of the settings: `cli.section("publish")`.
        root: the project root that the run was started from.
        resolved: the settings as YAML.
        changed_sources: files of the project that are no longer as they were in the run.
    """

    run: RunFolder
    module: LightningModule
    datamodule: LightningDataModule | None
    trainer: Trainer
    cli: SettingsCLI
    root: Path
    resolved: str
    changed_sources: list[str]


@dataclass(frozen=True)
class LoadedWeights:
    """What a checkpoint's weights were: `kind` is "ema" or "raw", `step` and `epoch` those of training."""

    kind: Kind
    step: int
    epoch: int


def rebuild(run_dir: Path, overrides: Sequence[str] = (), *, trust: bool = False) -> Rebuilt:
    """A run's module, data module and trainer, from the settings in its folder and the project's code as it is now.

    Args:
        run_dir: its folder.
        overrides: further settings, as flags: `["--data.init_args.batch_size", "16"]`.
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
        # The run has shown them already, and there is no training to warn for.
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
    return Rebuilt(run, cli.model, cli.datamodule, cli.trainer, cli, root, cli.resolved(), changed)


def checkpoint_path(run: RunFolder, name: CheckpointName) -> Path:
    """Where a run's best or last checkpoint lies.

    Raises:
        RunError: the run has none of that name; those there are are named.
    """
    path = run.checkpoints_dir / f"{name}.ckpt"
    if not path.is_file():
        others = sorted(p.stem for p in run.checkpoints_dir.glob("*.ckpt"))
        hint = f"it has {', '.join(others)}" if others else "it has none at all"
        raise RunError(f"{run.path} has no checkpoint `{name}`; {hint}")
    return path


def load_weights(module: LightningModule, checkpoint: Path, kind: Kind | None = None) -> LoadedWeights:
    """Put a checkpoint's weights into a module; the file is read as plain data, never run.

    Args:
        checkpoint: its file.
        kind: "ema", the average, or "raw"; None: the average where there is one.

    Raises:
        RunError: the file is damaged, holds no average, or does not fit the module.
    """
    fault = unsound(checkpoint)
    if fault is not None:
        raise RunError(f"{checkpoint} is damaged ({fault}); take the run's other checkpoint")
    content = read_checkpoint(checkpoint)
    averaged = "current_model_state" in content
    if kind == "ema" and not averaged:
        raise RunError(f"{checkpoint} holds no averaged weights, since the run kept none; take --weights raw")
    chosen: Kind = kind or ("ema" if averaged else "raw")
    weights = content["current_model_state" if averaged and chosen == "raw" else "state_dict"]
    if is_overridden("configure_model", module):
        module.configure_model()
    module.on_load_checkpoint(content)
    _load(module, weights, checkpoint)
    return LoadedWeights(chosen, int(content["global_step"]), int(content["epoch"]))


def _load(module: LightningModule, weights: dict[str, Any], path: Path) -> None:
    try:
        missing, unexpected = module.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # another shape
        reason = " ".join(str(error).split()).partition(": ")[2] or str(error)
        raise RunError(
            f"{path} does not fit {type(module).__name__}: {reason}; has its code changed since?"
        ) from error
    left = [name for name in unexpected if not name.startswith(_MADE_LATER)]
    if module.strict_loading and (missing or left):
        what = [f"it lacks {', '.join(missing[:5])}"] if missing else []
        what += [f"it has {', '.join(left[:5])} too many"] if left else []
        raise RunError(
            f"{path} does not fit {type(module).__name__}: {' and '.join(what)}; has its code changed since?"
        )


def _bare_trainer(_cli: SettingsCLI, arguments: dict[str, Any]) -> Trainer:
    """The run's trainer, in one process, without what writes or watches a training.

    Several processes would repeat samples to have equally many each, which shifts the figures.
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
