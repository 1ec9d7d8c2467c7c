"""Gates: checks that a version must pass before it is published.

A gate refuses a version by raising `PublishRefused` with the gate's name and a message on what to do.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from unitrain.errors import ExportError, PublishRefused
from unitrain.onnx_export.batch_sizes import compare_batches
from unitrain.onnx_export.graph_template import LIVE_ROWS
from unitrain.onnx_export.served_graph import ServedGraph
from unitrain.repository.onnx_session import GraphSession, Tolerance, compare
from unitrain.signature import Signature, TensorSpec, dtype_of_array


def finite_weights(weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that contain NaN or infinity."""
    wrong = [name for name, weight in weights.items() if not _is_finite(weight)]
    if wrong:
        raise PublishRefused(
            "finite_weights",
            f"{len(wrong)} of {len(weights)} weights hold NaN or infinity, {wrong[0]} first; lower the learning "
            "rate or clip the gradients (trainer.gradient_clip_val)",
        )


def valid_onnx(path: Path) -> None:
    """Refuse a graph, or weights beside it, that onnx.checker rejects."""
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise PublishRefused(
            "valid_onnx", f"onnx.checker refuses the graph: {str(error).splitlines()[0]}"
        ) from error


def loadable(path: Path) -> GraphSession:
    """Load the graph in onnxruntime; refuse one that can't be loaded."""
    try:
        return GraphSession(path)
    except ExportError as error:
        raise PublishRefused("parity", str(error)) from error


def parity(
    served: ServedGraph,
    session: GraphSession,
    sample: Mapping[str, np.ndarray],
    *,
    tolerance: Tolerance,
    batched: bool = True,
    max_rows: int = 16,
    limit_s: float = 1.0,
) -> dict[str, dict[str, float]]:
    """Compare onnxruntime with torch on real samples, at batch sizes up to the maximum.

    Each row must have the same outputs in a larger batch and in a batch of one row.

    Args:
        served: the graph in torch.
        session: the exported graph in onnxruntime.
        sample: real inputs by name, [row, ...] each.
        tolerance: allowed difference.
        batched: True if the first axis of all inputs and outputs is the batch.
        max_rows: maximum rows of a request.
        limit_s: time limit; no larger batch is started after it.

    Returns:
        The largest absolute and relative difference over all batch sizes, by output.
    """
    report = compare_batches(
        served,
        session,
        sample,
        tolerance=tolerance,
        batched=batched,
        max_rows=max_rows,
        limit_s=limit_s,
        alone_rows=2,  # all were checked when the graph was exported
    )
    if report.failure:
        raise PublishRefused("parity", report.failure)
    return report.figures


def live_parity(
    session: GraphSession,
    sample: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    *,
    tolerance: Tolerance,
) -> None:
    """Compare onnxruntime's outputs with those of the live module at that step.

    Args:
        session: the exported graph in onnxruntime.
        sample: real inputs by name, [row, ...] each.
        reference: the live module's outputs for the first rows of the sample.
        tolerance: allowed difference.
    """
    rows = max((len(array) for array in sample.values()), default=0)
    rows = min(rows, LIVE_ROWS)
    difference = compare(
        reference, session.run({name: array[:rows] for name, array in sample.items()}), tolerance,
        sides=("the module in training", "the exported graph"),
    )  # fmt: skip
    if difference.failure:
        raise PublishRefused(
            "parity",
            f"{difference.failure}; forward depends on something that no copy of the module has: keep it in an "
            "attribute of the module, rather than in a global, a closure or an open resource",
        )


def expected_signature(model: onnx.ModelProto, signature: Signature) -> None:
    """Refuse a graph whose inputs and outputs differ from those of config.pbtxt."""
    graph = model.graph
    for kind, values, specs in (
        ("input", graph.input, signature.inputs),
        ("output", graph.output, signature.outputs),
    ):
        found = [_spec_of(value, signature.batched) for value in values]
        agree = len(found) == len(specs) and all(map(_fits, found, specs))
        if not agree:
            raise PublishRefused(
                "signature",
                f"the graph's {kind}s are {', '.join(map(str, found))}, expected {', '.join(map(str, specs))}",
            )


def _is_finite(weight: Tensor) -> bool:
    """Check the extremes, which preserve NaN and need no copy of the weight."""
    if weight.is_complex():
        weight = torch.view_as_real(weight)
    if not weight.is_floating_point() or not weight.numel():
        return True
    return all(bool(extreme.isfinite()) for extreme in weight.aminmax())


def _spec_of(value: onnx.ValueInfoProto, batched: bool) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = dtype_of_array(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).triton
    dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    return TensorSpec(value.name, dtype, dims[1:] if batched else dims)


def _fits(found: TensorSpec, wanted: TensorSpec) -> bool:
    """Compare name, dtype and lengths; an open length matches any."""
    lengths = zip(found.dims, wanted.dims, strict=False)
    return (found.name, found.dtype, len(found.dims)) == (
        wanted.name,
        wanted.dtype,
        len(wanted.dims),
    ) and all(a == b or a < 0 or b < 0 for a, b in lengths)
