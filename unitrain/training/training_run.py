"""`fit`: settings in, a run folder and published versions out."""

import contextlib
import signal
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import EarlyStopping, Timer
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.io import CheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException

from unitrain.atomic_files import full_disk, write_text
from unitrain.class_paths import project_root
from unitrain.errors import RunError, SettingsError, UnitrainError, UsageError
from unitrain.repository import check_model_name
from unitrain.runs import RunFolder, check_experiment, find_run
from unitrain.training.callbacks.base import RunContext
from unitrain.training.callbacks.defaults import default_callbacks
from unitrain.training.callbacks.ema import EMA
from unitrain.training.callbacks.publishing import Publishing
from unitrain.training.callbacks.run_record import RunRecord, UnloggedMetricError
from unitrain.training.callbacks.step_seeding import ValidationSeeding
from unitrain.training.callbacks.termination import SignalStop
from unitrain.training.checkpoint import DurableCheckpointIO, existing_checkpoint, load_matching_weights
from unitrain.training.console import Console, process_rank, silence_lightning
from unitrain.training.loggers import check_trainer, loggers_of, profiler_into, say_profile
from unitrain.training.parsing.settings_errors import explained, own_error
from unitrain.training.parsing.settings_file import config_word, with_class_flags
from unitrain.training.parsing.settings_parser import SettingsCLI, absolute, check_classes, known_settings
from unitrain.training.provenance import NullRunFolder, begin_run, lineage_of
from unitrain.training.resuming.resumable_loops import install_loops
from unitrain.training.resuming.resume_point import ResumePoint, continue_run


