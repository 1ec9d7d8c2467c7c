"""The ways to start a training: by settings, or by a run that was interrupted."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning import Callback

from unitrain.class_paths import project_root
from unitrain.errors import SettingsError
from unitrain.runs import list_runs, read_summary
from unitrain.training.checkpoint import existing_checkpoint
from unitrain.training.console import Console, process_rank
from unitrain.training.parsing.settings_file import with_new_names
from unitrain.training.parsing.settings_parser import absolute, as_flags, plain, read_settings
from unitrain.training.resuming.resume_point import ResumePoint, find_resume_point, newest_point
from unitrain.training.training_run import Fit, RunResult

RESUMED_RUN = "UNITRAIN_RESUMED_RUN"
"""Tells the processes that Lightning starts for a distributed training which run `last` is."""


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
        settings: a settings file's path, or its content.
        overrides: settings that take the place of the file's, by dotted name:
            `{"model.init_args.hidden": 32, "publish": None}`.
        init_from: a run, whose best weights (else its last) the new one begins with.
        init_weights: its averaged or its raw ones.
        resume: "auto" resumes the experiment's newest unfinished run that has a complete checkpoint, with
            `overrides` as changes, and starts a new run where there is none.
        callbacks: Lightning's, for this call beside those of the settings: to look on from a search, say. The
            run's settings can't hold them, so a resumed run does without.
        quiet: tell nothing but warnings, and show no progress bar.

    Raises:
        UsageError: the settings are wrong, or the model can't be trained or published with them; nothing is
            left behind.
        UnitrainError: the training failed; its run folder tells why.

    Example:
        >>> result = fit(settings, {"trainer.max_epochs": 1}, quiet=True)
        >>> result.status, result.best["metric"]
        ('finished', 'val_loss')
    """
    path = None if isinstance(settings, Mapping) else Path(settings)
    raw = (
        with_new_names(plain(settings), "settings")
        if isinstance(settings, Mapping)
        else read_settings(Path(settings))
    )
    start = None if init_from is None else (str(init_from), init_weights)
    flags = as_flags(overrides or {})
    if resume == "auto":
        return resume_or_start(
            path, raw, flags, callbacks=callbacks, console=Console(quiet=quiet), start_from=start
        )
    return Fit(path, raw, flags, start_from=start, callbacks=callbacks, quiet=quiet).run()


def resume(
    run: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    experiments_dir: str | Path = "experiments",
    experiment: str | None = None,
    quiet: bool = False,
    trust: bool = False,
) -> RunResult:
    """Go on with a run in its own folder, as if it had not been interrupted.

    Args:
        run: its folder, its name, or `last`: the newest unfinished one.
        overrides: settings that change: `{"trainer.max_epochs": 400}` extends it.
        experiments_dir: where names are looked for.
        experiment: for `last`, look at that experiment only.
        quiet: tell nothing but warnings, and show no progress bar.
        trust: import code from any project root that the run names, not only from one around the run or the
            working folder's.

    Raises:
        UsageError: the run's project root is not trusted.
        RunError: there is nothing to resume, or another process owns the run.
        UnitrainError: as `fit` says.

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
    """`resume`, with the changed settings as flags; `project`: the user's, default the working folder's."""
    if process_rank() and text == "last":
        text = os.environ.get(RESUMED_RUN, "")
        if not text:
            raise SettingsError(
                "--resume last: processes started one by one may not agree on it; name the run's folder"
            )
    point = find_resume_point(text, experiments_dir, experiment, console, trust=trust, project=project)
    return _resume_at(point, argv, console)


def resume_or_start(
    path: Path | None,
    raw: Mapping[str, Any],
    argv: Sequence[str],
    *,
    console: Console,
    over: Sequence[Path] = (),
    callbacks: Sequence[Callback] = (),
    trust: bool = False,
    start_from: tuple[str, str] | None = None,
) -> RunResult:
    """Resume the experiment's newest unfinished run that has a complete checkpoint, else start a new one.

    A job that a scheduler starts again after every failure never gets stuck: a run that was killed before its
    first checkpoint, or whose files are damaged, is skipped, with a warning.

    Args:
        path: the settings file; None where the settings came from Python.
        raw: its content.
        argv: further settings, as flags; they change those of a run that is resumed.
        over: further settings files, merged into `raw` already.
        trust: accept any project root that a run names.
        start_from: for a new run only: another run, and which of its weights to begin with.
    """
    experiments_dir, experiment, changed = place_of(path, raw, argv)
    project = project_root(path.absolute().parent if path else Path.cwd())
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
        return _resume_at(point, changed, console, callbacks)
    console.say(f"--resume auto: no unfinished run of {experiment} has a checkpoint; starting a new run")
    os.environ[RESUMED_RUN] = ""
    return Fit(
        path,
        dict(raw),
        argv,
        start_from=start_from,
        over=over,
        callbacks=callbacks,
        quiet=console.quiet,
    ).run()


def place_of(path: Path | None, raw: Mapping[str, Any], argv: Sequence[str]) -> tuple[Path, str, list[str]]:
    """The folder of experiments and the experiment of some settings, and the flags that are left."""
    experiment = str(raw.get("experiment") or (path.absolute().parent.name if path else "experiment"))
    folder = str(raw.get("experiments_dir") or "experiments")
    changed = []
    for pair in absolute(argv):
        if pair[0] == "--experiments_dir" and len(pair) > 1:
            folder = pair[1]
        elif pair[0] == "--experiment" and len(pair) > 1:
            experiment = pair[1]
        else:
            changed += pair
    root = project_root(path.absolute().parent if path else Path.cwd())
    return root / folder, experiment, changed


def _resume_at(
    point: ResumePoint, argv: Sequence[str], console: Console, callbacks: Sequence[Callback] = ()
) -> RunResult:
    os.environ[RESUMED_RUN] = str(point.run_dir)
    if point.finished and not argv:
        summary = read_summary(point.run_dir)
        console.say(
            f"{point.run_dir} has come to its end ({summary.reason}); --trainer.max_epochs N extends it"
        )
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
    path = point.run_dir / "settings.yaml"
    return Fit(
        path, read_settings(path), argv, resume_point=point, callbacks=callbacks, quiet=console.quiet
    ).run()
