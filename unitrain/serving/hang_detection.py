"""Hang detection: distinguish a Triton, or a model's process, that hangs from a busy one."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from unitrain.serving.admin_client import Admin
from unitrain.serving.triton.system_processes import cpu_s, is_stopped

CHECK_INTERVAL_S = 2.0
CHECK_TIMEOUT_S = 4.0
_MAX_UNANSWERED = 3
"""Number of checks in a row without an answer. It is a count, since this process may have been suspended itself."""
_MAX_UNANSWERED_CONTAINER = 4
"""The same for a Triton in a container, whose processes are not visible."""
_BUSY_SHARE = 0.02
"""Share of one processor. A process that uses less while it does not answer is not computing."""


@dataclass
class Progress:
    """Processor time that some processes have used since `begin`."""

    _before: dict[int, float] = field(default_factory=dict)
    _began_s: float = 0.0

    def begin(self, pids: Iterable[int]) -> None:
        """Start measuring."""
        self._before = {pid: cpu_s(pid) for pid in pids}
        self._began_s = time.monotonic()

    def is_idle(self) -> bool:
        """Return whether the processes have used almost no processor time since `begin`."""
        used_s = sum(cpu_s(pid) - before for pid, before in self._before.items())
        return used_s < _BUSY_SHARE * (time.monotonic() - self._began_s)


class HealthCheck:
    """Health check of Triton itself, whatever its models do.

    A busy Triton still answers `live`, and one that gets little processor time uses all of it. Triton hangs if it
    answers neither gRPC nor administration several times in a row, and is stopped or idle.

    Args:
        admin: connection to the server.
        pid: process id of tritonserver; None: its process is not visible.

    Attributes:
        problem: reason why Triton must be restarted; empty while it is healthy.
    """

    def __init__(self, admin: Admin, pid: int | None) -> None:
        self._admin = admin
        self._pid = pid
        self.problem = ""

    def run(self, stop: threading.Event) -> None:
        """Check until `stop` is set or there is a problem."""
        unanswered, progress, began_s = 0, Progress(), 0.0
        while not self.problem and not stop.wait(CHECK_INTERVAL_S):
            if unanswered == 0:
                progress.begin([self._pid] if self._pid else [])
                began_s = time.monotonic()
            if self._admin.is_live(CHECK_TIMEOUT_S):
                unanswered = 0
                continue
            unanswered += 1
            if not stop.is_set() and self._is_hung(unanswered, progress):
                self.problem = (
                    f"Triton has not answered for {time.monotonic() - began_s:.0f} s and does nothing"
                )

    def _is_hung(self, unanswered: int, progress: Progress) -> bool:
        if self._pid is None:
            return unanswered >= _MAX_UNANSWERED_CONTAINER
        return unanswered >= _MAX_UNANSWERED and (is_stopped(self._pid) or progress.is_idle())


def hung_processes(pids: Iterable[int], progress: Progress | None) -> list[int]:
    """Return those processes of an unanswering model that hang.

    Args:
        pids: process ids of the model.
        progress: processor time of the processes during the request; None: the model may wait without
            computing, and only a stopped process hangs.
    """
    pids = list(pids)
    stopped = [pid for pid in pids if is_stopped(pid)]
    return stopped or (pids if progress is not None and progress.is_idle() else [])


def kill_processes(pids: Iterable[int]) -> None:
    """Kill processes of models, so that Triton notices their end."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
