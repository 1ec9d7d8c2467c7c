"""One training: settings in, a run folder and published versions out."""

import contextlib
import signal
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import EarlyStopping, Timer
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.plugins.io import CheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException

from unitrain.atomic_files import full_disk, write_text
from unitrain.errors import RunError, SettingsError, UnitrainError, UsageError
from unitrain.runs import RunFolder, find_run
from unitrain.training.callbacks.base import RunContext
from unitrain.training.callbacks.defaults import default_callbacks
from unitrain.training.callbacks.ema import EMA
from unitrain.training.callbacks.publishing import Publishing
from unitrain.training.callbacks.run_record import RunRecord, UnloggedMetricError
from unitrain.training.callbacks.step_seeding import ValidationSeeding
from unitrain.training.callbacks.termination import SignalStop
from unitrain.training.checkpoint import DurableCheckpointIO, existing_checkpoint, load_matching_weights
from unitrain.training.console import Console, process_rank, silence_lightning
from unitrain.training.loggers import loggers_of, profiler_into, say_profile
from unitrain.training.parsing.settings_file import RawSettings
from unitrain.training.parsing.settings_parser import ParsedSettings, load_settings
from unitrain.training.provenance import NullRunFolder, begin_run, lineage_of
from unitrain.training.resuming.resumable_loops import install_loops
from unitrain.training.resuming.resume_point import ResumePoint, continue_run


@dataclass(frozen=True)
class RunResult:
    """Result of a training.

    Attributes:
        run_dir: run folder; it is removed if a signal stopped a new run before its first step.
        status: finished, stopped (early stopping or a callback), interrupted or failed.
        reason: reason of the status as a sentence.
        metrics: last value of every logged metric.
        best: best `value` of the monitored metric, with its `step` and `epoch`; None if it was never measured.
        best_checkpoint: checkpoint with the best value; None if missing.
        last_checkpoint: newest checkpoint; None if missing.
        published: published versions, in order.
        held_back: steps that were not published, since `publish.policy: best` found a version at least as good.
        exit_code: exit code of the command line.

    Example:
        >>> result = fit(settings, {"trainer.max_epochs": 1, "publish": None}, quiet=True)
        >>> result.status, result.best_checkpoint.name, result.published
        ('finished', 'best.ckpt', [])
    """

    run_dir: Path
    status: str
    reason: str
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    best_checkpoint: Path | None = None
    last_checkpoint: Path | None = None
    published: list[int] = field(default_factory=list)
    held_back: list[int] = field(default_factory=list)
    exit_code: int = 0


@dataclass(frozen=True)
class _Training:
    """Parts of a training that is ready to start."""

    settings: ParsedSettings
    folder: RunFolder
    record: RunRecord
    publishing: Publishing | None
    trainer: Trainer


