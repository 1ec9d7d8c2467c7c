"""The graph that is served: preprocess, forward and postprocess of a module, exported to ONNX once.

Later versions of a training take the same graph with other weights (`weights`), which costs a
thousandth of an export. That is right only where every weight is an initializer of the graph under its
own name with its own value; `build_template` proves it for the module at hand, and says so if not.
"""

import copy
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from unitrain.errors import ExportError, HookError
from unitrain.export.onnx_graph import OnnxGraph
from unitrain.export.parity import Tolerance, compare, run_onnx, run_torch
from unitrain.export.weights import load_weights, perturbed, weights_of
from unitrain.module import ServableModule, Tensors, flatten_outputs
from unitrain.tensors import Signature, TensorSpec, dtype_of_array

BATCH = "batch"
PREFIX = "module."
"""What an initializer's name has before that of the weight that it is."""


class ServedGraph(nn.Module):
    """What is served of a module, as one function of its inputs in order to its outputs in order."""

    def __init__(
        self,
        module: LightningModule,
        names: Sequence[str],
        dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.names = tuple(names)
        self.dynamic_axes = dynamic_axes or getattr(module, "dynamic_axes", None) or {}

    def named_outputs(self, *tensors: Tensor) -> Tensors:
        """The served outputs by name."""
        inputs = dict(zip(self.names, tensors, strict=True))
        if not isinstance(self.module, ServableModule):
            return flatten_outputs(self.module.forward(**inputs))
        outputs = self.module.forward(**self.module.preprocess(inputs))
        if isinstance(outputs, Tensor):
            outputs = {"output": outputs}
        return flatten_outputs(self.module.postprocess(outputs))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named_outputs(*tensors).values())


class Export(Protocol):
    """What `export_onnx` is: a served graph and a sample in, an ONNX graph out."""

    def __call__(self, served: ServedGraph, sample: Mapping[str, np.ndarray], *, opset: int) -> OnnxGraph: ...


@dataclass(frozen=True)
class Template:
    """An exported graph, and what is needed to put other weights into it.

    Attributes:
        graph: with some weights.
        served: an eval copy on the CPU that answers as torch does; its weights are whatever was loaded last.
        swappable: whether `graph` with swapped initializers was proven to answer as torch does.
        sample: real inputs, [row, ...] each, at least two rows.
    """

    graph: OnnxGraph
    served: ServedGraph
    signature: Signature
    swappable: bool
    sample: dict[str, np.ndarray]
    opset: int

    def with_weights(self, weights: Mapping[str, Tensor], export: Export | None = None) -> OnnxGraph:
        """The graph with these weights: swapped in where that is proven right, exported anew elsewhere.

        Args:
            weights: by name.
            export: see `exported_anew`.
        """
        load_weights(self.served.module, weights)
        return (
            self.graph.with_weights(weights, prefix=PREFIX) if self.swappable else self.exported_anew(export)
        )

    def exported_anew(self, export: Export | None = None) -> OnnxGraph:
        """The graph of `served` as it is now.

        Args:
            export: exports in the place of `export_onnx`, which keeps every other thread waiting.
        """
        return (export or export_onnx)(self.served, self.sample, opset=self.opset)


def eval_copy(module: LightningModule) -> LightningModule:
    """A copy on the CPU in evaluation mode; the module itself, its flags and its weights are untouched."""
    clone = copy.deepcopy(module)
    clone.to("cpu")
    clone.eval()
    for parameter in clone.parameters():
        parameter.requires_grad = False
    return clone


