"""Read a saved run: its settings, metrics, checkpoints and published versions, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unitrain.errors import RunError, SettingsError
from unitrain.runs.listing import find_run, read_summary
from unitrain.settings_renames import rename_settings
from unitrain.untrusted_json import read_regular

_MAX_SETTINGS_BYTES = 2**24
_MAX_SETTINGS = 100_000
"""Maximum number of values: YAML's aliases can make a small file a huge one."""


@dataclass(frozen=True)
class SavedRun:
    """Run on disk, as it was when it was read.

    Attributes:
        folder: run folder.
        experiment: name of the experiment.
        status: `finished`, `stopped`, `interrupted`, `failed`, `killed`, `running` or `unreadable`.
        settings: resolved settings by section, under their current names.
        metrics: last value of each logged metric, by name.
        best: best value of the monitored metric as {metric, value, step}; None before the first validation.
        checkpoints: paths of the checkpoint files by name, `best` and `last` among them.
        published: numbers of the published versions, oldest first.
        record: content of run.json.
    """

    folder: Path
    experiment: str
    status: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]
    best: Mapping[str, Any] | None
    checkpoints: Mapping[str, Path]
    published: tuple[int, ...]
    record: Mapping[str, Any] = field(repr=False)


def load_run(run: str | Path, experiments_dir: str | Path = "experiments") -> SavedRun:
    """Load a run's settings, metrics and checkpoint paths.

    Example:
        >>> loaded = load_run(run)
        >>> loaded.settings["trainer"]["max_epochs"], sorted(loaded.checkpoints)
        (1, ['best', 'last'])
        >>> loaded.best["value"] == loaded.metrics["val_loss"]
        True

    Args:
        run: run folder, name of a run or unique beginning of it, or `last`.
        experiments_dir: folder in which names are looked up.

    Raises:
        RunError: there is no such run, or its settings can't be read.
    """
    folder = find_run(str(run), Path(experiments_dir))
    summary = read_summary(folder)
    return SavedRun(
        folder=folder,
        experiment=summary.experiment,
        status=summary.status,
        settings=read_run_settings(folder),
        metrics=dict(summary.record.get("metrics") or {}),
        best=summary.best,
        checkpoints={path.stem: path for path in sorted((folder / "checkpoints").glob("[!.]*.ckpt"))},
        published=tuple(summary.published),
        record=summary.record,
    )


def read_run_settings(run_dir: Path) -> dict[str, Any]:
    """Read a run's resolved settings under their current names.

    Raises:
        RunError: the file is missing, malformed or too large.
    """
    import yaml

    path = run_dir / "settings.yaml"
    try:
        settings = yaml.safe_load(read_regular(path, _MAX_SETTINGS_BYTES).decode("utf-8")) or {}
        _check_size(settings)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(f"{path} can't be read: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise RunError(f"{path} can't be read: it is nested too deeply") from error
    if not isinstance(settings, dict):
        raise RunError(f"{path} can't be read: expected a mapping of sections, got {type(settings).__name__}")
    try:
        return rename_settings(settings)[0]
    except SettingsError as error:
        raise RunError(f"{path} can't be read: {error}") from error


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
