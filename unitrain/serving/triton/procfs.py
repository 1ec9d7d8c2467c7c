"""What /proc tells of the processes of this machine."""

import contextlib
import os
import time
from pathlib import Path

_LISTENING = "0A"
_STUB = "triton_python_backend_stub"


def command_lines() -> dict[int, str]:
    """The command line of every process that this one may see, by pid."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            words = path.read_bytes().rstrip(b"\0").replace(b"\0", b" ")
            found[int(path.parent.name)] = words.decode(errors="replace")
    return found


def start_of(pid: int) -> int | None:
    """When a running process began, in kernel ticks since boot; None where there is none."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])  # a zombie is over


def started_at(pid: int) -> float | None:
    """When a running process began, in seconds as `time.time` has them; None where there is none."""
    ticks = start_of(pid)
    if ticks is None:
        return None
    boot_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return boot_s + ticks / os.sysconf("SC_CLK_TCK")


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal; one that a debugger holds is not."""
    fields = _stat(pid)
    return fields is not None and fields[0] == "T"


def cpu_s(pid: int) -> float:
    """Processor time that a process has used, in seconds; 0 if there is none."""
    fields = _stat(pid)
    return 0.0 if fields is None else (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def group_members(group: int) -> list[int]:
    """The processes of a process group that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(path.name))
        if fields is not None and int(fields[2]) == group and fields[0] not in "ZX":
            found.append(int(path.name))
    return sorted(found)


def model_processes(triton_pid: int) -> dict[tuple[str, str], list[int]]:
    """The processes in which the wheel's Triton runs its models, by (model, version)."""
    found: dict[tuple[str, str], list[int]] = {}
    words = command_lines() if triton_pid else {}
    for pid in group_members(triton_pid) if triton_pid else ():
        program, _, rest = words.get(pid, "").partition(" ")
        # The first argument is REPOSITORY/MODEL/VERSION/model.onnx.
        parts = rest.partition(" unitrain_")[0].rsplit("/", 3)
        if program.endswith(_STUB) and len(parts) == 4:  # noqa: PLR2004 - these four
            found.setdefault((parts[1], parts[2]), []).append(pid)
    return found


def memory_bytes(pid: int) -> int:
    """What a process holds in memory for itself alone; shared libraries and regions are left out. 0 where it is over."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("RssAnon:"))
    except (OSError, StopIteration):
        return 0
    return 1024 * int(kilobytes)


def listener_on(port: int) -> tuple[int, str] | None:
    """The pid and the command line of the process that listens on a TCP port; None where it can't be told."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
    for pid, words in command_lines().items() if sockets else ():
        with contextlib.suppress(OSError):  # another user's process
            for handle in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(handle.readlink()) in sockets:
                        return pid, words
    return None


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on."""
    try:
        # The name in parentheses may hold anything, blanks and parentheses too.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields or None
