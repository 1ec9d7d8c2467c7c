"""Health checks of one model: probe each served version, reload the model, set aside a version that keeps crashing."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unitrain.errors import RepositoryError
from unitrain.repository import Repository
from unitrain.serving.admin_client import Admin, Refused
from unitrain.serving.events import Reporter
from unitrain.serving.hang_detection import Progress, hung_processes, kill_processes
from unitrain.serving.model_manager import ModelManager
from unitrain.serving.model_security import runs_code
from unitrain.serving.sample_requests import probe_request
from unitrain.serving.triton.system_processes import start_of

PROBE_INTERVAL_S = 1.0
PROBE_TIMEOUT_S = 10.0
_PROBE_DUTY = 20
"""A probe is repeated after this many times the time that it took, or later."""
_MAX_RELOADS = 3
_MAX_CRASHES = 3
"""A version that crashes this often, each time before its first answer, is set aside for another."""
_CRASHED_STUB = "is not healthy"
"""Triton's words about a model whose process has ended."""

Processes = dict[tuple[str, str], list[int]]
"""Process ids by (model, version); empty if they are unknown."""


class RestartNeeded(Exception):  # noqa: N818 - a request to the supervisor
    """Reloading did not bring a model back; Triton must be restarted."""


@dataclass
class _Probe:
    """Probes of one served version, and their results since it was loaded.

    Attributes:
        request: message to send; None if the version can't be probed.
        pids: processes that run the version.
        due_s: time of the next probe on the monotonic clock.
        answered: True once the version has answered a probe.
        failures: number of probes in a row that were refused.
        timeouts: number of probes in a row without an answer.
    """

    request: Any | None
    pids: tuple[int, ...]
    due_s: float = 0.0
    answered: bool = False
    failures: int = 0
    timeouts: int = 0


class ModelHealth:
    """Health of the served versions of one model.

    Args:
        manager: loaded versions of the model.
        repository: model repository, for golden samples.
        reporter: log of events.
        processes: function that returns the processes of all models.
    """

    def __init__(
        self,
        manager: ModelManager,
        repository: Repository,
        reporter: Reporter,
        processes: Callable[[], Processes] = dict,
    ) -> None:
        self._manager = manager
        self._repository = repository
        self._reporter = reporter
        self._processes = processes
        self._probes: dict[int, _Probe] = {}
        self._loads = 0
        self._crashes: dict[Any, int] = {}
        self._reloads = 0

    def forget(self) -> None:
        """Forget the reloads: Triton has been restarted."""
        self._reloads = 0

    def check(self, admin: Admin) -> None:
        """Probe each version that is due, and reload the model if one does not answer.

        Raises:
            RestartNeeded: reloading has not helped.
            ServerGone: there is no server.
        """
        if self._loads != self._manager.loads:
            self._start_probes()
        for version in self._manager.versions:
            probe = self._probes[version]
            if probe.pids and all(start_of(pid) is None for pid in probe.pids):
                reason: str | None = "its process has ended"
            elif probe.request is None or time.monotonic() < probe.due_s:
                continue
            else:
                reason = self._failure(admin, probe)
            if reason is not None:
                if self._keeps_crashing(version, probe):
                    self._set_aside(admin, version, reason)
                else:
                    self._reload(admin, version, reason)
                return
            self._reloads = 0
            if probe.answered:
                self._crashes.pop(self._manager.files_of(version), None)

    def _start_probes(self) -> None:
        """Begin again for the versions that were loaded."""
        self._loads = self._manager.loads
        running = self._processes()
        name, config = self._manager.name, self._manager.config
        self._probes = {
            version: _Probe(
                probe_request(config, version, self._repository.version_dir(name, version)),
                tuple(running.get((name, str(version)), ())),
            )
            for version in self._manager.versions
        }

    def _failure(self, admin: Admin, probe: _Probe) -> str | None:
        """Return why a version is unhealthy, or None if it is healthy."""
        began = time.monotonic()
        reason = None
        progress = Progress()
        progress.begin(probe.pids)
        try:
            admin.infer(probe.request, PROBE_TIMEOUT_S)
        except Refused as error:
            # A graph may refuse zeros: only a version that answered before is unhealthy. A busy server is healthy.
            if _CRASHED_STUB in str(error):
                reason = str(error)
            elif error.status == "DEADLINE_EXCEEDED":
                reason = self._kill_hung(probe, progress)
            elif probe.answered:
                probe.failures += 1
                reason = str(error) if probe.failures > 1 else None
        else:
            probe.answered, probe.failures, probe.timeouts = True, 0, 0
        took_s = time.monotonic() - began
        probe.due_s = time.monotonic() + max(PROBE_INTERVAL_S, _PROBE_DUTY * took_s)
        return reason

    def _kill_hung(self, probe: _Probe, progress: Progress) -> str | None:
        """Kill the processes of a version that hang, and return the reason; None if it is only busy."""
        probe.timeouts += 1
        # A backend that the user allowed may wait for something without computing.
        idle = progress if not runs_code(self._manager.config) and probe.timeouts > 1 else None
        version = "" if probe.request is None else probe.request.model_version
        hung = hung_processes(self._running(version), idle)
        if not hung:
            return None
        kill_processes(hung)
        return f"process {', '.join(map(str, hung))} hangs and was killed"

    def _running(self, version: str) -> list[int]:
        """Return the processes that run a version now."""
        return self._processes().get((self._manager.name, version), [])

    def _keeps_crashing(self, version: int, probe: _Probe) -> bool:
        """Count a crash; return whether the version has crashed too often without any answer.

        If no other version can take its place, Triton is restarted first, once: a restart stops the other models.
        """
        if probe.answered:
            return False
        files = self._manager.files_of(version)
        self._crashes[files] = self._crashes.get(files, 0) + 1
        limit = _MAX_CRASHES if self._manager.has_other_version(version) else _MAX_RELOADS + 2
        return self._crashes[files] >= limit

    def _set_aside(self, admin: Admin, version: int, reason: str) -> None:
        """Serve the other versions without one that crashes at each request."""
        crashes = self._crashes.pop(self._manager.files_of(version), 0)
        self._reloads = 0
        text = f"it crashed {crashes} times before its first answer and is set aside: {reason}"
        self._manager.exclude({version: text}, admin)

    def _reload(self, admin: Admin, version: int, reason: str) -> None:
        """Reload the model.

        Raises:
            RestartNeeded: it was reloaded too often, or can't be reloaded.
        """
        name = self._manager.name
        self._reporter.report(
            "unhealthy",
            f"{name} version {version} does not answer and is reloaded: {reason}",
            model=name,
            version=version,
            reason=reason,
        )
        self._reloads += 1
        if self._reloads > _MAX_RELOADS:
            raise RestartNeeded(f"{name} does not answer after {_MAX_RELOADS} reloads")
        # Triton waits for a stopped process forever, and keeps its memory.
        kill_processes(hung_processes(self._running(str(version)), None))
        try:
            self._manager.reload(admin)
        except (Refused, RepositoryError) as error:
            raise RestartNeeded(f"{name} can't be reloaded: {error}") from error
