"""TensorBoard summaries beside the scalars that a module logs, at a negligible cost for the training."""

import io
import time
import warnings
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
import yaml
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from unitrain.module import UnitrainModule
from unitrain.onnx_export.module_weights import weights_of
from unitrain.onnx_export.served_graph import ServedGraph, eval_copy
from unitrain.settings import Summaries
from unitrain.training.callbacks.base import (
    BackgroundWriter,
    EveryNValidations,
    RunContext,
    batches_that_stepped,
    logged_step,
)
from unitrain.training.callbacks.run_record import improves
from unitrain.training.sample_batches import evaluating, first_batch, observe, sample_inputs

_OMITTED_KEYS = ("client_io", "links", "experiments_dir")
"""Settings without influence on the result of a training."""
_MAX_CHARACTERS = 200
"""Maximum length of a setting in the HParams tab."""


def add_settings(writer: Any, path: Path) -> None:
    """Write the settings that reproduce the run to the Text tab."""
    lines = path.read_text(encoding="utf-8").splitlines()
    writer.add_text("settings", "\n".join(f"    {line}" for line in lines), 0)


def flat_settings(path: Path) -> dict[str, bool | float | str]:
    """Return the numbers, switches and texts of the settings by dotted name, without lists and empty values."""
    flat: dict[str, bool | float | str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), item)
        elif isinstance(value, bool | int | float | str) and len(str(value)) <= _MAX_CHARACTERS:
            flat[prefix] = value

    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    walk("", {key: value for key, value in content.items() if key not in _OMITTED_KEYS})
    return flat


def add_session_start(writer: Any, settings: dict[str, bool | float | str], *, group: str) -> None:
    """Begin the run's session in the HParams tab.

    Args:
        writer: TensorBoard's SummaryWriter.
        settings: the settings by dotted name.
        group: name of the session in the tab.
    """
    from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

    session = SessionStartInfo(start_time_secs=time.time(), group_name=group)
    for name, value in settings.items():
        if isinstance(value, bool):
            session.hparams[name].bool_value = value
        elif isinstance(value, str):
            session.hparams[name].string_value = value
        else:
            session.hparams[name].number_value = value
    _write_hparams(writer, SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=session))


def add_session_end(writer: Any, *, success: bool) -> None:
    """End the run's session in the HParams tab."""
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    status = Status.Value("STATUS_SUCCESS" if success else "STATUS_FAILURE")
    session = SessionEndInfo(status=status, end_time_secs=time.time())
    _write_hparams(writer, SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=session))


def _write_hparams(writer: Any, tag: str, data: Any) -> None:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams.metadata import PLUGIN_DATA_VERSION, PLUGIN_NAME

    data.version = PLUGIN_DATA_VERSION
    plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=data.SerializeToString())
    value = Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))
    writer.file_writer.add_summary(Summary(value=[value]))


IMAGE_AXES = 3  # channel, height, width


