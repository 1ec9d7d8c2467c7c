"""Two runs side by side: the settings that differ, and what came of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unitrain.runs.listing import RunSummary, read_summary
from unitrain.runs.saved_run import read_run_settings

NOT_SET = "(not set)"


@dataclass(frozen=True)
class Comparison:
    """What differs between two runs.

    Attributes:
        settings: dotted key → (value in the first, value in the second); only where they differ,
            "(not set)" where one has no such key.
        metrics: name → (last value in the first, in the second), all of them.
    """

    first: RunSummary
    second: RunSummary
    settings: dict[str, tuple[Any, Any]]
    metrics: dict[str, tuple[float | None, float | None]]


def compare_runs(first_dir: Path, second_dir: Path) -> Comparison:
    """The comparison of two runs' folders.

    Raises:
        RunError: the settings of one can't be read.
    """
    first, second = read_summary(first_dir), read_summary(second_dir)
    ours, theirs = (dict(_flat(read_run_settings(folder))) for folder in (first_dir, second_dir))
    keys = sorted(ours.keys() | theirs.keys())
    metrics = [_metrics(run) for run in (first, second)]
    return Comparison(
        first=first,
        second=second,
        settings={
            key: (ours.get(key, NOT_SET), theirs.get(key, NOT_SET))
            for key in keys
            if key not in ours or key not in theirs or ours[key] != theirs[key]
        },
        metrics={
            name: (metrics[0].get(name), metrics[1].get(name))
            for name in sorted(metrics[0].keys() | metrics[1].keys())
        },
    )


def _metrics(run: RunSummary) -> dict[str, float]:
    metrics = dict(run.record.get("metrics") or {})
    if run.best:
        metrics[f"best {run.best.get('metric')}"] = run.best.get("value")
    return metrics


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
