"""The graph that is served: preprocess, forward and postprocess of a module, exported to ONNX once.

Later versions of a training take the same graph with other weights (`weights`), which costs a
thousandth of an export. That is right only where every weight is an initializer of the graph under its
own name with its own value; `build_template` proves it for the module at hand, and says so if not.
"""

import contextlib
import io
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from unitrain.errors import ExportError, HookError
from unitrain.onnx_export.batch_sizes import compare_batches
from unitrain.onnx_export.live_answers import to_arrays
from unitrain.onnx_export.module_state import ModuleState
from unitrain.onnx_export.onnx_exporter import QUANTIZED, WORKAROUNDS, export_onnx
from unitrain.onnx_export.onnx_graph import OnnxGraph
from unitrain.onnx_export.served_graph import PREFIX, ServedGraph, forward_error
from unitrain.onnx_export.signature_inference import at_least_two_rows, infer_signature, loss_inputs
from unitrain.onnx_export.weights import load_weights, perturbed, weights_of
from unitrain.repository.onnx_session import GraphSession, Tolerance
from unitrain.signature import Signature

LIVE_ROWS = 4
"""Rows that the live module answers at each publication, at most."""
PREPARE_LIMIT_S = 10.0


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
            export: see `exported_again`.
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
            export: see `exported_again`.
        """
        load_weights(self.served.module, weights)
        return (
            self.graph.with_weights(weights, prefix=PREFIX) if self.swappable else self.exported_again(export)
        )

    def exported_again(self, export: Export | None = None) -> OnnxGraph:
        """The graph of `served` as it is now.

        Args:
            export: exports in the place of `export_onnx`, which keeps every other thread waiting.
        """
        return (export or export_onnx)(self.served, self.sample, opset=self.opset)


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
    rows = {name: at_least_two_rows(tensor.detach().cpu()) for name, tensor in sample.items()}
    for name, tensor in rows.items():
        if tensor.dtype == torch.bfloat16:
            raise ExportError(
                f"{type(module).__name__}: {name} is bfloat16, which no request can hold; train with precision bf16-mixed, "
                "or switch publishing off with --publish null"
            )
    if any("FakeQuantize" in type(part).__name__ for part in module.modules()):
        raise ExportError(
            f"{type(module).__name__} can't be exported to ONNX: {WORKAROUNDS[QUANTIZED]}, or switch publishing off with "
            "--publish null"
        )
    arrays = {name: tensor.numpy() for name, tensor in rows.items()}
    with isolate_rng():
        state = _state(module, arrays)
        served = ServedGraph(state.module, tuple(rows), dynamic_axes=dynamic_axes)
        losses = loss_inputs(served, rows)
        if losses:
            arrays = {name: array for name, array in arrays.items() if name not in losses}
            rows = {name: tensor for name, tensor in rows.items() if name not in losses}
            state = _state(module, arrays)
            served = ServedGraph(state.module, tuple(rows), dynamic_axes=dynamic_axes)
        signature = infer_signature(served, rows)
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
        raise forward_error(module, sample, error) from error


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
