"""Publish the model while it trains: the training thread copies weights, a worker thread does the rest."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch.utils.hooks import RemovableHandle

from unitrain.errors import PublishRefused, RepositoryError, SettingsError, UsageError
from unitrain.module import UnitrainModule, passed_inputs
from unitrain.publish import HeldBack, Outcome, Publisher, Request, Worker
from unitrain.repository import Repository
from unitrain.repository.manifest import Metric
from unitrain.settings import Publish
from unitrain.training.callbacks.base import EveryNValidations, RunContext, has_validation, logged_step
from unitrain.training.callbacks.publish_log import PublishLog
from unitrain.training.callbacks.run_record import improves
from unitrain.training.checkpoint import checkpoint_path, read_checkpoint
from unitrain.training.data_fingerprint import DataFingerprint
from unitrain.training.sample_batches import first_batch, sample_inputs

STATE_KEY = "Publishing"
"""Key of this callback's state in checkpoints."""


class Publishing(EveryNValidations):
    """Publish every n validations and at the end, from the main process of a training.

    With `policy: best` the weights are copied at each validation that improves the monitored metric, and the
    best ones so far are published when publishing is due. Without validation data or without that metric,
    the current weights are published.

    Errors that can be found before the first epoch end the training. Later failures are reported, and the
    training continues, unless `publish.fail_on_error` is set.

    Args:
        settings: section `publish` of the settings.
        context: run folder, lineage, monitored metric, EMA and console.
        model: name of the served model.
        fingerprint: callback that hashes the validation data.
    """

    def __init__(
        self,
        settings: Publish,
        context: RunContext,
        *,
        model: str,
        fingerprint: DataFingerprint,
    ) -> None:
        super().__init__(settings.every_n_validations)
        self.settings = settings
        self.model = model
        self.repository = Repository(context.root / settings.repository)
        self._run = context.run
        self._lineage = context.lineage
        self._monitor = context.monitor
        self._fingerprint = fingerprint
        self._ema = context.ema
        self._console = context.console
        self._log = PublishLog(context.run, self.repository.root, context.console)
        self._publisher: Publisher | None = None
        self._worker: Worker | None = None
        self._prepared = False
        self._forward_checked = False
        self._forward_hook: RemovableHandle | None = None
        self._best: dict[str, Any] | None = None
        self._captured: dict[str, Any] | None = None  # kept in checkpoints, for `export` and `validate`
        self._candidate: Request | None = None  # best weights that were not yet given to the worker
        self._accepted: dict[str, Any] | None = None  # best weights that no gate has refused
        self._metric_definition: str | None = None
        self._printed: set[str] = set()

    @property
    def state_key(self) -> str:
        return STATE_KEY

    @property
    def published(self) -> list[int]:
        """Versions published by this process, in order."""
        return self._log.published

    @property
    def held_back(self) -> list[int]:
        """Steps that would have replaced a version at least as good, in order."""
        return self._log.held_back

    def summary(self) -> str | None:
        """Return a final line if the run published nothing because everything was held back; None otherwise."""
        return self._log.summary()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._prepare_once(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._prepare_once(trainer, pl_module)
        if self._worker is not None and self._best is not None:
            self._recover_candidate(trainer, pl_module, self._best)

    def _prepare_once(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare after the module's `on_fit_start`, which may set attributes that forward needs."""
        if self._prepared:
            return
        self._prepared = True
        refused: UsageError | None = None
        if trainer.is_global_zero:
            try:
                self._prepare(trainer, pl_module)
            except UsageError as error:
                refused = error
        # The other processes of a distributed training must not wait for one that has stopped.
        reason = trainer.strategy.broadcast(None if refused is None else str(refused))
        if reason is not None:
            raise refused or SettingsError(reason)

    def _prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the graph, compare it with the repository, and start the worker."""
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
            "later versions swap weights"
            if publisher.template.swappable
            else "each version is exported again"
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
        self._worker = Worker(publisher, self._log.record)

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the worker the best weights so far, or the current ones, depending on the policy."""
        is_trial = trainer.fast_dev_run  # type: ignore[attr-defined]
        if self._worker is None or is_trial:
            return
        self._raise_if_strict()
        if self._publishes_best(trainer):
            request, self._candidate = self._candidate, None
        elif trainer.global_step in self._log.published_steps:
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

    def _publishes_best(self, trainer: Trainer) -> bool:
        """Return True if the best weights are published rather than the current ones; print once why not."""
        if self.settings.policy != "best":
            return False
        if not has_validation(trainer):
            self._print_once(
                "publish.policy best: there are no validation data, so the current weights are published"
            )
        elif self._best is None and self._validated_metric(trainer) is None:
            self._print_once(
                f"publish.policy best: no validation has measured {self._monitor.metric}, so the current weights are "
                "published"
            )
        elif self._best is None:
            self._print_once(
                f"publish.policy best: no validation has given a finite {self._monitor.metric}, so nothing is published"
            )
            return True
        return self._best is not None

    def _copy_if_best(self, trainer: Trainer, pl_module: LightningModule) -> None:
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
        self._candidate = None if self._log.is_settled(request.step) else request

    def _request(self, trainer: Trainer, pl_module: LightningModule) -> Request:
        metric = self._validated_metric(trainer)
        if metric is not None:
            self._metric_definition = self._metric_definition or _metric_definition(pl_module, metric.name)
            metric = replace(metric, definition=self._metric_definition)
        self._log.set_logged_step(trainer.global_step, logged_step(trainer))
        request = self._capture(trainer, pl_module)
        self._captured = {"step": request.step, "state": state_digest(request)}
        return replace(request, metric=metric)

    def _validated_metric(self, trainer: Trainer) -> Metric | None:
        value = trainer.callback_metrics.get(self._monitor.metric)
        return None if value is None else Metric(self._monitor.metric, float(value), self._monitor.mode)

    def _capture(self, trainer: Trainer, pl_module: LightningModule) -> Request:
        """Copy the parts of the module, as it is now, that a version needs."""
        if self._publisher is None:
            raise RuntimeError("nothing is captured before publishing is prepared")
        with contextlib.nullcontext() if self._ema is None else self._ema.applied():
            return self._publisher.capture(
                pl_module,
                kind="raw" if self._ema is None else "ema",
                step=trainer.global_step,
                epoch=trainer.current_epoch,
                metric=self._validated_metric(trainer),
            )

    def _recover_candidate(
        self, trainer: Trainer, pl_module: LightningModule, best: Mapping[str, Any]
    ) -> None:
        """Read the best weights so far from best.ckpt, unless the interrupted process has published them.

        The module's state outside of its weights must be the same as at that step.
        """
        step = best["step"]
        if self.settings.policy != "best" or self._log.is_settled(step):
            return
        self._log.set_logged_step(step, max(0, step - 1))
        try:
            self._candidate = self._recovered(trainer, pl_module, best)
        except Exception as error:  # noqa: BLE001 - a damaged file must not end the training
            reason = " ".join(str(error).split())[:300]
            self._console.warn(
                f"the best weights so far, of step {step}, were not published before the interruption and are lost "
                f"for it: {reason}"
            )

    def _recovered(self, trainer: Trainer, pl_module: LightningModule, best: Mapping[str, Any]) -> Request:
        path = checkpoint_path(self._run, "best")
        content = read_checkpoint(path)
        if content["global_step"] != best["step"]:
            raise ValueError(f"{path.name} is of step {content['global_step']}")
        with self._weights_replaced(pl_module, content["state_dict"]):
            request = self._capture(trainer, pl_module)
        if state_digest(request) != best["state"]:
            raise ValueError("the module's state outside its weights has changed since")
        metric = Metric(*(best[key] for key in ("name", "value", "mode", "definition")))
        return replace(request, step=best["step"], epoch=int(content["epoch"]), metric=metric)

    @contextlib.contextmanager
    def _weights_replaced(self, pl_module: LightningModule, weights: Mapping[str, Any]) -> Iterator[None]:
        """Replace the served weights within a block: the averaged ones, or the module's without an average."""

        def load(values: Mapping[str, Any]) -> dict[str, Any]:
            with contextlib.nullcontext() if self._ema is None else self._ema.applied():
                before = {name: value.clone() for name, value in pl_module.state_dict().items()}
                try:
                    pl_module.load_state_dict(values)
                except BaseException:
                    pl_module.load_state_dict(before)  # some were copied already
                    raise
            return before

        before = load(weights)
        try:
            yield
        finally:
            load(before)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        """Check the first batch's calls of forward for inputs that are not served."""
        if self._forward_checked or self._publisher is None:
            return
        self._forward_checked = True
        served = self._publisher.template.served.names

        def check_inputs(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            handle.remove()
            unserved = [n for n in passed_inputs(pl_module, args, kwargs) if n not in served]
            if unserved:
                self._console.say(
                    f"{', '.join(unserved)}: given to forward in validation, and no input of what is served; set "
                    "example_input_array to serve them"
                )

        self._forward_hook = handle = pl_module.register_forward_pre_hook(check_inputs, with_kwargs=True)

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        if self._forward_hook is not None:  # the module was not called
            self._forward_hook.remove()
            self._forward_hook = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._worker is not None and not trainer.sanity_checking and self.settings.policy == "best":
            self._copy_if_best(trainer, pl_module)
        super().on_validation_end(trainer, pl_module)
        self._take_outcomes(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._worker is not None:
            self._worker.wait()
        self._take_outcomes(trainer)
        if self._candidate is not None:  # the disk may have refused the version of this very step
            self._acted_at = -1
        super().on_train_end(trainer, pl_module)
        self._stop_worker()
        self._take_outcomes(trainer)
        self._raise_if_strict()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop_worker()
        self._take_outcomes(trainer)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"best": self._best, "captured": self._captured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._captured = state_dict.get("captured")
        best = state_dict.get("best")
        if best and (best["name"], best["mode"]) == (self._monitor.metric, self._monitor.mode):
            self._best = self._accepted = best

    def _take_outcomes(self, trainer: Trainer) -> None:
        for outcome in self._log.flush(trainer.loggers):
            self._update_best(outcome)

    def _update_best(self, outcome: Outcome) -> None:
        """Retry a version that the disk refused; forget the best one if a gate refused it."""
        request, error = outcome.request, outcome.error
        if self.settings.policy != "best" or self._best is None or outcome.served is not None:
            return
        if outcome.manifest is not None or isinstance(error, HeldBack):
            if request.step == self._best["step"]:
                self._accepted = self._best
        elif isinstance(error, PublishRefused):
            if request.step == self._best["step"]:
                self._best = self._accepted
        elif isinstance(error, RepositoryError):
            self._candidate = self._candidate or request

    def _stop_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.finish()

    def _print_once(self, text: str) -> None:
        if text not in self._printed:
            self._printed.add(text)
            self._console.say(text)

    def _raise_if_strict(self) -> None:
        if self.settings.fail_on_error and self._log.failure is not None:
            failure, self._log.failure = self._log.failure, None
            raise failure


def _metric_definition(module: LightningModule, metric: str) -> str:
    """Return the import path of the class that computes a metric.

    It is the torchmetrics class of a UnitrainModule's own metrics, else the class that defines the module's loss
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
    """Return the hash of the state outside the weights that forward reads; None if it has none."""
    return None if request.state is None else request.state.digest
