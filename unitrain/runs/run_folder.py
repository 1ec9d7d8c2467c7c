"""A run's folder, and who owns it."""

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


_LONGEST_NAME_BYTES = 120
# TensorBoard's Projector puts a run's name into its requests as it is.
_UNFIT_IN_EXPERIMENT = frozenset("/#%&+?")
_UNFIT_IN_SLUG = re.compile(r"[^\w.=,-]+")


class RunFolder:
    """One run's folder: settings, sources, record, checkpoints, TensorBoard's events.

    Made by `create` or `open`. Only its owner, who holds its lock, changes the record; the lock goes
    with the owning process, however it ends. Methods may be called from any thread.

    Attributes:
        path: the folder, absolute.
    """

    def __init__(self, path: Path, record: dict[str, Any], lock: FileLock, *, created: bool = False) -> None:
        self.path = path
        self._record = record
        self._lock = lock
        self._created = created
        self._mutex = threading.RLock()

    @classmethod
    def create(cls, experiments_dir: Path, experiment: str, slug: str = "") -> "RunFolder":
        """A new run of an experiment, owned, with the status "starting".

        Its name is the local time, then `slug`; of several in one second the later ones get `-2`, `-3`.

        Raises:
            UsageError: the experiment's name can't be a folder's.
            RunError: the folder can't be made.
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
        """A run that is there.

        Args:
            path: its folder.
            own: take its lock, to go on with it; pid and host in the record become this process's.

        Raises:
            RunError: it is no run's folder, or another process owns it, which is named.
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
            # Read again: the earlier owner may have written until it let go.
            run = cls(path, read_record(path), lock)
            run.update(pid=os.getpid(), host=socket.gethostname())
        except BaseException:
            lock.release()
            raise
        return run

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def experiment(self) -> str:
        """The name of the experiment that it is a run of."""
        return str(self._record.get("experiment") or self.path.parent.name)

    @property
    def settings_path(self) -> Path:
        """The resolved settings, which rerun it."""
        return self.path / "settings.yaml"

    @property
    def sources_dir(self) -> Path:
        """The project's own code behind the class paths."""
        return self.path / "sources"

    @property
    def record_path(self) -> Path:
        """run.json."""
        return self.path / FILE_NAME

    @property
    def checkpoints_dir(self) -> Path:
        """best.ckpt and last.ckpt."""
        return self.path / "checkpoints"

    @property
    def log_dir(self) -> Path:
        """Where TensorBoard's events lie: the run's folder itself."""
        return self.path

    def record(self) -> dict[str, Any]:
        """The run's record: its own, as it will be written next, or, where it is another's, as it is now."""
        with self._mutex:
            return dict(self._record) if self._lock.held else read_record(self.path)

    def update(self, **fields: Any) -> None:
        """Change fields of the record, on the disk when this returns.

        Raises:
            RunError: this process does not own the run, or the disk refused.
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
        """Write how it ended, and let go of it, even where the disk refuses the writing.

        Args:
            status: finished, stopped, interrupted or failed.
            reason: in words, for people.

        Raises:
            RunError: the disk refused.
        """
        if status not in FINAL:
            raise ValueError(f"a run ends as one of {', '.join(FINAL)}, got {status!r}")
        with self._mutex:
            try:
                self.update(status=status, reason=reason, ended_at=now())
            finally:
                self._lock.release()

    def discard(self) -> None:
        """Remove the folder of a run that was refused before its first epoch; one that was opened is only let go."""
        with self._mutex:
            if self._created and self._lock.held:
                shutil.rmtree(self.path, ignore_errors=True)
                with contextlib.suppress(OSError):  # other runs lie there
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
    """The name itself, when a folder can have it.

    Raises:
        UsageError: it is empty, too long, begins with a dot, or has one of / # % & + ? or a control character.
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
            f"experiment: expected a folder's name of at most {_LONGEST_NAME_BYTES} bytes without / # % & + ?, "
            f"a leading dot or blanks around it, got {name[:_LONGEST_NAME_BYTES]!r}; name it otherwise"
        )
    return name


def _claim(parent: Path, slug: str) -> Path:
    # Without the plus of 1e+3 rather than with another sign.
    slug = _UNFIT_IN_SLUG.sub("-", slug.replace("+", "")).strip("-.")
    slug = slug.encode()[:_LONGEST_NAME_BYTES].decode(errors="ignore")
    while True:
        stem = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S") + (f"_{slug}" if slug else "")
        for count in range(1, 1000):
            path = parent / (stem if count == 1 else f"{stem}-{count}")
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
