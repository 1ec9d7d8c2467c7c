"""Processes of this machine: command lines, start, processor time, memory, process groups, ports."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

_STUB = "triton_python_backend_stub"


def command_lines() -> dict[int, str]:
    """Return the command line of every process that this user may see, by process id."""
    return {pid: " ".join(words) for pid, words in _arguments() if words}


def _arguments() -> Iterator[tuple[int, list[str]]]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has just ended, or is another user's
            yield process.pid, process.cmdline()


def start_of(pid: int) -> int | None:
    """Return when a running process began, in kernel ticks since boot; None if there is none.

    psutil gives the time of day, which changes when the clock is set. Ticks identify a process.
    """
    try:
        # The name in parentheses may contain blanks and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19]) if fields and fields[0] not in "ZX" else None  # a zombie has ended


def started_at(pid: int) -> float | None:
    """Return when a running process began, in seconds of `time.time`; None if there is none."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).create_time()
    return None


def is_stopped(pid: int) -> bool:
    """Return whether a process is stopped by a signal; one that a debugger holds is not."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    return False


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used, in seconds; 0 if there is none."""
    with contextlib.suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return times.user + times.system
    return 0.0


def group_members(group: int) -> list[int]:
    """Return the running processes of a process group, ascending."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):  # it has just ended
            if os.getpgid(pid) == group and start_of(pid) is not None:
                found.append(pid)
    return sorted(found)


def model_processes(triton_pid: int) -> dict[tuple[str, str], list[int]]:
    """Return the processes in which the wheel's Triton runs its models, by (model, version)."""
    found: dict[tuple[str, str], list[int]] = {}
    for pid in group_members(triton_pid) if triton_pid else ():
        words: list[str] = []
        with contextlib.suppress(psutil.Error):
            words = psutil.Process(pid).cmdline()
        # The first argument is REPOSITORY/MODEL/VERSION/model.onnx.
        parts = words[1].rsplit("/", 3) if len(words) > 1 else []
        if len(parts) == 4 and words[0].endswith(_STUB):  # noqa: PLR2004 - these four
            found.setdefault((parts[1], parts[2]), []).append(pid)
    return found


def memory_bytes(pid: int) -> int:
    """Return the private memory of a process, without shared libraries and regions; 0 if it has ended."""
    with contextlib.suppress(psutil.Error):
        memory = psutil.Process(pid).memory_info()
        return int(memory.rss - memory.shared)
    return 0


def listener_on(port: int) -> tuple[int, str] | None:
    """Return the process id and the command line of the process that listens on a TCP port; None if unknown."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN or not connection.laddr or not connection.pid:
                continue
            if connection.laddr.port == port:
                return connection.pid, " ".join(psutil.Process(connection.pid).cmdline())
    return None
