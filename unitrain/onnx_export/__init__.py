"""Export of a module to ONNX, with graphs whose weights can be replaced.

module + sample → `build_template` → `Template`; weights → `Template.with_weights` → `OnnxGraph` → model.onnx
"""

from unitrain.onnx_export.graph_and_tensors import OnnxGraph
from unitrain.onnx_export.graph_template import Template, build_template
from unitrain.onnx_export.module_weights import load_weights, weights_of
from unitrain.onnx_export.onnx_exporter import export_onnx
from unitrain.onnx_export.served_graph import ServedGraph, eval_copy, run_torch

__all__ = [
    "OnnxGraph",
    "ServedGraph",
    "Template",
    "build_template",
    "eval_copy",
    "export_onnx",
    "load_weights",
    "run_torch",
    "weights_of",
]
