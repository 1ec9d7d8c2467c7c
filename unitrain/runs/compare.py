"""Two runs side by side: the settings that differ, and what came of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unitrain.errors import RunError, SettingsError
from unitrain.json_files import read_regular
from unitrain.runs.listing import RunSummary, read_summary
from unitrain.settings_renames import rename_settings

NOT_SET = "(not set)"
_MAX_SETTINGS_BYTES = 2**24
_MAX_SETTINGS = 100_000
"""Aliases of YAML can make a small file a huge one."""


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
    ours, theirs = _settings(first_dir), _settings(second_dir)
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


def _settings(run_dir: Path) -> dict[str, Any]:
    import yaml

    path = run_dir / "settings.yaml"
    try:
        text = read_regular(path, _MAX_SETTINGS_BYTES).decode("utf-8")
        settings = yaml.safe_load(text) or {}
        _check_size(settings)
        return dict(_flat(rename_settings(settings)[0]))
    except (OSError, ValueError, SettingsError, yaml.YAMLError) as error:
        raise RunError(f"{path} can't be read: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise RunError(f"{path} can't be read: it is nested too deeply") from error


def _check_size(settings: Any) -> None:
    """Refuse settings that aliases make huge, or endless."""
    count, waiting = 0, [settings]
    while waiting:
        count += 1
        if count > _MAX_SETTINGS:
            raise ValueError(f"it has more than {_MAX_SETTINGS:,} values")
        value = waiting.pop()
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
