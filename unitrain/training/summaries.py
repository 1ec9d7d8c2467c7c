"""Weight histograms, the model's graph, and the module's own images, figures and texts, in TensorBoard."""

import io
import warnings
from contextlib import nullcontext, redirect_stdout
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from unitrain.export.graph import ServedGraph, eval_copy
from unitrain.export.weights import weights_of
from unitrain.module import ServableModule, batch_inputs
from unitrain.settings import Summaries
from unitrain.training.batches import first_batch, sample_inputs
from unitrain.training.console import Console
from unitrain.training.ema import EMA
from unitrain.training.schedule import EveryNValidations

IMAGE_AXES = 3  # channel, height, width


class TensorBoardSummaries(EveryNValidations):
    """What TensorBoard shows beside scalars; nothing where the run has no TensorBoard logger."""

    def __init__(self, settings: Summaries, *, ema: EMA | None, console: Console) -> None:
        super().__init__(settings.histograms_every_n_validations)
        self.settings = settings
        self._ema = ema
        self._console = console

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        writer = _writer(trainer)
        if writer is None or not self.settings.graph:
            return
        batch = first_batch(trainer, pl_module)
        try:
            # The tracer warns of itself, and prints what it raises.
            with isolate_rng(), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                inputs = {n: t[:2].cpu() for n, t in sample_inputs(pl_module, batch).items()}
                traced = eval_copy(pl_module)
                traced.trainer = trainer  # it reads every property, and this one raises where there is none
                writer.add_graph(ServedGraph(traced, tuple(inputs)), tuple(inputs.values()))
        except Exception as error:  # noqa: BLE001 - torch's tracer raises whatever it meets; a picture is no reason to stop
            self._console.say(f"the graph is left out of TensorBoard: {str(error).strip().splitlines()[0]}")

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        writer = _writer(trainer)
        if writer is None:
            return
        step = trainer.global_step
        weights = weights_of(pl_module) if self._ema is None else self._ema.weights(pl_module)
        for name, tensor in weights.items():
            if tensor.is_floating_point() and tensor.numel() > 1 and bool(tensor.isfinite().all()):
                writer.add_histogram(f"weights/{name}", tensor.numpy(), step)
        if isinstance(pl_module, ServableModule):
            self._add_summaries(trainer, pl_module, writer)

    def _add_summaries(self, trainer: Trainer, module: ServableModule, writer: Any) -> None:
        if type(module).summaries is ServableModule.summaries:
            return
        batch = first_batch(trainer, module)
        swapped = nullcontext() if self._ema is None else self._ema.applied()
        modes = [(part, part.training) for part in module.modules()]
        module.eval()
        try:
            with swapped, isolate_rng(), torch.no_grad():
                inputs = module.preprocess(batch_inputs(module, batch))
                outputs = module(**inputs)
                named = {"output": outputs} if isinstance(outputs, Tensor) else outputs
                found = module.summaries(inputs, named, batch)
        finally:
            for part, training in modes:
                part.training = training
        for tag, value in found.items():
            _add(writer, tag, value, trainer.global_step)


def _writer(trainer: Trainer) -> Any:
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            return logger.experiment
    return None


def _add(writer: Any, tag: str, value: Any, step: int) -> None:
    if isinstance(value, str):
        writer.add_text(tag, value, step)
    elif isinstance(value, Tensor):
        add = writer.add_image if value.dim() == IMAGE_AXES else writer.add_images
        add(tag, value.cpu().numpy(), step)
    else:
        writer.add_figure(tag, value, step, close=True)
