"""Whether a live server answers a version's golden samples as they were published."""

import time
from pathlib import Path

import numpy as np

from unitrain.client.client import Client
from unitrain.errors import UnitrainError
from unitrain.repository.verify import Check, compare_golden, read_golden, tolerance_of

NAME = "served"
_LOOK_EVERY_S = 0.2


def check_served(version_dir: Path, model: str, version: int, url: str, *, wait_s: float = 0.0) -> Check:
    """The golden samples asked of the live server; a version that it does not serve is nothing to check.

    Args:
        version_dir: the version as it lies on the disk.
        url: `host:port` of the server's gRPC endpoint.
        wait_s: how long the server may take to have the version; within it, its absence is a failure.
    """
    try:
        golden = read_golden(version_dir)
        with Client(url) as client:
            if not _has(client, model, version, wait_s):
                waited = f" after {wait_s:g} s" if wait_s else ""
                return Check(
                    NAME, passed=False if wait_s else None, detail=f"{url} does not serve it{waited}"
                )
            if golden is None:
                return Check(NAME, passed=None, detail="it has no golden samples")
            inputs, outputs = golden
            answers = _answers(client, model, version, inputs)
    except UnitrainError as error:
        return Check(NAME, passed=False, detail=str(error))
    return compare_golden(NAME, outputs, answers, tolerance_of(version_dir), url)


def _answers(
    client: Client, model: str, version: int, inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The server's answers to all golden samples, in requests that it takes."""
    info = client.model(model, version)
    if not info.signature.batched or not all(array.ndim for array in inputs.values()):
        return client.predict(model, inputs, version=version, allow_nan=True).outputs
    rows = max(map(len, inputs.values()), default=1)
    parts = []
    for start in range(0, rows, info.max_batch_size):
        some = {name: array[start : start + info.max_batch_size] for name, array in inputs.items()}
        parts.append(client.predict(model, some, version=version, allow_nan=True).outputs)
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _has(client: Client, model: str, version: int, wait_s: float) -> bool:
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            found = version in client.models().get(model, ())
        except UnitrainError:
            if time.monotonic() >= deadline_s:
                raise
            found = False
        if found or time.monotonic() >= deadline_s:
            return found
        time.sleep(_LOOK_EVERY_S)