@dataclass(frozen=True)
class RunResult:
    """How a training ended.

    Attributes:
        run_dir: the run's folder; removed where a signal stopped a new run before its first step.
        status: finished, stopped (early, by its own rule), interrupted or failed.
        reason: in words.
        metrics: the last values of everything logged.
        best: the monitored metric's best `value`, with its `step` and `epoch`; None if it was never measured.
        best_checkpoint: None if there is none; likewise `last_checkpoint`.
        published: the versions published, in order.
        held_back: steps that were not published, since `publish.policy: best` found a version at least as good.
        exit_code: what the command line's process ends with.

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


class Fit:
    """One training, from its settings to its end.

    Args:
        path: the settings file; None where the settings came from Python.
        raw: its content.
        argv: further settings, as flags.
        resume_point: where a run that was interrupted goes on.
        start_from: another run, and which of its weights ("ema" or "raw") to begin with.
        over: further settings files that `raw` was merged from, for the run's record.
        callbacks: further ones, beside the settings' own.
    """

    def __init__(
        self,
        path: Path | None,
        raw: dict[str, Any],
        argv: Sequence[str],
        *,
        quiet: bool,
        resume_point: ResumePoint | None = None,
        start_from: tuple[str, str] | None = None,
        over: Sequence[Path] = (),
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.path = path
        pairs = absolute(argv)
        self.raw = with_class_flags(raw, pairs)
        self.argv = [word for pair in pairs for word in pair]
        self.resume_point = resume_point
        self.start_from = start_from
        self.over = over
        self.callbacks = callbacks
        self.root = (
            resume_point.root
            if resume_point
            else project_root(path.absolute().parent if path else Path.cwd())
        )
        self.console = Console(quiet=quiet or process_rank() > 0)
        self._run: RunFolder | None = None
        self.record: RunRecord | None = None
        self.publishing: Publishing | None = None

    def run(self) -> RunResult:
        """Train, and tell how it ended.

        Raises:
            UnitrainError: as `fit` says.
        """
        cli = self._parse()
        self.console.say(f"run {self.folder.path}")
        exit_code = 0
        main_thread = threading.current_thread() is threading.main_thread()
        on_interrupt = signal.getsignal(signal.SIGINT) if main_thread else None
        try:
            with warnings.catch_warnings(), self._writers_reported():
                silence_lightning()
                checkpoint = str(self.resume_point.checkpoint) if self.resume_point else None
                cli.trainer.fit(
                    cli.model,
                    datamodule=cli.datamodule,
                    ckpt_path=checkpoint,
                    weights_only=True if checkpoint else None,
                )
            status, reason = _why_ended(cli.trainer)
        except SignalStop as stop:
            status, reason, exit_code = "interrupted", signal.Signals(stop.number).name, 128 + stop.number
        except SIGTERMException:
            status, reason, exit_code = "interrupted", "SIGTERM", 128 + signal.SIGTERM
        except UsageError as error:
            self._refuse(cli.trainer, error)
            raise
        except MisconfigurationException as error:
            self._refuse(cli.trainer, error)
            raise SettingsError(" ".join(str(error).split())) from error
        except UnitrainError as error:
            self._close("failed", str(error))
            raise
        except BaseException as error:
            # Before the first epoch signals are Python's own; Lightning makes an exit of it.
            cause = error.__context__ if isinstance(error, SystemExit) else error
            if not isinstance(cause, KeyboardInterrupt):
                self._fail(error)
                raise
            number = getattr(cause, "number", signal.SIGINT)
            status, reason, exit_code = "interrupted", signal.Signals(number).name, 128 + number
        finally:
            if on_interrupt is not None:
                signal.signal(signal.SIGINT, on_interrupt)  # Lightning leaves it ignored
        self._end(cli.trainer, status, reason)
        return self._result(status, reason, exit_code)

    def _end(self, trainer: Trainer, status: str, reason: str) -> None:
        """Close the run and report how it ended; a run that was stopped before its first step is removed."""
        if status == "interrupted" and self._is_empty(trainer):
            self._remove(trainer)
            self.console.say(f"stopped by {reason} before the first step: no run folder is left")
            return
        self._close(status, reason)
        say_profile(trainer.profiler, self.console)  # type: ignore[attr-defined]
        self.console.say(f"{status}: {reason}; {self.folder.path}")
        closing_line = self.publishing.summary() if self.publishing and not process_rank() else None
        if closing_line is not None:
            self.console.say(closing_line)

    @property
    def folder(self) -> RunFolder:
        """The run's folder, which is made together with the trainer."""
        if self._run is None:
            raise RuntimeError("the run has no folder before its settings are parsed")
        return self._run

    def _parse(self) -> SettingsCLI:
        check_classes(self.raw, self.argv, self.root)
        config = config_word(self.path, self.raw)
        try:
            with warnings.catch_warnings():
                silence_lightning()
                return SettingsCLI(["--config", config, *self.argv], self.raw, self._make_trainer)
        except UnitrainError:
            self._discard()
            raise
        except KeyboardInterrupt:
            self._discard()
            raise
        except Exception as error:
            self._discard()
            wrong = (ArgumentError, MisconfigurationException, TypeError, ValueError)
            if isinstance(error, wrong) or own_error(error):
                raise explained(error, known_settings()) from error
            raise

    def _checkpoint_to_start_from(self, experiments_dir: Path) -> Path | None:
        if self.start_from is None:
            return None
        found = find_run(self.start_from[0], experiments_dir)
        path = existing_checkpoint(found, "best", "last")
        if path is None:
            raise SettingsError(f"--init-from: {found} has no checkpoint")
        return path

    def _make_trainer(self, cli: SettingsCLI, arguments: dict[str, Any]) -> Trainer:
        check_trainer(arguments)
        default = self.path.absolute().parent.name if self.path else "experiment"
        experiment = check_experiment(cli.config.experiment or default)
        publish = cli.section("publish")
        try:
            model_name = check_model_name(publish.model or experiment) if publish else ""
        except UsageError as error:
            raise SettingsError(f"publish.model: {error}") from error
        resolved = cli.resolved()
        experiments_dir = self.root / cli.config.experiments_dir
        start = self._checkpoint_to_start_from(
            experiments_dir
        )  # before there is a run that `last` could mean
        run: RunFolder
        if process_rank():
            run = NullRunFolder(experiments_dir, experiment)
        elif self.resume_point:
            run = continue_run(self.resume_point, resolved, self.argv, self.console)
        else:
            run = begin_run(
                experiments_dir,
                experiment,
                resolved,
                root=self.root,
                seed=cli.config.seed_everything,
                config=self.path,
                argv=[*(word for path in self.over for word in ("--config", str(path))), *self.argv],
            )
        self._run = run
        if start is not None and self.start_from:
            load_matching_weights(cli.model, start, self.start_from[1], self.console)
            run.update(init_from={"checkpoint": str(start), "weights": self.start_from[1]})
        theirs = arguments.pop("callbacks", None) or []
        theirs = [*(theirs if isinstance(theirs, Sequence) else [theirs]), *self.callbacks]
        context = RunContext(
            run=run,
            root=self.root,
            lineage=lineage_of(run, resolved),
            monitor=cli.section("monitor"),
            ema=EMA(**vars(cli.section("ema"))) if cli.section("ema") else None,
            console=self.console,
        )
        stack = default_callbacks(context, cli.section, arguments, theirs, model_name=model_name)
        self.record, self.publishing = stack.record, stack.publishing
        arguments["callbacks"] = stack.callbacks
        logged = self.resume_point.logged_step if self.resume_point else None
        arguments["logger"] = loggers_of(arguments.get("logger"), run.path, self.console, logged)
        arguments["profiler"] = profiler_into(arguments.get("profiler"), run.path)
        plugins = arguments.get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, Sequence) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(DurableCheckpointIO(self.console))
        arguments["plugins"] = plugins
        arguments["default_root_dir"] = arguments.get("default_root_dir") or run.path
        arguments["enable_model_summary"] = bool(arguments.get("enable_model_summary"))
        trainer = Trainer(**arguments)
        seed = int(cli.config.seed_everything) if cli.config.step_seeding else None
        loop = install_loops(
            trainer, seed, stops_again=not (self.resume_point and self.resume_point.finished)
        )
        trainer.callbacks.insert(0, ValidationSeeding(loop.seeder))  # type: ignore[attr-defined]
        return trainer

    @contextlib.contextmanager
    def _writers_reported(self) -> Iterator[None]:
        """A full disk in a thread of TensorBoard's is one warning rather than a traceback."""
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

    def _refuse(self, trainer: Trainer, error: Exception) -> None:
        """Leave nothing of a training that never began, or that can't know its best; keep what else one left."""
        nothing_published = self.publishing is None or not self.publishing.published
        useless = isinstance(error, UnloggedMetricError) and nothing_published
        if (trainer.global_step == 0 or useless) and not self.resume_point:
            self._remove(trainer)
        else:
            self._close("failed", str(error))

    def _is_empty(self, trainer: Trainer) -> bool:
        """Whether there is nothing in the run's folder that could be resumed or looked at."""
        return (
            trainer.global_step == 0
            and not self.resume_point
            and not any(self.folder.checkpoints_dir.glob("*"))
        )

    def _remove(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                with contextlib.suppress(OSError):  # a full disk
                    logger.experiment.close()
        self._discard()

    def _discard(self) -> None:
        if self._run is not None:
            self._run.discard()

    def _fail(self, error: BaseException) -> None:
        """Record an unexpected error.

        Raises:
            RunError: a full disk was behind it.
        """
        full = full_disk(error)
        if full is not None:
            sentence = f"{self.folder.path}: the disk is full: {full}"
            self._close("failed", sentence)
            raise RunError(f"{sentence}; free some space, then resume the run") from error
        text = "".join(traceback.format_exception(error))
        try:
            write_text(self.folder.path / "traceback.txt", text)
        except OSError as trouble:
            self.console.warn(f"the traceback could not be written: {trouble.strerror}")
        else:
            self.console.warn(f"the traceback is in {self.folder.path / 'traceback.txt'}")
        self._close("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")

    def _close(self, status: str, reason: str) -> None:
        try:
            self.folder.close(status, reason)
        except RunError as error:
            self.console.warn(str(error))

    def _result(self, status: str, reason: str, exit_code: int) -> RunResult:
        folder = self.folder
        return RunResult(
            run_dir=folder.path,
            status=status,
            reason=reason,
            metrics=self.record.metrics if self.record else {},
            best=self.record.best if self.record else None,
            best_checkpoint=existing_checkpoint(folder.path, "best"),
            last_checkpoint=existing_checkpoint(folder.path, "last"),
            published=self.publishing.published if self.publishing else [],
            held_back=self.publishing.held_back if self.publishing else [],
            exit_code=exit_code,
        )


def _why_ended(trainer: Trainer) -> tuple[str, str]:
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
    return "stopped", "a callback asked for it (trainer.should_stop)"
