"""A Triton server for a `with` block: start `serve` as a process, wait for versions, end it for certain."""

import contextlib
import difflib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

from unitrain.errors import ServingError, UsageError

_Result = TypeVar("_Result")

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
_KILL_TIMEOUT_S = 10.0
"""Time that Triton has to end after requests in flight were given up."""
_LOG_LINES = 10
_LINE_LENGTH = 500
_LOG_BYTES = 16 << 10


class Server:
    """A Triton server on a model repository of this machine.

    `python -m unitrain serve` runs as a process: it starts Triton, loads each version that appears in the
    repository, and restarts Triton if it crashes. The server ends with the block, and also if this process is
    killed.

    Example:
        The repository has a model `linear` with y = 2 * x for rows of three values.

        >>> with Server(repository) as server, Client(server.url) as client:
        ...     print(server.wait_for("linear"))
        ...     print(client.predict("linear", x=[1.0, 2.0, 3.0]).outputs["y"])
        1
        [2. 4. 6.]

    Args:
        repository: folder of models; it is created if it is missing.
        grpc_port: port of gRPC; 0: a free one.
        metrics_port: port of the Prometheus metrics; 0: a free one.
        log_file: file for Triton's log; None: a file in unitrain's cache folder.
        options: further options of `python -m unitrain serve`, such as `("--grace", "0")`.
        timeout_s: seconds that Triton has to become ready.
    """

    def __init__(
        self,
        repository: str | Path = "triton_repo",
        *,
        grpc_port: int = 0,
        metrics_port: int = 0,
        log_file: str | Path | None = None,
        options: Sequence[str] = (),
        timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self.repository = Path(repository)
        self._ports = ["--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port)]
        self._log_file = None if log_file is None else Path(log_file)
        self._options = list(options)
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[bytes] | None = None
        self._last_error = ""
        self._reader: threading.Thread | None = None
        self._changed = threading.Condition()
        self._events: list[dict[str, Any]] = []
        self._ready: dict[str, Any] = {}
        self._served: dict[str, list[int]] = {}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Start the server and return once it is ready.

        Raises:
            ServingError: it did not become ready; the message has the reason and the end of the log.
            UsageError: it was started before.
        """
        if self._process is not None:
            raise UsageError("Server: it was started before; create another Server")
        command = [sys.executable, "-m", "unitrain", "serve", "--json", "--parent-pid", str(os.getpid())]
        command += ["--model-repository", str(self.repository), *self._ports]
        command += ["--log-file", str(self._log_file)] if self._log_file else []
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        # In its own session Ctrl-C does not reach it: this process decides when it ends.
        self._process = subprocess.Popen(
            [*command, *self._options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="unitrain-server", daemon=True)
        self._reader.start()
        try:
            self.wait_for_event("ready", self._timeout_s)
        except BaseException:
            self.stop(timeout_s=0)
            raise
        return self

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int | None:
        """End the server; calls after the first do nothing.

        Args:
            timeout_s: seconds that requests in flight and Triton have to finish before Triton is killed.

        Returns:
            Exit code of the `serve` process, 0 after an ordinary end; None if the server was never started.
        """
        return self._end(signal.SIGTERM, timeout_s)

    @property
    def url(self) -> str:
        """Address of gRPC as `host:port`, for `unitrain.Client`.

        Raises:
            ServingError: the server has not been ready.
        """
        return str(self._ready_field("grpc"))

    @property
    def metrics_url(self) -> str:
        """Address of the Prometheus metrics as `http://host:port/metrics`.

        Raises:
            ServingError: the server has not been ready.
        """
        return f"http://{self._ready_field('metrics')}/metrics"

    @property
    def pid(self) -> int:
        """Process id of `serve`.

        Raises:
            ServingError: the server has not been started.
        """
        if self._process is None:
            raise ServingError(f"server on {self.repository}: it has not been started; call start()")
        return self._process.pid

    @property
    def triton_pid(self) -> int:
        """Process id of the Triton that became ready last.

        Raises:
            ServingError: the server has not been ready.
        """
        return int(self._ready_field("triton_pid"))

    def events(self) -> list[dict[str, Any]]:
        """Return the events of `serve --json` up to now, oldest first."""
        with self._changed:
            return list(self._events)

    def wait_for(self, model: str, version: int | None = None, timeout_s: float = 60.0) -> int:
        """Return once the server serves a model.

        Args:
            model: name of the model.
            version: number of the version; None: any.
            timeout_s: seconds to wait.

        Returns:
            The version; the newest one if none was named.

        Raises:
            ServingError: it was not loaded in time, or the server ended.
        """

        def served() -> int | None:
            versions = self._served.get(model, [])
            if version is None:
                return max(versions, default=None)
            return version if version in versions else None

        what = model if version is None else f"{model} version {version}"
        return self._wait(
            served,
            timeout_s,
            lambda: f"{what} was not loaded within {timeout_s:g} s{self._hint(model, version)}",
        )

    def wait_for_event(
        self,
        name: str,
        timeout_s: float = 20.0,
        accept: Callable[[dict[str, Any]], bool] = lambda _event: True,
        *,
        after: int = 0,
    ) -> dict[str, Any]:
        """Return the first event of a name that is accepted.

        Args:
            name: name of the event: `ready`, `loaded`, `unloaded`, `failed`, `unhealthy` or `restarting`.
            timeout_s: seconds to wait.
            accept: function that returns whether an event is the wanted one.
            after: number of events to skip, the oldest first.

        Raises:
            ServingError: none came in time, or the server ended.
        """

        def found() -> dict[str, Any] | None:
            return next((e for e in self._events[after:] if e["event"] == name and accept(e)), None)

        return self._wait(found, timeout_s, lambda: f"no event `{name}` came within {timeout_s:g} s")

    def _wait(
        self, result: Callable[[], _Result | None], timeout_s: float, problem: Callable[[], str]
    ) -> _Result:
        """Return the first result that is not None."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while (found := result()) is None:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise self._error(problem())
                if self._reader is None or not self._reader.is_alive():
                    raise self._error(self._reason() or "it is not running")
                self._changed.wait(min(left_s, 0.2))
        return found

    def _read(self) -> None:
        """Read the events of `serve` until it ends."""
        if self._process is None or self._process.stdout is None:
            return
        for line in self._process.stdout:
            with contextlib.suppress(ValueError), self._changed:
                self._note(json.loads(line))
                self._changed.notify_all()

    def _note(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        if event["event"] == "ready":
            self._ready = event
        elif event["event"] == "loaded":
            self._served[event["model"]] = list(event["versions"])
        elif event["event"] in ("unloaded", "unhealthy"):
            self._served.pop(event["model"], None)
        elif event["event"] == "restarting":
            self._served.clear()
        if self._log_file is None and event.get("log"):
            self._log_file = Path(event["log"])

    def _end(self, number: int, timeout_s: float) -> int | None:
        """Send a signal to `serve`, a second one after `timeout_s`, and kill it if it still runs."""
        process = self._process
        if process is None:
            return None
        for sent, wait_s in ((number, timeout_s), (signal.SIGINT, _KILL_TIMEOUT_S), (signal.SIGKILL, None)):
            if process.poll() is None:
                process.send_signal(sent)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(wait_s)
        if self._reader is not None:
            self._reader.join(5)
        if process.stdout is not None and not process.stdout.closed:
            process.stdout.close()
        if self._errors is not None:
            self._last_error = self._reason()
            self._errors.close()
            self._errors = None
        return process.returncode

    def _ready_field(self, name: str) -> Any:
        if not self._ready:
            raise ServingError(f"server on {self.repository}: it has not been ready; call start() first")
        return self._ready[name]

    def _hint(self, model: str, version: int | None) -> str:
        """Return why the model may be missing: a failure to load, or another name."""
        for event in reversed(self._events):
            if event["event"] == "failed" and event["model"] == model and event["version"] in (version, None):
                return f": {event['reason']}"
        if model in self._served:
            return f"; served are versions {', '.join(map(str, self._served[model]))}"
        near = difflib.get_close_matches(model, self._served, n=1)
        if near:
            return f"; did you mean {near[0]}?"
        return f"; served are {', '.join(sorted(self._served)) or 'no models'}"

    def _reason(self) -> str:
        """Return the last line that `serve` printed as its error."""
        if self._errors is None:
            return self._last_error
        size = os.fstat(self._errors.fileno()).st_size
        text = os.pread(self._errors.fileno(), _LOG_BYTES, max(0, size - _LOG_BYTES)).decode(errors="replace")
        lines = text.strip().splitlines()
        return lines[-1].removeprefix("error: ") if lines else ""

    def _error(self, reason: str) -> ServingError:
        """Return an error; the end of Triton's log is part of it unless the server is running."""
        sentence = f"server on {self.repository}: {reason}"
        running = bool(self._ready) and self._process is not None and self._process.poll() is None
        if self._log_file is None or running:
            return ServingError(sentence)
        try:
            lines = self._log_file.read_bytes()[-_LOG_BYTES:].decode(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        if not lines:
            return ServingError(sentence)
        end = "\n".join(line[:_LINE_LENGTH] for line in lines[-_LOG_LINES:])
        return ServingError(f"{sentence}\nend of {self._log_file}:\n{end}")
