"""Run folder: its record (run.json), its lock, and the process that owns it."""

import contextlib
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unitrain.atomic_files import fsync_dir, write_json
from unitrain.errors import RunError, UsageError
from unitrain.file_lock import FileLock, holder
from unitrain.untrusted_json import (
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
"""finished: all epochs are done; stopped: by early stopping; interrupted: by a signal."""
_LONGEST_NAME_BYTES = 120
_UNFIT_IN_EXPERIMENT = frozenset("/#%&+?")
"""Characters that TensorBoard's Projector can't have in a run's name, since it does not quote them in URLs."""
_UNFIT_IN_SLUG = re.compile(r"[^\w.=,-]+")

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
"""Checks of the fields that are read; other fields may have any value."""


def now() -> str:
    """Return the current time as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat()


def read_record(run_dir: Path) -> dict[str, Any]:
    """Read run.json of a run's folder.

    Raises:
        RunError: it is missing, or can't be read.
    """
    path = run_dir / FILE_NAME
    try:
        record: dict[str, Any] = read_json(path)
        object_with(_CHECKS, ("status",))(record, "")
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and not path.is_symlink():
            raise RunError(
                f"{run_dir} is no run's folder: it has no {FILE_NAME}; `runs` lists the existing ones"
            ) from error
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{path} can't be read as a run's record: {reason}") from error
    return record


def write_record(run_dir: Path, record: dict[str, Any]) -> None:
    """Replace run.json atomically.

    Raises:
        RunError: the disk refused it, or a value can't be written as JSON; the earlier record is kept.
    """
    path = run_dir / FILE_NAME
    try:
        write_json(path, record)
    except OSError as error:
        raise RunError(f"{path} can't be written: {error.strerror}; the earlier one is kept") from error
    except TypeError as error:
        raise RunError(f"{path} can't be written: {error}; the earlier one is kept") from error


class RunFolder:
    """Folder of a run: settings, sources, record, checkpoints, and TensorBoard's event files.

    Only the process that holds the lock changes the record. The system releases the lock when that process
    exits, even by a crash. Methods may be called from any thread.

    Attributes:
        path: absolute path of the folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = RunFolder.create(Path(folder), "curve")
    ...     run.update(epoch=1)
    ...     run.close("finished", "all epochs are done")
    ...     record = read_record(run.path)
    >>> record["status"], record["epoch"]
    ('finished', 1)
    """

    def __init__(self, path: Path, record: dict[str, Any], lock: FileLock, *, created: bool = False) -> None:
        self.path = path
        self._record = record
        self._lock = lock
        self._created = created
        self._mutex = threading.RLock()

    @classmethod
    def create(cls, experiments_dir: Path, experiment: str, slug: str = "") -> "RunFolder":
        """Create a new run of an experiment with the status "starting", and lock it.

        The name is the local time, followed by `slug`. Later runs of the same second get `-2`, `-3`.

        Raises:
            UsageError: the experiment's name is no valid name of a folder.
            RunError: the folder can't be created.
        """
        parent = Path(os.path.abspath(experiments_dir)) / check_experiment(experiment)  # noqa: PTH100 - keeps links
        try:
            parent.mkdir(parents=True, exist_ok=True)
            path = _claim(parent, slug)
            lock = FileLock(path / LOCK_NAME)
            lock.acquire()
            fsync_dir(parent)
        except OSError as error:
            where = error.filename or parent
            raise RunError(
                f"no run folder can be made in {parent}: {error.strerror} ({where}); choose another --experiments_dir"
            ) from error
        record = {
            "format": FORMAT,
            "status": "starting",
            "reason": None,
            "started_at": now(),
            "ended_at": None,
            "experiment": experiment,
            "name": path.name,
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        run = cls(path, record, lock, created=True)
        try:
            write_record(path, record)
        except RunError:
            run.discard()
            raise
        return run

    @classmethod
    def open(cls, path: Path, *, own: bool = False) -> "RunFolder":
        """Open an existing run.

        Args:
            path: folder of the run.
            own: True takes the lock, to resume the run, and records this process's pid and host.

        Raises:
            RunError: it is no run's folder, or another process owns it; the message names the process.
        """
        path = Path(os.path.abspath(path))  # noqa: PTH100 - keeps links
        record = read_record(path)
        lock = FileLock(path / LOCK_NAME)
        if not own:
            return cls(path, record, lock)
        try:
            taken = lock.acquire()
        except OSError as error:
            raise RunError(f"{path} can't be locked: {error.strerror} ({lock.path})") from error
        if not taken:
            raise RunError(
                f"{path} is in use by process {holder(lock.path)}; wait until it has ended, or end it with SIGTERM"
            )
        try:
            # Read again: the earlier owner may have written until it released the lock.
            run = cls(path, read_record(path), lock)
            run.update(pid=os.getpid(), host=socket.gethostname())
        except BaseException:
            lock.release()
            raise
        return run

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name

    @property
    def experiment(self) -> str:
        """Name of the experiment."""
        return str(self._record.get("experiment") or self.path.parent.name)

    @property
    def settings_path(self) -> Path:
        """Path of the resolved settings, which reproduce the run."""
        return self.path / "settings.yaml"

    @property
    def sources_dir(self) -> Path:
        """Folder with the project's code behind the class paths."""
        return self.path / "sources"

    @property
    def record_path(self) -> Path:
        """Path of run.json."""
        return self.path / FILE_NAME

    @property
    def checkpoints_dir(self) -> Path:
        """Folder of best.ckpt and last.ckpt."""
        return self.path / "checkpoints"

    @property
    def log_dir(self) -> Path:
        """Folder of TensorBoard's event files: the run's folder itself."""
        return self.path

    def record(self) -> dict[str, Any]:
        """Return the record: this process's own one, or the one on the disk if another process owns the run."""
        with self._mutex:
            return dict(self._record) if self._lock.held else read_record(self.path)

    def update(self, **fields: Any) -> None:
        """Change fields of the record and write it to the disk.

        Raises:
            RunError: this process does not own the run, or the disk refused it.
        """
        with self._changing() as record:
            record.update(fields)

    def append(self, field: str, entry: Any) -> None:
        """Add an entry to a list of the record (`published`, `refused`).

        Raises:
            RunError: this process does not own the run, or the disk refused.
        """
        with self._changing() as record:
            record[field] = [*record.get(field, ()), entry]

    def close(self, status: str, reason: str) -> None:
        """Record the end of the run, and release the lock in any case.

        Args:
            status: finished, stopped, interrupted or failed.
            reason: message for the user.

        Raises:
            RunError: the disk refused it.
        """
        if status not in FINAL:
            raise ValueError(f"a run ends as one of {', '.join(FINAL)}, got {status!r}")
        with self._mutex:
            try:
                self.update(status=status, reason=reason, ended_at=now())
            finally:
                self._lock.release()

    def discard(self) -> None:
        """Remove a run that was refused before its first epoch; an opened run is only unlocked."""
        with self._mutex:
            if self._created and self._lock.held:
                shutil.rmtree(self.path, ignore_errors=True)
                with contextlib.suppress(OSError):  # it contains other runs
                    self.path.parent.rmdir()
            self._lock.release()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        with self._mutex:
            if not self._lock.held:
                raise RunError(f"{self.path} is not owned by this process, so its record can't be changed")
            changed = dict(self._record)
            yield changed
            write_record(self.path, changed)
            self._record = changed


def check_experiment(name: str) -> str:
    """Return an experiment's name if it is a valid name of a folder.

    Raises:
        UsageError: it is empty, longer than 120 bytes, begins with a dot, or has one of / # % & + ? or a control character.
    """
    fits = (
        name.isprintable()
        and 0 < len(name.encode()) <= _LONGEST_NAME_BYTES
        and name[0] != "."
        and name == name.strip()
        and not _UNFIT_IN_EXPERIMENT & set(name)
    )
    if not fits:
        raise UsageError(
            f"experiment: expected a folder's name of up to {_LONGEST_NAME_BYTES} bytes without / # % & + ?, "
            f"a leading dot or blanks around it, got {name[:_LONGEST_NAME_BYTES]!r}; choose another name"
        )
    return name


def _claim(parent: Path, slug: str) -> Path:
    # The plus of 1e+3 is removed rather than replaced.
    slug = _UNFIT_IN_SLUG.sub("-", slug.replace("+", "")).strip("-.")
    slug = slug.encode()[:_LONGEST_NAME_BYTES].decode(errors="ignore")
    while True:
        stem = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S") + (f"_{slug}" if slug else "")
        for count in range(1, 1000):
            path = parent / (stem if count == 1 else f"{stem}-{count}")
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
