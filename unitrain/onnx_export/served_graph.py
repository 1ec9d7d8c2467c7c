"""Served graph in torch: preprocess, forward and postprocess of a module, with named inputs and outputs."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from unitrain.errors import ExportError
from unitrain.module import Tensors, UnitrainModule, flatten_outputs
from unitrain.onnx_export.module_copy import copy_module

PREFIX = "module."
"""Prefix of an initializer's name; the rest is the weight's name in the module."""


class ServedGraph(nn.Module):
    """Served function of a module, from its inputs in order to its outputs in order.

    Args:
        module: module whose forward is served.
        names: names of the inputs.
        dynamic_axes: axes of any length beside the batch, by input and axis; None for the module's own ones.

    Attributes:
        left_out: outputs that are not served, since they have no batch axis.
        shapes: shape of a row by output, for outputs whose batch axis forward removes for one row.
    """

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
        self.shapes: dict[str, tuple[int, ...]] = {}

    def of(self, module: LightningModule) -> "ServedGraph":
        """Return the same function of another module of the same class."""
        served = ServedGraph(module, self.names, self.dynamic_axes)
        served.left_out, served.shapes = self.left_out, self.shapes
        return served

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with the trainer, which Lightning does not pickle, and whose epoch forward may read."""
        return self.__dict__ | {"trainer": vars(self.module).get("_trainer")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        trainer = state.pop("trainer")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for part in self.module.modules():
            if "_trainer" in vars(part):
                vars(part)["_trainer"] = trainer

    def named_outputs(self, *tensors: Tensor) -> Tensors:
        """Return the served outputs by name."""
        inputs = dict(zip(self.names, tensors, strict=True))
        if not isinstance(self.module, UnitrainModule):
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


def eval_copy(module: LightningModule) -> LightningModule:
    """Return a copy on the CPU in evaluation mode; the module itself stays unchanged."""
    return copy_module(module)[0]


def run_torch(served: ServedGraph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run the served graph in torch; return its outputs by name."""
    with torch.no_grad():
        tensors = (torch.from_numpy(np.array(inputs[name])) for name in served.names)
        return {name: tensor.numpy() for name, tensor in served.named_outputs(*tensors).items()}


def forward_error(module: nn.Module, sample: Mapping[str, Any], error: Exception) -> ExportError:
    """Return the error of a forward that fails on a sample: its inputs, the root cause, and what to do."""
    inputs = ", ".join(f"{name} {list(array.shape)}" for name, array in sample.items())
    return ExportError(
        f"{type(module).__name__}.forward fails on a sample of {inputs}: {root_cause(error)}; set "
        "example_input_array to inputs as forward takes them, or switch publishing off with --publish null"
    )


def root_cause(error: BaseException) -> str:
    """Return the first line of the innermost cause, and the line of code that torch names."""
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
