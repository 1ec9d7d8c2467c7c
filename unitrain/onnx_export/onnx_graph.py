"""An ONNX model in two parts, its structure and its tensors, so that no part of it is ever too large.

A protobuf message ends at 2 GB, and copying one that holds weights copies them too. Kept apart, the tensors go
from torch's memory to the disk, and other weights take their place without touching the structure.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor

from unitrain.errors import ExportError

WEIGHTS_SUFFIX = ".data"
"""Of the file beside a graph that holds its tensors, where one file can't."""
EXTERNAL_FROM_BYTES = 1024
"""Where tensors lie beside a graph, those of that many bytes do."""
_ALIGNMENT_BYTES = 4096
"""A runtime may map a tensor into memory where it begins on a page."""


@dataclass(frozen=True)
class OnnxGraph:
    """A graph, and the values of its initializers.

    Attributes:
        structure: the model; initializers named in `tensors` have their type and shape there, and no data.
        tensors: by initializer, its value or the value's little-endian bytes.
    """

    structure: onnx.ModelProto
    tensors: Mapping[str, Tensor | bytes]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> "OnnxGraph":
        """The two parts of a model, which is taken apart."""
        tensors: dict[str, Tensor | bytes] = {}
        for initializer in model.graph.initializer:
            if initializer.HasField("raw_data"):
                tensors[initializer.name] = initializer.raw_data
                initializer.ClearField("raw_data")
        return cls(model, tensors)

    def with_weights(self, weights: Mapping[str, Tensor], *, prefix: str = "") -> "OnnxGraph":
        """The same structure with these weights in the initializers of their names.

        Args:
            weights: by name.
            prefix: what an initializer's name has before a weight's.

        Raises:
            ExportError: an initializer has another type or shape than the weight of its name.
        """
        swapped = dict(self.tensors)
        for initializer in self.structure.graph.initializer:
            tensor = weights.get(initializer.name.removeprefix(prefix))
            if tensor is None:
                continue
            kind = _onnx_type(tensor.dtype)
            if list(tensor.shape) != list(initializer.dims) or kind != initializer.data_type:
                raise ExportError(f"initializer {initializer.name} is not the weight of that name")
            if initializer.name not in self.tensors:
                raise ExportError(f"initializer {initializer.name} is not stored as plain bytes")
            swapped[initializer.name] = tensor
        return replace(self, tensors=swapped)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors together."""
        return sum(len(v) if isinstance(v, bytes) else v.nbytes for v in self.tensors.values())

    def to_model(self) -> onnx.ModelProto:
        """The whole as one message of less than 2 GB."""
        model = self._structure()
        for initializer in model.graph.initializer:
            if initializer.name in self.tensors:
                initializer.raw_data = bytes(_view(self.tensors[initializer.name]))
        return model

    def write(
        self, path: Path, *, metadata: Mapping[str, str] | None = None, external: bool = False
    ) -> list[Path]:
        """Write the graph, and return the files that it needs beside it.

        Args:
            path: the graph's file.
            metadata: the model's own, as text.
            external: let the larger tensors lie in a file beside it.
        """
        beside = path.with_name(path.name + WEIGHTS_SUFFIX)
        if not external:
            model = self.to_model()
        else:
            model = self._structure()
            with beside.open("wb") as file:
                for initializer in model.graph.initializer:
                    if initializer.name in self.tensors:
                        _put(_view(self.tensors[initializer.name]), initializer, file, beside.name)
        onnx.helper.set_model_props(model, dict(metadata or {}))
        path.write_bytes(model.SerializeToString())
        return [beside] if external else []

    def _structure(self) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self.structure)
        return model


def rename_values(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Rename inputs, outputs and inner values of a graph; an inner value that has one of the new names gets another.

    Args:
        names: by a value's present name, the new one.
    """
    taken = set(_value_names(model.graph))
    renamed = dict(names)
    for wanted in names.values():
        if wanted in taken and wanted not in names:
            number = next(i for i in itertools.count(1) if f"{wanted}_{i}" not in taken | set(names.values()))
            renamed[wanted] = f"{wanted}_{number}"
            taken.add(renamed[wanted])
    _rename(model.graph, renamed)


def separate_outputs(model: onnx.ModelProto) -> None:
    """Give each output a value of its own: one that is an input, or an earlier output, is copied by an Identity node."""
    taken = set(_value_names(model.graph))
    seen = {value.name for value in model.graph.input}
    for output in model.graph.output:
        if output.name in seen:
            copy = next(name for i in itertools.count(1) if (name := f"{output.name}_copy_{i}") not in taken)
            taken.add(copy)
            model.graph.node.append(onnx.helper.make_node("Identity", [output.name], [copy], name=copy))
            output.name = copy
        seen.add(output.name)


def _value_names(graph: onnx.GraphProto) -> Iterator[str]:
    values: list[Any] = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    yield from (value.name for value in values)
    for node in graph.node:
        yield from (*node.input, *node.output)
        for inner in _inner_graphs(node):
            yield from _value_names(inner)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    named: list[Any] = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for value in named:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for values in (node.input, node.output):
            for i, name in enumerate(values):
                if name in names:
                    values[i] = names[name]
        for inner in _inner_graphs(node):
            _rename(inner, names)


def _inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _put(data: memoryview, initializer: TensorProto, file: BinaryIO, location: str) -> None:
    if data.nbytes < EXTERNAL_FROM_BYTES:
        initializer.raw_data = bytes(data)
        return
    offset = -(-file.tell() // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    file.seek(offset)
    file.write(data)
    initializer.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", data.nbytes)):
        initializer.external_data.add(key=key, value=str(value))


def _view(value: Tensor | bytes) -> memoryview:
    if isinstance(value, bytes):
        return memoryview(value)
    flat = value.detach().cpu().contiguous().reshape(-1)
    array: np.ndarray = flat.view(torch.uint8).numpy() if len(flat) else np.empty(0, np.uint8)
    return array.data


def _onnx_type(dtype: torch.dtype) -> int:
    if dtype is torch.bfloat16:  # numpy has no such type
        return TensorProto.BFLOAT16
    try:
        return onnx.helper.np_dtype_to_tensor_dtype(torch.empty(0, dtype=dtype).numpy().dtype)
    except (TypeError, KeyError, ValueError) as error:
        raise ExportError(f"no ONNX tensor holds {dtype}") from error
