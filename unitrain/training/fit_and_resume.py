"""Start a training by settings, or resume an interrupted run."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning import Callback

from unitrain.errors import SettingsError
from unitrain.runs import list_runs, read_summary
from unitrain.training.checkpoint import existing_checkpoint
from unitrain.training.console import Console, process_rank
from unitrain.training.parsing.settings_file import RawSettings, as_flags
from unitrain.training.resuming.resume_point import ResumePoint, find_resume_point, newest_point
from unitrain.training.training_run import RunResult, TrainingRun

RESUMED_RUN = "UNITRAIN_RESUMED_RUN"
"""Environment variable that names the resumed run to the other processes of a distributed training."""


def fit(
    settings: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    init_from: str | Path | None = None,
    init_weights: Literal["ema", "raw"] = "ema",
    resume: Literal["auto"] | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
) -> RunResult:
    """Train by a settings file, as `python -m unitrain fit` does.

    Args:
        settings: path of a settings file, or its content.
        overrides: settings that override those of the file, by dotted name:
            `{"model.init_args.hidden": 32, "publish": None}`.
        init_from: run whose weights the new run starts with: its best checkpoint, else its last.
        init_weights: kind of these weights: averaged (`ema`) or raw.
        resume: "auto" resumes the experiment's newest unfinished run that has a complete checkpoint, with
            `overrides` as changes. It starts a new run if there is none.
        callbacks: Lightning's callbacks for this call, beside those of the settings: for example, to watch a
            search. They are not part of the run's settings, and a resumed run does not have them.
        quiet: print warnings only, and show no progress bar.

    Raises:
        UsageError: the settings are wrong, or the model can't be trained or published with them; no run folder
            remains.
        UnitrainError: the training failed; its run folder has the reason.

    Example:
        >>> result = fit(settings, {"trainer.max_epochs": 1}, quiet=True)
        >>> result.status, result.best["metric"]
        ('finished', 'val_loss')
    """
    raw = RawSettings.read(settings, as_flags(overrides or {}))
    start = None if init_from is None else (str(init_from), init_weights)
    if resume == "auto":
        return resume_or_start(raw, callbacks=callbacks, console=Console(quiet=quiet), start_from=start)
    return TrainingRun(raw, start_from=start, callbacks=callbacks, quiet=quiet).run()


def resume(
    run: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    experiments_dir: str | Path = "experiments",
    experiment: str | None = None,
    quiet: bool = False,
    trust: bool = False,
) -> RunResult:
    """Resume a run in its folder, as if it had not been interrupted.

    Args:
        run: folder of the run, its name, or `last` for the newest unfinished run.
        overrides: changed settings: `{"trainer.max_epochs": 400}` extends the run.
        experiments_dir: folder in which runs are looked up by name.
        experiment: experiment to which `last` is limited.
        quiet: print warnings only, and show no progress bar.
        trust: import code from any project root that the run names. Without it, the root must be around the
            run or in the working folder's project.

    Raises:
        UsageError: the run's project root is not trusted.
        RunError: there is nothing to resume, or another process holds the run's lock.
        UnitrainError: the same errors as `fit`.

    Example:
        >>> resume(run, {"trainer.max_epochs": 2}, quiet=True).reason
        'all 2 epochs done'
    """
    flags = as_flags(overrides or {})
    return resume_by_flags(
        str(run), flags, Path(experiments_dir), experiment, Console(quiet=quiet), trust=trust
    )


def resume_by_flags(
    text: str,
    argv: Sequence[str],
    experiments_dir: Path,
    experiment: str | None,
    console: Console,
    *,
    trust: bool = False,
    project: Path | None = None,
) -> RunResult:
    """Resume a run with changed settings as flags.

    Args:
        text: folder of the run, its name, or `last`.
        argv: changed settings as flags.
        experiments_dir: folder in which runs are looked up by name.
        experiment: experiment to which `last` is limited.
        console: log for the user.
        trust: import code from any project root that the run names.
        project: root of the user's project; default: that of the working folder.

    Raises:
        UsageError: the run's project root is not trusted.
        RunError: there is nothing to resume, or another process holds the run's lock.
    """
    if process_rank() and text == "last":
        text = os.environ.get(RESUMED_RUN, "")
        if not text:
            raise SettingsError(
                "--resume last: processes started one by one may not agree on it; name the run's folder"
            )
    point = find_resume_point(text, experiments_dir, experiment, console, trust=trust, project=project)
    return _resume_at(point, argv, console)


def resume_or_start(
    settings: RawSettings,
    *,
    console: Console,
    callbacks: Sequence[Callback] = (),
    trust: bool = False,
    start_from: tuple[str, str] | None = None,
) -> RunResult:
    """Resume the experiment's newest unfinished run that has a complete checkpoint, else start a new one.

    A job that a scheduler restarts after every failure never blocks: a run that was killed before its
    first checkpoint, or whose files are damaged, is skipped with a warning.

    Args:
        settings: settings of a new run; their flags also change those of a resumed run.
        console: log for the user.
        callbacks: callbacks from Python, beside those of the settings.
        trust: import code from any project root that a run names.
        start_from: run whose weights a new run starts with, and their kind; unused for a resumed run.
    """
    experiments_dir, experiment, project = settings.experiments_dir, settings.experiment, settings.root
    if process_rank():
        known = os.environ.get(RESUMED_RUN)
        if known is None:
            raise SettingsError(
                "--resume auto: processes started one by one may not agree on it; name the run's folder"
            )
        point = (
            find_resume_point(known, experiments_dir, experiment, console, trust=trust, project=project)
            if known
            else None
        )
    else:
        unfinished = [run for run in list_runs(experiments_dir, experiment) if run.unfinished]
        point = newest_point(unfinished, console, trust=trust, project=project)
    if point is not None:
        console.say(f"--resume auto is {point.run_dir}")
        place = ("--experiments_dir", "--experiment")
        changed = [word for flag in settings.flags if flag[0] not in place for word in flag]
        return _resume_at(point, changed, console, callbacks)
    console.say(f"--resume auto: no unfinished run of {experiment} has a checkpoint; starting a new run")
    os.environ[RESUMED_RUN] = ""
    return TrainingRun(settings, start_from=start_from, callbacks=callbacks, quiet=console.quiet).run()


def _resume_at(
    point: ResumePoint, argv: Sequence[str], console: Console, callbacks: Sequence[Callback] = ()
) -> RunResult:
    os.environ[RESUMED_RUN] = str(point.run_dir)
    if point.finished and not argv:
        summary = read_summary(point.run_dir)
        console.say(f"{point.run_dir} has finished ({summary.reason}); --trainer.max_epochs N extends it")
        return RunResult(
            run_dir=point.run_dir,
            status=summary.status,
            reason=summary.reason or "",
            metrics=dict(summary.record.get("metrics") or {}),
            best=summary.best,
            best_checkpoint=existing_checkpoint(point.run_dir, "best"),
            last_checkpoint=existing_checkpoint(point.run_dir, "last"),
            published=summary.published,
        )
    raw = RawSettings.read(point.run_dir / "settings.yaml", argv)
    return TrainingRun(raw, resume_point=point, callbacks=callbacks, quiet=console.quiet).run()
