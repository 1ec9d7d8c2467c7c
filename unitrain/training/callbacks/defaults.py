"""Default callbacks of a training, in their order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pytorch_lightning import Callback
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint, ProgressBar

from unitrain.runs import RunFolder
from unitrain.training.callbacks.base import RunContext
from unitrain.training.callbacks.early_stopping_and_checkpoint import (
    ResumableEarlyStopping,
    ResumableModelCheckpoint,
)
from unitrain.training.callbacks.embeddings import EmbeddingSnapshots
from unitrain.training.callbacks.loss_shape_check import LossShapeCheck
from unitrain.training.callbacks.publishing import Publishing
from unitrain.training.callbacks.run_record import RunRecord
from unitrain.training.callbacks.tensorboard import TensorBoardSummaries
from unitrain.training.callbacks.termination import GracefulTermination
from unitrain.training.console import Console, progress
from unitrain.training.data_fingerprint import DataFingerprint


@dataclass(frozen=True)
class TrainingCallbacks:
    """Callbacks of one training.

    Attributes:
        callbacks: all of them, in Lightning's order of calls.
        record: the one that keeps run.json up to date.
        publishing: the one that publishes versions; None if `publish: null`.
    """

    callbacks: list[Callback]
    record: RunRecord
    publishing: Publishing | None


def default_callbacks(
    context: RunContext,
    section: Callable[[str], Any],
    trainer_args: dict[str, Any],
    users: Sequence[Callback],
    *,
    model_name: str,
) -> TrainingCallbacks:
    """Return the user's callbacks, then unitrain's, in the order that they need.

    A callback of the user replaces unitrain's callback of the same kind, with a log line. The EMA callback
    follows all callbacks that read validation results, because they need its weights, and precedes the checkpoints.

    Args:
        context: run folder, monitor, EMA and console.
        section: returns a section of the settings by its name; None if it is off.
        trainer_args: arguments of the Trainer; `enable_progress_bar` is set to match the callbacks.
        users: callbacks from `trainer.callbacks` and from Python.
        model_name: name of the published model; unused if `publish: null`.
    """
    run, monitor, ema, console = context.run, context.monitor, context.ema, context.console
    stopping, publish = section("early_stopping"), section("publish")
    if any(isinstance(callback, EarlyStopping) for callback in users):
        console.say("early stopping: the settings' own callback takes the place of the section's")
        stopping = None
    resumable = checkpoints = trainer_args.get("enable_checkpointing") is not False
    if any(isinstance(callback, Checkpoint) for callback in users):
        console.say(
            "checkpoints: the settings' own callback takes the place of best.ckpt; last.ckpt is kept to resume from"
        )
        checkpoints = False
    record = RunRecord(run, monitor, console, required=bool(stopping) or checkpoints)
    publishing = None
    fingerprint = DataFingerprint(run, console)
    ours: list[Callback] = [record, fingerprint, LossShapeCheck()]
    if section("summaries"):
        ours.append(TensorBoardSummaries(section("summaries"), context))
    if section("embeddings"):
        ours.append(EmbeddingSnapshots(section("embeddings"), run_dir=run.path, ema=ema, console=console))
    if publish:
        publishing = Publishing(publish, context, model=model_name, fingerprint=fingerprint)
        ours.append(publishing)
    if stopping:
        kept: dict[str, Any] = {
            "monitor": monitor.metric,
            "mode": monitor.mode,
            "check_on_train_epoch_end": False,
        }
        ours.append(ResumableEarlyStopping(patience=stopping.patience, min_delta=stopping.min_delta, **kept))
    ours += _progress_bar(users, trainer_args, console, monitor.metric)
    if ema:
        ours.append(ema)
    ours.append(GracefulTermination(run, run.checkpoints_dir / "last.ckpt", console, checkpoints=resumable))
    if checkpoints:
        ours.append(_best_checkpoint(run, monitor.metric, monitor.mode))
    return TrainingCallbacks([*users, *ours], record, publishing)


def _progress_bar(
    users: Sequence[Callback], trainer_args: dict[str, Any], console: Console, metric: str
) -> list[Callback]:
    if console.quiet or trainer_args.get("enable_progress_bar") is False:
        trainer_args["enable_progress_bar"] = False
        return []
    if any(isinstance(callback, ProgressBar) for callback in users):
        return []
    shown = progress(console, metric)
    trainer_args["enable_progress_bar"] = isinstance(shown, ProgressBar)
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
