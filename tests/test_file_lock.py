"""A lock excludes other processes, names its holder, and ends with it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from unitrain.file_lock import FileLock, holder, is_locked, locked

HOLDER = """
import os, sys, time
from pathlib import Path
from unitrain.file_lock import FileLock
lock = FileLock(Path(sys.argv[1]))
assert lock.acquire()
if len(sys.argv) > 2 and os.fork() == 0:  # as a data worker is
    print(os.getpid(), flush=True)
    time.sleep(120)
else:
    if len(sys.argv) == 2:
        print("held", flush=True)
    time.sleep(120)
"""


def _holder(path: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, path, *arguments], stdout=subprocess.PIPE, text=True
    )


def test_a_lock_excludes_another_process_and_names_it(tmp_path: Path) -> None:
    """The second comes to nothing, knows whom it waits for, and gets the lock when the first is killed."""
    path = tmp_path / "lock"
    with _holder(path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert is_locked(path)
        assert not FileLock(path).acquire(timeout_s=0.1)
        assert holder(path).startswith(f"{process.pid}@")
        process.send_signal(signal.SIGKILL)
    assert not is_locked(path)
    assert FileLock(path).acquire(timeout_s=0)


def test_a_forked_worker_does_not_keep_a_killed_parents_lock(tmp_path: Path) -> None:
    """A data worker outlives a killed training for a while; the run can be resumed at once."""
    path = tmp_path / "lock"
    process = _holder(path, "fork")
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        os.kill(worker, 0)
        assert not is_locked(path)
    finally:
        os.kill(worker, signal.SIGKILL)
        process.stdout.close()


def test_looking_does_not_keep_anybody_from_locking(tmp_path: Path) -> None:
    """`runs` may look at the very moment a run takes its lock."""
    path = tmp_path / "lock"
    lock = FileLock(path)
    for _ in range(20):
        assert lock.acquire()
        assert is_locked(path)
        lock.release()
        assert not is_locked(path)


def test_an_absent_lock_is_free(tmp_path: Path) -> None:
    """Nobody holds what is not there, and looking makes nothing."""
    assert not is_locked(tmp_path / "lock")
    assert not (tmp_path / "lock").exists()


def test_waiting_ends_in_a_timeout_that_names_the_holder(tmp_path: Path) -> None:
    """Within one process, too: two objects exclude each other."""
    path = tmp_path / "lock"
    with locked(path, 0), pytest.raises(TimeoutError, match=f"held by {os.getpid()}@"), locked(path, 0.05):
        pass


def test_a_fork_while_a_lock_is_closed_never_closes_its_number_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forked child closes the locks that are held; by then the number may be another file's."""
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire()
    held_at_close = []
    close = os.close
    monkeypatch.setattr(
        "unitrain.file_lock.os.close", lambda number: (close(number), held_at_close.append(lock.held))
    )
    lock.release()
    assert held_at_close == [False]
