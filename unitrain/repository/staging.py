"""Staging area of one model: its lock, its version counter, and the versions that are being written.

It is beside the repository's root where possible, since Triton takes every folder in the root for a model.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from unitrain.atomic_files import write_text
from unitrain.errors import RepositoryError
from unitrain.file_lock import FileLock, locked
from unitrain.repository.layout import LARGEST_VERSION, claimed_number, entries

LOCK_TIMEOUT_S = 600.0
"""Maximum seconds that a publication waits for another one of the same model."""

_LOCK_NAME = "lock"
_COUNTER_NAME = "counter"
_WRITTEN_NAME = "config.pbtxt"


class Staging:
    """Staging area of one model.

    Attributes:
        dir: its folder.
        config_path: our copy of the config.pbtxt that was written last, which shows a user's edits.
    """

    def __init__(self, staging_dir: Path, model: str) -> None:
        self.dir = staging_dir / model
        self._counter_path = self.dir / _COUNTER_NAME
        self.config_path = self.dir / _WRITTEN_NAME

    @contextlib.contextmanager
    def exclusive(self, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Hold the model's lock for the block, after removing the files of killed processes.

        Raises:
            TimeoutError: another process kept the lock too long.
            OSError: the folder can't be created or locked.
        """
        self.dir.mkdir(parents=True, exist_ok=True)
        with locked(self.dir / _LOCK_NAME, timeout_s):
            self._sweep()
            yield

    def sweep(self) -> None:
        """Remove the files of killed processes, unless a running one holds the lock."""
        lock = FileLock(self.dir / _LOCK_NAME)
        if lock.acquire(timeout_s=0):
            try:
                self._sweep()
            finally:
                lock.release()

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """Yield a new folder, and remove it after the block; the lock must be held."""
        work_dir = Path(tempfile.mkdtemp(prefix="work-", dir=self.dir))
        try:
            yield work_dir
        finally:
            shutil.rmtree(work_dir, ignore_errors=True)

    def next_number(self, model_dir: Path) -> int:
        """Return one more than the largest number that was ever published or is in `model_dir`.

        Raises:
            RepositoryError: an entry has the largest number that Triton supports.
        """
        taken = {claimed_number(entry.name): entry.path for entry in entries(model_dir)}
        largest = max(self._counted(), *taken) if taken else self._counted()
        if largest >= LARGEST_VERSION:
            where = taken.get(largest, str(self._counter_path))
            raise RepositoryError(
                f"{where} has the largest version number that Triton supports ({LARGEST_VERSION}); "
                "remove it, or publish under another model name"
            )
        return largest + 1

    def count(self, number: int) -> None:
        """Record a number as used; it is never used again."""
        write_text(self._counter_path, f"{number}\n")

    def now(self) -> float:
        """Return the time of the clock that dates files here; a shared disk may use another machine's clock."""
        with tempfile.NamedTemporaryFile(dir=self.dir) as probe:
            return os.stat(probe.name).st_mtime  # noqa: PTH116 - a handle's own name

    def _counted(self) -> int:
        try:
            return int(self._counter_path.read_text())
        except FileNotFoundError:
            return 0
        except ValueError:
            # We write it atomically, so a user edited it: the versions on disk still count.
            return 0

    def _sweep(self) -> None:
        for path in self.dir.iterdir():
            if path.name in (_LOCK_NAME, _COUNTER_NAME, _WRITTEN_NAME):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
