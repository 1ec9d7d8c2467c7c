"""Whether onnxruntime answers as torch does; the comparison itself needs no torch (`repository.answers`)."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from unitrain.repository.answers import Arrays, Difference, GraphSession, Tolerance, compare, run_onnx

if TYPE_CHECKING:
    from unitrain.export.graph import ServedGraph

__all__ = ["Arrays", "Difference", "GraphSession", "Tolerance", "compare", "run_onnx", "run_torch"]


def run_torch(served: "ServedGraph", inputs: Arrays) -> dict[str, np.ndarray]:
    """The served outputs as torch computes them, by name."""
    with torch.no_grad():
        tensors = (torch.from_numpy(np.array(inputs[name])) for name in served.names)
        return {name: tensor.numpy() for name, tensor in served.named_outputs(*tensors).items()}
