"""`python -m unitrain serve --json` as a real process, for tests."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from time_limits import LIMIT_S

from unitrain.serving.triton.distribution import find_triton

READY_WITHIN_S = LIMIT_S
END_WITHIN_S = LIMIT_S


class TritonServer:
    """A `serve` process and what it has told.

    Attributes:
        repository: the folder it serves.
        events: what it has told so far, oldest first.
        url, metrics: `host:port`, once it is ready.
        process: the `serve` process.
    """

    def __init__(self, repository: Path, *, log: Path, options: tuple[str, ...] = ()) -> None:
        self.repository = repository
        self.log = log
        self.options = options
        self.events: list[dict[str, Any]] = []
        self.url = self.metrics = ""
        self.process: subprocess.Popen[str] | None = None
        self._told = threading.Condition()
        self._reader: threading.Thread | None = None

    def start(self) -> Self:
        """Start it and return when Triton is ready."""
        command = [
            sys.executable,
            "-m",
            "unitrain",
            "serve",
            "--json",
            "--grpc-port",
            "0",
            "--metrics-port",
            "0",
        ]
        command += ["--model-repository", str(self.repository), "--log-file", str(self.log), *self.options]
        # A session of its own, as a terminal would give: Ctrl-C can be sent to the whole of it.
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            ready = self.wait_for_event("ready", timeout_s=READY_WITHIN_S)
        except TimeoutError:
            self.stop()
            raise
        self.url, self.metrics = ready["grpc"], ready["metrics"]
        return self

    @property
    def pid(self) -> int:
        """Of the `serve` process."""
        assert self.process is not None
        return self.process.pid

    @property
    def triton_pid(self) -> int:
        """Of the newest tritonserver."""
        return int([e for e in self.events if e["event"] == "ready"][-1]["triton_pid"])

    def wait_for(self, model: str, version: int, timeout_s: float = LIMIT_S) -> dict[str, Any]:
        """The newest `loaded` event of a model, once it has that version.

        Raises:
            TimeoutError: it was not loaded in time; the message has what was told.
        """
        return self.wait_for_event(
            "loaded", timeout_s, lambda e: e["model"] == model and version in e["versions"]
        )

    def wait_for_event(
        self,
        kind: str,
        timeout_s: float = LIMIT_S,
        accept: Callable[[dict[str, Any]], bool] = lambda _event: True,
        *,
        after: int = 0,
    ) -> dict[str, Any]:
        """The first event of that kind, from the `after`-th on, that is acceptable.

        Raises:
            TimeoutError: none came in time; the message has what was told.
        """

        def found() -> dict[str, Any] | None:
            return next((e for e in self.events[after:] if e["event"] == kind and accept(e)), None)

        deadline = time.monotonic() + timeout_s
        with self._told:
            while found() is None and time.monotonic() < deadline and self._alive():
                self._told.wait(timeout=0.2)
            event = found()
        if event is None:
            log = self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""
            raise TimeoutError(f"no {kind} within {timeout_s} s; told: {self.events}; log: {log}")
        return event

    def stop(self, number: int = signal.SIGTERM, *, hurry: bool = False) -> int:
        """End it by a signal and return its exit code; may be called again.

        Args:
            hurry: send a second one, after which it does not wait for Triton's own end.
        """
        assert self.process is not None
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
            if hurry:
                os.kill(self.process.pid, signal.SIGINT)
        try:
            code = self.process.wait(END_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if self._reader is not None:
            self._reader.join(5)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        return code

    def _alive(self) -> bool:
        return self._reader is not None and self._reader.is_alive()

    def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._told:
                self.events.append(json.loads(line))
                self._told.notify_all()


def native_tritonserver(folder: Path, backends_dir: Path | None = None) -> Path:
    """A `tritonserver` in `folder`: the wheel's, set up as a native one is, which knows its backends by itself."""
    wheel = find_triton()
    program = folder / "tritonserver"
    folder.mkdir(parents=True)
    exports = "".join(f"export {key}='{wheel.environment[key]}'\n" for key in ("LD_LIBRARY_PATH", "PATH"))
    program.write_text(
        f'#!/bin/sh\n{exports}exec {wheel.program} --backend-directory={backends_dir or wheel.backends_dir} "$@"\n'
    )
    program.chmod(0o755)
    return program
