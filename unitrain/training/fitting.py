"""`fit`: settings in, a run folder and published versions out."""

import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import EarlyStopping, Timer
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.io import CheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException

from unitrain.durable import write_text
from unitrain.errors import RunError, SettingsError, UnitrainError, UsageError
from unitrain.project import project_root
from unitrain.repository import check_model_name
from unitrain.runs import RunFolder, check_experiment, find_run
from unitrain.training.checkpoint import DurableCheckpointIO
from unitrain.training.complaints import explained, own_error
from unitrain.training.composition import compose
from unitrain.training.console import Console
from unitrain.training.endings import SignalStop
from unitrain.training.flags import absolute
from unitrain.training.loops import install_loops
from unitrain.training.opening import FollowersFolder, begin_run, continue_run, lineage_of
from unitrain.training.processes import process_rank
from unitrain.training.publishing import Publishing
from unitrain.training.record import RunRecord
from unitrain.training.result import RunResult, checkpoint_if_there
from unitrain.training.resuming import ResumePoint, take_weights
from unitrain.training.seeding import ValidationSeeding
from unitrain.training.settings_cli import SettingsCLI, check_classes, known_settings


class Fit:
    """One training, from its settings to its end.

    Args:
        path: the settings file; None where the settings came from Python.
        raw: its content.
        argv: further settings, as flags.
        resume_point: where a run that was interrupted goes on.
        start_from: another run, and which of its weights ("ema" or "raw") to begin with.
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
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.path = path
        self.raw = raw
        self.argv = [word for pair in absolute(argv) for word in pair]
        self.resume_point = resume_point
        self.start_from = start_from
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
            with warnings.catch_warnings():
                _silence_lightning()
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
            if not isinstance(
                error.__context__ if isinstance(error, SystemExit) else error, KeyboardInterrupt
            ):
                self._fail(error)
                raise
            status, reason, exit_code = "interrupted", "SIGINT", 128 + signal.SIGINT
        finally:
            if on_interrupt is not None:
                signal.signal(signal.SIGINT, on_interrupt)  # Lightning leaves it ignored
        self._close(status, reason)
        self.console.say(f"{status}: {reason}; {self.folder.path}")
        return self._result(status, reason, exit_code)

    @property
    def folder(self) -> RunFolder:
        """The run's folder, which is made together with the trainer."""
        if self._run is None:
            raise RuntimeError("the run has no folder before its settings are parsed")
        return self._run

    def _parse(self) -> SettingsCLI:
        check_classes(self.raw, self.argv, self.root)
        config = str(self.path) if self.path else yaml.safe_dump(self.raw)
        try:
            with warnings.catch_warnings():
                _silence_lightning()
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
        for name in ("best", "last"):
            path = found / "checkpoints" / f"{name}.ckpt"
            if path.is_file():
                return path
        raise SettingsError(f"--init-from: {found} has no checkpoint")

    def _make_trainer(self, cli: SettingsCLI, arguments: dict[str, Any]) -> Trainer:
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
            run = FollowersFolder(experiments_dir, experiment)
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
                argv=self.argv,
            )
        self._run = run
        if start is not None and self.start_from:
            take_weights(cli.model, start, self.start_from[1], self.console)
            run.update(init_from={"checkpoint": str(start), "weights": self.start_from[1]})
        theirs = arguments.pop("callbacks", None) or []
        theirs = [*(theirs if isinstance(theirs, Sequence) else [theirs]), *self.callbacks]
        stack = compose(
            cli.section,
            theirs,
            arguments,
            run=run,
            root=self.root,
            model_name=model_name,
            lineage=lineage_of(run, resolved),
            console=self.console,
        )
        self.record, self.publishing = stack.record, stack.publishing
        arguments["callbacks"] = stack.callbacks
        if arguments.get("logger") in (None, True):
            arguments["logger"] = TensorBoardLogger(
                run.path.parent,
                name="",
                version=run.name,
                default_hp_metric=False,  # the summaries tell what the run's settings came to
                # What the interrupted process logged after its checkpoint will be logged again.
                purge_step=self.resume_point.logged_step if self.resume_point else None,
            )
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
        trainer.callbacks.insert(0, ValidationSeeding(loop.clock))  # type: ignore[attr-defined]
        return trainer

    def _refuse(self, trainer: Trainer, error: Exception) -> None:
        """Leave nothing of a training that never began; keep what one left that did."""
        if trainer.global_step == 0 and not self.resume_point:
            if isinstance(trainer.logger, TensorBoardLogger):
                trainer.logger.experiment.close()
            self._discard()
        else:
            self._close("failed", str(error))

    def _discard(self) -> None:
        if self._run is not None:
            self._run.discard()

    def _fail(self, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error))
        try:
            write_text(self.folder.path / "traceback.txt", text)
        except OSError as trouble:
            self.console.warn(f"the traceback could not be written: {trouble.strerror}")
        self._close("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        self.console.warn(f"the traceback is in {self.folder.path / 'traceback.txt'}")

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
            best_checkpoint=checkpoint_if_there(folder.checkpoints_dir / "best.ckpt"),
            last_checkpoint=checkpoint_if_there(folder.checkpoints_dir / "last.ckpt"),
            published=self.publishing.published if self.publishing else [],
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


def _silence_lightning() -> None:
    """Leave out warnings that people who train with settings can do nothing about."""
    import logging

    for text in (
        r".*does not have many workers which may be a bottleneck",
        r".*The number of training batches .* is smaller than the logging interval",
        r".*The `srun` command is available",
        r".*Checkpoint directory .* exists and is not empty",
        r".*isinstance\(treespec, LeafSpec\)",
        r".*have no `val_dataloader`",
    ):
        warnings.filterwarnings("ignore", text)
    # Lightning calls jsonargparse by names that the latter has since replaced.
    warnings.filterwarnings(
        "ignore", category=DeprecationWarning, module=r"(pytorch_lightning|jsonargparse)\b"
    )
    warnings.filterwarnings(
        "ignore", r"\s*(.|\n)*(JsonargparseDeprecation|add_instantiator)", DeprecationWarning
    )
    if not sys.flags.dev_mode:
        for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)
