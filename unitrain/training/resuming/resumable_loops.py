"""Lightning's training loops, able to write checkpoints between two batches or epochs and to resume from them.

A checkpoint that a callback writes is incomplete: later callbacks, the module's own hooks, logging, a validation,
and schedulers that follow a metric run after it, and a resumed run misses them or repeats them. Between two
batches nothing is pending. `loop_state` adds the state that Lightning's checkpoints lack.
"""

# ruff: noqa: SLF001, FBT003 - much of Lightning's loops has no public name

import copy
from collections.abc import Callable
from typing import Any, Literal

from lightning_fabric.utilities.data import _set_sampler_epoch
from pytorch_lightning import Trainer
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.loops.evaluation_loop import _EvaluationLoop
from pytorch_lightning.loops.fetchers import _DataFetcher
from pytorch_lightning.loops.fit_loop import _FitLoop
from pytorch_lightning.loops.loop import _Loop
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.trainer import call
from pytorch_lightning.trainer.states import RunningStage, TrainerFn
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch.optim import Optimizer

from unitrain.loaders import ResumableLoader
from unitrain.training.callbacks.step_seeding import EPOCH, REQUEST, SANITY, TRAIN, VALIDATE, StepSeeder
from unitrain.training.resuming.loop_state import capture_state, restore_results, restore_state
from unitrain.training.resuming.replayed_loaders import ReplayedLoader, replay_loaders

KEY = "unitrain"
"""Key of unitrain's entry in the state of Lightning's fit loop."""

Boundary = Literal["batch", "epoch"]
"""Position of a checkpoint: between two batches, or between two epochs."""


def install_loops(trainer: Trainer, seed: int | None, *, stops_again: bool) -> "ResumableFitLoop":
    """Replace a trainer's loops by loops that resume exactly.

    Args:
        trainer: trainer before its `fit`.
        seed: seed of all random draws; None if nothing is seeded.
        stops_again: a run that was about to stop when it was interrupted stops after it is resumed.
    """
    seeder = StepSeeder(seed)
    replay_loaders(trainer, seeder)
    old = trainer.fit_loop
    loop = ResumableFitLoop(trainer, old.min_epochs, old.max_epochs, seeder, stops_again=stops_again)
    loop.epoch_loop = ResumableEpochLoop(trainer, old.epoch_loop.min_steps, old.epoch_loop.max_steps, seeder)
    trainer.fit_loop = loop
    return loop


