"""Detection of a Triton, or of a model's process, that hangs rather than being busy."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from unitrain.serving.admin_client import Admin
from unitrain.serving.triton.system_processes import cpu_s, is_stopped

CHECK_EVERY_S = 2.0
CHECK_TIMEOUT_S = 4.0
_UNANSWERED = 3
"""Checks in a row without an answer. Counted rather than timed: this process may have been suspended itself."""
_UNANSWERED_UNSEEN = 4
"""The same for a Triton whose processes can't be looked at, since they are in a container."""
_BUSY_SHARE = 0.02
"""Of one processor. A process that uses less while it does not answer is not computing."""


@dataclass
class Progress:
    """Processor time of some processes since `begin`."""

    _before: dict[int, float] = field(default_factory=dict)
    _began_s: float = 0.0

    def begin(self, pids: Iterable[int]) -> None:
        """Start measuring."""
        self._before = {pid: cpu_s(pid) for pid in pids}
        self._began_s = time.monotonic()

    def is_idle(self) -> bool:
        """Whether all of them together have used next to no processor time since."""
        used_s = sum(cpu_s(pid) - before for pid, before in self._before.items())
        return used_s < _BUSY_SHARE * (time.monotonic() - self._began_s)


class HealthCheck:
    """Checks that Triton itself answers, whatever its models do.

    A busy Triton still answers `live`, and one that is starved of processors still uses what it gets. So one
    is hung if it answers neither gRPC nor administration several times in a row, and is stopped or idle.

    Args:
        pid: of tritonserver; None: it can't be looked at.

    Attributes:
        problem: why Triton must be restarted; empty while it is well.
    """

    def __init__(self, admin: Admin, pid: int | None) -> None:
        self._admin = admin
        self._pid = pid
        self.problem = ""

    def run(self, over: threading.Event) -> None:
        """Check until `over` is set or there is a problem."""
        unanswered, progress, began_s = 0, Progress(), 0.0
        while not self.problem and not over.wait(CHECK_EVERY_S):
            if unanswered == 0:
                progress.begin([self._pid] if self._pid else [])
                began_s = time.monotonic()
            if self._admin.is_live(CHECK_TIMEOUT_S):
                unanswered = 0
                continue
            unanswered += 1
            if not over.is_set() and self._is_hung(unanswered, progress):
                self.problem = (
                    f"Triton has not answered for {time.monotonic() - began_s:.0f} s and does nothing"
                )

    def _is_hung(self, unanswered: int, progress: Progress) -> bool:
        if self._pid is None:
            return unanswered >= _UNANSWERED_UNSEEN
        return unanswered >= _UNANSWERED and (is_stopped(self._pid) or progress.is_idle())


def hung_processes(pids: Iterable[int], progress: Progress | None) -> list[int]:
    """The processes of a model that did not answer in time which hang.

    Args:
        progress: of the processes while the request waited; None: the model may wait without computing, so
            only a stopped process counts.
    """
    pids = list(pids)
    stopped = [pid for pid in pids if is_stopped(pid)]
    return stopped or (pids if progress is not None and progress.is_idle() else [])


def kill_processes(pids: Iterable[int]) -> None:
    """End processes of models, so that Triton sees them as dead."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
