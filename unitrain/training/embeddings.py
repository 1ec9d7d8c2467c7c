"""Inputs, outputs and labels over the validation set, as snapshots for the Embedding Projector."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from unitrain.errors import UnitrainError
from unitrain.module import ServableModule, batch_inputs, batch_targets, flatten_outputs
from unitrain.projector import prune_snapshots, write_snapshot
from unitrain.settings import Embeddings
from unitrain.training.batches import validation_batches
from unitrain.training.console import Console
from unitrain.training.ema import EMA
from unitrain.training.schedule import EveryNValidations


class EmbeddingSnapshots(EveryNValidations):
    """Takes a snapshot every n validations and at the end, of the averaged weights where there are some.

    The forward passes are the training thread's; the files are written by another, one snapshot at a
    time: a training that is faster than the disk waits for it.
    """

    def __init__(self, settings: Embeddings, *, run_dir: Path, ema: EMA | None, console: Console) -> None:
        super().__init__(settings.every_n_validations)
        self.settings = settings
        self._run_dir = run_dir
        self._ema = ema
        self._console = console
        self._writer: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        self._told: set[str] = set()

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        swapped = nullcontext() if self._ema is None else self._ema.applied()
        with swapped, isolate_rng():
            tensors, labels = self._collect(trainer, pl_module)
        self._wait()
        if tensors:
            self._writer = self._writer or ThreadPoolExecutor(1, thread_name_prefix="unitrain-embeddings")
            step = trainer.global_step
            self._pending = self._writer.submit(self._write, tensors, labels, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._finish()

    def _finish(self) -> None:
        self._wait()
        if self._writer is not None:
            self._writer.shutdown()
            self._writer = None

    def _write(self, tensors: dict[str, np.ndarray], labels: dict[str, list[Any]], step: int) -> None:
        write_snapshot(self._run_dir, "validation", tensors, labels, step=step)
        prune_snapshots(self._run_dir, self.settings.keep)

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            try:
                pending.result()
            except (UnitrainError, OSError) as error:
                self._console.warn(f"the embeddings of a validation were not written: {error}")

    def _collect(
        self, trainer: Trainer, module: LightningModule
    ) -> tuple[dict[str, np.ndarray], dict[str, list[Any]]]:
        tensors: dict[str, list[np.ndarray]] = {}
        labels: dict[str, list[Any]] = {}
        rows = 0
        # eval() and train() on the whole would flip submodules that the person has frozen.
        modes = [(part, part.training) for part in module.modules()]
        module.eval()
        try:
            with torch.no_grad():
                for batch in validation_batches(trainer, module):
                    values, columns = _embed(module, batch)
                    count = min(len(next(iter(values.values()))), self.settings.max_points - rows)
                    for name, tensor in values.items():
                        flat = tensor[:count].reshape(count, -1)
                        if flat.shape[1] <= self.settings.max_width:
                            tensors.setdefault(name, []).append(flat.float().cpu().numpy())
                        elif name not in self._told:
                            self._told.add(name)
                            self._console.say(
                                f"embeddings: {name} is left out, {flat.shape[1]} values a point are more than "
                                f"embeddings.max_width ({self.settings.max_width})"
                            )
                    for name, column in columns.items():
                        labels.setdefault(name, []).extend(column[:count])
                    rows += count
                    if rows >= self.settings.max_points:
                        break
        finally:
            for part, training in modes:
                part.training = training
        whole = {name: np.concatenate(parts) for name, parts in tensors.items()}
        return whole, {name: column for name, column in labels.items() if len(column) == rows}


def _embed(module: LightningModule, batch: Any) -> tuple[dict[str, Tensor], dict[str, list[Any]]]:
    inputs = batch_inputs(module, batch)
    if isinstance(module, ServableModule):
        inputs = module.preprocess(inputs)
        outputs = module(**inputs)
        named = {"output": outputs} if isinstance(outputs, Tensor) else outputs
        values = module.embeddings(inputs, named, batch)
        columns = module.labels(batch)
    else:
        values = {**inputs, **flatten_outputs(module(**inputs))}
        columns = batch_targets(module, batch)
    rows = len(next(iter(inputs.values())))
    per_sample = {name: t for name, t in values.items() if t.dim() > 0 and len(t) == rows}
    return per_sample, _label_columns(columns, rows)


def _label_columns(columns: Mapping[str, Any], rows: int) -> dict[str, list[Any]]:
    """The columns that have one value a sample; a wide target is no label."""
    kept = {}
    for name, column in columns.items():
        if isinstance(column, Tensor):
            if column.dim() > 0 and column.numel() == rows:
                kept[name] = column.reshape(-1).tolist()
        elif isinstance(column, list | tuple | np.ndarray) and len(column) == rows:
            kept[name] = list(column)
    return kept