class ResumableFitLoop(_FitLoop):
    """Loop over epochs that can write a checkpoint between two epochs.

    Attributes:
        on_boundary: function called between two batches or epochs with the kind of boundary, and True after a validation.
        seeder: seeder of each step.
        resumed: state from the checkpoint until the first epoch has ended; None in a new run.
    """

    def __init__(
        self,
        trainer: Trainer,
        min_epochs: int | None,
        max_epochs: int | None,
        seeder: StepSeeder,
        *,
        stops_again: bool,
    ) -> None:
        super().__init__(trainer, min_epochs, max_epochs)
        self.seeder = seeder
        self.on_boundary: Callable[[Boundary, bool], None] = lambda _kind, _validated: None
        self.resumed: dict[str, Any] | None = None
        self._stops_again = stops_again
        self._boundary: Boundary | None = None
        self._position_set_late = False

    def save(self, path: Any, boundary: Boundary) -> None:
        """Write a checkpoint from which a run resumes exactly, after the loggers have written their values."""
        for logger in self.trainer.loggers:
            logger.save()
        self._boundary = boundary
        try:
            self.trainer.save_checkpoint(path)
        finally:
            self._boundary = None

    def run(self) -> None:
        self.seeder.epoch_key = (TRAIN, self._epochs_processed)
        if self.resumed is None:
            super().run()
            return
        # Lightning would restart within a batch or a validation; its fit loop's setter may do so.
        _Loop.restarting.fset(self, False)  # type: ignore[attr-defined]
        for loop in (self, self.epoch_loop, self.epoch_loop.val_loop):
            loop._loaded_from_state_dict = loop._resuming_from_checkpoint = False
        self.setup_data()
        self._load_loaders()
        restore_state(self.trainer, self.trainer.lightning_module, self.resumed)
        self._last_train_dl_reload_epoch = self.resumed["train_dataloader_epoch"]
        self.epoch_loop.val_loop._last_val_dl_reload_epoch = self.resumed["val_dataloader_epoch"]
        if self.resumed["should_stop"] and self._stops_again:
            self.trainer.should_stop = True
        if self.max_batches == 0 or self.trainer.limit_train_batches == 0:
            return
        self.reset()
        self.on_run_start()
        while not self.done:
            try:
                self._run_epoch()
            except StopIteration:
                break
        self._restarting = False
        self.on_run_end()

    def _run_epoch(self) -> None:
        try:
            self.on_advance_start()
            self.advance()
            self.on_advance_end()
        finally:
            self.resumed = None
            self.on_iteration_done()

    @property
    def _epochs_processed(self) -> int:
        current: Any = self.epoch_progress.current
        return int(current.processed)

    @property
    def mid_epoch(self) -> bool:
        """True if the next epoch had begun before the run was resumed."""
        return self.resumed is not None and self.resumed["boundary"] != "epoch"

    def setup_data(self) -> None:
        if self._combined_loader is not None and not self._should_reload_train_dl:
            return
        step = self.seeder.step_key
        self.seeder.loader_count = 0
        self.seeder.seed_step(REQUEST, 0)  # code that creates loaders draws the same in a resumed run
        super().setup_data()
        self.seeder.seed_step(*step)

    def on_run_start(self) -> None:
        self.seeder.track_generators(self.trainer, self.trainer.lightning_module)
        if self.seeder.generators is not None and self.resumed is not None:
            self.seeder.generators.salt = self.resumed["salt"]
        self.seeder.seed_step(EPOCH, self._epochs_processed, 0)
        super().on_run_start()

    def on_advance_start(self) -> None:
        epoch = self._epochs_processed
        self.seeder.epoch_key = (TRAIN, epoch)
        self.seeder.seed_step(EPOCH, epoch, 1)
        if not self.mid_epoch:
            super().on_advance_start()
            return
        for loader in self._loaders():
            _set_sampler_epoch(loader, epoch)
        self._repeat_epoch_start()

    def on_advance_end(self) -> None:
        super().on_advance_end()
        self.on_boundary("epoch", False)

    def load_state_dict(self, state_dict: dict[str, Any], prefix: str = "") -> None:
        super().load_state_dict(state_dict, prefix)
        self.resumed = state_dict.get("state_dict", {}).get(KEY)

    def on_save_checkpoint(self) -> dict[str, Any]:
        ahead = len(getattr(self._data_fetcher, "batches", ()))
        for loader in self._loaders():
            if isinstance(loader, ReplayedLoader | ResumableLoader):
                loader.ahead = ahead
        state: dict[str, Any] = super().on_save_checkpoint()
        if self._boundary is not None:
            module = self.trainer.lightning_module
            salt = self.seeder.generators.salt if self.seeder.generators is not None else 0
            cut = self._boundary == "epoch" and not self.epoch_loop._num_ready_batches_reached()
            state[KEY] = {"boundary": self._boundary, "salt": salt, "cut_short": cut} | capture_state(
                self.trainer, module, mid_epoch=self._boundary != "epoch"
            )
        return state

    def _load_loaders(self) -> None:
        states, self._combined_loader_states_to_load = self._combined_loader_states_to_load, []
        loader = self._combined_loader
        for each in self._loaders():
            if isinstance(each, ReplayedLoader):
                each.restart_epoch()
        if states and loader is not None and (self.mid_epoch or not self._only_replayed()):
            loader._load_state_dicts(states)
            self._position_set_late = True

    def _only_replayed(self) -> bool:
        return all(isinstance(loader, ReplayedLoader | ResumableLoader) for loader in self._loaders())

    def _loaders(self) -> list[Any]:
        return [] if self._combined_loader is None else list(self._combined_loader.flattened)

    def begin_iteration(self, data_fetcher: _DataFetcher) -> None:
        """Restart the loaders' iteration if their position was set after it had begun."""
        if self._position_set_late and self.mid_epoch:
            iter(data_fetcher)

    def _repeat_epoch_start(self) -> None:
        """Call the hooks of the epoch's start again, for state that they set and that no checkpoint holds.

        State that checkpoints hold is restored afterwards, and nothing is logged.
        """
        trainer, module = self.trainer, self.trainer.lightning_module
        weights = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        states = copy.deepcopy(call._call_callbacks_state_dict(trainer))
        optimizers = [_snapshot(optimizer) for optimizer in trainer.optimizers]
        loggers, trainer.loggers = trainer.loggers, [DummyLogger() for _ in trainer.loggers]
        try:
            call._call_callback_hooks(trainer, "on_train_epoch_start")
            call._call_lightning_module_hook(trainer, "on_train_epoch_start")
        finally:
            trainer.loggers = loggers
        module.load_state_dict(weights, strict=False)
        for restore in optimizers:
            restore()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if callback.state_key in states and is_overridden("on_train_epoch_start", callback):
                callback.load_state_dict(states[callback.state_key])
        if self.resumed is not None:
            restore_state(trainer, module, self.resumed)


