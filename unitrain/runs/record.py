"""run.json: what a run tells about itself, while it runs and for good."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unitrain.durable import write_json
from unitrain.errors import RunError
from unitrain.json_files import (
    Check,
    integer,
    list_of,
    mapping_of,
    number,
    object_with,
    optional,
    read_json,
    text,
)

FILE_NAME = "run.json"
LOCK_NAME = "run.lock"
FORMAT = 1
UNFINISHED = ("starting", "running")
FINAL = ("finished", "stopped", "interrupted", "failed")
"""finished: as far as it was to go; stopped: early, by its own rule; interrupted: by a signal."""


_CHECKS: dict[str, Check] = {
    "status": text,
    "reason": optional(text),
    "started_at": optional(text),
    "ended_at": optional(text),
    "experiment": optional(text),
    "name": optional(text),
    "root": optional(text),
    "threads": optional(integer),
    "epoch": optional(integer),
    "step": optional(integer),
    "metrics": optional(mapping_of(number)),
    "best": optional(
        object_with({"metric": text, "value": number, "step": integer, "epoch": integer}, ("metric", "value"))
    ),
    "published": optional(list_of(object_with({"version": integer, "step": integer}))),
    "refused": optional(list_of(object_with({}))),
    "resumed": optional(list_of(object_with({}))),
    "git": optional(object_with({"commit": optional(text)})),
    "sources_sha256": optional(text),
}
"""What readers rely on; other fields may hold anything."""


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
        record: dict[str, Any] = read_json(path)
        object_with(_CHECKS, ("status",))(record, "")
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and not path.is_symlink():
            raise RunError(
                f"{run_dir} is no run's folder: it has no {FILE_NAME}; `runs` lists those there are"
            ) from error
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{path} can't be read as a run's record: {reason}") from error
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
