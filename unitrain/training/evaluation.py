"""Validate or test a run's checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer

from unitrain.errors import HookError
from unitrain.runs import find_run
from unitrain.training.callbacks.step_seeding import VALIDATE, StepSeeder, ValidationSeeding
from unitrain.training.checkpoint import CheckpointName, Kind, checkpoint_path, load_weights
from unitrain.training.console import Console, quiet_lightning
from unitrain.training.restore import RestoredRun, restore_run
from unitrain.training.resuming.replayed_loaders import replay_loaders

Stage = Literal["validate", "test"]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a checkpoint.

    Attributes:
        run_dir: the run's folder.
        stage: `validate` or `test`.
        checkpoint: `best` or `last`.
        weights: `ema` or `raw`.
        step: optimizer steps that the weights had been trained for.
        epoch: epoch in which they were saved, counted from 0.
        metrics: value of each logged metric, by name.
        changed_sources: files of the project that have changed since the run began.
    """

    run_dir: Path
    stage: str
    checkpoint: str
    weights: str
    step: int
    epoch: int
    metrics: Mapping[str, float]
    changed_sources: Sequence[str]


def evaluate(
    run: str | Path,
    stage: Stage = "validate",
    *,
    checkpoint: CheckpointName = "best",
    weights: Kind | None = None,
    overrides: Sequence[str] = (),
    experiments_dir: Path = Path("experiments"),
    console: Console | None = None,
    trust: bool = False,
) -> Evaluation:
    """Validate or test a run's checkpoint; the metrics equal those of fit to the bit.

    Args:
        run: a run's folder, its name or the beginning of its name, or `last`.
        stage: `validate` or `test`.
        checkpoint: `best` or `last`.
        weights: "ema" for the averaged weights, "raw" for the others; None for the averaged ones if the run has them.
        overrides: changed settings as flags: `["--data.init_args.batch_size", "16"]`.
        experiments_dir: folder in which runs are looked up by name.
        console: prints warnings about differences from fit that may change the metrics.
        trust: import code from any project root that the run names.

    Raises:
        RunError: there is no such run or checkpoint, or it no longer fits the code.
        UsageError: there are no data for the stage, or the overrides are wrong.
    """
    console = console or Console(quiet=True)
    with quiet_lightning():
        parts = restore_run(find_run(str(run), experiments_dir), overrides, trust=trust)
        _warn_of_differences(parts, console)
        path = checkpoint_path(parts.run, checkpoint)
        loaded = load_weights(parts.module, path, weights)
        seed = parts.settings.seed if parts.settings.step_seeding else None
        _restore_progress(parts.trainer, loaded.content, seed)
        metrics = _metrics(parts, stage)
    return Evaluation(
        parts.run.path,
        stage,
        checkpoint,
        loaded.kind,
        loaded.step,
        loaded.epoch,
        metrics,
        tuple(parts.changed_sources),
    )


def _metrics(parts: RestoredRun, stage: Stage) -> dict[str, float]:
    trainer = parts.trainer
    run = trainer.validate if stage == "validate" else trainer.test
    try:
        run(parts.module, datamodule=parts.datamodule, verbose=False)
    except MisconfigurationException as error:
        text = " ".join(str(error).split())
        if "dataloader" not in text and "_step" not in text:
            raise
        owner = type(parts.datamodule or parts.module).__name__
        raise HookError(f"{stage}: {owner} has no data or no step for it: {text}") from error
    if not any(trainer.num_val_batches if stage == "validate" else trainer.num_test_batches):
        owner = type(parts.datamodule or parts.module).__name__
        loader = "val_dataloader" if stage == "validate" else "test_dataloader"
        raise HookError(f"{stage}: {owner}.{loader} yields no batch; there is nothing to measure")
    return {name: float(v) for name, v in trainer.callback_metrics.items() if v.numel() == 1}


def _restore_progress(trainer: Trainer, content: Mapping[str, Any], seed: int | None) -> None:
    """Set the trainer's epoch and step to those of the checkpoint: random draws of a validation depend on them."""
    fit_loop = trainer.fit_loop
    done = content["loops"]["fit_loop"]
    progress = dict(done["epoch_progress"]["current"])
    progress["processed"] = max(
        0, progress["ready"] - 1
    )  # at an epoch's end it is one ahead of its validations
    progress["completed"] = progress["processed"]
    whole = done["epoch_progress"] | {"current": progress}
    fit_loop.load_state_dict(done | {"epoch_progress": whole})
    if seed is not None:
        seeder = StepSeeder(int(seed))
        seeder.epoch_key = (VALIDATE, trainer.current_epoch, trainer.global_step)
        replay_loaders(trainer, seeder)
        trainer.callbacks.append(ValidationSeeding(seeder))  # type: ignore[attr-defined]


def _warn_of_differences(parts: RestoredRun, console: Console) -> None:
    if parts.changed_sources:
        console.warn(
            f"changed since the run began: {', '.join(parts.changed_sources)}; the metrics are those of the code as "
            "it is now"
        )
    threads = parts.run.record().get("threads")
    if threads not in (None, torch.get_num_threads()):
        console.warn(
            f"the run had {threads} threads and this process has {torch.get_num_threads()}: its metrics may differ "
            "in the last bits"
        )
