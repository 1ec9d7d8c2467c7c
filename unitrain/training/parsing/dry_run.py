"""Dry run of a training: one batch of training and validation, the hooks, the export and the folders."""

import contextlib
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from unitrain.class_paths import line_in_project
from unitrain.errors import HookError, SettingsError, UnitrainError
from unitrain.module import UnitrainModule
from unitrain.publish import Lineage, Publisher
from unitrain.repository import Repository
from unitrain.settings import Publish
from unitrain.training.callbacks.base import has_validation
from unitrain.training.callbacks.loss_shape_check import LossShapeCheck
from unitrain.training.callbacks.run_record import check_lazy, never_logged
from unitrain.training.metric_names_in_source import LoggedNames
from unitrain.training.parsing.settings_parser import ParsedSettings
from unitrain.training.sample_batches import evaluating, first_batch, nonfinite_values, observe, sample_inputs


@dataclass(frozen=True)
class Step:
    """Step of a dry run.

    Attributes:
        name: short name.
        passed: true if the step succeeded.
        text: finding, or the error.
    """

    name: str
    passed: bool
    text: str


def dry_run(settings: ParsedSettings) -> list[Step]:
    """Try one batch of training and validation, and all that a training needs; leave no files behind.

    The steps are returned in order. A step runs even if an earlier one has failed.

    Args:
        settings: parsed settings, whose model and data module are used.
    """
    steps: list[Step] = []
    with tempfile.TemporaryDirectory(prefix="unitrain-check-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        probe = _Probe(steps, settings, Path(folder).resolve())
        trainer = settings.make_trainer(
            callbacks=[*settings.callbacks, probe, LossShapeCheck()],
            fast_dev_run=1,
            logger=True,  # with fast_dev_run Lightning replaces it by a logger that writes nothing
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            barebones=False,
            profiler=None,
            # One batch can't show whether several processes agree.
            devices=1,
            num_nodes=1,
            strategy="auto",
        )

        def train() -> str:
            trainer.fit(settings.model, datamodule=settings.datamodule)
            return probe.summary

        _try(steps, "training", settings.root, train)
        probe.close()
        steps.insert(0, steps.pop())  # the other steps ran during the training
        _try(steps, "experiments", settings.root, lambda: _experiments(settings.experiments_dir))
    return steps


class _Probe(Callback):
    """Run later parts of a training, such as a publication, within the first batches."""

    def __init__(self, steps: list[Step], settings: ParsedSettings, scratch: Path) -> None:
        self._steps = steps
        self._settings = settings
        self._scratch = scratch
        self.summary = ""
        self._loss = 0.0
        self._in_data: str | None = None
        self._publisher: Publisher | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_lazy(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare publishing at the same time as a training does."""
        publish: Publish | None = self._settings.section("publish")
        if publish is None or not trainer.is_global_zero:
            return
        repository = Repository(self._settings.root / publish.repository)

        def prepare() -> str:
            with isolate_rng(), leaving_nothing(repository.root, repository.staging_dir):
                self._publisher = Publisher.prepare(
                    pl_module,
                    sample_inputs(pl_module, first_batch(trainer, pl_module)),
                    repository=repository,
                    model=self._settings.model_name,
                    settings=publish,
                    lineage=Lineage(run="check", run_dir=""),
                )
            return ""

        self._try("publish", prepare)
        if self._publisher is not None:
            self._steps.pop()  # the publication at the end has more details

    def close(self) -> None:
        """Stop the export process if there is one."""
        if self._publisher is not None:
            self._publisher.close()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        self._loss = float(loss.detach()) if isinstance(loss, Tensor) else 0.0
        if not math.isfinite(self._loss):
            self._in_data = nonfinite_values(batch, trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        losses = {n: float(v) for n, v in trainer.callback_metrics.items() if v.numel() == 1}
        logged = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        batches = "one batch of training" + (
            " and one of validation" if has_validation(trainer) else ", no validation data"
        )
        self.summary = f"{batches}; logged: {logged or 'nothing'}"
        self._try("loss", lambda: _finite(self._loss, self._in_data))
        self._try("monitor", lambda: _monitor(self._settings, trainer, pl_module, losses))
        batch = first_batch(trainer, pl_module)
        if isinstance(pl_module, UnitrainModule):
            self._try("hooks", lambda: _hooks(pl_module, batch))
        publisher = self._publisher
        if publisher is not None:
            self._try("publish", lambda: _publish(publisher, pl_module, self._scratch / "repository"))

    def _try(self, name: str, action: Callable[[], str]) -> None:
        _try(self._steps, name, self._settings.root, action)


def _finite(loss: float, in_data: str | None) -> str:
    if not math.isfinite(loss):
        remedy = in_data or "look at the data and the loss, or lower the learning rate"
        raise HookError(f"the loss of the first training batch is {loss}, at which fit would stop; {remedy}")
    return f"{loss:.4g} at the first batch"


def _monitor(
    settings: ParsedSettings, trainer: Trainer, module: LightningModule, losses: dict[str, float]
) -> str:
    metric = settings.section("monitor").metric
    if not has_validation(trainer):
        return "no validation data: there will be no best checkpoint and no early stopping"
    if metric not in losses:
        if settings.section("early_stopping") is None and trainer.checkpoint_callback is None:
            return f"{metric} is not logged, and nothing needs it"
        if not LoggedNames.from_source(module, trainer.callbacks).may_hold(metric, logged=losses):  # type: ignore[attr-defined]
            raise never_logged(metric, module, losses)
        return f"{metric} is named in the code, but not logged by the first validation"
    return f"{metric} is logged"


def _hooks(module: UnitrainModule, batch: Any) -> str:
    """Call the hooks for TensorBoard, which a training calls at a later validation."""
    with isolate_rng(), evaluating(module):
        inputs, named = observe(module, batch)
        shown = module.embeddings(inputs, named, batch)
        labels = module.labels(batch)
        summaries = module.summaries(inputs, named, batch)
    wrong = [name for name, value in shown.items() if not isinstance(value, Tensor)]
    if wrong:
        raise HookError(
            f"{type(module).__name__}.embeddings: {wrong[0]} must be a tensor, got {type(shown[wrong[0]]).__name__}"
        )
    return (
        f"embeddings {', '.join(shown) or 'none'}; labels {', '.join(labels) or 'none'}; "
        f"summaries {', '.join(summaries) or 'none'}"
    )


def _publish(publisher: Publisher, module: LightningModule, scratch: Path) -> str:
    """Publish through all gates to a temporary repository."""
    elsewhere = replace(publisher, repository=Repository(scratch))
    try:
        manifest = elsewhere.publish(elsewhere.capture(module, kind="raw", step=0, epoch=0))
    finally:
        elsewhere.close()
    worst = max((figures["max_abs"] for figures in manifest.parity.values()), default=0.0)
    signature = manifest.signature
    inputs, outputs = (", ".join(map(str, tensors)) for tensors in (signature.inputs, signature.outputs))
    notes = "".join(f"; {note}" for note in publisher.template.notes)
    root = publisher.repository.root
    return f"{publisher.model}: {inputs} -> {outputs}; parity {worst:.1e}; {root} is writable{notes}"


def _experiments(folder: Path) -> str:
    try:
        with leaving_nothing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".check-"):
                pass
    except OSError as error:
        raise SettingsError(f"experiments_dir: {folder} can't be written: {error.strerror}") from error
    return f"{folder} is writable"


@contextlib.contextmanager
def leaving_nothing(*folders: Path) -> Iterator[None]:
    """Remove folders that the block has created, if they are empty."""
    missing = {path for folder in folders for path in (folder, *folder.parents) if not path.exists()}
    try:
        yield
    finally:
        for path in sorted(missing, key=lambda path: -len(path.parts)):
            with contextlib.suppress(OSError):
                path.rmdir()


def _try(steps: list[Step], name: str, root: Path, action: Callable[[], str]) -> None:
    try:
        steps.append(Step(name, passed=True, text=action()))
    except UnitrainError as error:
        steps.append(Step(name, passed=False, text=str(error)))
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        text = " ".join(str(error).split())[:500]
        steps.append(
            Step(name, passed=False, text=f"{type(error).__name__}{line_in_project(error, root)}: {text}")
        )
