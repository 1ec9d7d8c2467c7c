"""run.json: what a run tells about itself, while it runs and for good."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unitrain.durable import write_json
from unitrain.errors import RunError

FILE_NAME = "run.json"
LOCK_NAME = "run.lock"
FORMAT = 1
UNFINISHED = ("starting", "running")
FINAL = ("finished", "stopped", "interrupted", "failed")
"""finished: as far as it was to go; stopped: early, by its own rule; interrupted: by a signal."""


def now() -> str:
    """This moment as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat()


def read_record(run_dir: Path) -> dict[str, Any]:
    """What run.json of a run's folder says.

    Raises:
        RunError: it is not there, or can't be read.
    """
    path = run_dir / FILE_NAME
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(
            f"{run_dir} is no run's folder: it has no {FILE_NAME}; `runs` lists those there are"
        ) from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path} can't be read as a run's record: {error}") from error
    if not isinstance(record, dict):
        raise RunError(
            f"{path} can't be read as a run's record: expected an object, got {type(record).__name__}"
        )
    return record


def write_record(run_dir: Path, record: dict[str, Any]) -> None:
    """Put a record in the place of the earlier one, whole or not at all.

    Raises:
        RunError: the disk refused, or a value is none that JSON knows; the earlier one is still whole.
    """
    path = run_dir / FILE_NAME
    try:
        write_json(path, record)
    except OSError as error:
        raise RunError(f"{path} can't be written: {error.strerror}; the earlier one is kept") from error
    except TypeError as error:
        raise RunError(f"{path} can't be written: {error}; the earlier one is kept") from error
