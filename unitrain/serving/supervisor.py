"""Keeps one Triton running on a repository until it is told to end."""

import contextlib
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from unitrain.errors import ServingError
from unitrain.repository import Repository
from unitrain.serving import server_registry as runtime
from unitrain.serving.admin_client import Admin, tls_of
from unitrain.serving.candidate import Candidates
from unitrain.serving.events import Reporter
from unitrain.serving.hang_detection import HealthCheck
from unitrain.serving.model_manager import Processes
from unitrain.serving.poll import PollObserver
from unitrain.serving.security import OWN_BACKENDS
from unitrain.serving.triton import process as log
from unitrain.serving.triton.advisories import text_of
from unitrain.serving.triton.host_requirements import PLAIN_PATH
from unitrain.serving.triton.process import Launch, TritonProcess
from unitrain.serving.triton.system_processes import model_processes
from unitrain.serving.watcher import RestartNeeded, Watcher

READY_WITHIN_S = 60.0
PULLED_WITHIN_S = 3600.0
"""A container's image of several gigabytes may have to be fetched first."""
LONGEST_BACKOFF_S = 30.0
SERVING_BACKOFF_S = 2.0
"""The longest for a Triton that has been ready: it may serve for a while, which is better than nothing."""
_STEADY_S = 60.0
"""A Triton that has run this long starts the backoff anew."""
_LOOK_S = 0.1
_EXIT_MARGIN_S = 2.0
_ERRORS = ("failed", "unhealthy", "restarting", "unreadable")
_ERRORS_KEPT = 100
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """Starts Triton, has its repository watched, restarts it when it dies, and ends it.

    A signal ends it; the second one ends Triton without waiting for requests in flight.
    """

    def __init__(
        self,
        launch: Launch,
        reporter: Reporter,
        allowed_backends: frozenset[str] = frozenset(),
        *,
        parent_pid: int | None = None,
    ) -> None:
        # Its Python backend hands the path to a shell, unquoted: one that a shell would split goes by a link.
        self._dir = runtime.server_dir(launch.shm_prefix)
        self._link = None if PLAIN_PATH.fullmatch(str(launch.repository)) else self._dir / "repository"
        candidates_dir = None if launch.poll else self._dir / "candidates"
        launch = replace(launch, seen_as=self._link, candidates_dir=candidates_dir, admin_dir=self._dir)
        self.launch = launch
        self.url = f"{launch.near_host}:{launch.grpc_port}"
        self._asked = 0
        self._parent_pid = parent_pid
        self._reporter = reporter
        repository = Repository(launch.repository)
        self._watcher: Watcher | PollObserver = (
            PollObserver(reporter)
            if launch.poll
            else Watcher(
                repository,
                reporter,
                allowed_backends=allowed_backends,
                explain=self._explain,
                processes=self._models,
                candidates=None
                if candidates_dir is None
                else Candidates(
                    candidates_dir,
                    launch.triton_repository,
                    self_verifying=frozenset() if launch.distribution.native else OWN_BACKENDS,
                ),
            )
        )
        self._record = runtime.ServerRecord(
            pid=os.getpid(),
            started=runtime.start_of(os.getpid()) or 0,
            url=self.url,
            repository=str(launch.repository),
            shm_prefix=launch.shm_prefix,
            metrics=f"{launch.near_host}:{launch.metrics_port}",
            log=str(launch.log_path),
            admin=str(launch.admin_path or ""),
            release=text_of(launch.distribution.release) if launch.distribution.release else "",
            http="" if launch.http_port is None else f"{launch.near_host}:{launch.http_port}",
            flags=list(launch.flags),
        )

    def _explain(self, model: str, words: str) -> str:
        """Why a model was not loaded, with the repository's own path."""
        reason = log.reason_of(self.launch.log_path, model, words)
        return reason.replace(str(self._link), str(self.launch.repository)) if self._link else reason

    def _ends(self) -> bool:
        orphaned = self._parent_pid is not None and os.getppid() != self._parent_pid
        return orphaned or self._asked > 0

    def _models(self) -> Processes:
        return model_processes(self._record.triton_pid)

    def run(self) -> None:
        """Serve until a signal; must be called in the main thread.

        Raises:
            ServingError: the first start failed.
        """
        runtime.sweep()
        self._reporter.also = self._note_error
        with self._signals():
            try:
                self._make_dir()
                if self._link:
                    self._link.symlink_to(self.launch.repository, target_is_directory=True)
                if self.launch.candidates_dir:
                    self.launch.candidates_dir.mkdir(mode=0o700)
                self._serve()
            finally:
                self._reporter.also = None
                shutil.rmtree(self._dir, ignore_errors=True)
                self._record.remove()
                runtime.sweep_temporary()
        self._reporter.tell("stopped", "stopped")

    def _make_dir(self) -> None:
        try:
            self._dir.mkdir(mode=0o700)
        except OSError as error:
            raise ServingError(f"the server's folder {self._dir} can't be made: {error.strerror}") from error

    def _note_error(self, event: str, text: str, fields: dict[str, Any]) -> None:
        """Keep the last thing that went wrong with each version where `serve status` finds it."""
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
        kept = dict(list(others.items())[1 - _ERRORS_KEPT :])
        self._record = replace(self._record, errors=kept | {name: entry})
        self._write_record(needed=False)

    def _write_record(self, *, needed: bool) -> None:
        try:
            self._record.write()
        except ServingError:  # a full disk must not end what serves
            if needed:
                raise

    def _serve(self) -> None:
        backoff_s, first = 0.5, True
        while not self._ends():
            began, was_ready = time.monotonic(), False
            process = TritonProcess(self.launch)
            admin = Admin(self.url, tls_of(self.launch.flags), self.launch.admin_path)
            try:
                reason = self._until_ready(process, admin)
                if reason is None and not self._ends():
                    local = self.launch.distribution.container is None
                    self._record = replace(self._record, triton_pid=process.pid if local else 0)
                    self._write_record(needed=first)
                    self._tell_ready(process, first=first)
                    first, was_ready = False, True
                    reason = self._until_end(process, admin)
            finally:
                admin.close()
                self._end(process)
            if self._ends():
                return
            if first:
                raise ServingError(f"{reason}; see {self.launch.log_path}")
            longest_s = LONGEST_BACKOFF_S if not was_ready else SERVING_BACKOFF_S
            steady = time.monotonic() - began > _STEADY_S
            backoff_s = 0.5 if steady else min(2 * backoff_s, longest_s)
            self._reporter.tell(
                "restarting",
                f"{reason}; starting it again in {backoff_s:g} s",
                reason=reason,
                after_s=backoff_s,
            )
            until = time.monotonic() + backoff_s
            while not self._ends() and time.monotonic() < until:
                time.sleep(_LOOK_S)

    def _until_ready(self, process: TritonProcess, admin: Admin) -> str | None:
        """None when Triton is ready or this is to end; else why it isn't."""
        within_s = PULLED_WITHIN_S if self.launch.distribution.container else READY_WITHIN_S
        deadline = time.monotonic() + within_s
        while not self._ends():
            if process.exit_code is not None:
                return (
                    log.start_failure(self.launch.log_path)
                    or f"Triton ended with exit code {process.exit_code} at its start"
                )
            if admin.is_ready() and self._listens():
                return None
            if time.monotonic() > deadline:
                return f"Triton was not ready within {within_s:.0f} s"
            time.sleep(_LOOK_S)
        return None

    def _listens(self) -> bool:
        """Whether HTTP, where it is asked for, is there too: Triton begins it after gRPC."""
        if self.launch.http_port is None:
            return True
        with contextlib.suppress(OSError):
            socket.create_connection((self.launch.near_host, self.launch.http_port), timeout=1).close()
            return True
        return False

    def _until_end(self, process: TritonProcess, admin: Admin) -> str:
        """Why Triton has to be started again, when it has; returns too when this is to end."""
        over = threading.Event()
        reasons: list[str] = []

        def watch() -> None:
            try:
                self._watcher.run(admin, over)
            except RestartNeeded as error:
                reasons.append(str(error))
            except Exception as error:  # noqa: BLE001 - a watcher that ends silently would serve stale models
                reasons.append(f"the watcher failed with {type(error).__name__}: {error}")

        health = HealthCheck(admin, process.pid if self._record.triton_pid else None)
        threads = [
            threading.Thread(target=watch, name="watcher", daemon=True),
            threading.Thread(target=health.run, args=(over,), name="health", daemon=True),
        ]
        for thread in threads:
            thread.start()
        while not self._ends() and process.exit_code is None and not reasons and not health.problem:
            time.sleep(_LOOK_S)
        over.set()
        admin.close()
        for thread in threads:
            thread.join(timeout=5)
        if process.exit_code is not None:
            return f"Triton died with exit code {process.exit_code}"
        if health.problem:
            process.kill()  # it would not take a request to end either
            return health.problem
        return reasons[0] if reasons else "Triton is to end"

    def _end(self, process: TritonProcess) -> None:
        process.ask_to_end()
        deadline = time.monotonic() + self.launch.grace_s + _EXIT_MARGIN_S
        while not process.wait(_LOOK_S) and time.monotonic() < deadline and self._asked <= 1:
            pass
        process.kill()

    def _tell_ready(self, process: TritonProcess, *, first: bool) -> None:
        launch = self.launch
        http = None if launch.http_port is None else f"{launch.near_host}:{launch.http_port}"
        self._reporter.tell(
            "ready",
            f"Triton is ready{'' if first else ' again'}: gRPC {self.url}, {f'HTTP {http}, ' if http else ''}"
            f"metrics http://{self._record.metrics}/metrics, repository {launch.repository}, "
            f"log {launch.log_path}",
            grpc=self.url,
            http=http,
            metrics=self._record.metrics,
            pid=os.getpid(),
            triton_pid=process.pid,
            repository=str(launch.repository),
            log=str(launch.log_path),
        )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def receive(_number: int, _frame: FrameType | None) -> None:
            # No threading.Event: to set one takes a lock that the interrupted line may hold.
            self._asked += 1

        # Under nohup SIGHUP is ignored, and stays so.
        heard = [n for n in _SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        before: dict[signal.Signals, Any] = {number: signal.signal(number, receive) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
