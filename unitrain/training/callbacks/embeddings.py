"""Inputs, outputs and labels over the validation set, as snapshots for the Embedding Projector."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng

from unitrain.errors import HookError
from unitrain.projector import draw_thumbnails, prune_snapshots, write_snapshot
from unitrain.settings import Embeddings
from unitrain.training.callbacks.base import BackgroundWriter, EveryNValidations, has_validation
from unitrain.training.callbacks.ema import EMA
from unitrain.training.callbacks.embedding_points import (
    PointBuffers,
    PointCollector,
    Points,
    gather_points,
    merged_points,
    validation_samples,
)
from unitrain.training.console import Console
from unitrain.training.validation_batches import evaluating, undisturbed, validation_batches


class EmbeddingSnapshots(EveryNValidations):
    """Takes a snapshot every n validations and at the end, of the averaged weights where there are some.

    The points are the validation's own, copied as its batches pass, which is all that the training's
    thread does. Another one draws thumbnails and writes files, a snapshot at a time: a training that is
    faster than the disk waits for it. Where the end came unforeseen, or there is no validation data, the
    batches are gone through once more.

    In a distributed training each process takes its part of the points from its own share of the validation
    set, and hands it to the main process, for which the training waits.
    """

    def __init__(self, settings: Embeddings, *, run_dir: Path, ema: EMA | None, console: Console) -> None:
        super().__init__(settings.every_n_validations)
        self.settings = settings
        self._run_dir = run_dir
        self._ema = ema
        self._console = console
        self._background = BackgroundWriter("the embeddings of a validation", console)
        self._collector: PointCollector | None = None
        self._collecting = False
        self._collected_at = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        share = trainer.world_size if _is_shared(trainer) else 1
        settings = replace(
            self.settings,
            max_points=-(-self.settings.max_points // share),
            max_bytes=-(-self.settings.max_bytes // share),
        )
        self._collector = PointCollector(settings, self._console.say)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._collecting = False
        if self._collector is not None and self.is_due(trainer):
            self._collecting = True
            self._collector.begin()

    def on_validation_batch_end(  # noqa: PLR0917 - Lightning calls it with positions
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._collecting and dataloader_idx == 0:
            with undisturbed(pl_module.device):
                self._add(pl_module, batch, outputs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._collecting:
            self._collected_at = trainer.global_step
        self._collecting = False
        super().on_validation_end(trainer, pl_module)

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shared = _is_shared(trainer)
        if not shared and not trainer.is_global_zero:
            return
        if self._collected_at != trainer.global_step:
            self._pass_through(trainer, pl_module)
        self._collected_at = -1
        gathered = None if self._collector is None else self._collector.take()
        step = trainer.global_step
        if not shared:
            if gathered is not None:
                self._background.run(partial(self._write_gathered, gathered, step))
            return
        # One without points takes part, too: the others wait for it.
        shares = gather_points(None if gathered is None else gathered.points(), trainer)
        if gathered is not None:
            gathered.release()
        if shares:
            self._background.run(partial(self._write_merged, shares, validation_samples(trainer), step))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._background.finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._background.finish()

    def _add(self, module: LightningModule, batch: Any, returned: Any = None) -> int:
        """Take a batch's points; the number of its samples."""
        if self._collector is None:
            return 0
        try:
            return self._collector.add(module, batch, returned)
        except HookError as error:  # a batch of which nobody knows what is input is no reason to stop
            self._console.warn(f"there are no embeddings: {error}")
            self._collector, self._collecting = None, False
            return 0

    def _pass_through(self, trainer: Trainer, module: LightningModule) -> None:
        if self._collector is None:
            return
        self._collector.begin()
        swapped = nullcontext() if self._ema is None else self._ema.applied()
        with swapped, isolate_rng(), evaluating(module):
            torch.manual_seed(self.settings.seed)  # a loader that shuffles gives the same order each time
            rows = 0
            for batch in _batches(trainer, module):
                rows += self._add(module, batch)
                if self._collector is None or (rows >= self.settings.max_points and _is_endless(trainer)):
                    break

    def _write_gathered(self, gathered: PointBuffers, step: int) -> None:
        try:
            self._write(gathered.points(), step)
        finally:
            gathered.release()

    def _write_merged(self, shares: list[Points | None], samples: int | None, step: int) -> None:
        points = merged_points(shares, samples)
        if points is not None and points.tensors:
            self._write(points, step)

    def _write(self, points: Points, step: int) -> None:
        pictures = None
        if points.pictured is not None:
            pictures = draw_thumbnails(points.pictured, self.settings.thumbnail_px)
        write_snapshot(
            self._run_dir, "validation", points.tensors, points.labels, step=step, sprites=pictures
        )
        prune_snapshots(self._run_dir, self.settings.keep)


def _is_shared(trainer: Trainer) -> bool:
    """Whether the validation's samples are dealt out to several processes."""
    return trainer.world_size > 1 and has_validation(trainer)


def _batches(trainer: Trainer, module: LightningModule) -> Any:
    """As many batches as a validation has, or an epoch where there is none; of this process's own share."""
    count = trainer.num_val_batches[0] if has_validation(trainer) else trainer.num_training_batches
    loaders = trainer.val_dataloaders if _is_shared(trainer) else None
    if loaders is None:
        found = validation_batches(trainer, module)
    else:
        first = next(iter(loaders.values())) if isinstance(loaders, dict) else loaders
        first = first[0] if isinstance(first, list | tuple) else first
        convert = trainer.precision_plugin.convert_input
        found = (trainer.strategy.batch_to_device(convert(batch)) for batch in first)
    return islice(found, int(count)) if count and count != float("inf") else found


def _is_endless(trainer: Trainer) -> bool:
    """Whether the training data, where there are none for validation, are a stream that need not end."""
    return not has_validation(trainer) and trainer.num_training_batches == float("inf")
