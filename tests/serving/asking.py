"""Requests to a served `linear` model, and what a server leaves behind, for the tests beside this."""

import os
import threading
import time
from pathlib import Path
from typing import Self

import numpy as np
import tritonclient.grpc as triton_grpc
from time_limits import LIMIT_S
from tritonclient.utils import InferenceServerException


def ask(url: str, rows: np.ndarray, *, model: str = "linear", version: str = "") -> tuple[np.ndarray, int]:
    """The answer of `linear_model` to float32 rows, and the version that gave it."""
    with triton_grpc.InferenceServerClient(url) as client:
        tensor = triton_grpc.InferInput("x", list(rows.shape), "FP32")
        tensor.set_data_from_numpy(rows.astype(np.float32))
        result = client.infer(model, [tensor], model_version=version, client_timeout=LIMIT_S)
        return result.as_numpy("y"), int(result.get_response().model_version)


def answers(url: str, *, model: str = "linear", within_s: float = LIMIT_S) -> bool:
    """Whether the model answers before the time is over."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            ask(url, np.ones((1, 3)), model=model)
        except InferenceServerException:
            time.sleep(0.1)
        else:
            return True
    return False


class Load:
    """Requests one after another for as long as the block lasts.

    Attributes:
        answered: how many answers each version gave.
        errors: what went wrong, each right answer being version + 1 times the input.
    """

    def __init__(self, url: str) -> None:
        self.answered: dict[int, int] = {}
        self.errors: list[str] = []
        self._url = url
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(LIMIT_S)

    def _run(self) -> None:
        rows = np.arange(6, dtype=np.float32).reshape(2, 3)
        with triton_grpc.InferenceServerClient(self._url) as client:
            tensor = triton_grpc.InferInput("x", [2, 3], "FP32")
            tensor.set_data_from_numpy(rows)
            while not self._over.is_set():
                try:
                    result = client.infer("linear", [tensor], client_timeout=LIMIT_S)
                    version = int(result.get_response().model_version)
                    np.testing.assert_allclose(result.as_numpy("y"), rows * (version + 1))
                except (InferenceServerException, AssertionError) as error:
                    self.errors.append(str(error))
                else:
                    self.answered[version] = self.answered.get(version, 0) + 1


def stubs(triton_pid: int) -> list[int]:
    """The processes that run the models of a tritonserver."""
    found = []
    for pid in group_members(triton_pid):
        try:
            program = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]
        except OSError:
            continue
        if program.endswith(b"python_backend_stub"):
            found.append(pid)
    return found


def group_members(group: int) -> list[int]:
    """The processes of a process group that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def shared_memory_of(pid: int) -> list[str]:
    """The shared-memory regions of the server that the `serve` process `pid` supervises."""
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"unitrain_{pid}_")]  # noqa: PTH208, S108 - names only, of where Linux keeps them
