"""Export of a served graph by torch's ONNX exporter, with its failures explained in one sentence."""

import logging
import re
import traceback
import warnings
from collections.abc import Mapping

import numpy as np
import onnx
import torch
from torch.nn.utils.rnn import PackedSequence

from unitrain.errors import ExportError
from unitrain.onnx_export.graph_and_tensors import OnnxGraph, rename_values, separate_outputs
from unitrain.onnx_export.served_graph import ServedGraph, root_cause, run_torch
from unitrain.onnx_export.signature_inference import dynamic_axes_of

_PACKED = r"pack_padded_sequence|PackedSequence|pad_packed_sequence"
QUANTIZED = r"fused_moving_avg_obs|fake_quant"
WORKAROUNDS = {
    r"DynamicCache|past_key_values|EncoderDecoderCache": "set use_cache=False in the transformer's configuration "
    "or call, so that it returns no cache",
    _PACKED: "run the recurrent layer on the padded sequences "
    "and mask its answers, or take the last valid step by gather, instead of packing",
    QUANTIZED: "quantization-aware training has no form in ONNX here: train "
    "in floating point, and quantize the published graph with onnxruntime.quantization",
    r"[Ss]parse": "make the sparse tensor dense with to_dense(), in __init__ or in forward",
    r"GuardOnDataDependent|data-dependent|Could not guard|Could not extract specialized": "rewrite it without "
    "branches and loops that depend on the data (torch.where chooses by value)",
    r"Constraints violated|specialized|ConstraintViolation|not all values of": "take sizes from the tensor "
    "(x.shape[0], or -1 in view and reshape) instead of fixed numbers, and use x.shape[0] instead of len(x)",
}
"""Advice by a pattern in torch's message."""


def export_onnx(served: ServedGraph, sample: Mapping[str, np.ndarray], *, opset: int) -> OnnxGraph:
    """Export a served graph to ONNX, with named inputs and outputs and a dynamic batch axis.

    Raises:
        ExportError: torch can't export it; the message has torch's reason.
    """
    inputs = tuple(torch.from_numpy(np.array(sample[name])) for name in served.names)
    outputs = list(run_torch(served, dict(sample)))
    axes = tuple(dynamic_axes_of(served, name) for name in served.names)
    # The exporter logs its progress, which is of no use during a training.
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                served,
                inputs,
                # An argument may have the name of a value that the exporter makes, such as `cat`.
                input_names=[f"unitrain_input_{i}" for i in range(len(served.names))],
                output_names=[f"unitrain_output_{i}" for i in range(len(outputs))],
                dynamic_shapes=(axes,),
                dynamo=True,
                optimize=False,  # folding keeps an initializer's name and changes its value
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            f"{type(served.module).__name__} can't be exported to ONNX: {root_cause(error)}; {_way_out(error)}, "
            "or switch publishing off with --publish null"
        ) from error
    finally:
        logging.disable(previous)
    if program is None:
        raise ExportError(f"{type(served.module).__name__}: the exporter returned no program")
    model = program.model_proto
    _check_free_batch(served, model)
    _forget_origins(model)
    separate_outputs(model)
    values = [*(v.name for v in model.graph.input), *(v.name for v in model.graph.output)]
    rename_values(model, dict(zip(values, [*served.names, *outputs], strict=True)))
    return OnnxGraph.of(model)


def _check_free_batch(served: ServedGraph, model: onnx.ModelProto) -> None:
    """Refuse a graph of a fixed number of rows, which torch took from the sample without a warning."""
    for name, value in zip(served.names, model.graph.input, strict=True):
        rows = value.type.tensor_type.shape.dim[0]
        if rows.HasField("dim_value"):
            raise ExportError(
                f"{type(served.module).__name__} can't be exported to ONNX for batches of any size: the graph takes "
                f"{rows.dim_value} rows of {name}, as the sample has; use {name}.shape[0] instead of len({name}), and no loop "
                "over rows, chunks of rows or branch on their number"
            )


def _forget_origins(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes on each node: lines of code, with this machine's paths."""
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in nodes:
            node.ClearField("metadata_props")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")


def _way_out(error: BaseException) -> str:
    """Advice for what torch can't export."""
    texts = [str(error)]
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
        texts.append(f"{type(root).__name__}: {root}")
    frames = [frame for frame, _ in traceback.walk_tb(root.__traceback__)]
    if any(isinstance(value, PackedSequence) for frame in frames for value in frame.f_locals.values()):
        return "it can't trace pack_padded_sequence: " + WORKAROUNDS[_PACKED]
    missing = re.search(r"No ONNX function found for <OpOverload\(op='(?:\w+\.)?(\w+)", "\n".join(texts))
    known = [advice for pattern, advice in WORKAROUNDS.items() if re.search(pattern, texts[-1])]
    if known:
        return known[0]
    if missing:
        name = missing[1].removeprefix("linalg_")
        return f"ONNX has no operator for torch's {name}: write it with other operators (for example, a series), or serve its inputs"
    known = [advice for pattern, advice in WORKAROUNDS.items() if re.search(pattern, "\n".join(texts))]
    return known[0] if known else "rewrite the line that is named with other operators"
