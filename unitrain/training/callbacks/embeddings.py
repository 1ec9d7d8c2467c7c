"""Write snapshots of inputs, outputs and labels of the validation set for the Embedding Projector."""

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
from unitrain.training.sample_batches import evaluating, undisturbed, validation_batches


class EmbeddingSnapshots(EveryNValidations):
    """Write a snapshot every n validations and at the end, with the averaged weights if there are some.

    The training thread only copies points from the batches of the validation. Another thread draws thumbnails
    and writes files, one snapshot at a time; a training that is faster than the disk waits for it. Without
    validation data, or after an unexpected end, the batches are read again.

    In a distributed training each process collects points from its share of the validation set and sends them
    to rank 0, and the training waits for that.

    Args:
        settings: section `embeddings` of the settings.
        run_dir: the run's folder.
        ema: callback that averages the weights; None if the raw ones are used.
        console: prints omitted tensors and warnings.
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
            self._collect_again(trainer, pl_module)
        self._collected_at = -1
        gathered = None if self._collector is None else self._collector.take()
        step = trainer.global_step
        if not shared:
            if gathered is not None:
                self._background.run(partial(self._write_gathered, gathered, step))
            return
        # A process without points takes part as well, since the others wait for it.
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
        """Add a batch's points, and return the number of its samples."""
        if self._collector is None:
            return 0
        try:
            return self._collector.add(module, batch, returned)
        except HookError as error:  # a batch with unknown inputs must not end the training
            self._console.warn(f"there are no embeddings: {error}")
            self._collector, self._collecting = None, False
            return 0

    def _collect_again(self, trainer: Trainer, module: LightningModule) -> None:
        if self._collector is None:
            return
        self._collector.begin()
        swapped = nullcontext() if self._ema is None else self._ema.applied()
        with swapped, isolate_rng(), evaluating(module):
            torch.manual_seed(self.settings.seed)  # a loader that shuffles uses the same order each time
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
    """Return True if the validation set is distributed over several processes."""
    return trainer.world_size > 1 and has_validation(trainer)


def _batches(trainer: Trainer, module: LightningModule) -> Any:
    """Return the batches of a validation, or of an epoch without validation data, in this process's share."""
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
    """Return True if there are no validation data and the training data are an endless stream."""
    return not has_validation(trainer) and trainer.num_training_batches == float("inf")
