"""Whether onnxruntime answers as torch does, and by how much it differs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch

from unitrain.errors import ExportError

if TYPE_CHECKING:
    from unitrain.export.graph import ServedGraph

Arrays = Mapping[str, np.ndarray]
INTEGER_SHARE = 1e-3
"""Share of an integer output's values that may differ."""


@dataclass(frozen=True)
class Tolerance:
    """How far an output may be off: |onnx - torch| <= absolute + relative * |torch|."""

    absolute: float = 1e-4
    relative: float = 1e-3


@dataclass(frozen=True)
class Difference:
    """Per output the largest absolute and relative difference, and the first failure in words."""

    by_output: dict[str, dict[str, float]]
    failure: str | None


def run_torch(served: "ServedGraph", inputs: Arrays) -> dict[str, np.ndarray]:
    """The served outputs as torch computes them, by name."""
    with torch.no_grad():
        tensors = (torch.from_numpy(np.array(inputs[name])) for name in served.names)
        return {name: tensor.numpy() for name, tensor in served.named_outputs(*tensors).items()}


def run_onnx(model: onnx.ModelProto | bytes, inputs: Arrays) -> dict[str, np.ndarray]:
    """The outputs as onnxruntime computes them on the CPU, by name.

    Raises:
        ExportError: onnxruntime can't load or run the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    data = model if isinstance(model, bytes) else model.SerializeToString()
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ExportError(
            f"onnxruntime can't run the exported graph: {' '.join(str(error).split())[:300]}"
        ) from error


def compare(expected: Arrays, got: Arrays, tolerance: Tolerance) -> Difference:
    """How far `got` is from `expected`; NaN equals NaN, integers must be equal but for a thousandth."""
    if list(expected) != list(got):
        return Difference({}, f"the outputs are named {', '.join(got)}, expected {', '.join(expected)}")
    by_output: dict[str, dict[str, float]] = {}
    failure = None
    for name, want in expected.items():
        have = got[name]
        if want.shape != have.shape or want.dtype != have.dtype:
            failure = failure or (
                f"{name} is {have.dtype}{list(have.shape)}, expected {want.dtype}{list(want.shape)}"
            )
            continue
        a, b = np.asarray(want, np.float64), np.asarray(have, np.float64)
        same = (np.isnan(a) & np.isnan(b)) | (a == b)
        with np.errstate(invalid="ignore"):  # infinity less infinity
            off = np.where(same, 0.0, np.abs(a - b))
        size = np.where(np.isfinite(a), np.abs(a), 0.0)
        relative = off / np.maximum(size, 1e-12)
        by_output[name] = {"max_abs": float(off.max(initial=0)), "max_rel": float(relative.max(initial=0))}
        exact = want.dtype.kind in "biu"
        allowed = 0 if exact else tolerance.absolute + tolerance.relative * size
        wrong = ~(off <= allowed)
        # An argmax or a rounding of nearly equal values may fall either way now and then.
        if wrong.mean() > (INTEGER_SHARE if exact else 0) and failure is None:
            where = np.unravel_index(
                int(np.argmax(np.where(wrong, np.nan_to_num(off, nan=np.inf), -1))), off.shape
            )
            failure = (
                f"{name}{list(map(int, where))} is {have[where]!s} in onnxruntime and {want[where]!s} in torch"
                f" (allowed: {tolerance.absolute:g} + {tolerance.relative:g} of the value)"
            )
    return Difference(by_output, failure)
