"""Whether a live server answers a version's golden samples as they were published."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from unitrain.client.client import Client
from unitrain.client.model import ModelInfo
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
            fitted = _as_served(inputs, client.model(model, version))
            answers = client.predict(model, fitted, version=version, allow_nan=True).outputs
    except KeyError as error:
        return Check(
            NAME, passed=False, detail=f"the server wants an input {error} that the golden samples lack"
        )
    except UnitrainError as error:
        return Check(NAME, passed=False, detail=str(error))
    shaped = {
        name: answers[name].reshape(want.shape) if answers[name].size == want.size else answers[name]
        for name, want in outputs.items()
        if name in answers
    }
    return compare_golden(NAME, outputs, shaped, tolerance_of(version_dir), url)


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


def _as_served(inputs: dict[str, np.ndarray], info: ModelInfo) -> dict[str, Any]:
    """The samples in the server's shapes: Triton takes no empty one, so a single value a row has length 1."""
    fitted = {}
    for spec in info.inputs:
        array = inputs[spec.name]
        missing = int(len(spec.dims) + bool(info.signature.batched) - array.ndim)
        fitted[spec.name] = array.reshape((*array.shape, *[1] * missing))
    return fitted
