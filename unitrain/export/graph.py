"""The graph that is served: preprocess, forward and postprocess of a module, exported to ONNX once.

Later versions of a training take the same graph with other weights (`weights`), which costs a
thousandth of an export. That is right only where every weight is an initializer of the graph under its
own name with its own value; `build_template` proves it for the module at hand, and says so if not.
"""

import contextlib
import inspect
import io
import logging
import re
import tempfile
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from unitrain.errors import ExportError, HookError
from unitrain.export.batch_sizes import compare_batches
from unitrain.export.live import to_arrays
from unitrain.export.module_copy import copy_module
from unitrain.export.module_state import ModuleState
from unitrain.export.onnx_graph import OnnxGraph, rename_values, separate_outputs
from unitrain.export.parity import GraphSession, Tolerance, run_torch
from unitrain.export.weights import load_weights, perturbed, weights_of
from unitrain.module import ServableModule, Tensors, flatten_outputs
from unitrain.tensors import Signature, TensorSpec, dtype_of_array

BATCH = "batch"
LIVE_ROWS = 4
"""Rows that the live module answers at each publication, at most."""
PREPARE_LIMIT_S = 10.0
"""Seconds after which no larger batch is tried before a training."""
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
        self.left_out: frozenset[str] = frozenset()
        self.shapes: dict[
            str, tuple[int, ...]
        ] = {}  # of a row, for outputs of which forward squeezes one row

    def of(self, module: LightningModule) -> "ServedGraph":
        """The same function of another module of the kind."""
        served = ServedGraph(module, self.names, self.dynamic_axes)
        served.left_out, served.shapes = self.left_out, self.shapes
        return served

    def __getstate__(self) -> dict[str, Any]:
        """All of it; Lightning takes the trainer out of what is pickled, and forward may read the epoch."""
        return self.__dict__ | {"trainer": vars(self.module).get("_trainer")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        trainer = state.pop("trainer")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for part in self.module.modules():
            if "_trainer" in vars(part):
                vars(part)["_trainer"] = trainer

    def named_outputs(self, *tensors: Tensor) -> Tensors:
        """The served outputs by name."""
        inputs = dict(zip(self.names, tensors, strict=True))
        if not isinstance(self.module, ServableModule):
            named = flatten_outputs(self.module.forward(**inputs))
        else:
            outputs = self.module.forward(**self.module.preprocess(inputs))
            if isinstance(outputs, Tensor):
                outputs = {"output": outputs}
            named = flatten_outputs(self.module.postprocess(outputs))
        return {
            name: tensor.reshape(-1, *self.shapes[name]) if name in self.shapes else tensor
            for name, tensor in named.items()
            if name not in self.left_out
        }

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
        state: of the module that the graph was exported from; `served.module` is its copy.
        notes: what the user should know of the graph, a sentence each.
    """

    graph: OnnxGraph
    served: ServedGraph
    signature: Signature
    swappable: bool
    sample: dict[str, np.ndarray]
    opset: int
    state: ModuleState
    tolerance: Tolerance
    notes: tuple[str, ...] = ()

    def state_of(self, module: LightningModule) -> ModuleState:
        """The state of a live module outside its weights; the one at hand where it has not changed.

        Raises:
            ExportError: forward needs an attribute that can't be copied.
        """
        return ModuleState.of(module, self.run)

    def run(self, module: LightningModule, rows: int = LIVE_ROWS) -> dict[str, np.ndarray]:
        """The answers of a module to the first rows of the sample, on its own device."""
        return _answers(self.served.of(module), self.sample, rows)

    def of_state(
        self, state: ModuleState, weights: Mapping[str, Tensor], export: Export | None = None
    ) -> "Template":
        """A template of the same module in another state.

        Args:
            weights: what the copy gets; random ones are tried in their places.
            export: see `exported_anew`.
        """
        served = self.served.of(state.module)
        load_weights(served.module, weights)
        proof = _Proof(self.sample, self.tolerance, self.signature.batched)
        graph, swappable = _export_and_prove(served, proof, self.opset, export or export_onnx)
        return replace(self, graph=graph, served=served, swappable=swappable, state=state)

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
    return copy_module(module)[0]


def build_template(
    module: LightningModule,
    sample: Mapping[str, Tensor],
    *,
    opset: int,
    tolerance: Tolerance,
    max_rows: int = 16,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
) -> Template:
    """Export a module's served graph, and prove whether weights can be swapped in it.

    The graph is exported with one set of random weights; a second set is swapped in, and onnxruntime's
    answer is compared with torch's.

    Args:
        sample: inputs by name, [row, ...] each; real ones, since random ones may be out of range. Optional
            ones that only make a loss are left out.
        max_rows: rows of a request, at most.
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
    if any("FakeQuantize" in type(part).__name__ for part in module.modules()):
        raise ExportError(
            f"{type(module).__name__} can't be exported to ONNX: {_WAYS_OUT[_QUANTIZED]}, or switch publishing off with "
            "--publish null"
        )
    arrays = {name: tensor.numpy() for name, tensor in rows.items()}
    with isolate_rng():
        state = _state(module, arrays)
        served = ServedGraph(state.module, tuple(rows), dynamic_axes=dynamic_axes)
        losses = _loss_inputs(served, rows)
        if losses:
            arrays = {name: array for name, array in arrays.items() if name not in losses}
            rows = {name: tensor for name, tensor in rows.items() if name not in losses}
            state = _state(module, arrays)
            served = ServedGraph(state.module, tuple(rows), dynamic_axes=dynamic_axes)
        signature = _signature(served, rows)
        proof = _Proof(arrays, tolerance, signature.batched, max_rows)
        mixed = proof.compare(served, None)  # before an export, which takes longer
        if mixed:
            raise ExportError(f"{type(module).__name__}: {mixed}")
        graph, swappable = _export_and_prove(served, proof, opset, export_onnx)
    notes = []
    if losses:
        notes.append(f"{', '.join(losses)}: not served as input, since only a loss depends on it")
    if served.left_out:
        notes.append(
            f"{', '.join(sorted(served.left_out))}: not served as output, since it is one number a batch"
        )
    return Template(graph, served, signature, swappable, arrays, opset, state, tolerance, tuple(notes))


def _state(module: LightningModule, sample: Mapping[str, np.ndarray]) -> ModuleState:
    try:
        return ModuleState.of(
            module, lambda clone: _answers(ServedGraph(clone, tuple(sample)), sample, LIVE_ROWS)
        )
    except (HookError, ExportError):
        raise
    except Exception as error:
        raise _forward_fails(module, sample, error) from error


def _answers(served: ServedGraph, sample: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    device = served.module.device
    tensors = [torch.from_numpy(np.array(sample[name][:rows])).to(device) for name in served.names]
    with torch.no_grad():
        return to_arrays(served.named_outputs(*tensors))


@dataclass(frozen=True)
class _Proof:
    """Comparison of a graph with the served copy that it was exported from."""

    sample: dict[str, np.ndarray]
    tolerance: Tolerance
    batched: bool
    max_rows: int = 16

    def failure(self, served: ServedGraph, graph: OnnxGraph) -> str | None:
        """The first difference, in words; None where there is none."""
        with tempfile.TemporaryDirectory(prefix="unitrain-export-") as folder:
            path = Path(folder, "graph.onnx")
            graph.write(path, external=True)
            return self.compare(served, GraphSession(path))

    def compare(self, served: ServedGraph, session: GraphSession | None) -> str | None:
        """The first difference of a graph from torch, or of a row from itself in another batch."""
        return compare_batches(
            served, session, self.sample, tolerance=self.tolerance, batched=self.batched,
            max_rows=self.max_rows, limit_s=PREPARE_LIMIT_S,
        ).failure  # fmt: skip


def _export_and_prove(
    served: ServedGraph, proof: _Proof, opset: int, export: Export
) -> tuple[OnnxGraph, bool]:
    """Export with random weights, swap in others, and compare; the served copy keeps its weights.

    Returns:
        The graph, and whether weights can be swapped in it.
    """
    original = weights_of(served.module)
    try:
        load_weights(served.module, perturbed(original, seed=1))
        # torch draws the graph of what it could not trace; the error names the line.
        with redirect_stderr(io.StringIO()) if export is export_onnx else contextlib.nullcontext():
            graph = export(served, proof.sample, opset=opset)
        second = perturbed(original, seed=2)
        load_weights(served.module, second)
        try:
            swapped = graph.with_weights(second, prefix=PREFIX)
            if proof.failure(served, swapped) is None:
                return graph, True
        except ExportError:
            pass
        graph = export(served, proof.sample, opset=opset)
        failure = proof.failure(served, graph)
        if failure:
            wrong = (
                ""
                if failure.startswith(("a row", "forward"))
                else "the exported graph does not answer as torch does: "
            )
            raise ExportError(f"{type(served.module).__name__}: {wrong}{failure}")
        return graph, False
    finally:
        load_weights(served.module, original)


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
            f"{type(served.module).__name__} can't be exported to ONNX: {_cause(error)}; {_way_out(error)}, "
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
    """Refuse a graph that takes one number of rows only: torch has taken it from the sample without a word."""
    for name, value in zip(served.names, model.graph.input, strict=True):
        rows = value.type.tensor_type.shape.dim[0]
        if rows.HasField("dim_value"):
            raise ExportError(
                f"{type(served.module).__name__} can't be exported to ONNX for batches of any size: the graph takes "
                f"{rows.dim_value} rows of {name}, as the sample has; use {name}.shape[0] instead of len({name}), and no loop "
                "over rows, chunks of rows or branch on their number"
            )


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
    served.left_out |= {name for name, tensor in first.items() if not tensor.dim()}
    if len(served.left_out) == len(first):
        raise HookError(
            f"{type(served.module).__name__}: forward returns only {', '.join(first)}, one number for a whole batch, "
            "which no server can hand out by rows; return a tensor of shape [batch, ...], too"
        )
    first = {name: tensor for name, tensor in first.items() if name not in served.left_out}
    served.shapes = _squeezed(served, sample, first, second)
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
        raise _forward_fails(served.module, sample, error) from error


def _forward_fails(module: nn.Module, sample: Mapping[str, Any], error: Exception) -> ExportError:
    inputs = ", ".join(f"{name} {list(array.shape)}" for name, array in sample.items())
    return ExportError(
        f"{type(module).__name__}.forward fails on a sample of {inputs}: {_cause(error)}; set "
        "example_input_array to inputs as forward takes them, or switch publishing off with --publish null"
    )


def _squeezed(
    served: ServedGraph, sample: Mapping[str, Tensor], two: Tensors, three: Tensors
) -> dict[str, tuple[int, ...]]:
    """The shape of a row by output, for outputs that have fewer axes where there is but one row: `squeeze()`."""
    try:
        with torch.no_grad():
            one = served.named_outputs(*(tensor[:1] for tensor in sample.values()))
    except Exception:  # noqa: BLE001 - the comparison of batch sizes says so
        return {}
    return {
        name: tuple(tensor.shape[1:])
        for name, tensor in two.items()
        if name in one and one[name].dim() < tensor.dim() and tensor.shape[1:] == three[name].shape[1:]
    }


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


def _loss_inputs(served: ServedGraph, sample: Tensors) -> list[str]:
    """The optional inputs on which no served output depends: labels, of which forward makes a loss."""
    if served.module.example_input_array is not None:  # it says what the inputs are
        return []
    parameters = inspect.signature(served.module.forward).parameters
    optional = [n for n in sample if n in parameters and parameters[n].default is not inspect.Parameter.empty]
    found: list[str] = []
    for name in optional:
        rest = {key: tensor for key, tensor in sample.items() if key != name and key not in found}
        try:
            without = _by_rows(ServedGraph(served.module, tuple(rest)), rest)
            tried = [_by_rows(served, sample | {name: other}) for other in _variations(sample[name])]
        except Exception:  # noqa: BLE001, S112 - forward takes no other value, or not none: it is an input
            continue
        if without and all(_equal(without, outputs) for outputs in tried):
            found.append(name)
    return found if len(found) < len(sample) else []


def _by_rows(served: ServedGraph, sample: Tensors) -> Tensors:
    with torch.no_grad():
        outputs = served.named_outputs(*(sample[name] for name in served.names))
    return {name: tensor for name, tensor in outputs.items() if tensor.dim()}


def _variations(tensor: Tensor) -> list[Tensor]:
    """Other values of an input that are as valid: other rows', zeros, and zeros in its last half."""
    half = tensor.clone()
    if tensor.dim() > 1:
        half[:, tensor.shape[1] // 2 :] = 0
    return [tensor, tensor.roll(1, 0), torch.zeros_like(tensor), half]


def _equal(these: Tensors, others: Tensors) -> bool:
    return list(these) == list(others) and all(
        torch.equal(a, b) or torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(these.values(), others.values(), strict=True)
    )


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


_PACKED = r"pack_padded_sequence|PackedSequence|pad_packed_sequence"
_QUANTIZED = r"fused_moving_avg_obs|fake_quant"
_WAYS_OUT = {
    r"DynamicCache|past_key_values|EncoderDecoderCache": "set use_cache=False in the transformer's configuration "
    "or call, so that it returns no cache",
    _PACKED: "run the recurrent layer on the padded sequences "
    "and mask its answers, or take the last valid step by gather, instead of packing",
    _QUANTIZED: "quantization-aware training has no form in ONNX here: train "
    "in floating point, and quantize the published graph with onnxruntime.quantization",
    r"[Ss]parse": "make the sparse tensor dense with to_dense(), in __init__ or in forward",
    r"GuardOnDataDependent|data-dependent|Could not guard|Could not extract specialized": "rewrite it without "
    "branches and loops that depend on the data (torch.where chooses by value)",
    r"Constraints violated|specialized|ConstraintViolation|not all values of": "take sizes from the tensor "
    "(x.shape[0], or -1 in view and reshape) instead of fixed numbers, and use x.shape[0] instead of len(x)",
}
"""By a pattern in torch's words, a way out."""


def _way_out(error: BaseException) -> str:
    """Advice for what torch can't export."""
    texts = [str(error)]
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
        texts.append(f"{type(root).__name__}: {root}")
    frames = [frame for frame, _ in traceback.walk_tb(root.__traceback__)]
    if any(isinstance(value, PackedSequence) for frame in frames for value in frame.f_locals.values()):
        return "it can't trace pack_padded_sequence: " + _WAYS_OUT[_PACKED]
    missing = re.search(r"No ONNX function found for <OpOverload\(op='(?:\w+\.)?(\w+)", "\n".join(texts))
    known = [advice for pattern, advice in _WAYS_OUT.items() if re.search(pattern, texts[-1])]
    if known:
        return known[0]
    if missing:
        name = missing[1].removeprefix("linalg_")
        return f"ONNX has no operator for torch's {name}: write it with others (a series, say), or serve what comes before it"
    known = [advice for pattern, advice in _WAYS_OUT.items() if re.search(pattern, "\n".join(texts))]
    return known[0] if known else "rewrite the line that is named with other operators"
