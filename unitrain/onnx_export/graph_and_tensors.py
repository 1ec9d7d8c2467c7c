"""ONNX model in two parts, structure and tensors, which has no size limit and makes weights replaceable.

A protobuf message is limited to 2 GB, and a copy of it copies the weights. Separate tensors go from torch's
memory to the disk, and other weights replace them without a change of the structure.
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
"""Suffix of the file beside a graph that contains its tensors."""
EXTERNAL_FROM_BYTES = 1024
"""Minimum size of a tensor that is stored in the file beside a graph."""
_ALIGNMENT_BYTES = 4096
"""Alignment of tensors, by which a runtime can map them into memory."""


@dataclass(frozen=True)
class OnnxGraph:
    """Graph, and the values of its initializers.

    Attributes:
        structure: model; initializers named in `tensors` have their type and shape in it, but no data.
        tensors: value, or its little-endian bytes, by initializer.
    """

    structure: onnx.ModelProto
    tensors: Mapping[str, Tensor | bytes]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> "OnnxGraph":
        """Split a model into its two parts; the model itself is changed."""
        tensors: dict[str, Tensor | bytes] = {}
        for initializer in model.graph.initializer:
            if initializer.HasField("raw_data"):
                tensors[initializer.name] = initializer.raw_data
                initializer.ClearField("raw_data")
        return cls(model, tensors)

    def with_weights(self, weights: Mapping[str, Tensor], *, prefix: str = "") -> "OnnxGraph":
        """Return the same structure with other weights in the initializers.

        Args:
            weights: tensors by name.
            prefix: prefix of an initializer's name before the weight's name.

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
        """Total bytes of the tensors."""
        return sum(len(v) if isinstance(v, bytes) else v.nbytes for v in self.tensors.values())

    def to_model(self) -> onnx.ModelProto:
        """Return the model as one message of less than 2 GB."""
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
            path: path of the graph's file.
            metadata: metadata_props of the model.
            external: True writes the larger tensors to a file beside it.
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
    """Rename values of a graph; an inner value that already has one of the new names gets another name.

    Args:
        model: model that is changed.
        names: new name by present name.
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
    """Make the outputs distinct: an Identity node copies one that is an input or an earlier output."""
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
