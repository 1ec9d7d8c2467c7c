"""A served `linear` model under requests, for the measurements of serving: every answer is checked."""

import sys
import threading
import time
from pathlib import Path
from typing import Self

import numpy as np
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from onnx_models import publish_broken, publish_model

__all__ = ["Load", "percentile", "publish_broken", "publish_good"]


_RECONNECT = [(f"grpc.{which}_reconnect_backoff_ms", 100) for which in ("initial", "min", "max")]
"""Else the pauses of gRPC, which grow to minutes, would be measured, not those of the server."""


def publish_good(root: Path) -> int:
    """The number of a new version, which answers (number % 100 + 1) times its input."""
    folder = root / "linear"
    number = (
        1 + max((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), default=0)
        if folder.is_dir()
        else 1
    )
    published = publish_model(root, scale=_scale(number))
    if published != number:
        raise RuntimeError(f"expected to publish version {number}, got {published}")
    return published


class Load:
    """Requests of one row, one after another in each of some threads, for as long as the block lasts.

    Attributes:
        answered: requests that were answered rightly.
        failed: what was said of those that were not, in order.
        first_s: when each version answered first, by `time.monotonic`.
        last: the version that answered last.
        outages: (begin, end) of the times from a failure to the next answer of the same thread.
    """

    def __init__(self, url: str, threads: int = 2) -> None:
        self.answered = 0
        self.failed: list[str] = []
        self.first_s: dict[int, float] = {}
        self.last = 0
        self.outages: list[tuple[float, float]] = []
        self._url = url
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def wait_for(self, version: int, within_s: float = 20.0) -> float | None:
        """When that version answered first; None where it did not in time."""
        deadline = time.monotonic() + within_s
        while version not in self.first_s and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.first_s.get(version)

    def _run(self) -> None:
        rows = np.arange(3, dtype=np.float32).reshape(1, 3)
        out_since: float | None = None
        client = triton_grpc.InferenceServerClient(self._url, channel_args=_RECONNECT)
        tensor = triton_grpc.InferInput("x", [1, 3], "FP32")
        tensor.set_data_from_numpy(rows)
        while not self._over.is_set():
            began = time.monotonic()
            try:
                result = client.infer("linear", [tensor], client_timeout=10)
                version = int(result.get_response().model_version)
                right = np.array_equal(result.as_numpy("y"), rows * _scale(version))
                error = "" if right else f"a wrong answer of version {version}"
            except InferenceServerException as exception:
                error = str(exception)
            now = time.monotonic()
            with self._lock:
                if error:
                    self.failed.append(error)
                    out_since = began if out_since is None else out_since
                else:
                    self.answered += 1
                    self.last = version
                    self.first_s.setdefault(version, now)
                    if out_since is not None:
                        self.outages.append((out_since, now))
                        out_since = None
            if error:
                time.sleep(0.01)
        client.close()


def percentile(values: list[float], share: float) -> float:
    """The value below which that share of them lies."""
    return float(np.percentile(values, 100 * share))


def _scale(version: int) -> np.float32:
    return np.float32(version % 100 + 1)
