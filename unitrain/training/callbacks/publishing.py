"""Publishes the model while it trains: clones weights on the training thread, the rest on a worker."""

import contextlib
import math
import queue
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.hooks import RemovableHandle

from unitrain.errors import PublishRefused, RepositoryError, SettingsError, UnitrainError, UsageError
from unitrain.module import UnitrainModule, passed_inputs
from unitrain.publish import (
    HeldBack,
    Lineage,
    Outcome,
    Publisher,
    Request,
    Worker,
    figures_of,
    gate_of,
    outcome_text,
)
from unitrain.repository import Repository
from unitrain.repository.manifest import Metric
from unitrain.runs import RunFolder
from unitrain.settings import Monitor, Publish
from unitrain.training.callbacks.base import EveryNValidations, has_validation, logged_step
from unitrain.training.callbacks.ema import EMA
from unitrain.training.callbacks.run_record import improves
from unitrain.training.checkpoint import load_plain
from unitrain.training.console import Console
from unitrain.training.data_fingerprint import DataFingerprint
from unitrain.training.validation_batches import first_batch, sample_inputs

_RECORDED = ("version", "step", "epoch", "metric", "previous", "comparison", "parity", "model")
"""What run.json keeps of a manifest."""


class Publishing(EveryNValidations):
    """Publishes every n validations and at the end; only ever from the main process of a training.

    With `policy: best` the weights are copied at each validation that improves the monitored metric, and the
    best ones so far are published when publishing is due. Without validation data or without that metric,
    the weights are published as they are.

    What can't be published is found before the first epoch and ends the training; what fails later is
    reported, and the training continues, unless `publish.fail_on_error`.

    Attributes:
        published: versions, in order.
        held_back: steps that would have replaced a version at least as good, in order.
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
        fingerprint: DataFingerprint,
        ema: EMA | None,
        console: Console,
    ) -> None:
        super().__init__(settings.every_n_validations)
        self.settings = settings
        self.model = model
        self.repository = Repository(repository_dir)
        self.published: list[int] = []
        self.held_back: list[int] = []
        self._run = run
        self._lineage = lineage
        self._monitor = monitor
        self._fingerprint = fingerprint
        self._ema = ema
        self._console = console
        self._publisher: Publisher | None = None
        self._worker: Worker | None = None
        self._prepared = False
        self._observed = False
        self._observing: RemovableHandle | None = None
        self._failure: Exception | None = None
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        record = run.record()  # before it was resumed
        self._steps = {entry["step"] for entry in record.get("published") or ()}
        self._held_back_steps = {entry["step"] for entry in record.get("held_back") or ()}
        self._logged_steps: dict[int, int] = {}  # TensorBoard's steps, by step
        self._best: dict[str, Any] | None = None
        self._captured: dict[str, Any] | None = None  # kept in checkpoints, for `export`
        self._candidate: Request | None = None  # the best so far, until it is handed to the worker
        self._proven: dict[str, Any] | None = None  # the best that no gate refused
        self._definition: str | None = None
        self._told: set[str] = set()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._prepare_once(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._prepare_once(trainer, pl_module)
        if self._worker is not None and self._best is not None:
            self._recover(trainer, pl_module, self._best)

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
            lineage=self._lineage,
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
        if self._worker is None or tried_only:
            return
        self._raise_if_strict()
        if self._goes_by_metric(trainer):
            request, self._candidate = self._candidate, None
        elif trainer.global_step in self._steps:
            request = None
        else:
            request = self._request(trainer, pl_module)
        if request is not None:
            self._worker.submit(
                replace(
                    request,
                    data_fingerprint=self._fingerprint.value,
                    no_fingerprint=self._fingerprint.reason,
                )
            )

    def _goes_by_metric(self, trainer: Trainer) -> bool:
        """Whether the best weights are published, rather than those of the moment; says once why not."""
        if self.settings.policy != "best":
            return False
        if not has_validation(trainer):
            self._say_once(
                "publish.policy best: there are no validation data, so the weights are published as they are"
            )
        elif self._best is None and self._validated_metric(trainer) is None:
            self._say_once(
                f"publish.policy best: no validation has measured {self._monitor.metric}, so the weights are published as "
                "they are"
            )
        elif self._best is None:
            self._say_once(
                f"publish.policy best: no validation has given a finite {self._monitor.metric}, so nothing is published"
            )
            return True
        return self._best is not None

    def _consider(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the weights if this validation is the best so far."""
        metric = self._validated_metric(trainer)
        best = None if self._best is None else self._best["value"]
        if metric is None or not math.isfinite(metric.value) or not improves(metric.value, best, metric.mode):
            return
        request = self._request(trainer, pl_module)
        self._best = asdict(request.metric or metric) | {
            "step": request.step,
            "state": state_digest(request),
        }
        done = request.step in self._steps or request.step in self._held_back_steps
        self._candidate = None if done else request  # done before the run was interrupted

    def _request(self, trainer: Trainer, pl_module: LightningModule) -> Request:
        metric = self._validated_metric(trainer)
        if metric is not None:
            self._definition = self._definition or _definition(pl_module, metric.name)
            metric = replace(metric, definition=self._definition)
        self._logged_steps[trainer.global_step] = logged_step(trainer)
        request = self._capture(trainer, pl_module)
        self._captured = {"step": request.step, "state": state_digest(request)}
        return replace(request, metric=metric)

    def _validated_metric(self, trainer: Trainer) -> Metric | None:
        value = trainer.callback_metrics.get(self._monitor.metric)
        return None if value is None else Metric(self._monitor.metric, float(value), self._monitor.mode)

    def _recover(self, trainer: Trainer, pl_module: LightningModule, best: Mapping[str, Any]) -> None:
        """Take the best weights so far from best.ckpt, unless the interrupted process has published them.

        Their answers are those of the module as it is now with these weights: the module's state outside of its
        weights must be the same as at that step.
        """
        step = best["step"]
        if self.settings.policy != "best" or step in self._steps or step in self._held_back_steps:
            return
        self._logged_steps[step] = max(0, step - 1)
        try:
            self._candidate = self._recovered(trainer, pl_module, best)
        except Exception as error:  # noqa: BLE001 - a damaged file, other weights: the training goes on
            reason = " ".join(str(error).split())[:300]
            self._console.warn(
                f"the best weights so far, of step {step}, were not published before the interruption and are lost "
                f"for it: {reason}"
            )

    def _recovered(self, trainer: Trainer, pl_module: LightningModule, best: Mapping[str, Any]) -> Request:
        path = self._run.checkpoints_dir / "best.ckpt"
        content = load_plain(path)
        if content["global_step"] != best["step"]:
            raise ValueError(f"{path.name} is of step {content['global_step']}")
        with self._served_weights_replaced(pl_module, content["state_dict"]):
            request = self._capture(trainer, pl_module)
        if state_digest(request) != best["state"]:
            raise ValueError("the module's state outside its weights has changed since")
        metric = Metric(*(best[key] for key in ("name", "value", "mode", "definition")))
        return replace(request, step=best["step"], epoch=int(content["epoch"]), metric=metric)

    @contextlib.contextmanager
    def _served_weights_replaced(
        self, pl_module: LightningModule, weights: Mapping[str, Any]
    ) -> Iterator[None]:
        """A block in which other weights are served: in the average's place, or in the module's without one."""

        def load(values: Mapping[str, Any]) -> dict[str, Any]:
            with contextlib.nullcontext() if self._ema is None else self._ema.applied():
                held = {name: value.clone() for name, value in pl_module.state_dict().items()}
                try:
                    pl_module.load_state_dict(values)
                except BaseException:
                    pl_module.load_state_dict(held)  # what fitted was copied already
                    raise
            return held

        held = load(weights)
        try:
            yield
        finally:
            load(held)

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
        if self._worker is not None and not trainer.sanity_checking and self.settings.policy == "best":
            self._consider(trainer, pl_module)
        super().on_validation_end(trainer, pl_module)
        self._show(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._worker is not None:
            self._worker.wait()
        self._show(trainer)
        if self._candidate is not None:  # the disk may have refused what was due at this very step
            self._acted_at = -1
        super().on_train_end(trainer, pl_module)
        self._finish()
        self._show(trainer)
        self._raise_if_strict()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._finish()
        self._show(trainer)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"best": self._best, "captured": self._captured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._captured = state_dict.get("captured")
        best = state_dict.get("best")
        if best and (best["name"], best["mode"]) == (self._monitor.metric, self._monitor.mode):
            self._best = self._proven = best

    def last_word(self) -> str | None:
        """The line that ends a run of which nothing was published, since all was held back; None for others."""
        record = self._run.record()
        held = record.get("held_back")
        if not held or record.get("published"):
            return None
        which = "the only candidate was" if len(held) == 1 else f"all {len(held)} candidates were"
        return f"nothing was published, since {which} held back: {held[-1]['reason']}"

    def _finish(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.finish()

    def _show(self, trainer: Trainer) -> None:
        """Mark in TensorBoard what has been published or refused since; its writer is the training thread's alone."""
        writers = [w.experiment for w in trainer.loggers if isinstance(w, TensorBoardLogger)]
        while not self._outcomes.empty():
            outcome = self._outcomes.get()
            self._take_back(outcome)
            step = self._logged_steps[outcome.request.step]
            for writer in writers:
                for name, value in figures_of(outcome).items():
                    writer.add_scalar(f"publish/{name}", value, step)
                writer.add_text("publish/outcome", outcome_text(outcome), step)

    def _take_back(self, outcome: Outcome) -> None:
        """Try again what the disk refused, and look for another best where a gate refused it."""
        request, error = outcome.request, outcome.error
        if self.settings.policy != "best" or self._best is None or outcome.served is not None:
            return
        if outcome.manifest is not None or isinstance(error, HeldBack):
            if request.step == self._best["step"]:
                self._proven = self._best
        elif isinstance(error, PublishRefused):
            if request.step == self._best["step"]:
                self._best = self._proven
        elif isinstance(error, RepositoryError):
            self._candidate = self._candidate or request

    def _say_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._console.say(text)

    def _report(self, outcome: Outcome) -> None:
        """Tell what became of a request; on the worker's thread."""
        self._outcomes.put(outcome)
        manifest, error = outcome.manifest, outcome.error
        again = isinstance(error, HeldBack) and bool(self.held_back)
        good = error is None if outcome.served is None else outcome.served.passed is not False
        tell = self._console.say if good else self._console.warn
        try:
            if isinstance(error, HeldBack):
                self.held_back.append(outcome.request.step)
                self._held_back_steps.add(outcome.request.step)
                self._run.append("held_back", _held_back(outcome.request, error))
            elif manifest is None:
                self._failure = error
                self._run.append("refused", _refusal(outcome))
            elif outcome.served is not None:
                self._run.append("served", {"version": manifest.version} | asdict(outcome.served))
            else:
                self.published.append(manifest.version)
                self._steps.add(manifest.step)
                entry = manifest.to_json()
                kept = {key: entry[key] for key in _RECORDED}
                self._run.append("published", kept | {"repository": str(self.repository.root)})
            tell(outcome_text(outcome, again=again))
        except UnitrainError as trouble:  # a full disk: the training goes on, and says so
            self._console.warn(str(trouble))

    def _raise_if_strict(self) -> None:
        if self.settings.fail_on_error and self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure


def _refusal(outcome: Outcome) -> dict[str, Any]:
    request, error = outcome.request, outcome.error or RuntimeError("no reason was given")
    return {"step": request.step, "epoch": request.epoch, "gate": gate_of(error), "reason": str(error)}


def _held_back(request: Request, error: HeldBack) -> dict[str, Any]:
    return {
        "step": request.step,
        "epoch": request.epoch,
        "metric": asdict(request.metric) if request.metric else None,
        "version": error.comparison.version,
        "value": error.comparison.value,
        "reason": str(error),
    }


def _definition(module: LightningModule, metric: str) -> str:
    """The class that computes a metric, by its import path.

    It is the torchmetrics class of a UnitrainModule's own metrics; else the class that defines the module's loss
    or its validation step. Options of that class are not seen.
    """
    hook = "validation_step"
    if isinstance(module, UnitrainModule):
        hook = "loss"
        for name, computed in (module._metrics_of("val", 0) or {}).items():  # noqa: SLF001 - our own class
            if metric.partition("/dataloader_idx_")[0] == name:
                return _import_path(type(computed))
    return _import_path(next(c for c in type(module).__mro__ if hook in vars(c)))


def _import_path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def state_digest(request: Request) -> str | None:
    """Hash of the state outside the weights that forward reads, to compare with that of a later process."""
    return None if request.state is None else request.state.digest
