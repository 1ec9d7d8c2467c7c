"""One model's corner of the staging folder: its lock, its counter, and what is not published yet.

It lies beside the repository's root, never in it: Triton takes every folder there for a model.
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
"""How long a publication waits for another of the same model."""

_LOCK_NAME = "lock"
_COUNTER_NAME = "counter"
_WRITTEN_NAME = "config.pbtxt"


class Staging:
    """Work on one model under its lock; whatever an earlier, killed process left there is swept first."""

    def __init__(self, staging_dir: Path, model: str) -> None:
        self.dir = staging_dir / model
        self._counter_path = self.dir / _COUNTER_NAME
        self.config_path = self.dir / _WRITTEN_NAME
        """Our own copy of the config.pbtxt that was written last, which tells a person's edits."""

    @contextlib.contextmanager
    def exclusive(self, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Hold the model's lock between processes and threads for the block.

        Raises:
            TimeoutError: another process kept the lock too long.
            OSError: the folder can't be made or locked.
        """
        self.dir.mkdir(parents=True, exist_ok=True)
        with locked(self.dir / _LOCK_NAME, timeout_s):
            self._sweep()
            yield

    def sweep(self) -> None:
        """Remove what dead processes left, unless a living one is at work here."""
        lock = FileLock(self.dir / _LOCK_NAME)
        if lock.acquire(timeout_s=0):
            try:
                self._sweep()
            finally:
                lock.release()

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A new folder that is removed after the block, with what is still in it; the lock must be held."""
        work_dir = Path(tempfile.mkdtemp(prefix="work-", dir=self.dir))
        try:
            yield work_dir
        finally:
            shutil.rmtree(work_dir, ignore_errors=True)

    def next_number(self, model_dir: Path) -> int:
        """One more than the largest version ever published or lying in `model_dir`.

        Raises:
            RepositoryError: an entry has the largest number that Triton can count to.
        """
        taken = {claimed_number(entry.name): entry.path for entry in entries(model_dir)}
        largest = max(self._counted(), *taken) if taken else self._counted()
        if largest >= LARGEST_VERSION:
            where = taken.get(largest, str(self._counter_path))
            raise RepositoryError(
                f"{where} has the largest version number that Triton can count to ({LARGEST_VERSION}); "
                "remove it, or publish under another model name"
            )
        return largest + 1

    def count(self, number: int) -> None:
        """Remember a number as used, for good."""
        write_text(self._counter_path, f"{number}\n")

    def now(self) -> float:
        """This moment by the clock that dates files here, which on a shared disk is not this machine's."""
        with tempfile.NamedTemporaryFile(dir=self.dir) as probe:
            return os.stat(probe.name).st_mtime  # noqa: PTH116 - a handle's own name

    def _counted(self) -> int:
        try:
            return int(self._counter_path.read_text())
        except FileNotFoundError:
            return 0
        except ValueError:
            # Written whole, so a person's edit: the versions on disk still count.
            return 0

    def _sweep(self) -> None:
        for path in self.dir.iterdir():
            if path.name in (_LOCK_NAME, _COUNTER_NAME, _WRITTEN_NAME):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
