"""Graph template: a module exported to ONNX once, whose weights are replaced for later versions.

Replacing the weights costs a thousandth of an export. It is correct only if every weight is an initializer
of the graph with the weight's name and value. `build_template` verifies this for each module.
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
from unitrain.onnx_export.graph_and_tensors import OnnxGraph
from unitrain.onnx_export.module_weights import load_weights, perturbed, weights_of
from unitrain.onnx_export.onnx_exporter import QUANTIZED, WORKAROUNDS, export_onnx
from unitrain.onnx_export.served_graph import PREFIX, ServedGraph, forward_error
from unitrain.onnx_export.signature_inference import at_least_two_rows, infer_signature, loss_inputs
from unitrain.onnx_export.state_outside_weights import ModuleState
from unitrain.onnx_export.undisturbed_forward import to_arrays
from unitrain.repository.onnx_session import GraphSession, Tolerance
from unitrain.signature import Signature

LIVE_ROWS = 4
"""Maximum rows that the live module runs at each publication."""
PREPARE_LIMIT_S = 10.0
"""Seconds after which no larger batch is tried before a training."""


class Export(Protocol):
    """Function like `export_onnx`, from a served graph and a sample to an ONNX graph."""

    def __call__(self, served: ServedGraph, sample: Mapping[str, np.ndarray], *, opset: int) -> OnnxGraph: ...


@dataclass(frozen=True)
class Template:
    """Exported graph that takes other weights.

    Attributes:
        graph: graph with some weights.
        served: the graph in torch, an evaluation copy on the CPU with the weights that were loaded last.
        signature: inputs and outputs.
        swappable: True if replaced initializers were verified to give the same outputs as torch.
        sample: real inputs by name, [row, ...] each, with two rows or more.
        opset: ONNX opset.
        state: state of the exported module; `served.module` is its copy.
        tolerance: allowed difference of onnxruntime from torch.
        notes: notes on the graph for the user, one sentence each.
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
        """Copy the state of a live module outside its weights.

        Raises:
            ExportError: forward needs an attribute that can't be copied.
        """
        return ModuleState.of(module, self.run)

    def run(self, module: LightningModule, rows: int = LIVE_ROWS) -> dict[str, np.ndarray]:
        """Run a module on the first rows of the sample, on the module's device."""
        return _answers(self.served.of(module), self.sample, rows)

    def of_state(
        self, state: ModuleState, weights: Mapping[str, Tensor], export: Export | None = None
    ) -> "Template":
        """Return a template of the same module in another state.

        Args:
            state: the other state.
            weights: weights to load; random ones are exported and compared first.
            export: see `exported_again`.
        """
        served = self.served.of(state.module)
        load_weights(served.module, weights)
        proof = _Proof(self.sample, self.tolerance, self.signature.batched)
        graph, swappable = _export_and_prove(served, proof, self.opset, export or export_onnx)
        return replace(self, graph=graph, served=served, swappable=swappable, state=state)

    def with_weights(self, weights: Mapping[str, Tensor], export: Export | None = None) -> OnnxGraph:
        """Return the graph with other weights: replaced if that was verified, else by a full export.

        Args:
            weights: tensors by name.
            export: see `exported_again`.
        """
        load_weights(self.served.module, weights)
        return (
            self.graph.with_weights(weights, prefix=PREFIX) if self.swappable else self.exported_again(export)
        )

    def exported_again(self, export: Export | None = None) -> OnnxGraph:
        """Export `served` in its present state.

        Args:
            export: replacement of `export_onnx`, which blocks every other thread.
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
    """Export a module, and verify that the graph's weights can be replaced.

    The graph is exported with random weights. A second set replaces them, and the outputs of onnxruntime and
    torch are compared.

    Args:
        module: live module; it stays unchanged.
        sample: real inputs by name, [row, ...] each; random ones may be out of range. Optional inputs that
            only a loss depends on are omitted.
        opset: ONNX opset.
        tolerance: allowed difference of onnxruntime from torch.
        max_rows: maximum rows of a request.
        dynamic_axes: axes of any length beside the batch, by input and axis; None for the module's own ones.

    Raises:
        ExportError: torch can't export it, or the outputs of the exported graph differ from torch's.
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
        """Return the message on the first difference; None if there is none."""
        with tempfile.TemporaryDirectory(prefix="unitrain-export-") as folder:
            path = Path(folder, "graph.onnx")
            graph.write(path, external=True)
            return self.compare(served, GraphSession(path))

    def compare(self, served: ServedGraph, session: GraphSession | None) -> str | None:
        """Compare a graph with torch, and rows with themselves in other batches; return the first difference."""
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
        # torch prints the graph that it could not trace; the error names the line.
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
