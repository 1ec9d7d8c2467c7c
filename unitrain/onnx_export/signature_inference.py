"""Inference of a module's signature: names, dtypes and shapes of its inputs and outputs, from a sample."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unitrain.errors import ExportError, HookError
from unitrain.module import Tensors
from unitrain.onnx_export.served_graph import ServedGraph, forward_error
from unitrain.signature import Signature, TensorSpec, dtype_of_array

BATCH = "batch"
"""Name of the batch axis in the graph."""


def find_signature(served: ServedGraph, sample: Mapping[str, Tensor]) -> Signature:
    """Find the names, dtypes and shapes that are served, by running the module at two batch sizes.

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
            "which no server can hand out by rows; also return a tensor of shape [batch, ...]"
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
    inputs = tuple(
        _spec(name, tensor, batched, dynamic_axes_of(served, name)) for name, tensor in two.items()
    )
    free = any(len(dynamic_axes_of(served, name)) > 1 for name in served.names)
    outputs = []
    for name, tensor in first.items():
        changed = {axis: "" for axis in range(tensor.dim()) if tensor.shape[axis] != second[name].shape[axis]}
        if free:
            # Which axes of an output follow a free axis of an input is not known from one length.
            changed |= dict.fromkeys(_axes_that_follow(served, two, name), "")
        outputs.append(_spec(name, tensor, batched, changed))
    return Signature(inputs, tuple(outputs), batched)


def infer_signature(served: ServedGraph, sample: Tensors) -> Signature:
    """Return the signature; a failure of forward is one sentence."""
    try:
        return find_signature(served, sample)
    except (HookError, ExportError):
        raise
    except Exception as error:
        raise forward_error(served.module, sample, error) from error


def _squeezed(
    served: ServedGraph, sample: Mapping[str, Tensor], two: Tensors, three: Tensors
) -> dict[str, tuple[int, ...]]:
    """Return the shape of a row by output, for outputs that lose an axis if there is one row, as by `squeeze()`."""
    try:
        with torch.no_grad():
            one = served.named_outputs(*(tensor[:1] for tensor in sample.values()))
    except Exception:  # noqa: BLE001 - the comparison of batch sizes reports it
        return {}
    return {
        name: tuple(tensor.shape[1:])
        for name, tensor in two.items()
        if name in one and one[name].dim() < tensor.dim() and tensor.shape[1:] == three[name].shape[1:]
    }


def _axes_that_follow(served: ServedGraph, sample: Tensors, output: str) -> list[int]:
    """Return an output's axes whose length changes when the inputs' free axes are one shorter."""
    shorter = {}
    for name, tensor in sample.items():
        for axis in dynamic_axes_of(served, name):
            if axis and tensor.shape[axis] > 2:  # noqa: PLR2004
                tensor = tensor.narrow(axis, 0, tensor.shape[axis] - 1)  # noqa: PLW2901
        shorter[name] = tensor
    with torch.no_grad():
        before, after = served.named_outputs(*sample.values()), served.named_outputs(*shorter.values())
    return [
        a for a, (m, n) in enumerate(zip(before[output].shape, after[output].shape, strict=True)) if m != n
    ]


def dynamic_axes_of(served: ServedGraph, name: str) -> dict[int, Any]:
    """Return the free axes of an input by their index, the batch axis among them."""
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


def loss_inputs(served: ServedGraph, sample: Tensors) -> list[str]:
    """Return the optional inputs on which no served output depends: labels, from which forward computes a loss."""
    if served.module.example_input_array is not None:  # it names the inputs
        return []
    parameters = inspect.signature(served.module.forward).parameters
    optional = [n for n in sample if n in parameters and parameters[n].default is not inspect.Parameter.empty]
    found: list[str] = []
    for name in optional:
        rest = {key: tensor for key, tensor in sample.items() if key != name and key not in found}
        try:
            without = _by_rows(ServedGraph(served.module, tuple(rest)), rest)
            tried = [_by_rows(served, sample | {name: other}) for other in _variations(sample[name])]
        except Exception:  # noqa: BLE001, S112 - forward needs this input or its values
            continue
        if without and all(_equal(without, outputs) for outputs in tried):
            found.append(name)
    return found if len(found) < len(sample) else []


def _by_rows(served: ServedGraph, sample: Tensors) -> Tensors:
    with torch.no_grad():
        outputs = served.named_outputs(*(sample[name] for name in served.names))
    return {name: tensor for name, tensor in outputs.items() if tensor.dim()}


def _variations(tensor: Tensor) -> list[Tensor]:
    """Return other valid values of an input: rows in another order, zeros, and zeros in its last half."""
    half = tensor.clone()
    if tensor.dim() > 1:
        half[:, tensor.shape[1] // 2 :] = 0
    return [tensor, tensor.roll(1, 0), torch.zeros_like(tensor), half]


def _equal(these: Tensors, others: Tensors) -> bool:
    return list(these) == list(others) and all(
        torch.equal(a, b) or torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(these.values(), others.values(), strict=True)
    )


def at_least_two_rows(tensor: Tensor) -> Tensor:
    """Repeat a single row, since the exporter would make a batch of one a constant."""
    return tensor if len(tensor) > 1 else torch.cat([tensor, tensor])
