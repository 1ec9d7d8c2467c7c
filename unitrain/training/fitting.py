"""`fit`: settings in, a run folder and published versions out."""

import hashlib
import signal
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.io import CheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException

from unitrain.durable import write_text
from unitrain.errors import RunError, SettingsError, UnitrainError, UsageError
from unitrain.project import project_root
from unitrain.publish import Lineage
from unitrain.repository import check_model_name
from unitrain.runs import RunFolder, check_experiment
from unitrain.training.checkpoint import DurableCheckpointIO
from unitrain.training.complaints import explained, own_error
from unitrain.training.composition import compose
from unitrain.training.console import Console
from unitrain.training.flags import absolute, slug
from unitrain.training.provenance import copy_sources, environment, git_state
from unitrain.training.publishing import Publishing
from unitrain.training.record import RunRecord
from unitrain.training.settings_cli import SettingsCLI, check_classes, known_settings, read_settings


@dataclass(frozen=True)
class RunResult:
    """How a training ended.

    Attributes:
        run_dir: the run's folder.
        status: finished, stopped (early, by its own rule), interrupted or failed.
        reason: in words.
        metrics: the last values of everything logged.
        best: the monitored metric's best `value`, with its `step` and `epoch`; None if it was never measured.
        best_checkpoint: None if there is none; likewise `last_checkpoint`.
        published: the versions published, in order.
        exit_code: what the command line's process ends with.
    """

    run_dir: Path
    status: str
    reason: str
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    best_checkpoint: Path | None = None
    last_checkpoint: Path | None = None
    published: list[int] = field(default_factory=list)
    exit_code: int = 0


def fit(
    settings: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    quiet: bool = False,
) -> RunResult:
    """Train by a settings file, as `python -m unitrain fit` does.

    Args:
        settings: a settings file's path, or its content.
        overrides: settings that take the place of the file's, by dotted name:
            `{"model.init_args.hidden": 32, "publish": None}`.
        quiet: tell nothing but warnings, and show no progress bar.

    Raises:
        UsageError: the settings are wrong, or the model can't be trained or published with them; nothing is
            left behind.
        UnitrainError: the training failed; its run folder tells why.

    Example:
        ::

            result = unitrain.fit("examples/curve_fitting/settings.yaml", {"trainer.max_epochs": 10})
            print(result.best, result.published)
    """
    argv = []
    for name, value in (overrides or {}).items():
        text = "null" if value is None else yaml.safe_dump(value, default_flow_style=True).strip()
        argv += [f"--{name}", text.removesuffix("\n...").strip()]
    if isinstance(settings, Mapping):
        return Fit(None, dict(settings), argv, quiet=quiet).run()
    return Fit(Path(settings), read_settings(Path(settings)), argv, quiet=quiet).run()