def build_template(
    module: LightningModule,
    sample: Mapping[str, Tensor],
    *,
    opset: int,
    tolerance: Tolerance,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
) -> Template:
    """Export a module's served graph, and prove whether weights can be swapped in it.

    The graph is exported with one set of random weights; a second set is swapped in, and onnxruntime's
    answer is compared with torch's.

    Args:
        sample: inputs by name, [row, ...] each; real ones, since random ones may be out of range.
        dynamic_axes: axes of any length beside the batch, by input and axis; None: the module's own.

    Raises:
        ExportError: torch can't export it, or the exported graph does not answer as torch does.
        HookError: it has no tensors as outputs.
    """
    rows = {name: _at_least_two_rows(tensor.detach().cpu()) for name, tensor in sample.items()}
    for name, tensor in rows.items():
        if tensor.dtype == torch.bfloat16:
            raise ExportError(
                f"{type(module).__name__}: {name} is bfloat16, which no request can hold; train with precision bf16-mixed, "
                "or switch publishing off with --publish null"
            )
    arrays = {name: tensor.numpy() for name, tensor in rows.items()}
    with isolate_rng():
        served = ServedGraph(eval_copy(module), tuple(rows), dynamic_axes)
        original = weights_of(served.module)
        signature = _signature(served, rows)
        load_weights(served.module, perturbed(original, seed=1))
        # torch draws the graph of what it could not trace; the error names the line.
        with redirect_stderr(io.StringIO()):
            graph = export_onnx(served, arrays, opset=opset)
        second = perturbed(original, seed=2)
        load_weights(served.module, second)
        try:
            swapped = graph.with_weights(second, prefix=PREFIX)
            swappable = _failure(served, swapped, arrays, tolerance) is None
        except ExportError:
            swappable = False
        if not swappable:
            graph = export_onnx(served, arrays, opset=opset)
            failure = _failure(served, graph, arrays, tolerance)
            if failure:
                raise ExportError(
                    f"{type(module).__name__}: the exported graph does not answer as torch does: "
                    f"{failure}; look for randomness or data-dependent code in forward"
                )
        load_weights(served.module, original)
    return Template(graph, served, signature, swappable, arrays, opset)


def export_onnx(served: ServedGraph, sample: Mapping[str, np.ndarray], *, opset: int) -> OnnxGraph:
    """The served graph as an ONNX graph with named inputs and outputs and a dynamic batch axis.

    Raises:
        ExportError: torch can't export it; the message holds torch's reason.
    """
    inputs = tuple(torch.from_numpy(np.array(sample[name])) for name in served.names)
    outputs = list(run_torch(served, sample))
    axes = tuple(_dynamic_axes(served, name) for name in served.names)
    # The exporter logs its own progress; a person who trains has no use for it.
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                served,
                inputs,
                input_names=list(served.names),
                output_names=outputs,
                dynamic_shapes=(axes,),
                dynamo=True,
                optimize=False,  # folding keeps an initializer's name and changes its value
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            f"{type(served.module).__name__} can't be exported to ONNX: {_cause(error)}; rewrite it without "
            "branches and loops that depend on the data, or switch publishing off with --publish null"
        ) from error
    finally:
        logging.disable(previous)
    if program is None:
        raise ExportError(f"{type(served.module).__name__}: the exporter returned no program")
    model = program.model_proto
    _forget_origins(model)
    return OnnxGraph.of(model)


def _forget_origins(model: onnx.ModelProto) -> None:
    """Take out what torch's exporter notes of each node: the lines of code it came from, with this machine's paths."""
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in nodes:
            node.ClearField("metadata_props")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")


def find_signature(served: ServedGraph, sample: Mapping[str, Tensor]) -> Signature:
    """The names, dtypes and shapes that are served, found by running the module at two batch sizes.

    An output whose first axis does not follow the batch makes the whole signature unbatched.
    """
    two = {name: tensor[:2] for name, tensor in sample.items()}
    three = {name: torch.cat([tensor[:2], tensor[:1]]) for name, tensor in sample.items()}
    with torch.no_grad():
        first = served.named_outputs(*two.values())
        second = served.named_outputs(*three.values())
    if not first:
        raise HookError(
            f"{type(served.module).__name__}: forward returns no tensor; there is nothing to serve"
        )
    for name in served.names:
        if name in first:
            raise HookError(
                f"{type(served.module).__name__}: {name} is the name of an input and of an output, which a graph "
                "can't hold; give the output another one in forward or postprocess"
            )
    batched = all(t.dim() > 0 and t.shape[0] == 2 and second[n].shape[0] == 3 for n, t in first.items())  # noqa: PLR2004
    inputs = tuple(_spec(name, tensor, batched, _dynamic_axes(served, name)) for name, tensor in two.items())
    free = any(len(_dynamic_axes(served, name)) > 1 for name in served.names)
    outputs = []
    for name, tensor in first.items():
        changed = {axis: "" for axis in range(tensor.dim()) if tensor.shape[axis] != second[name].shape[axis]}
        if free:
            # Which axes of an output follow a free axis of an input is not known from one length.
            changed |= dict.fromkeys(_axes_that_follow(served, two, name), "")
        outputs.append(_spec(name, tensor, batched, changed))
    return Signature(inputs, tuple(outputs), batched)