class TrainingRun:
    """One training: parse the settings, open the run's folder, create callbacks and Trainer, train, close the run.

    Args:
        settings: settings before parsing.
        quiet: print warnings only.
        resume_point: run and checkpoint to resume from; None starts a new run.
        start_from: run whose weights a new run starts with, and their kind: "ema" or "raw".
        callbacks: callbacks from Python, beside those of the settings.
    """

    def __init__(
        self,
        settings: RawSettings,
        *,
        quiet: bool,
        resume_point: ResumePoint | None = None,
        start_from: tuple[str, str] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.settings = settings
        self.resume_point = resume_point
        self.start_from = start_from
        self.callbacks = callbacks
        self.console = Console(quiet=quiet or process_rank() > 0)

    def run(self) -> RunResult:
        """Train, and return the result.

        Raises:
            UnitrainError: the same errors as `fit`.
        """
        with warnings.catch_warnings():
            silence_lightning()
            parsed = self._parse()
            # Before the new run exists, which would be `last`.
            start = self._checkpoint_to_start_from(parsed.experiments_dir)
            folder = self._open(parsed)
            try:
                training = self._prepare(parsed, folder, start)
            except BaseException:
                _discard(folder)
                raise
            self.console.say(f"run {folder.path}")
            return self._train(training)

    def _parse(self) -> ParsedSettings:
        point = self.resume_point
        parsed = load_settings(
            self.settings,
            root=point.root if point else None,
            experiment=RunFolder.open(point.run_dir).experiment if point else None,
        )
        parsed.check_training()
        return parsed

    def _checkpoint_to_start_from(self, experiments_dir: Path) -> Path | None:
        if self.start_from is None:
            return None
        found = find_run(self.start_from[0], experiments_dir)
        path = existing_checkpoint(found, "best", "last")
        if path is None:
            raise SettingsError(f"--init-from: {found} has no checkpoint")
        return path

    def _open(self, parsed: ParsedSettings) -> RunFolder:
        """Create the run's folder, or open that of the resumed run."""
        if process_rank():
            return NullRunFolder(parsed.experiments_dir, parsed.experiment)
        if self.resume_point:
            return continue_run(self.resume_point, parsed.resolved, parsed.flags, self.console)
        return begin_run(
            parsed.experiments_dir,
            parsed.experiment,
            parsed.resolved,
            root=parsed.root,
            seed=parsed.seed,
            config=self.settings.paths[0] if self.settings.paths else None,
            argv=self.settings.command,
        )

    def _prepare(self, parsed: ParsedSettings, folder: RunFolder, start: Path | None) -> _Training:
        """Create callbacks and Trainer."""
        if start is not None and self.start_from:
            load_matching_weights(parsed.model, start, self.start_from[1], self.console)
            folder.update(init_from={"checkpoint": str(start), "weights": self.start_from[1]})
        ema = parsed.section("ema")
        context = RunContext(
            run=folder,
            root=parsed.root,
            lineage=lineage_of(folder, parsed.resolved),
            monitor=parsed.section("monitor"),
            ema=EMA(**vars(ema)) if ema else None,
            console=self.console,
        )
        arguments = dict(parsed.trainer_args)
        users = [*parsed.callbacks, *self.callbacks]
        stack = default_callbacks(context, parsed.section, arguments, users, model_name=parsed.model_name)
        logged = self.resume_point.logged_step if self.resume_point else None
        plugins = arguments.get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, Sequence) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(DurableCheckpointIO(self.console))
        arguments |= {
            "callbacks": stack.callbacks,
            "logger": loggers_of(arguments.get("logger"), folder.path, self.console, logged),
            "profiler": profiler_into(arguments.get("profiler"), folder.path),
            "plugins": plugins,
            "default_root_dir": arguments.get("default_root_dir") or folder.path,
            "enable_model_summary": bool(arguments.get("enable_model_summary")),
        }
        trainer = parsed.make_trainer(**arguments)
        ended = self.resume_point is not None and self.resume_point.finished
        loop = install_loops(
            trainer, int(parsed.seed) if parsed.step_seeding else None, stops_again=not ended
        )
        trainer.callbacks.insert(0, ValidationSeeding(loop.seeder))  # type: ignore[attr-defined]
        return _Training(parsed, folder, stack.record, stack.publishing, trainer)

    def _train(self, training: _Training) -> RunResult:
        trainer, exit_code = training.trainer, 0
        main_thread = threading.current_thread() is threading.main_thread()
        on_interrupt = signal.getsignal(signal.SIGINT) if main_thread else None
        try:
            with self._writers_reported():
                checkpoint = str(self.resume_point.checkpoint) if self.resume_point else None
                trainer.fit(
                    training.settings.model,
                    datamodule=training.settings.datamodule,
                    ckpt_path=checkpoint,
                    weights_only=True if checkpoint else None,
                )
            status, reason = _end_reason(trainer)
        except SignalStop as stop:
            status, reason, exit_code = "interrupted", signal.Signals(stop.number).name, 128 + stop.number
        except SIGTERMException:
            status, reason, exit_code = "interrupted", "SIGTERM", 128 + signal.SIGTERM
        except UsageError as error:
            self._refuse(training, error)
            raise
        except MisconfigurationException as error:
            self._refuse(training, error)
            raise SettingsError(" ".join(str(error).split())) from error
        except UnitrainError as error:
            self._close(training.folder, "failed", str(error))
            raise
        except BaseException as error:
            # Before the first epoch the handlers of signals are Python's; Lightning turns the exception into an exit.
            cause = error.__context__ if isinstance(error, SystemExit) else error
            if not isinstance(cause, KeyboardInterrupt):
                self._fail(training.folder, error)
                raise
            number = getattr(cause, "number", signal.SIGINT)
            status, reason, exit_code = "interrupted", signal.Signals(number).name, 128 + number
        finally:
            if on_interrupt is not None:
                signal.signal(signal.SIGINT, on_interrupt)  # Lightning leaves it ignored
        self._end(training, status, reason)
        return _result(training, status, reason, exit_code)

    def _end(self, training: _Training, status: str, reason: str) -> None:
        """Close the run and print how it ended; remove a run that was stopped before its first step."""
        if status == "interrupted" and self._is_empty(training):
            _discard(training.folder, training.trainer.loggers)
            self.console.say(f"stopped by {reason} before the first step: no run folder is left")
            return
        self._close(training.folder, status, reason)
        say_profile(training.trainer.profiler, self.console)  # type: ignore[attr-defined]
        self.console.say(f"{status}: {reason}; {training.folder.path}")
        closing_line = training.publishing.summary() if training.publishing and not process_rank() else None
        if closing_line is not None:
            self.console.say(closing_line)

    @contextlib.contextmanager
    def _writers_reported(self) -> Iterator[None]:
        """Turn a full disk in TensorBoard's writer thread into one warning instead of a traceback."""
        before, reported = threading.excepthook, False

        def hook(arguments: Any) -> None:
            nonlocal reported
            full = full_disk(arguments.exc_value)
            if full is None:
                before(arguments)
            elif not reported:
                reported = True
                self.console.warn(f"TensorBoard's events can't be written: {full}")

        threading.excepthook = hook
        try:
            yield
        finally:
            threading.excepthook = before

    def _refuse(self, training: _Training, error: Exception) -> None:
        """Remove a run that never began or can't know its best version; keep every other run."""
        nothing_published = training.publishing is None or not training.publishing.published
        useless = isinstance(error, UnloggedMetricError) and nothing_published
        if (training.trainer.global_step == 0 or useless) and not self.resume_point:
            _discard(training.folder, training.trainer.loggers)
        else:
            self._close(training.folder, "failed", str(error))

    def _is_empty(self, training: _Training) -> bool:
        """Return whether the run's folder has nothing to resume or to look at."""
        return (
            training.trainer.global_step == 0
            and not self.resume_point
            and not any(training.folder.checkpoints_dir.glob("*"))
        )

    def _fail(self, folder: RunFolder, error: BaseException) -> None:
        """Record an unexpected error.

        Raises:
            RunError: the disk is full.
        """
        full = full_disk(error)
        if full is not None:
            sentence = f"{folder.path}: the disk is full: {full}"
            self._close(folder, "failed", sentence)
            raise RunError(f"{sentence}; free some space, then resume the run") from error
        text = "".join(traceback.format_exception(error))
        try:
            write_text(folder.path / "traceback.txt", text)
        except OSError as trouble:
            self.console.warn(f"the traceback could not be written: {trouble.strerror}")
        else:
            self.console.warn(f"the traceback is in {folder.path / 'traceback.txt'}")
        self._close(folder, "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")

    def _close(self, folder: RunFolder, status: str, reason: str) -> None:
        try:
            folder.close(status, reason)
        except RunError as error:
            self.console.warn(str(error))


