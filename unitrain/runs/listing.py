"""List of the runs in a folder of experiments, and search by name."""

import contextlib
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unitrain.errors import RunError
from unitrain.file_lock import is_locked
from unitrain.runs.run_folder import FILE_NAME, LOCK_NAME, UNFINISHED, read_record


@dataclass(frozen=True)
class RunSummary:
    """A run as lists show it.

    Attributes:
        status: status in run.json; "killed" if the process exited without updating it, "unreadable" if
            run.json is malformed.
        reason: reason for the end, or the error of a malformed run.json.
        duration_s: seconds until the end, the last change of run.json, or now; None if unknown.
        record: content of run.json.
    """

    path: Path
    experiment: str
    name: str
    status: str
    reason: str | None
    started_at: datetime | None
    ended_at: datetime | None
    duration_s: float | None
    record: dict[str, Any]

    @property
    def unfinished(self) -> bool:
        """True if the run can be resumed."""
        return self.status in ("killed", "interrupted", "failed")

    @property
    def epoch(self) -> int | None:
        """The last epoch that was recorded."""
        return self.record.get("epoch")

    @property
    def step(self) -> int | None:
        """The last optimizer step that was recorded."""
        return self.record.get("step")

    @property
    def best(self) -> dict[str, Any] | None:
        """Its best metric: {metric, value, step}."""
        return self.record.get("best")

    @property
    def published(self) -> list[int]:
        """The versions that it published."""
        return [entry["version"] for entry in self.record.get("published") or () if "version" in entry]


def list_runs(experiments_dir: Path, experiment: str | None = None) -> list[RunSummary]:
    """Return the runs of all experiments, or of one, newest last; an empty list if there is no such folder.

    Raises:
        RunError: the folder can't be read.
    """
    if experiment is not None:
        run_dirs = _folders(experiments_dir / experiment)
    else:
        run_dirs = []
        for parent in _folders(experiments_dir):
            with contextlib.suppress(RunError):  # another user's folder does not hide the rest
                run_dirs += _folders(parent)
    found = [read_summary(path) for path in run_dirs if _has_record(path)]
    return sorted(found, key=_age)


def read_summary(run_dir: Path) -> RunSummary:
    """Read a run's summary; an unreadable record is a status rather than an error."""
    try:
        record = read_record(run_dir)
        status, reason = record["status"], record.get("reason")
    except RunError as error:
        record, status, reason = {}, "unreadable", str(error)
    alive = _is_owned(run_dir)
    if status in UNFINISHED and not alive:
        # It may have ended since the record was read: read it again.
        try:
            again = read_record(run_dir)
            status, reason = again["status"], again.get("reason")
            record, status = (record, "killed") if status in UNFINISHED else (again, status)
        except RunError as error:
            record, status, reason = {}, "unreadable", str(error)
    started, ended = _time(record.get("started_at")), _time(record.get("ended_at"))
    until = datetime.now(UTC) if status in UNFINISHED else ended or _last_sign(run_dir)
    return RunSummary(
        path=run_dir,
        experiment=str(record.get("experiment") or run_dir.parent.name),
        name=run_dir.name,
        status=status,
        reason=reason,
        started_at=started,
        ended_at=ended,
        duration_s=max(0.0, (until - started).total_seconds()) if started and until else None,
        record=record,
    )


def find_run(text: str, experiments_dir: Path) -> Path:
    """Find a run by a path, `<experiment>/<run>`, a run's name, the unique beginning of one, or `last`.

    Raises:
        RunError: there is none, or several.
    """
    for path in (Path(text), experiments_dir / text):
        if _has_record(path):
            return Path(os.path.abspath(path))  # noqa: PTH100 - keeps links
    runs = list_runs(experiments_dir)
    if text == "last" and runs:
        return runs[-1].path
    matching = [run for run in runs if text and run.name.startswith(text)]
    exact = [run for run in matching if run.name == text] or matching
    if len(exact) == 1:
        return exact[0].path
    if not exact:
        raise RunError(f"there is no run `{text}` in {experiments_dir}; `runs` lists the existing ones")
    names = ", ".join(f"{run.experiment}/{run.name}" for run in exact[:5])
    raise RunError(f"`{text}` is the beginning of {len(exact)} runs ({names}); give more of the name")


def _folders(directory: Path) -> list[Path]:
    try:
        with os.scandir(directory) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.name[0] != "." and _is_dir(entry))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(
            f"{directory} can't be read: {error.strerror}; expected a folder of experiments"
        ) from error


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _has_record(run_dir: Path) -> bool:
    try:
        # A record that is no file, or a broken link, still marks a run: it is listed as unreadable.
        return os.path.lexists(run_dir / FILE_NAME) and run_dir.is_dir()
    except (OSError, ValueError):  # a folder of another user, or a name that no folder can have
        return False


def _is_owned(run_dir: Path) -> bool:
    try:
        return is_locked(run_dir / LOCK_NAME)
    except OSError:
        return False


def _last_sign(run_dir: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp((run_dir / FILE_NAME).lstat().st_mtime, UTC)
    except (OSError, OverflowError, ValueError):
        return None


def _time(text: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _age(run: RunSummary) -> tuple[datetime, list[tuple[int, str]]]:
    # By name where two started at once; `-10` after `-9`.
    parts = [(int(p), "") if p.isdecimal() else (0, p) for p in re.split(r"(\d+)", run.name)]
    return run.started_at or datetime.min.replace(tzinfo=UTC), parts
