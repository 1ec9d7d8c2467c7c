"""Keeps one Triton running on a repository until it is told to end."""

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from unitrain.errors import ServingError
from unitrain.repository import Repository
from unitrain.serving import runtime
from unitrain.serving.admin import Admin
from unitrain.serving.process import LOOPBACK, Launch, TritonProcess
from unitrain.serving.report import Reporter
from unitrain.serving.watch import RestartNeeded, Watcher

READY_WITHIN_S = 60.0
LONGEST_BACKOFF_S = 30.0
_STEADY_S = 60.0
"""A Triton that has run this long starts the backoff anew."""
_LOOK_S = 0.1
_EXIT_MARGIN_S = 2.0
_REFUSED_FLAG = re.compile(r"unrecognized option|ambiguous|requires an argument")
_ERROR_LINE = re.compile(r"E\d{4} |error: |Failed ")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """Starts Triton, has its repository watched, restarts it when it dies, and ends it.

    Attributes:
        stop: set by a signal; the second one ends Triton without waiting for requests in flight.
    """

    def __init__(self, launch: Launch, reporter: Reporter) -> None:
        self.launch = launch
        self.url = f"{LOOPBACK}:{launch.grpc_port}"
        self.stop = threading.Event()
        self._hurry = threading.Event()
        self._reporter = reporter
        self._watcher = Watcher(Repository(launch.repository), reporter)

    def run(self) -> None:
        """Serve until a signal; must be called in the main thread.

        Raises:
            ServingError: the first start failed.
        """
        record = runtime.ServerRecord(
            pid=os.getpid(),
            started=runtime.start_of(os.getpid()) or 0,
            url=self.url,
            secret=self.launch.secret,
            repository=str(self.launch.repository),
            shm_prefix=self.launch.shm_prefix,
        )
        runtime.sweep()
        with self._signals():
            try:
                self._serve(record)
            finally:
                record.remove()
        self._reporter.tell("stopped", "stopped")

    def _serve(self, record: runtime.ServerRecord) -> None:
        backoff_s, first = 0.5, True
        while not self.stop.is_set():
            began = time.monotonic()
            process = TritonProcess(self.launch)
            admin = Admin(self.url, self.launch.secret)
            try:
                reason = self._until_ready(process, admin)
                if reason is None and not self.stop.is_set():
                    record.write()
                    self._tell_ready(process, first=first)
                    first = False
                    reason = self._until_end(process, admin)
            finally:
                admin.close()
                self._end(process)
            if self.stop.is_set():
                return
            if first:
                raise ServingError(f"{reason}; see {self.launch.log_path}")
            backoff_s = 0.5 if time.monotonic() - began > _STEADY_S else min(2 * backoff_s, LONGEST_BACKOFF_S)
            self._reporter.tell(
                "restarting",
                f"{reason}; starting it again in {backoff_s:g} s",
                reason=reason,
                after_s=backoff_s,
            )
            self.stop.wait(backoff_s)

    def _until_ready(self, process: TritonProcess, admin: Admin) -> str | None:
        """None when Triton is ready or this is to end; else why it isn't."""
        deadline = time.monotonic() + READY_WITHIN_S
        while not self.stop.is_set():
            if process.exit_code is not None:
                return _cause(self.launch) or f"Triton ended with exit code {process.exit_code} at its start"
            if admin.is_ready():
                return None
            if time.monotonic() > deadline:
                return f"Triton was not ready within {READY_WITHIN_S:.0f} s"
            self.stop.wait(_LOOK_S)
        return None

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

        watcher = threading.Thread(target=watch, name="watcher", daemon=True)
        if not self.launch.poll:
            watcher.start()
        while not self.stop.is_set() and process.exit_code is None and not reasons:
            self.stop.wait(_LOOK_S)
        over.set()
        admin.close()
        if not self.launch.poll:
            watcher.join(timeout=5)
        if process.exit_code is not None:
            return f"Triton died with exit code {process.exit_code}"
        return reasons[0] if reasons else "Triton is to end"

    def _end(self, process: TritonProcess) -> None:
        process.ask_to_end()
        deadline = time.monotonic() + self.launch.grace_s + _EXIT_MARGIN_S
        while not process.wait(_LOOK_S) and time.monotonic() < deadline and not self._hurry.is_set():
            pass
        process.kill()

    def _tell_ready(self, process: TritonProcess, *, first: bool) -> None:
        metrics = f"{LOOPBACK}:{self.launch.metrics_port}"
        again = "" if first else " again"
        self._reporter.tell(
            "ready",
            f"Triton is ready{again}: gRPC {self.url}, metrics http://{metrics}/metrics, "
            f"repository {self.launch.repository}, log {self.launch.log_path}",
            grpc=self.url,
            metrics=metrics,
            pid=os.getpid(),
            triton_pid=process.pid,
            repository=str(self.launch.repository),
            log=str(self.launch.log_path),
        )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def receive(_number: int, _frame: FrameType | None) -> None:
            if self.stop.is_set():
                self._hurry.set()
            self.stop.set()

        # Under nohup SIGHUP is ignored, and stays so.
        heard = [n for n in _SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        before: dict[signal.Signals, Any] = {number: signal.signal(number, receive) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _cause(launch: Launch) -> str | None:
    """Triton's own words on why it did not start, from its log; None where it said nothing."""
    try:
        lines = launch.log_path.read_text(errors="replace").splitlines()
    except OSError:
        return None
    refused = [line for line in lines if _REFUSED_FLAG.search(line)]  # before two screens of usage
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    words = (refused[:1] or errors[-1:] or [""])[0]
    return f"Triton did not start: {' '.join(words.split())}" if words else None
