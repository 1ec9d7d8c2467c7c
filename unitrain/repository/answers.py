"""What a graph answers in onnxruntime, and how far one set of answers is from another."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unitrain.errors import ExportError
from unitrain.manifest import Manifest
from unitrain.tensors import dtype_of_array

if TYPE_CHECKING:
    import onnx

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Tolerance:
    """How far an output may be off: |onnx - torch| <= absolute + relative * |torch|.

    Attributes:
        by_dtype: other (absolute, relative) pairs for some types, by Triton's name.
        integer_share: share of an integer or bool output's values that may differ.
    """

    absolute: float = 1e-4
    relative: float = 1e-3
    by_dtype: Mapping[str, Sequence[float]] = field(default_factory=lambda: {"FP16": (1e-2, 1e-2)})
    integer_share: float = 1e-3

    @classmethod
    def of_manifest(cls, manifest: Manifest | None) -> "Tolerance":
        """What a version was held against when it was published; the defaults where that is not known."""
        return cls(**manifest.tolerance) if manifest and manifest.tolerance else cls()

    def of(self, dtype: np.dtype[Any]) -> tuple[float, float]:
        """The absolute and the relative tolerance of an output of that type; both 0 where it counts or decides."""
        if dtype.kind in "biu":
            return 0.0, 0.0
        absolute, relative = self.by_dtype.get(dtype_of_array(dtype).triton, (self.absolute, self.relative))
        return float(absolute), float(relative)


@dataclass(frozen=True)
class Difference:
    """Per output the largest absolute and relative difference, and the first failure in words."""

    by_output: dict[str, dict[str, float]]
    failure: str | None


class GraphSession:
    """A graph opened in onnxruntime on the CPU, which for a large one costs more than a run.

    Args:
        model: a graph, its bytes, or its file, which may have its weights beside it.

    Raises:
        ExportError: onnxruntime can't load it.
    """

    def __init__(self, model: "onnx.ModelProto | bytes | Path") -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        data = model if isinstance(model, bytes | Path) else model.SerializeToString()
        with _explained():
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The outputs by name.

        Raises:
            ExportError: onnxruntime can't run the graph on these inputs.
        """
        names = [output.name for output in self._session.get_outputs()]
        with _explained():
            return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))


def run_onnx(model: "onnx.ModelProto | bytes | Path", inputs: Arrays) -> dict[str, np.ndarray]:
    """The outputs as onnxruntime computes them on the CPU, by name.

    Raises:
        ExportError: onnxruntime can't load or run the graph.
    """
    return GraphSession(model).run(inputs)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ExportError(
            f"onnxruntime can't run the exported graph: {' '.join(str(error).split())[:300]}"
        ) from error


def compare(
    expected: Arrays, got: Arrays, tolerance: Tolerance, *, sides: tuple[str, str] = ("torch", "onnxruntime")
) -> Difference:
    """How far `got` is from `expected`; NaN equals NaN, integers must be equal but for a small share.

    Args:
        sides: what the two are called in the failure.
    """
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
        absolute_tolerance, relative_tolerance = tolerance.of(want.dtype)
        wrong = ~(off <= absolute_tolerance + relative_tolerance * size)
        # An argmax or a rounding of nearly equal values may fall either way now and then.
        if wrong.size and wrong.mean() > (tolerance.integer_share if exact else 0) and failure is None:
            where = np.unravel_index(
                int(np.argmax(np.where(wrong, np.nan_to_num(off, nan=np.inf), -1))), off.shape
            )
            failure = (
                f"{name}{list(map(int, where))} is {have[where]!s} in {sides[1]} and {want[where]!s} in {sides[0]}"
                f" (allowed: {absolute_tolerance:g} + {relative_tolerance:g} of the value)"
            )
    return Difference(by_output, failure)
