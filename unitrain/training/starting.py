"""The ways to start a training: by settings, or by a run that was interrupted."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning import Callback

from unitrain.errors import SettingsError
from unitrain.runs import read_summary
from unitrain.training.console import Console
from unitrain.training.fitting import Fit
from unitrain.training.flags import as_flags, plain
from unitrain.training.processes import process_rank
from unitrain.training.result import RunResult, checkpoint_if_there
from unitrain.training.resuming import find_resume_point
from unitrain.training.settings_cli import read_settings

RESUMED_RUN = "UNITRAIN_RESUMED_RUN"
"""Tells the processes that Lightning starts for a distributed training which run `last` is."""


def fit(
    settings: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    init_from: str | Path | None = None,
    init_weights: Literal["ema", "raw"] = "ema",
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
        callbacks: Lightning's, for this call beside those of the settings: to look on from a search, say. The
            run's settings can't hold them, so a resumed run does without.
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
    path = None if isinstance(settings, Mapping) else Path(settings)
    raw = plain(settings) if isinstance(settings, Mapping) else read_settings(Path(settings))
    start = None if init_from is None else (str(init_from), init_weights)
    flags = as_flags(overrides or {})
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
            best_checkpoint=checkpoint_if_there(point.run_dir / "checkpoints" / "best.ckpt"),
            last_checkpoint=checkpoint_if_there(point.run_dir / "checkpoints" / "last.ckpt"),
            published=summary.published,
        )
    path = point.run_dir / "settings.yaml"
    return Fit(path, read_settings(path), argv, resume_point=point, quiet=console.quiet).run()