def _discard(folder: RunFolder, loggers: Sequence[Logger] = ()) -> None:
    """Close TensorBoard's event files, and remove the folder of a new run or unlock that of a resumed one."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            with contextlib.suppress(OSError):  # a full disk
                logger.experiment.close()
    folder.discard()


def _result(training: _Training, status: str, reason: str, exit_code: int) -> RunResult:
    path, publishing = training.folder.path, training.publishing
    return RunResult(
        run_dir=path,
        status=status,
        reason=reason,
        metrics=training.record.metrics,
        best=training.record.best,
        best_checkpoint=existing_checkpoint(path, "best"),
        last_checkpoint=existing_checkpoint(path, "last"),
        published=publishing.published if publishing else [],
        held_back=publishing.held_back if publishing else [],
        exit_code=exit_code,
    )


def _end_reason(trainer: Trainer) -> tuple[str, str]:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and trainer.should_stop and callback.stopping_reason_message:
            if callback.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED:
                return "stopped", f"{callback.monitor} no longer improved (early stopping)"
            message = callback.stopping_reason_message.removesuffix(" Signaling Trainer to stop.")
            return "stopped", f"early stopping: {message}"
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch:
        return "finished", f"all {trainer.max_epochs} epochs done"
    if 0 <= trainer.max_steps <= trainer.global_step:
        return "finished", f"all {trainer.max_steps} steps done"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and (callback.time_remaining() or 0) <= 0:
            return "finished", "trainer.max_time was reached"
    return "stopped", "a callback stopped it (trainer.should_stop)"
