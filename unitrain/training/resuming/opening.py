"""How a run's folder is begun, or opened again: settings, sources, provenance."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unitrain.atomic_files import full_disk, write_text
from unitrain.errors import RunError, SettingsError
from unitrain.file_lock import FileLock
from unitrain.publish import Lineage
from unitrain.runs import RunFolder
from unitrain.training.console import Console
from unitrain.training.parsing.settings_parser import slug
from unitrain.training.provenance import copy_sources, environment, git_state
from unitrain.training.resuming.resume_point import ResumePoint, changed_sources


def begin_run(
    experiments_dir: Path,
    experiment: str,
    resolved: str,
    *,
    root: Path,
    seed: int,
    config: Path | None,
    argv: Sequence[str],
) -> RunFolder:
    """A new run's folder with its resolved settings, the project's sources and all that tells where it came from.

    Raises:
        SettingsError: no folder can be made there.
        RunError: the disk refused.
    """
    try:
        run = RunFolder.create(experiments_dir, experiment, slug(argv))
    except RunError as error:
        if full_disk(error) is not None:
            raise
        raise SettingsError(str(error)) from error
    try:
        write_text(run.settings_path, resolved)
        run.update(
            root=str(root),
            seed=seed,
            git=git_state(root),
            sources_sha256=copy_sources(root, run.sources_dir),
            command=["python", "-m", "unitrain", "fit", "--config", str(config or ""), *argv],
            **environment(),
        )
    except OSError as error:
        run.discard()
        raise RunError(f"the run folder {run.path} can't be written: {error.strerror}") from error
    except RunError:
        run.discard()
        raise
    return run


class FollowersFolder(RunFolder):
    """What the other processes of a distributed training have in the place of the run's folder: nothing is written.

    The main process alone owns the folder; Lightning tells the others where checkpoints lie.
    """

    def __init__(self, experiments_dir: Path, experiment: str) -> None:
        path = experiments_dir / experiment / "of-the-main-process"
        super().__init__(path, {"experiment": experiment}, FileLock(path / "run.lock"))

    def record(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def update(self, **fields: Any) -> None:
        """Nothing: the main process keeps the record."""

    def append(self, field: str, entry: Any) -> None:
        """Nothing: the main process keeps the record."""

    def close(self, status: str, reason: str) -> None:
        """Nothing: the main process closes the run."""

    def discard(self) -> None:
        """Nothing: there is nothing to remove."""


def continue_run(point: ResumePoint, resolved: str, argv: Sequence[str], console: Console) -> RunFolder:
    """A run's folder, owned again, with what it goes on from in its record.

    Raises:
        RunError: another process owns it, or the disk refused.
    """
    run = RunFolder.open(point.run_dir, own=True)
    now = environment()
    before = run.record()
    changed = changed_sources(point.root, run.sources_dir)
    if changed:
        console.warn(
            f"changed since the run began: {', '.join(changed)}; it goes on with the code as it is now"
        )
    if before.get("threads") not in (None, now["threads"]):
        console.warn(
            f"the run began with {before['threads']} threads and goes on with {now['threads']}: its results will not "
            "be equal to the bit"
        )
    kept = [
        w
        for w in argv
        if w.startswith(("--optimizer", "--lr_scheduler")) or w.endswith((".lr", ".learning_rate"))
    ]
    if kept:
        console.warn(
            f"{', '.join(kept)}: the optimizer goes on as it was saved, its learning rate too; to begin with another one "
            "from these weights, use --init-from"
        )
    run.append(
        "resumed",
        {"step": point.step, "epoch": point.epoch, "checkpoint": point.checkpoint.name, "argv": list(argv)}
        | {"changed_sources": changed, "inexact": _inexact(point, before, now, changed), **now},
    )
    for leftover in run.checkpoints_dir.glob(".*.ckpt.*.tmp"):  # of a process that was killed while it wrote
        leftover.unlink(missing_ok=True)
    run.update(status="starting", reason=None, ended_at=None)
    try:
        write_text(run.settings_path, resolved)
    except OSError as error:
        run.close("failed", "its settings can't be written")
        raise RunError(f"{run.settings_path} can't be written: {error.strerror}") from error
    console.say(f"resumes from {point.checkpoint.name}: epoch {point.epoch}, step {point.step}")
    return run


def _inexact(
    point: ResumePoint, before: dict[str, Any], now: dict[str, Any], changed: Sequence[str]
) -> list[str]:
    """Reasons why this resume may end differently from an uninterrupted run."""
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


def lineage_of(run: RunFolder, resolved: str) -> Lineage:
    """What a run's versions will say of where they came from."""
    record = run.record()
    git = record.get("git") or {}
    return Lineage(
        run=f"{run.experiment}/{run.name}",
        run_dir=str(run.path),
        settings_sha256=hashlib.sha256(resolved.encode()).hexdigest(),
        sources_sha256=record.get("sources_sha256"),
        git_commit=git.get("commit"),
    )
