"""The figures of a run's checkpoint on its validation or test data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer

from unitrain.errors import HookError
from unitrain.runs import find_run
from unitrain.training.callbacks.step_seeding import VALIDATE, Clock, ValidationSeeding
from unitrain.training.console import Console, quiet_lightning
from unitrain.training.restore import CheckpointName, Kind, Rebuilt, checkpoint_path, load_weights, rebuild
from unitrain.training.resuming.replayed_loaders import replay_loaders
from unitrain.training.resuming.resume_point import read_checkpoint

Stage = Literal["validate", "test"]


@dataclass(frozen=True)
class Evaluation:
    """What a checkpoint reached.

    Attributes:
        run_dir: the run's folder.
        stage: `validate` or `test`.
        checkpoint: `best` or `last`.
        weights: `ema` or `raw`.
        step: optimizer steps that the weights had seen.
        epoch: epoch in which they were saved, from 0.
        metrics: the value of everything that was logged.
        changed_sources: files of the project that are no longer as they were in the run.
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
    """Validate or test a checkpoint, with the figures that fit had for it, to the bit.

    Args:
        run: a run's folder, its name or its beginning, or `last`.
        stage: which of the data.
        checkpoint: which of the run's.
        weights: the averaged or the raw ones; None: the averaged ones where the run has them.
        overrides: further settings, as flags: `["--data.init_args.batch_size", "16"]`.
        experiments_dir: where a run's name is looked for.
        console: told of what may make the figures differ from those of fit.
        trust: import code from any project root that the run names.

    Raises:
        RunError: there is no such run or checkpoint, or it no longer fits the code.
        UsageError: there are no such data, or the overrides are wrong.
    """
    console = console or Console(quiet=True)
    with quiet_lightning():
        parts = rebuild(find_run(str(run), experiments_dir), overrides, trust=trust)
        _tell_differences(parts, console)
        path = checkpoint_path(parts.run, checkpoint)
        loaded = load_weights(parts.module, path, weights)
        seed = parts.cli.config.seed_everything if parts.cli.config.step_seeding else None
        _take_progress(parts.trainer, read_checkpoint(path), seed)
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


def _metrics(parts: Rebuilt, stage: Stage) -> dict[str, float]:
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
        raise HookError(f"{stage}: {owner}.{loader} gives no batch; there is nothing to measure")
    return {name: float(v) for name, v in trainer.callback_metrics.items() if v.numel() == 1}


def _take_progress(trainer: Trainer, content: Mapping[str, Any], seed: int | None) -> None:
    """Let the trainer stand where fit stood: what is drawn in a validation depends on epoch and step."""
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
        clock = Clock(int(seed))
        clock.round = (VALIDATE, trainer.current_epoch, trainer.global_step)
        replay_loaders(trainer, clock)
        trainer.callbacks.append(ValidationSeeding(clock))  # type: ignore[attr-defined]


def _tell_differences(parts: Rebuilt, console: Console) -> None:
    if parts.changed_sources:
        console.warn(
            f"changed since the run began: {', '.join(parts.changed_sources)}; the figures are those of the code as "
            "it is now"
        )
    threads = parts.run.record().get("threads")
    if threads not in (None, torch.get_num_threads()):
        console.warn(
            f"the run had {threads} threads and this process has {torch.get_num_threads()}: its figures may differ "
            "in the last bits"
        )
