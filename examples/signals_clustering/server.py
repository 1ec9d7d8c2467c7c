"""`python -m unitrain serve` as a child process, and what it tells."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

READY_WITHIN_S = 60.0
ENDED_WITHIN_S = 30.0


@contextmanager
def child(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A child process that has ended when the block is left, however it is left.

    Args:
        command: its arguments.
        options: further ones of `subprocess.Popen`.
    """
    process = subprocess.Popen(command, text=True, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(ENDED_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Server:
    """A server on free ports of this machine.

    Attributes:
        url: `host:port` of gRPC.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._changed = threading.Condition()
        self._url: str | None = None
        self._loaded_at: dict[tuple[str, int], float] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self._wait_until_ready()

    def loaded_before(self, model: str, time_s: float) -> set[int]:
        """The versions of a model that were loaded before a time of `time.monotonic`."""
        with self._changed:
            return {v for (name, v), at_s in self._loaded_at.items() if name == model and at_s < time_s}

    def wait_for(self, model: str, version: int, timeout_s: float) -> None:
        """Return when that version is loaded.

        Raises:
            RuntimeError: it was not in time, or the server ended.
        """
        self._wait(lambda: (model, version) in self._loaded_at, timeout_s, f"load {model} version {version}")

    def _wait_until_ready(self) -> str:
        self._wait(lambda: self._url is not None, READY_WITHIN_S, "get ready")
        return str(self._url)

    def _wait(self, reached: Any, timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not reached():
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise RuntimeError(f"the server did not {what} within {timeout_s:.0f} s")
                if not self._reader.is_alive():
                    raise RuntimeError(f"the server ended before it could {what}; its reason is above")
                self._changed.wait(min(left_s, 1.0))

    def _read(self) -> None:
        for line in self._process.stdout or ():
            event = json.loads(line)
            with self._changed:
                if event["event"] == "ready":
                    self._url = event["grpc"]
                elif event["event"] == "loaded":
                    for version in event["versions"]:
                        self._loaded_at.setdefault((event["model"], version), time.monotonic())
                elif event["event"] == "failed":
                    print(f"server: {line.rstrip()}", file=sys.stderr)
                self._changed.notify_all()


@contextmanager
def serving(repository: Path) -> Iterator[Server]:
    """A server on a model repository, ended with the block.

    Raises:
        RuntimeError: it did not get ready.
    """
    command = [sys.executable, "-m", "unitrain", "serve", "--json", "--model-repository", str(repository)]
    command += ["--grpc-port", "0", "--metrics-port", "0"]
    with child(command, stdout=subprocess.PIPE) as process:
        yield Server(process)