class Fit:
    """One training, from its settings to its end.

    Args:
        path: the settings file; None where the settings came from Python.
        raw: its content.
        argv: further settings, as flags.
    """

    def __init__(self, path: Path | None, raw: dict[str, Any], argv: Sequence[str], *, quiet: bool) -> None:
        self.path = path
        self.raw = raw
        self.argv = [word for pair in absolute(argv) for word in pair]
        self.root = project_root(path.absolute().parent if path else Path.cwd())
        self.console = Console(quiet=quiet)
        self.quiet = quiet
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
        status, reason, exit_code = "finished", "the training came to its end", 0
        try:
            with warnings.catch_warnings():
                _silence_lightning()
                cli.trainer.fit(cli.model, datamodule=cli.datamodule)
            status, reason = _why_ended(cli.trainer)
        except SIGTERMException:
            status, reason, exit_code = "interrupted", "SIGTERM", 128 + signal.SIGTERM
        except KeyboardInterrupt:
            status, reason, exit_code = "interrupted", "Ctrl-C", 128 + signal.SIGINT
        except SystemExit as error:
            if not isinstance(error.__context__, KeyboardInterrupt):
                self._fail(error)
                raise
            # Lightning ends the process on Ctrl-C, and ignores any further one from then on.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            status, reason, exit_code = "interrupted", "Ctrl-C", 128 + signal.SIGINT
        except UsageError:
            self._refuse(cli.trainer)
            raise
        except MisconfigurationException as error:
            self._refuse(cli.trainer)
            raise SettingsError(" ".join(str(error).split())) from error
        except Exception as error:
            self._fail(error)
            raise
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
        except Exception as error:
            self._discard()
            wrong = (ArgumentError, MisconfigurationException, TypeError, ValueError)
            if isinstance(error, wrong) or own_error(error):
                raise explained(error, known_settings()) from error
            raise

    def _make_trainer(self, cli: SettingsCLI, arguments: dict[str, Any]) -> Trainer:
        default = self.path.absolute().parent.name if self.path else "experiment"
        experiment = check_experiment(cli.config.experiment or default)
        publish = cli.section("publish")
        try:
            model_name = check_model_name(publish.model or experiment) if publish else ""
        except UsageError as error:
            raise SettingsError(f"publish.model: {error}") from error
        resolved = cli.resolved()
        try:
            run = RunFolder.create(self.root / cli.config.experiments_dir, experiment, slug(self.argv))
        except RunError as error:
            raise SettingsError(str(error)) from error
        self._run = run
        try:
            write_text(run.settings_path, resolved)
            sources_sha256 = copy_sources(self.root, run.sources_dir)
        except OSError as error:
            raise RunError(f"the run folder {run.path} can't be written: {error.strerror}") from error
        git = git_state(self.root)
        run.update(
            root=str(self.root),
            seed=cli.config.seed_everything,
            git=git,
            sources_sha256=sources_sha256,
            command=["python", "-m", "unitrain", "fit", "--config", str(self.path or ""), *self.argv],
            **environment(),
        )
        lineage = Lineage(
            run=f"{experiment}/{run.name}",
            run_dir=str(run.path),
            settings_sha256=hashlib.sha256(resolved.encode()).hexdigest(),
            sources_sha256=sources_sha256,
            git_commit=git["commit"] if git else None,
        )
        theirs = arguments.pop("callbacks", None) or []
        theirs = list(theirs) if isinstance(theirs, Sequence) else [theirs]
        stack = compose(
            cli.section,
            theirs,
            arguments,
            run=run,
            root=self.root,
            model_name=model_name,
            lineage=lineage,
            console=self.console,
            quiet=self.quiet,
        )
        self.record, self.publishing = stack.record, stack.publishing
        arguments["callbacks"] = stack.callbacks
        if arguments.get("logger") in (None, True):
            arguments["logger"] = TensorBoardLogger(run.path.parent, name="", version=run.name)
        plugins = arguments.get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, Sequence) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(DurableCheckpointIO())
        arguments["plugins"] = plugins
        arguments["default_root_dir"] = arguments.get("default_root_dir") or run.path
        arguments["enable_model_summary"] = bool(arguments.get("enable_model_summary"))
        return Trainer(**arguments)

    def _refuse(self, trainer: Trainer) -> None:
        """Leave nothing of a training that never began; keep what one left that did."""
        if trainer.global_step == 0:
            if isinstance(trainer.logger, TensorBoardLogger):
                trainer.logger.experiment.close()
            self._discard()
        else:
            self._close("failed", "the settings do not fit the model")

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
        checkpoints = {name: self.folder.checkpoints_dir / f"{name}.ckpt" for name in ("best", "last")}
        return RunResult(
            run_dir=self.folder.path,
            status=status,
            reason=reason,
            metrics=self.record.metrics if self.record else {},
            best=self.record.best if self.record else None,
            best_checkpoint=checkpoints["best"] if checkpoints["best"].is_file() else None,
            last_checkpoint=checkpoints["last"] if checkpoints["last"].is_file() else None,
            published=self.publishing.published if self.publishing else [],
            exit_code=exit_code,
        )


def _why_ended(trainer: Trainer) -> tuple[str, str]:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and callback.stopped_epoch:
            return "stopped", f"{callback.monitor} no longer improved (early stopping)"
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch:
        return "finished", f"all {trainer.max_epochs} epochs done"
    if 0 <= trainer.max_steps <= trainer.global_step:
        return "finished", f"all {trainer.max_steps} steps done"
    return "finished", "trainer.max_time was reached"


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