def _signature(served: ServedGraph, sample: Tensors) -> Signature:
    try:
        return find_signature(served, sample)
    except (HookError, ExportError):
        raise
    except Exception as error:
        inputs = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sample.items())
        raise ExportError(
            f"{type(served.module).__name__}.forward fails on a sample of {inputs}: {_cause(error)}; set "
            "example_input_array to inputs as forward takes them, or switch publishing off with --publish null"
        ) from error


def _axes_that_follow(served: ServedGraph, sample: Tensors, output: str) -> list[int]:
    """An output's axes whose length changes when the free axes of the inputs are one shorter."""
    shorter = {}
    for name, tensor in sample.items():
        for axis in _dynamic_axes(served, name):
            if axis and tensor.shape[axis] > 2:  # noqa: PLR2004
                tensor = tensor.narrow(axis, 0, tensor.shape[axis] - 1)  # noqa: PLW2901
        shorter[name] = tensor
    with torch.no_grad():
        before, after = served.named_outputs(*sample.values()), served.named_outputs(*shorter.values())
    return [
        a for a, (m, n) in enumerate(zip(before[output].shape, after[output].shape, strict=True)) if m != n
    ]


def _dynamic_axes(served: ServedGraph, name: str) -> dict[int, Any]:
    further = served.dynamic_axes.get(name, {})
    named = {int(axis): torch.export.Dim(axis_name) for axis, axis_name in further.items() if axis}
    return {0: torch.export.Dim(BATCH)} | named


def _spec(name: str, tensor: Tensor, batched: bool, dynamic: Mapping[int, Any]) -> TensorSpec:
    dims = tuple(-1 if axis in dynamic else int(n) for axis, n in enumerate(tensor.shape))
    try:
        dtype = dtype_of_array(str(tensor.dtype).removeprefix("torch.")).triton
    except (KeyError, TypeError):
        raise HookError(
            f"{name}: Triton has no tensors of {tensor.dtype}; convert it in postprocess"
        ) from None
    return TensorSpec(name, dtype, dims[1:] if batched else dims)


def _failure(
    served: ServedGraph, graph: OnnxGraph, sample: Mapping[str, np.ndarray], tolerance: Tolerance
) -> str | None:
    """How onnxruntime's answer differs from torch's; None where it does not."""
    with tempfile.TemporaryDirectory(prefix="unitrain-export-") as folder:
        path = Path(folder, "graph.onnx")
        graph.write(path, external=True)
        return compare(run_torch(served, sample), run_onnx(path, sample), tolerance).failure


def _at_least_two_rows(tensor: Tensor) -> Tensor:
    """The exporter takes a batch of one for a constant."""
    return tensor if len(tensor) > 1 else torch.cat([tensor, tensor])


def _cause(error: BaseException) -> str:
    """The first sentence of the innermost cause, and the line of code that torch names anywhere."""
    texts = [str(error)]
    while error.__cause__ is not None:
        error = error.__cause__
        texts.append(str(error))
    lines = [line.strip() for line in texts[-1].splitlines() if line.strip()]
    places = re.findall(r'File: (.+?):(\d+) in|File "(.+?)", line (\d+)', "\n".join(texts))
    places = [(new or old, line or other) for new, line, old, other in places]
    own = [f" at {path}:{line}" for path, line in places if "site-packages" not in path]
    sentence = f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}".rstrip(".")
    return sentence + (own[-1] if own else "")