class TensorBoardSummaries(EveryNValidations):
    """Write settings, graph, learning rates, norms, histograms, the module's `summaries()` and the best metric.

    A background thread draws figures and computes histograms, one validation at a time. Without a TensorBoard
    logger nothing is written.

    Args:
        settings: section `summaries` of the settings.
        context: run folder, monitored metric, EMA and console.
    """

    def __init__(self, settings: Summaries, context: RunContext) -> None:
        super().__init__(settings.histograms_every_n_validations)
        self.settings = settings
        self._run = context.run
        self._monitor = context.monitor
        self._ema = context.ema
        self._console = context.console
        self._background = BackgroundWriter("summaries", context.console)
        self._summaries: Mapping[str, Any] | None = None
        self._best: float | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        writer = _writer(trainer)
        if writer is None:
            return
        add_settings(writer, self._run.settings_path)
        add_session_start(writer, flat_settings(self._run.settings_path), group=self._run.name)
        if self.settings.graph:
            self._write_graph(trainer, pl_module, writer)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        step = batches_that_stepped(trainer)  # several optimizers may step in a batch
        if (step + 1) % max(1, trainer.log_every_n_steps):  # type: ignore[attr-defined]
            return
        writer = _writer(trainer)
        if writer is None:
            return
        number = trainer.optimizers.index(optimizer) if optimizer in trainer.optimizers else 0
        suffix = f"_{number}" if len(trainer.optimizers) > 1 else ""
        groups = optimizer.param_groups
        for place, group in enumerate(groups):
            tag = f"lr{suffix}" if len(groups) == 1 else f"lr{suffix}/group_{place}"
            writer.add_scalar(tag, float(group["lr"]), step)
        gradients = [p.grad.detach() for group in groups for p in group["params"] if p.grad is not None]
        if self.settings.gradient_norm and gradients and not any(g.is_sparse for g in gradients):
            norm = torch.nn.utils.get_total_norm(gradients)
            writer.add_scalar(f"gradient_norm{suffix}", float(norm), step)

    def on_validation_batch_end(  # noqa: PLR0917 - Lightning calls it with positions
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx or dataloader_idx or not self.is_due(trainer) or _writer(trainer) is None:
            return
        if _has_summaries(pl_module):
            with isolate_rng():
                self._summaries = pl_module.summaries(*observe(pl_module, batch, outputs), batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        writer = None if trainer.sanity_checking else _writer(trainer)
        if writer is not None:
            if self._ema is not None:
                writer.add_scalar("ema_distance", self._ema.distance(), logged_step(trainer))
            self._write_best(trainer, writer)
        super().on_validation_end(trainer, pl_module)
        self._summaries = None

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        writer = _writer(trainer)
        if writer is None:
            return
        weights: dict[str, Tensor] = {}
        if self.every_n_validations:
            weights = weights_of(pl_module) if self._ema is None else self._ema.weights(pl_module)
        found = self._summaries
        if found is None and _has_summaries(pl_module):
            batch = first_batch(trainer, pl_module)
            swapped = nullcontext() if self._ema is None else self._ema.applied()
            with swapped, isolate_rng(), evaluating(pl_module):
                found = pl_module.summaries(*observe(pl_module, batch), batch)
        shown = {tag: _frozen(value) for tag, value in (found or {}).items()}
        self._background.run(partial(_write_summaries, writer, weights, shown, logged_step(trainer)))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._background.finish()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The last version is published after `on_train_end` of all callbacks.
        self._end_session(trainer, success=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._background.finish()
        self._end_session(trainer, success=False)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._best = state_dict.get("best")

    def _end_session(self, trainer: Trainer, *, success: bool) -> None:
        writer = _writer(trainer)
        if writer is not None:
            add_session_end(writer, success=success)
            writer.flush()

    def _write_best(self, trainer: Trainer, writer: Any) -> None:
        value = trainer.callback_metrics.get(self._monitor.metric)
        if value is None or value.numel() != 1:
            return
        now = float(value)
        if improves(now, self._best, self._monitor.mode):
            self._best = now
        if self._best is not None:
            writer.add_scalar(f"best/{self._monitor.metric}", self._best, logged_step(trainer))

    def _write_graph(self, trainer: Trainer, module: LightningModule, writer: Any) -> None:
        batch = first_batch(trainer, module)
        try:
            # The tracer prints warnings and errors.
            with isolate_rng(), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                inputs = {n: t[:2].cpu() for n, t in sample_inputs(module, batch).items()}
                traced = eval_copy(module)
                traced.trainer = (
                    trainer  # the tracer reads every property, and this one raises without a trainer
                )
                writer.add_graph(ServedGraph(traced, tuple(inputs)), tuple(inputs.values()))
        except Exception as error:  # noqa: BLE001 - a picture must not end the training
            self._console.say(f"the graph is omitted from TensorBoard: {str(error).strip().splitlines()[0]}")


def _writer(trainer: Trainer) -> Any:
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            return logger.experiment
    return None


def _has_summaries(module: LightningModule) -> TypeGuard[UnitrainModule]:
    return isinstance(module, UnitrainModule) and type(module).summaries is not UnitrainModule.summaries


def _frozen(value: Any) -> Any:
    """Return a copy of a tensor, which does not change until it is drawn; other values as they are."""
    if not isinstance(value, Tensor):
        return value
    dtype = torch.float32 if value.is_floating_point() else value.dtype  # numpy has no bfloat16
    return value.detach().to("cpu", dtype, copy=True).numpy()


def _write_summaries(writer: Any, weights: Mapping[str, Tensor], shown: Mapping[str, Any], step: int) -> None:
    for name, tensor in weights.items():
        if tensor.is_floating_point() and tensor.numel() > 1 and bool(tensor.isfinite().all()):
            writer.add_histogram(f"weights/{name}", tensor.float().numpy(), step)
    for tag, value in shown.items():
        if isinstance(value, str):
            writer.add_text(tag, value, step)
        elif isinstance(value, np.ndarray):
            add = writer.add_image if value.ndim == IMAGE_AXES else writer.add_images
            add(tag, value, step)
        else:
            # Not torch's add_figure: it imports pyplot, which belongs to the main thread.
            writer.add_image(tag, _pixels(value() if callable(value) else value), step, dataformats="HWC")


def _pixels(figure: Any) -> np.ndarray[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
