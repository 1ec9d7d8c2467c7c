"""Supervisor behind `python -m unitrain serve`: keep one Triton running on a repository until a signal ends it."""

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from unitrain.errors import ServingError
from unitrain.repository import Repository
from unitrain.serving import server_registry
from unitrain.serving.admin_client import Admin, tls_of
from unitrain.serving.candidate import Candidates
from unitrain.serving.events import Reporter
from unitrain.serving.hang_detection import HealthCheck
from unitrain.serving.model_health import Processes, RestartNeeded
from unitrain.serving.model_security import TRUSTED_BACKENDS
from unitrain.serving.triton.advisories import text_of
from unitrain.serving.triton.host_requirements import PLAIN_PATH
from unitrain.serving.triton.process import Launch, TritonProcess, failure_reason, start_failure
from unitrain.serving.triton.system_processes import model_processes
from unitrain.serving.watcher import Watcher

START_TIMEOUT_S = 60.0
IMAGE_TIMEOUT_S = 3600.0
"""Time for the start of a container, whose image of several gigabytes may have to be downloaded first."""
_MIN_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
MAX_SERVING_BACKOFF_S = 2.0
"""Maximum for a Triton that was ready: it may serve for a while, which is better than nothing."""
_STEADY_S = 60.0
"""After a Triton has run this long the backoff starts again at its minimum."""
_POLL_INTERVAL_S = 0.1
_EXIT_MARGIN_S = 2.0
_ERRORS = ("failed", "unhealthy", "restarting", "unreadable")
_MAX_ERRORS = 100
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """Starts Triton, watches its repository, restarts it when it crashes, and ends it.

    A signal ends it. A second signal ends Triton without waiting for requests in flight.

    Args:
        launch: settings of Triton's start.
        reporter: log of events.
        allowed_backends: backends that the user allowed in addition to `onnxruntime`.
        parent_pid: process id of the parent; the supervisor ends when the parent has ended. None: it does not.

    Attributes:
        launch: settings of Triton's start, with the folders of this server.
        url: address of gRPC, as `host:port`.
    """

    def __init__(
        self,
        launch: Launch,
        reporter: Reporter,
        allowed_backends: frozenset[str] = frozenset(),
        *,
        parent_pid: int | None = None,
    ) -> None:
        self._dir = server_registry.server_dir(launch.shm_prefix)
        # Triton's Python backend gives the path to a shell, unquoted: a path that a shell would split gets a link.
        self._link = None if PLAIN_PATH.fullmatch(str(launch.repository)) else self._dir / "repository"
        self._candidates_dir = self._dir / "candidates"
        self.launch = replace(
            launch, seen_as=self._link, candidates_dir=self._candidates_dir, admin_dir=self._dir
        )
        self.url = f"{launch.near_host}:{launch.grpc_port}"
        self._signals_received = 0
        self._parent_pid = parent_pid
        self._reporter = reporter
        self_verifying: frozenset[str] = frozenset() if launch.distribution.native else TRUSTED_BACKENDS
        self._watcher = Watcher(
            Repository(launch.repository),
            reporter,
            allowed_backends=allowed_backends,
            explain=self._explain,
            processes=self._model_processes,
            candidates=Candidates(self._candidates_dir, self.launch.triton_repository, self_verifying),
        )
        self._record = server_registry.ServerRecord(
            pid=os.getpid(),
            started=server_registry.start_of(os.getpid()) or 0,
            url=self.url,
            repository=str(launch.repository),
            shm_prefix=launch.shm_prefix,
            metrics=f"{launch.near_host}:{launch.metrics_port}",
            log=str(launch.log_path),
            admin=str(self.launch.admin_path or ""),
            release=text_of(launch.distribution.release) if launch.distribution.release else "",
            flags=list(launch.flags),
        )

    def run(self) -> None:
        """Serve until a signal; must be called in the main thread.

        Raises:
            ServingError: the first start failed.
        """
        server_registry.sweep()
        self._reporter.also = self._note_error
        with self._handle_signals():
            try:
                self._make_dir()
                if self._link:
                    self._link.symlink_to(self.launch.repository, target_is_directory=True)
                self._candidates_dir.mkdir(mode=0o700)
                self._serve()
            finally:
                self._reporter.also = None
                shutil.rmtree(self._dir, ignore_errors=True)
                self._record.remove()
                server_registry.sweep_temporary()
        self._reporter.report("stopped", "stopped")

    def _serve(self) -> None:
        backoff_s, first = _MIN_BACKOFF_S, True
        while not self._is_ending():
            began, was_ready = time.monotonic(), False
            process = TritonProcess(self.launch)
            admin = Admin(self.url, tls_of(self.launch.flags), self.launch.admin_path)
            try:
                reason = self._until_ready(process, admin)
                if reason is None and not self._is_ending():
                    local = self.launch.distribution.container is None
                    self._record = replace(self._record, triton_pid=process.pid if local else 0)
                    self._write_record(needed=first)
                    self._report_ready(process, first=first)
                    first, was_ready = False, True
                    reason = self._until_end(process, admin)
            finally:
                admin.close()
                self._end(process)
            if self._is_ending():
                return
            if first:
                raise ServingError(f"{reason}; see {self.launch.log_path}")
            steady = time.monotonic() - began > _STEADY_S
            maximum_s = MAX_SERVING_BACKOFF_S if was_ready else MAX_BACKOFF_S
            backoff_s = _MIN_BACKOFF_S if steady else min(2 * backoff_s, maximum_s)
            self._reporter.report(
                "restarting",
                f"{reason}; starting it again in {backoff_s:g} s",
                reason=reason,
                after_s=backoff_s,
            )
            until = time.monotonic() + backoff_s
            while not self._is_ending() and time.monotonic() < until:
                time.sleep(_POLL_INTERVAL_S)

    def _until_ready(self, process: TritonProcess, admin: Admin) -> str | None:
        """Wait for Triton; return None when it is ready or the supervisor is to end, else why it is not ready."""
        timeout_s = IMAGE_TIMEOUT_S if self.launch.distribution.container else START_TIMEOUT_S
        deadline = time.monotonic() + timeout_s
        while not self._is_ending():
            if process.exit_code is not None:
                return (
                    start_failure(self.launch.log_path)
                    or f"Triton ended with exit code {process.exit_code} at its start"
                )
            if admin.is_ready():
                return None
            if time.monotonic() > deadline:
                return f"Triton was not ready within {timeout_s:.0f} s"
            time.sleep(_POLL_INTERVAL_S)
        return None

    def _until_end(self, process: TritonProcess, admin: Admin) -> str:
        """Watch the repository; return why Triton must be restarted, once it must or the supervisor is to end."""
        stop = threading.Event()
        reasons: list[str] = []

        def watch() -> None:
            try:
                self._watcher.run(admin, stop)
            except RestartNeeded as error:
                reasons.append(str(error))
            except Exception as error:  # noqa: BLE001 - a watcher that ends silently would serve stale models
                reasons.append(f"the watcher failed with {type(error).__name__}: {error}")

        health = HealthCheck(admin, process.pid if self._record.triton_pid else None)
        threads = [
            threading.Thread(target=watch, name="watcher", daemon=True),
            threading.Thread(target=health.run, args=(stop,), name="health", daemon=True),
        ]
        for thread in threads:
            thread.start()
        while not self._is_ending() and process.exit_code is None and not reasons and not health.problem:
            time.sleep(_POLL_INTERVAL_S)
        stop.set()
        admin.close()
        for thread in threads:
            thread.join(timeout=5)
        if process.exit_code is not None:
            return f"Triton died with exit code {process.exit_code}"
        if health.problem:
            process.kill()  # it would not react to a signal
            return health.problem
        return reasons[0] if reasons else "Triton is to end"

    def _end(self, process: TritonProcess) -> None:
        process.terminate()
        deadline = time.monotonic() + self.launch.grace_s + _EXIT_MARGIN_S
        while (
            not process.wait(_POLL_INTERVAL_S) and time.monotonic() < deadline and self._signals_received <= 1
        ):
            pass
        process.kill()

    def _is_ending(self) -> bool:
        orphaned = self._parent_pid is not None and os.getppid() != self._parent_pid
        return orphaned or self._signals_received > 0

    def _explain(self, model: str, words: str) -> str:
        """Return why a model was not loaded, with the repository's own path."""
        reason = failure_reason(self.launch.log_path, model, words)
        return reason.replace(str(self._link), str(self.launch.repository)) if self._link else reason

    def _model_processes(self) -> Processes:
        return model_processes(self._record.triton_pid)

    def _make_dir(self) -> None:
        try:
            self._dir.mkdir(mode=0o700)
        except OSError as error:
            raise ServingError(f"the server's folder {self._dir} can't be made: {error.strerror}") from error

    def _note_error(self, event: str, text: str, fields: dict[str, Any]) -> None:
        """Keep the last error of each version in the record, where `serve status` finds it."""
        if event not in _ERRORS:
            return
        version = fields.get("version")
        name = " ".join(str(word) for word in (fields.get("model", ""), version or "") if word)
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event,
            "reason": str(fields.get("reason", text)),
        }
        others = {key: value for key, value in self._record.errors.items() if key != name}
        kept = dict(list(others.items())[1 - _MAX_ERRORS :])
        self._record = replace(self._record, errors=kept | {name: entry})
        self._write_record(needed=False)

    def _write_record(self, *, needed: bool) -> None:
        try:
            self._record.write()
        except ServingError:  # a full disk must not end the server
            if needed:
                raise

    def _report_ready(self, process: TritonProcess, *, first: bool) -> None:
        launch = self.launch
        self._reporter.report(
            "ready",
            f"Triton is ready{'' if first else ' again'}: gRPC {self.url}, "
            f"metrics http://{self._record.metrics}/metrics, repository {launch.repository}, "
            f"log {launch.log_path}",
            grpc=self.url,
            metrics=self._record.metrics,
            pid=os.getpid(),
            triton_pid=process.pid,
            repository=str(launch.repository),
            log=str(launch.log_path),
        )

    @contextlib.contextmanager
    def _handle_signals(self) -> Iterator[None]:
        def receive(_number: int, _frame: FrameType | None) -> None:
            # No threading.Event: setting it takes a lock that the interrupted line may hold.
            self._signals_received += 1

        # Under nohup SIGHUP is ignored, and stays ignored.
        handled = [n for n in _SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        before: dict[signal.Signals, Any] = {number: signal.signal(number, receive) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
