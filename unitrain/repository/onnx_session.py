"""Inference of a graph in onnxruntime, on the CPU."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unitrain.errors import ExportError
from unitrain.repository.integrity import feeds
from unitrain.repository.tolerance import Arrays, Difference, Tolerance, compare

if TYPE_CHECKING:
    import onnx

__all__ = ["Arrays", "Difference", "GraphSession", "Tolerance", "compare", "run_onnx"]


class GraphSession:
    """Graph that is loaded in onnxruntime; for a large graph, loading costs more than a run.

    Args:
        model: graph, its bytes, or its file, which may have its weights beside it.

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
        """Return the outputs by name.

        Args:
            inputs: arrays by input name.

        Raises:
            ExportError: onnxruntime can't run the graph on these inputs.
        """
        names = [output.name for output in self._session.get_outputs()]
        with _explained():
            return dict(zip(names, self._session.run(names, feeds(inputs)), strict=True))


def run_onnx(model: "onnx.ModelProto | bytes | Path", inputs: Arrays) -> dict[str, np.ndarray]:
    """Load a graph, and return its outputs by name.

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
