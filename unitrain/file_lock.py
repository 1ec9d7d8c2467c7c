"""Exclusive lock between processes, released when its holder exits; the file names the holder."""

import contextlib
import errno
import fcntl
import os
import socket
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from unitrain.untrusted_json import read_regular

_POLL_S = 0.02
_held: "weakref.WeakSet[FileLock]" = weakref.WeakSet()


class FileLock:
    """Lock by `flock` on a file; the file's text is the last holder, as `pid@host`.

    The system releases it when the holder exits, even by a crash. The file is never removed: a lock on
    a file that another process has replaced would exclude no process.

    Args:
        path: lock file; created if it is missing.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> lock = FileLock(Path(folder.name, "lock"))
    >>> lock.acquire(), is_locked(lock.path)
    (True, True)
    >>> lock.release()
    >>> is_locked(lock.path)
    False
    >>> folder.cleanup()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self, timeout_s: float = 0.5) -> bool:
        """Take the lock, and return True; return False if another process keeps it for `timeout_s` seconds.

        The default is longer than another process's call of `is_locked`.

        Raises:
            OSError: the file can't be created, or its filesystem has no locks.
        """
        if self._handle is not None:
            return True
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + timeout_s
        try:
            while not _try_lock(handle, fcntl.LOCK_EX):
                if time.monotonic() >= deadline:
                    os.close(handle)
                    return False
                time.sleep(_POLL_S)
            os.ftruncate(handle, 0)
            # The name only informs users: a full disk must not prevent locking.
            with contextlib.suppress(OSError):
                os.pwrite(handle, f"{os.getpid()}@{socket.gethostname()}\n".encode(), 0)
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(handle)
            raise
        self._handle = handle
        _held.add(self)
        return True

    def release(self) -> None:
        """Release the lock if it is held."""
        if self._handle is not None:
            fcntl.flock(self._handle, fcntl.LOCK_UN)
            self._close()

    @property
    def held(self) -> bool:
        """True if this object holds the lock."""
        return self._handle is not None

    def _close(self) -> None:
        # A fork by another thread in between must not close the number again in the child.
        handle, self._handle = self._handle, None
        _held.discard(self)
        if handle is not None:
            os.close(handle)


@contextlib.contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[FileLock]:
    """Hold the lock on `path` for the block.

    Raises:
        TimeoutError: another process kept it longer than `timeout_s` seconds; the message names it.
        OSError: the file can't be created, or its filesystem has no locks.
    """
    lock = FileLock(path)
    if not lock.acquire(timeout_s):
        raise TimeoutError(
            errno.ETIMEDOUT, f"held by {holder(path)} for more than {timeout_s:.0f} s", str(path)
        )
    try:
        yield lock
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Return True if a process holds the lock on `path`; False if not, or if the file is missing."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)


def holder(path: Path) -> str:
    """Return the process that holds the lock on `path`, or held it last, as `pid@host`."""
    try:
        return read_regular(path, 4096).decode(errors="replace").strip() or "another process"
    except (OSError, ValueError):
        return "another process"


def _try_lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _forget_in_child() -> None:
    # A forked data worker shares its parent's lock. If it kept the file open, the lock of a killed
    # training would stay until the worker exits.
    for lock in list(_held):
        lock._close()  # noqa: SLF001 - this module's own class


os.register_at_fork(after_in_child=_forget_in_child)