def _snapshot(optimizer: Optimizer) -> Callable[[], None]:
    """Copy an optimizer's options and state, and return a function that restores them."""
    groups = [
        {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    groups = copy.deepcopy(groups)
    state = {
        parameter: {key: copy.deepcopy(value) for key, value in values.items()}
        for parameter, values in optimizer.state.items()
    }

    def restore() -> None:
        del optimizer.param_groups[len(groups) :]
        for group, options in zip(optimizer.param_groups, groups, strict=False):
            group.update(options)
        for parameter, values in state.items():
            optimizer.state[parameter] = values

    return restore


class ResumableEpochLoop(_TrainingEpochLoop):
    """Loop over the batches of an epoch that can write a checkpoint between two batches."""

    def __init__(self, trainer: Trainer, min_steps: int | None, max_steps: int, seeder: StepSeeder) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self.seeder = seeder
        self.val_loop = ResumableValidationLoop(trainer, seeder)

    @property
    def _fit(self) -> ResumableFitLoop:
        loop: Any = self.trainer.fit_loop
        return loop  # type: ignore[no-any-return]

    @property
    def _validation_runs(self) -> int:
        loop: Any = self.val_loop
        return int(loop.runs)

    def reset(self) -> None:
        if self._fit.mid_epoch:
            self.batch_progress.reset_on_restart()
            self.scheduler_progress.reset_on_restart()
            self.automatic_optimization.optim_progress.reset_on_restart()
        else:
            super().reset()

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        fit = self._fit
        if not fit.mid_epoch:
            super().on_run_start(data_fetcher)
            return
        fit.begin_iteration(data_fetcher)
        data_fetcher.fetched += self.batch_progress.current.ready
        data_fetcher._start_profiler = self._on_before_fetch
        data_fetcher._stop_profiler = self._on_after_fetch
        if fit.resumed is not None:
            restore_results(self.trainer, self.trainer.lightning_module, fit.resumed["results"])
            if self.batch_progress.current.ready:
                self.trainer._logger_connector._first_loop_iter = False

    def advance(self, data_fetcher: _DataFetcher) -> None:
        # Before the batch is fetched, and before hooks that change it while it is moved to the device.
        self.seeder.seed_step(TRAIN, self.trainer.current_epoch, self.batch_idx + 1)
        super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        before = self._validation_runs
        super().on_advance_end(data_fetcher)
        self.seeder.epoch_key = (TRAIN, self._fit._epochs_processed)
        # At an epoch's end the fit loop writes. Values logged within an accumulated step have that step's number.
        if not self.done and not self._should_accumulate():
            self._fit.on_boundary("batch", self._validation_runs > before)


class ResumableValidationLoop(_EvaluationLoop):
    """Validation loop of a training, with loaders seeded by epoch and step."""

    def __init__(self, trainer: Trainer, seeder: StepSeeder) -> None:
        super().__init__(
            trainer, TrainerFn.FITTING, RunningStage.VALIDATING, verbose=False, inference_mode=False
        )
        self.seeder = seeder
        self.runs = 0

    def run(self) -> Any:
        trainer = self.trainer
        kind = SANITY if trainer.sanity_checking else VALIDATE
        self.seeder.epoch_key = (kind, trainer.current_epoch, trainer.global_step)
        self.seeder.seed_step(*self.seeder.epoch_key)
        self.runs += not trainer.sanity_checking
        return super().run()

    def setup_data(self) -> None:
        self.seeder.loader_count = 0
        super().setup_data()
