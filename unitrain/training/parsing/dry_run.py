"""A training in little that leaves nothing behind: one batch each way, the hooks, the export, the folders."""

import contextlib
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from unitrain.training.callbacks.loss_broadcast import LossShapeCheck
from unitrain.training.callbacks.run_record import check_lazy, never_logged
from unitrain.training.logged_metrics import LoggedNames
from unitrain.training.parsing.settings_parser import SettingsCLI
from unitrain.training.validation_batches import (
    evaluating,
    first_batch,
    nonfinite_values,
    observe,
    sample_inputs,
)


@dataclass(frozen=True)
class Step:
    """One thing that was tried.

    Attributes:
        name: in a word or two.
        passed: whether it went well.
        text: what was found, or what is wrong.
    """

    name: str
    passed: bool
    text: str


def dry_run(words: Sequence[str], raw: dict[str, Any], *, root: Path, experiment: str) -> list[Step]:
    """What came of each step, in order; the later ones are tried even where an earlier one failed.

    Args:
        words: `--config` with its content, and flags.
        raw: the settings file's content.
        root: the project root.
        experiment: its name where the settings give none.
    """
    steps: list[Step] = []
    with tempfile.TemporaryDirectory(prefix="unitrain-check-") as folder:
        probe = _Probe(steps, root, experiment, Path(folder).resolve())

        def make_trainer(cli: SettingsCLI, arguments: dict[str, Any]) -> Trainer:
            probe.cli = cli
            theirs = arguments.pop("callbacks", None) or []
            # With this logger Lightning gives the module one that takes everything and writes nothing.
            little: dict[str, Any] = {"fast_dev_run": 1, "logger": True, "default_root_dir": folder}
            little |= {"enable_progress_bar": False, "enable_model_summary": False}
            little |= {"barebones": False, "profiler": None}
            # Whether several processes agree is not what one batch can show.
            little |= {"devices": 1, "num_nodes": 1, "strategy": "auto"}
            callbacks = [*(theirs if isinstance(theirs, Sequence) else [theirs]), probe, LossShapeCheck()]
            return Trainer(**arguments | little | {"callbacks": callbacks})

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cli = SettingsCLI(list(words), raw, make_trainer)
            _try(steps, "training", root, lambda: _train(cli, probe))
            probe.close()
        steps.insert(0, steps.pop())  # the others were tried while it ran
        _try(steps, "experiments", root, lambda: _experiments(root / cli.config.experiments_dir))
    return steps


def _train(cli: SettingsCLI, probe: "_Probe") -> str:
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return probe.told


class _Probe(Callback):
    """Tries, while the module is where it trains, what only happens later in a training."""

    def __init__(self, steps: list[Step], root: Path, experiment: str, scratch: Path) -> None:
        self._steps = steps
        self._root = root
        self._experiment = experiment
        self._scratch = scratch
        self.cli: SettingsCLI | None = None
        self.told = ""
        self._loss = 0.0
        self._in_data: str | None = None
        self._publisher: Publisher | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_lazy(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare publishing at the moment at which a training does."""
        settings: Publish | None = self.cli.section("publish") if self.cli else None
        if settings is None or self.cli is None or not trainer.is_global_zero:
            return
        model = settings.model or self.cli.config.experiment or self._experiment
        repository = Repository(self._root / settings.repository)

        def prepare() -> str:
            with isolate_rng(), leaving_nothing(repository.root, repository.staging_dir):
                self._publisher = Publisher.prepare(
                    pl_module,
                    sample_inputs(pl_module, first_batch(trainer, pl_module)),
                    repository=repository,
                    model=model,
                    settings=settings,
                    lineage=Lineage(run="check", run_dir=""),
                )
            return ""

        self._try("publish", prepare)
        if self._publisher is not None:
            self._steps.pop()  # the publication at the end says more

    def close(self) -> None:
        """End what was started for exporting, if anything was."""
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
        cli = self.cli
        if cli is None or not trainer.is_global_zero:
            return
        losses = {n: float(v) for n, v in trainer.callback_metrics.items() if v.numel() == 1}
        logged = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        batches = "one batch of training" + (
            " and one of validation" if has_validation(trainer) else ", no validation data"
        )
        self.told = f"{batches}; logged: {logged or 'nothing'}"
        self._try("loss", lambda: _finite(self._loss, self._in_data))
        self._try("monitor", lambda: _monitor(cli, trainer, pl_module, losses))
        batch = first_batch(trainer, pl_module)
        if isinstance(pl_module, UnitrainModule):
            self._try("hooks", lambda: _hooks(pl_module, batch))
        publisher = self._publisher
        if publisher is not None:
            self._try("publish", lambda: _publish(publisher, pl_module, self._scratch / "repository"))

    def _try(self, name: str, action: Callable[[], str]) -> None:
        _try(self._steps, name, self._root, action)


def _finite(loss: float, in_data: str | None) -> str:
    if not math.isfinite(loss):
        remedy = in_data or "look at the data and the loss, or lower the learning rate"
        raise HookError(f"the loss of the first training batch is {loss}, at which fit would stop; {remedy}")
    return f"{loss:.4g} at the first batch"


def _monitor(cli: SettingsCLI, trainer: Trainer, module: LightningModule, losses: dict[str, float]) -> str:
    metric = cli.section("monitor").metric
    if not has_validation(trainer):
        return "no validation data: there will be no best checkpoint and no early stopping"
    if metric not in losses:
        if cli.section("early_stopping") is None and trainer.checkpoint_callback is None:
            return f"{metric} is not logged, and nothing needs it"
        if not LoggedNames.from_source(module, trainer.callbacks).may_hold(metric, logged=losses):  # type: ignore[attr-defined]
            raise never_logged(metric, module, losses)
        return f"{metric} is named in the code, but not logged by the first validation"
    return f"{metric} is logged"


def _hooks(module: UnitrainModule, batch: Any) -> str:
    """Call those that are for TensorBoard; a training would come to them at a later validation."""
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
    """A publication through all gates, committed to another repository than the project's."""
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
    """A block after which folders that were not there before are gone again, as far as they are empty."""
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
    except Exception as error:  # noqa: BLE001 - a person's code raises whatever it likes
        text = " ".join(str(error).split())[:500]
        steps.append(
            Step(name, passed=False, text=f"{type(error).__name__}{line_in_project(error, root)}: {text}")
        )
