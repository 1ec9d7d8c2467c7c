"""A full export in a process of its own, for graphs in which weights can't be swapped.

torch's exporter holds Python's lock for seconds, so on a thread it would stall the training for all of
it. The process is started when it is first needed and kept: torch's own import costs more than an export.

It is a plain subprocess, since multiprocessing's would run the person's main script again.
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
from unitrain.onnx_export.onnx_exporter import export_onnx
from unitrain.onnx_export.onnx_graph import OnnxGraph
from unitrain.onnx_export.served_graph import ServedGraph

GRAPH_FILE = "graph.onnx"
LIMIT_S = 1800.0
"""How long one export may take."""


class ExportProcess:
    """Exports as `export_onnx` does, in one process that lives until `close`.

    A module that can't be handed over (one whose class is a notebook's or a script's own, or with
    parametrizations) is exported here.

    Args:
        limit_s: how long an export may take before its process is ended.
    """

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., ExportProcess] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The process's id; None where none runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def __call__(self, served: ServedGraph, sample: Mapping[str, np.ndarray], *, opset: int) -> OnnxGraph:
        """The served graph as an ONNX graph.

        Raises:
            ExportError: torch can't export it, the process died, or it took too long.
        """
        with tempfile.TemporaryDirectory(prefix="unitrain-export-") as work_dir, self._lock:
            try:
                content = pickle.dumps((served, dict(sample), opset, work_dir))
            except Exception:  # noqa: BLE001 - what a person's module can't do, in whatever words
                return export_onnx(served, sample, opset=opset)
            answer = self._ask(pickle.dumps((_open_packages(), content)))
            if answer == _UNREADABLE:
                return export_onnx(served, sample, opset=opset)
            if answer != _DONE:
                raise ExportError(str(pickle.loads(answer)))  # noqa: S301 - our own child's
            return OnnxGraph.of(onnx.load(Path(work_dir, GRAPH_FILE)))

    def close(self) -> None:
        """End the process, and return once it has ended."""
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return
            if self._end is not None:
                self._end.detach()
            with contextlib.suppress(OSError):
                _stdin(process).close()  # it ends when nothing more can come
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()

    def _ask(self, request: bytes) -> bytes:
        """The process's answer."""
        process = self._process
        if process is None or process.poll() is not None:
            if self._end is not None:
                self._end()  # its pipes are closed
            process = self._process = self._start()
            self._end = weakref.finalize(self, _end, process, os.getpid())
        # Ending it ends the wait: a pipe has no time limit of its own.
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
        # The person's classes are found by the same import path as here.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, "-m", __name__]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )


_DONE, _UNREADABLE = b"done", b"unreadable"


def _end(process: "subprocess.Popen[bytes]", owner: int) -> None:
    """End a process whose `ExportProcess` was never closed, in the process that started it."""
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
    """One message: eight bytes of length, then as many; empty where the other side has gone."""
    head = stream.read(8)
    return stream.read(int.from_bytes(head, "big")) if len(head) == 8 else b""  # noqa: PLR2004


def _serve() -> None:
    """Export what comes on standard input until nothing more can."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what torch prints is no answer
    while request := _read(sys.stdin.buffer):
        try:
            packages, content = pickle.loads(request)  # noqa: S301 - our own parent's
            _take_packages(packages)
            served, sample, opset, work_dir = pickle.loads(content)  # noqa: S301 - likewise
        except Exception:  # noqa: BLE001 - its class is of the parent's main script, say
            answer = _UNREADABLE
        else:
            answer = _export_into(Path(work_dir), served, sample, opset)
        answers.write(len(answer).to_bytes(8, "big") + answer)
        answers.flush()


def _export_into(work_dir: Path, served: ServedGraph, sample: Mapping[str, np.ndarray], opset: int) -> bytes:
    """Export into a folder, and say how it went."""
    try:
        export_onnx(served, sample, opset=opset).write(work_dir / GRAPH_FILE, external=True)
    except Exception as error:  # noqa: BLE001 - told to the parent, whatever it is
        return pickle.dumps(
            str(error) if isinstance(error, ExportError) else f"{type(error).__name__}: {error}"
        )
    return _DONE


def _open_packages() -> dict[str, list[str]]:
    """The folders without an `__init__.py` that are packages here (a project's models/, say), with their paths.

    Elsewhere such a folder would lose to any installed package of its name.
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
