"""The callbacks of a training: the user's own, then ours, in the one order that is right."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint, ProgressBar

from unitrain.publish import Lineage
from unitrain.runs import RunFolder
from unitrain.training.callbacks.ema import EMA
from unitrain.training.callbacks.embeddings import EmbeddingSnapshots
from unitrain.training.callbacks.loss_broadcast import LossShapeCheck
from unitrain.training.callbacks.publishing import Publishing
from unitrain.training.callbacks.resumable import ResumableEarlyStopping, ResumableModelCheckpoint
from unitrain.training.callbacks.run_record import RunRecord
from unitrain.training.callbacks.tensorboard import TensorBoardSummaries
from unitrain.training.callbacks.termination import GracefulTermination
from unitrain.training.console import Console, progress
from unitrain.training.data_fingerprint import DataFingerprint


@dataclass(frozen=True)
class Stack:
    """The callbacks in order, and those of them that are asked afterwards."""

    callbacks: list[Callback]
    record: RunRecord
    publishing: Publishing | None


def compose(
    section: Callable[[str], Any],
    theirs: list[Callback],
    trainer_arguments: dict[str, Any],
    *,
    run: RunFolder,
    root: Path,
    model_name: str,
    lineage: Lineage,
    console: Console,
) -> Stack:
    """All callbacks of a training.

    A callback of the user's takes the place of ours of its kind, and the console says so. The average
    comes after all that look at validations, which therefore see its weights, and before the checkpoints.

    Args:
        section: gives a section of the settings by its name, None where it is off.
        theirs: `trainer.callbacks`.
        trainer_arguments: the progress bar's switch in it is set to what the callbacks say.
    """
    monitor, stopping, publish = section("monitor"), section("early_stopping"), section("publish")
    ema = EMA(**vars(section("ema"))) if section("ema") else None
    if any(isinstance(callback, EarlyStopping) for callback in theirs):
        console.say("early stopping: the settings' own callback takes the place of the section's")
        stopping = None
    resumable = checkpoints = trainer_arguments.get("enable_checkpointing") is not False
    if any(isinstance(callback, Checkpoint) for callback in theirs):
        console.say(
            "checkpoints: the settings' own callback takes the place of best.ckpt; last.ckpt is kept to resume from"
        )
        checkpoints = False
    record = RunRecord(run, monitor, console, required=bool(stopping) or checkpoints)
    publishing = None
    fingerprint = DataFingerprint(run, console)
    ours: list[Callback] = [record, fingerprint, LossShapeCheck()]
    if section("summaries"):
        ours.append(
            TensorBoardSummaries(section("summaries"), run=run, monitor=monitor, ema=ema, console=console)
        )
    if section("embeddings"):
        ours.append(EmbeddingSnapshots(section("embeddings"), run_dir=run.path, ema=ema, console=console))
    if publish:
        publishing = Publishing(
            publish,
            model=model_name,
            repository_dir=root / publish.repository,
            run=run,
            lineage=lineage,
            monitor=monitor,
            fingerprint=fingerprint,
            ema=ema,
            console=console,
        )
        ours.append(publishing)
    if stopping:
        kept = {"monitor": monitor.metric, "mode": monitor.mode, "check_on_train_epoch_end": False}
        ours.append(ResumableEarlyStopping(patience=stopping.patience, min_delta=stopping.min_delta, **kept))
    ours += _bar(theirs, trainer_arguments, console, monitor.metric)
    if ema:
        ours.append(ema)
    ours.append(GracefulTermination(run, run.checkpoints_dir / "last.ckpt", console, checkpoints=resumable))
    if checkpoints:
        ours.append(_best_checkpoint(run, monitor.metric, monitor.mode))
    return Stack([*theirs, *ours], record, publishing)


def _bar(
    theirs: list[Callback], trainer_arguments: dict[str, Any], console: Console, metric: str
) -> list[Callback]:
    if console.quiet or trainer_arguments.get("enable_progress_bar") is False:
        trainer_arguments["enable_progress_bar"] = False
        return []
    if any(isinstance(callback, ProgressBar) for callback in theirs):
        return []
    shown = progress(console, metric)
    trainer_arguments["enable_progress_bar"] = isinstance(shown, ProgressBar)
    return [shown]


def _best_checkpoint(run: RunFolder, monitor: str, mode: str) -> ModelCheckpoint:
    return ResumableModelCheckpoint(
        dirpath=run.checkpoints_dir,
        filename="best",
        monitor=monitor,
        mode=mode,
        save_top_k=1,
        save_on_train_epoch_end=False,
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
