"""Point from which a run resumes: its folder and its newest valid checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unitrain.atomic_files import write_text
from unitrain.errors import RunError
from unitrain.runs import RunFolder, RunSummary, find_run, list_runs, read_summary
from unitrain.training.checkpoint import (
    CheckpointName,
    DamagedCheckpointError,
    existing_checkpoint,
    read_checkpoint,
)
from unitrain.training.console import Console
from unitrain.training.provenance import changed_sources, environment, trusted_root

_CHECKPOINTS: tuple[CheckpointName, ...] = ("last", "best")
"""Checkpoints to resume from, in the order in which they are tried."""


@dataclass(frozen=True)
class ResumePoint:
    """Run to resume, and its position.

    Attributes:
        run_dir: the run's folder.
        checkpoint: its newest valid checkpoint.
        root: root of the project that the run was started from.
        finished: the run has finished, or was stopped early.
        step: optimizer steps done.
        epoch: complete epochs done.
        logged_step: first step of TensorBoard's curves after the resume.
        clean: the checkpoint was written between two batches or epochs, when nothing was pending.
        cut_short: the training ended within an epoch.
    """

    run_dir: Path
    checkpoint: Path
    root: Path
    finished: bool
    step: int
    epoch: int
    logged_step: int
    clean: bool
    cut_short: bool


def find_resume_point(
    text: str,
    experiments_dir: Path,
    experiment: str | None,
    console: Console,
    *,
    trust: bool = False,
    project: Path | None = None,
) -> ResumePoint:
    """Return the run that `--resume` names, with the checkpoint to resume from.

    Args:
        text: a folder, a run's name, or `last`: the newest unfinished run that has a checkpoint.
        experiments_dir: folder in which runs are looked up by name.
        experiment: the only experiment that `last` considers.
        console: prints the chosen run and the skipped checkpoints.
        trust: accept any project root that the run names.
        project: root of the user's project; default: the working folder's project.

    Raises:
        RunError: there is no such run, or it has no complete checkpoint.
    """
    if text != "last":
        return resume_point_of(
            read_summary(find_run(text, experiments_dir)), console, trust=trust, project=project
        )
    runs = list_runs(experiments_dir, experiment)
    if not runs:
        of = f" of {experiment}" if experiment else ""
        raise RunError(f"--resume last: there is no run{of} in {experiments_dir}; start one without --resume")
    unfinished = [run for run in runs if run.unfinished]
    point = newest_point(unfinished, console, trust=trust, project=project)
    if point is None:
        ended = [run for run in runs if run.status in ("finished", "stopped")]
        point = newest_point(ended, console, trust=trust, project=project)
    if point is None:
        point = resume_point_of((unfinished or runs)[-1], console, trust=trust, project=project)
    console.say(f"--resume last is {point.run_dir}")
    return point


def newest_point(
    runs: Sequence[RunSummary], console: Console, *, trust: bool = False, project: Path | None = None
) -> ResumePoint | None:
    """Return the resume point of the newest of these runs that has a complete checkpoint; None if none has one."""
    for run in reversed(runs):
        try:
            return resume_point_of(run, console, trust=trust, project=project)
        except RunError as error:
            console.warn(f"skipped: {error}")
    return None


def resume_point_of(
    summary: RunSummary, console: Console, *, trust: bool = False, project: Path | None = None
) -> ResumePoint:
    """Return the point from which a run resumes.

    Raises:
        RunError: the run has no complete checkpoint, or no settings.
    """
    path = summary.path
    if not (path / "settings.yaml").is_file():
        raise RunError(
            f"{path} has no settings.yaml, so it can't be resumed; start a new run without --resume"
        )
    for name in _CHECKPOINTS:
        checkpoint = existing_checkpoint(path, name)
        if checkpoint is None:
            continue
        try:
            content = read_checkpoint(checkpoint)
            root = trusted_root(path, summary.record, trust=trust, project=project)
            return _resume_point(summary, checkpoint, content, root)
        except DamagedCheckpointError as error:
            fault = error.fault
        except RunError as error:
            fault = str(error)
        except (KeyError, TypeError, ValueError):
            fault = "it is no checkpoint of a training"
        console.warn(f"{checkpoint} is damaged ({fault}); looking for an earlier one")
    raise RunError(
        f"{path} has no complete checkpoint, so there is nothing to resume; start a new run without --resume"
    )


def continue_run(point: ResumePoint, resolved: str, argv: Sequence[str], console: Console) -> RunFolder:
    """Open and lock a run's folder to resume the run, and record the resume in its run.json.

    Args:
        point: the run and its position.
        resolved: the resolved settings as YAML.
        argv: changed settings as flags.
        console: prints the position, and warnings about changes since the run began.

    Raises:
        RunError: another process holds the run's lock, or the folder can't be written.
    """
    run = RunFolder.open(point.run_dir, own=True)
    now = environment()
    before = run.record()
    changed = changed_sources(point.root, run.sources_dir)
    if changed:
        console.warn(
            f"changed since the run began: {', '.join(changed)}; the run continues with the code as it is now"
        )
    if before.get("threads") not in (None, now["threads"]):
        console.warn(
            f"the run began with {before['threads']} threads and continues with {now['threads']}: its results will not "
            "be equal to the bit"
        )
    ignored = [
        word
        for word in argv
        if word.startswith(("--optimizer", "--lr_scheduler")) or word.endswith((".lr", ".learning_rate"))
    ]
    if ignored:
        console.warn(
            f"{', '.join(ignored)}: the optimizer continues with its saved state, including its learning rate; to start "
            "with another one from these weights, use --init-from"
        )
    run.append(
        "resumed",
        {"step": point.step, "epoch": point.epoch, "checkpoint": point.checkpoint.name, "argv": list(argv)}
        | {"changed_sources": changed, "inexact": _inexact_reasons(point, before, now, changed), **now},
    )
    for leftover in run.checkpoints_dir.glob(".*.ckpt.*.tmp"):  # a process was killed while it wrote
        leftover.unlink(missing_ok=True)
    run.update(status="starting", reason=None, ended_at=None)
    try:
        write_text(run.settings_path, resolved)
    except OSError as error:
        run.close("failed", "its settings can't be written")
        raise RunError(f"{run.settings_path} can't be written: {error.strerror}") from error
    console.say(f"resumes from {point.checkpoint.name}: epoch {point.epoch + 1}, after step {point.step}")
    return run


def _inexact_reasons(
    point: ResumePoint, before: Mapping[str, Any], now: Mapping[str, Any], changed: Sequence[str]
) -> list[str]:
    """Return the reasons why this resume may end differently from an uninterrupted run."""
    reasons = []
    if not point.clean:
        reasons.append(
            f"resumed from {point.checkpoint.name} at step {point.step}, which was written within a validation: "
            "callbacks after it and schedulers that follow a metric miss that validation"
        )
    if point.cut_short and point.finished:
        reasons.append("the run had ended within an epoch, and continues with the next one")
    if before.get("threads") not in (None, now["threads"]):
        reasons.append(f"resumed with {now['threads']} threads after {before['threads']}")
    if changed:
        reasons.append(f"resumed with changed sources: {', '.join(changed)}")
    return reasons


def _resume_point(
    summary: RunSummary, checkpoint: Path, content: Mapping[str, Any], root: Path
) -> ResumePoint:
    loop = content["loops"]["fit_loop"]
    own = loop["state_dict"].get("unitrain", {})
    cut_short = bool(
        own.get("cut_short")
    )  # a validation within an accumulated step may have that step's number
    return ResumePoint(
        summary.path,
        checkpoint,
        root,
        summary.status in ("finished", "stopped"),
        int(content["global_step"]),
        int(loop["epoch_progress"]["current"]["processed"]),
        _logged_step(loop) + cut_short,
        bool(own),
        cut_short,
    )


def _logged_step(loop: Mapping[str, Any]) -> int:
    """Return the step of Lightning's loggers: batches, each of which may hold steps of several optimizers."""
    batches = loop["epoch_loop.batch_progress"]["total"]
    in_a_batch = bool(batches["completed"] < batches["processed"])  # saved before its batch was counted
    return int(loop["epoch_loop.state_dict"]["_batches_that_stepped"]) + in_a_batch
