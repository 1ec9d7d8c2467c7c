"""Publishes the model while it trains: clones weights on the training thread, the rest on a worker."""

import contextlib
import queue
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.hooks import RemovableHandle

from unitrain.errors import SettingsError, UnitrainError, UsageError
from unitrain.manifest import Metric
from unitrain.module import passed_inputs
from unitrain.publish import Lineage, Outcome, Publisher, Request, Worker, figures_of, gate_of, outcome_text
from unitrain.repository import Repository
from unitrain.runs import RunFolder
from unitrain.settings import Monitor, Publish
from unitrain.training.batches import fingerprint, first_batch, sample_inputs
from unitrain.training.console import Console
from unitrain.training.ema import EMA
from unitrain.training.schedule import EveryNValidations, logged_step

_RECORDED = ("version", "step", "epoch", "metric", "previous", "parity", "model")
"""What run.json keeps of a manifest."""


class Publishing(EveryNValidations):
    """Publishes every n validations and at the end; only ever from the main process of a training.

    What can't be published is found before the first epoch and ends the training; what fails later is
    reported, and the training goes on, unless `publish.strict`.
    """

    def __init__(
        self,
        settings: Publish,
        *,
        model: str,
        repository_dir: Path,
        run: RunFolder,
        lineage: Lineage,
        monitor: Monitor,
        ema: EMA | None,
        console: Console,
    ) -> None:
        super().__init__(settings.every_n_validations)
        self.settings = settings
        self.model = model
        self.repository = Repository(repository_dir)
        self.published: list[int] = []
        self._run = run
        self._lineage = lineage
        self._monitor = monitor
        self._ema = ema
        self._console = console
        self._publisher: Publisher | None = None
        self._worker: Worker | None = None
        self._prepared = False
        self._observed = False
        self._observing: RemovableHandle | None = None
        self._failure: Exception | None = None
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._steps = {
            entry["step"] for entry in run.record().get("published") or ()
        }  # before it was resumed
        self._logged_steps: dict[int, int] = {}  # TensorBoard's steps, by step

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._prepare_once(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._prepare_once(trainer, pl_module)

    def _prepare_once(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare once the module's own `on_fit_start` has run, which may set what forward needs."""
        if self._prepared:
            return
        self._prepared = True
        refused: UsageError | None = None
        if trainer.is_global_zero:
            try:
                self._prepare(trainer, pl_module)
            except UsageError as error:
                refused = error
        # The other processes of a distributed training must not wait for one that has given up.
        reason = trainer.strategy.broadcast(None if refused is None else str(refused))
        if reason is not None:
            raise refused or SettingsError(reason)

    def _prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the graph, hold the repository against it, and start the worker."""
        started = time.monotonic()
        batch = first_batch(trainer, pl_module)
        publisher = Publisher.prepare(
            pl_module,
            sample_inputs(pl_module, batch),
            repository=self.repository,
            model=self.model,
            settings=self.settings,
            lineage=Lineage(**vars(self._lineage) | {"data_fingerprint": fingerprint(batch)}),
        )
        how = (
            "later versions swap weights" if publisher.template.swappable else "each version is exported anew"
        )
        self._console.say(f"exported {self.model} in {time.monotonic() - started:.1f} s ({how})")
        change = publisher.config_change
        if change.action == "keep":
            self._console.warn(
                f"{self.repository.config_path(self.model)} is kept as it was edited: {change}"
            )
        elif change.action == "update":
            self._console.say(f"{self.repository.config_path(self.model)} will follow the settings: {change}")
        for note in publisher.template.notes:
            self._console.say(note)
        self._publisher = publisher
        self._worker = Worker(publisher, self._report)

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tried_only = trainer.fast_dev_run  # type: ignore[attr-defined]
        if self._worker is None or tried_only or trainer.global_step in self._steps:
            return
        self._raise_if_strict()
        self._logged_steps[trainer.global_step] = logged_step(trainer)
        self._worker.submit(self._capture(trainer, pl_module))

    def _capture(self, trainer: Trainer, pl_module: LightningModule) -> Request:
        """Copy what a version needs of the module as the training has it now."""
        value = trainer.callback_metrics.get(self._monitor.metric)
        if self._publisher is None:
            raise RuntimeError("nothing is captured before publishing is prepared")
        with contextlib.nullcontext() if self._ema is None else self._ema.applied():
            return self._publisher.capture(
                pl_module,
                kind="raw" if self._ema is None else "ema",
                step=trainer.global_step,
                epoch=trainer.current_epoch,
                metric=None
                if value is None
                else Metric(self._monitor.metric, float(value), self._monitor.mode),
            )

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Watch the first batch's calls of forward, for inputs that are used there and not served."""
        if self._observed or self._publisher is None:
            return
        self._observed = True
        served = self._publisher.template.served.names

        def observe(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            handle.remove()
            unserved = [n for n in passed_inputs(pl_module, args, kwargs) if n not in served]
            if unserved:
                self._console.say(
                    f"{', '.join(unserved)}: given to forward in validation, and no input of what is served; set "
                    "example_input_array to serve them, too"
                )

        self._observing = handle = pl_module.register_forward_pre_hook(observe, with_kwargs=True)

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        if self._observing is not None:  # forward was not called as a module is
            self._observing.remove()
            self._observing = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._show(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._finish()
        self._show(trainer)
        self._raise_if_strict()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._finish()
        self._show(trainer)

    def _finish(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.finish()

    def _show(self, trainer: Trainer) -> None:
        """Mark in TensorBoard what has been published or refused since; its writer is the training thread's alone."""
        writers = [w.experiment for w in trainer.loggers if isinstance(w, TensorBoardLogger)]
        while not self._outcomes.empty():
            outcome = self._outcomes.get()
            step = self._logged_steps[outcome.request.step]
            for writer in writers:
                for name, value in figures_of(outcome).items():
                    writer.add_scalar(f"publish/{name}", value, step)
                writer.add_text("publish/outcome", outcome_text(outcome), step)

    def _report(self, outcome: Outcome) -> None:
        """Tell what became of a request; on the worker's thread."""
        self._outcomes.put(outcome)
        manifest, error = outcome.manifest, outcome.error
        good = error is None if outcome.served is None else outcome.served.passed is not False
        tell = self._console.say if good else self._console.warn
        try:
            if manifest is None:
                self._failure = error
                self._run.append("refused", _refusal(outcome))
            elif outcome.served is not None:
                self._run.append("served", {"version": manifest.version} | asdict(outcome.served))
            else:
                self.published.append(manifest.version)
                entry = manifest.to_json()
                kept = {key: entry[key] for key in _RECORDED}
                self._run.append("published", kept | {"repository": str(self.repository.root)})
            tell(outcome_text(outcome))
        except UnitrainError as trouble:  # a full disk: the training goes on, and says so
            self._console.warn(str(trouble))

    def _raise_if_strict(self) -> None:
        if self.settings.strict and self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure


def _refusal(outcome: Outcome) -> dict[str, Any]:
    request, error = outcome.request, outcome.error or RuntimeError("no reason was given")
    return {"step": request.step, "epoch": request.epoch, "gate": gate_of(error), "reason": str(error)}
