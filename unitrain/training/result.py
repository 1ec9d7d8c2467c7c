"""How a training ended."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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


def checkpoint_if_there(path: Path) -> Path | None:
    """The path, or None where no checkpoint was written."""
    return path if path.is_file() else None
