"""Full export in a separate process, for graphs whose weights can't be replaced.

torch's exporter holds Python's global lock for seconds, so in a thread it would stall the training. The
process starts at the first export and stays, since importing torch takes longer than an export.

It is a plain subprocess, since one of multiprocessing would run the user's main script again.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from unitrain.errors import ExportError
from unitrain.onnx_export.graph_and_tensors import OnnxGraph
from unitrain.onnx_export.onnx_exporter import export_onnx
from unitrain.onnx_export.served_graph import ServedGraph

GRAPH_FILE = "graph.onnx"
LIMIT_S = 1800.0
"""Maximum seconds of an export."""


class ExportProcess:
    """Process that exports as `export_onnx` does, until `close`.

    A module that can't be pickled is exported in this process: one with parametrizations, or one whose class
    is defined in a notebook or the main script.

    Args:
        limit_s: maximum seconds of an export; the process is killed after it.
    """

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., ExportProcess] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Process id; None if the process does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def __call__(self, served: ServedGraph, sample: Mapping[str, np.ndarray], *, opset: int) -> OnnxGraph:
        """Export a served graph.

        Raises:
            ExportError: torch can't export it, the process died, or it took too long.
        """
        with tempfile.TemporaryDirectory(prefix="unitrain-export-") as work_dir, self._lock:
            try:
                content = pickle.dumps((served, dict(sample), opset, work_dir))
            except Exception:  # noqa: BLE001 - a user's module may raise anything when it is pickled
                return export_onnx(served, sample, opset=opset)
            answer = self._request(pickle.dumps((_open_packages(), content)))
            if answer == _UNREADABLE:
                return export_onnx(served, sample, opset=opset)
            if answer != _DONE:
                raise ExportError(str(pickle.loads(answer)))  # noqa: S301 - our own child's
            return OnnxGraph.of(onnx.load(Path(work_dir, GRAPH_FILE)))

    def close(self) -> None:
        """Stop the process, and wait until it has exited."""
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return
            if self._end is not None:
                self._end.detach()
            with contextlib.suppress(OSError):
                _stdin(process).close()  # it exits at the end of its input
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()

    def _request(self, request: bytes) -> bytes:
        """Send a request, and return the answer of the process."""
        process = self._process
        if process is None or process.poll() is not None:
            if self._end is not None:
                self._end()  # its pipes are closed
            process = self._process = self._start()
            self._end = weakref.finalize(self, _end, process, os.getpid())
        # A pipe has no time limit: killing the process ends the wait.
        overdue = threading.Timer(self._limit_s, process.kill)
        overdue.start()
        try:
            _stdin(process).write(len(request).to_bytes(8, "big") + request)
            _stdin(process).flush()
            answer = _read(process.stdout)
        except OSError:
            answer = b""
        in_time = overdue.is_alive()
        overdue.cancel()
        if answer:
            return answer
        process.wait()
        if not in_time:
            raise ExportError(f"the export took more than {self._limit_s:g} s and was ended")
        raise ExportError(
            f"the process that exports ended with code {process.returncode}; see its error output above"
        )

    @staticmethod
    def _start() -> "subprocess.Popen[bytes]":
        # The user's classes are imported from the same paths as here.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, "-m", __name__]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )


_DONE, _UNREADABLE = b"done", b"unreadable"


def _end(process: "subprocess.Popen[bytes]", owner: int) -> None:
    """Kill a process whose `ExportProcess` was never closed, if this process started it."""
    if os.getpid() != owner:
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()


def _stdin(process: "subprocess.Popen[bytes]") -> Any:
    return process.stdin


def _read(stream: Any) -> bytes:
    """Read a message: its length in eight bytes, then its bytes; empty if the other side has exited."""
    head = stream.read(8)
    return stream.read(int.from_bytes(head, "big")) if len(head) == 8 else b""  # noqa: PLR2004


def _serve() -> None:
    """Export the requests on standard input until it ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # torch's prints are no answers
    while request := _read(sys.stdin.buffer):
        try:
            packages, content = pickle.loads(request)  # noqa: S301 - our own parent's
            _take_packages(packages)
            served, sample, opset, work_dir = pickle.loads(content)  # noqa: S301 - our own parent's
        except Exception:  # noqa: BLE001 - for example, its class is defined in the parent's main script
            answer = _UNREADABLE
        else:
            answer = _export_into(Path(work_dir), served, sample, opset)
        answers.write(len(answer).to_bytes(8, "big") + answer)
        answers.flush()


def _export_into(work_dir: Path, served: ServedGraph, sample: Mapping[str, np.ndarray], opset: int) -> bytes:
    """Export into a folder, and return the answer."""
    try:
        export_onnx(served, sample, opset=opset).write(work_dir / GRAPH_FILE, external=True)
    except Exception as error:  # noqa: BLE001 - the parent raises it
        return pickle.dumps(
            str(error) if isinstance(error, ExportError) else f"{type(error).__name__}: {error}"
        )
    return _DONE


def _open_packages() -> dict[str, list[str]]:
    """Return the namespace packages of this process (for example, a project's models/), with their paths.

    In a new process, an installed package of the same name would take precedence.
    """
    return {
        name: list(module.__path__)
        for name, module in list(sys.modules.items())
        if "." not in name and getattr(module, "__file__", None) is None and hasattr(module, "__path__")
    }


def _take_packages(packages: Mapping[str, list[str]]) -> None:
    for name, paths in packages.items():
        if name not in sys.modules:
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = list(paths)
            sys.modules[name] = module_from_spec(spec)


if __name__ == "__main__":
    _serve()
