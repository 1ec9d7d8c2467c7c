"""Requests and answers as Triton's protocol buffer messages."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from unitrain.client.arrays import Array
from unitrain.client.model import MAX_PAYLOAD_BYTES, ModelInfo, wire_dims
from unitrain.errors import DataError, RequestError
from unitrain.tensors import DTYPES, TensorSpec

_MOST_HEADS = 1000

_LONGEST_NAME = 64
_MOST_AXES = 16
"""What a message quotes of an answer."""

_NUMPY = {name: np.dtype(row.numpy) for name, row in DTYPES.items()}


class Encoder:
    """Makes one model's requests: what they have in common is serialised once for each shape."""

    def __init__(self, model: ModelInfo) -> None:
        from tritonclient.grpc import service_pb2

        self._model = model
        self._heads: dict[tuple[tuple[int, ...], ...], bytes] = {}
        fields = service_pb2.ModelInferRequest.DESCRIPTOR.fields_by_name
        self._id_tag = _tag(fields["id"].number)
        self._raw_tag = _tag(fields["raw_input_contents"].number)

    def message(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        """A ModelInferRequest for inputs of these shapes, without their values, its id, or outputs."""
        from tritonclient.grpc import service_pb2

        tensor = service_pb2.ModelInferRequest.InferInputTensor
        return service_pb2.ModelInferRequest(
            model_name=self._model.name,
            model_version="" if self._model.version is None else str(self._model.version),
            inputs=[
                tensor(
                    name=spec.name,
                    datatype=spec.dtype,
                    shape=(*shape, *wire_dims(spec, batched=self._model.signature.batched)[len(spec.dims) :]),
                )
                for spec, shape in zip(self._model.inputs, shapes, strict=True)
            ],
        )

    def encode(self, arrays: list[Array], number: int, where: str) -> bytes:
        """A serialised ModelInferRequest of whole arrays, in the signature's order.

        The values are copied once, straight into the message's bytes: the fields of a protocol buffer
        message may come in any order, so the part that never changes comes first.

        Raises:
            DataError: it would be over gRPC's limit.
        """
        size = payload_bytes(arrays)
        if size > MAX_PAYLOAD_BYTES:
            raise DataError(
                f"{where}: a request of {size:,} bytes is over gRPC's limit of {MAX_PAYLOAD_BYTES:,}; send fewer rows"
            )
        shapes = tuple([array.shape for array in arrays])
        head = self._heads.get(shapes)
        if head is None:
            if len(self._heads) >= _MOST_HEADS:
                self._heads.clear()
            head = self._heads[shapes] = self.message(shapes).SerializeToString()
        name = str(number).encode()
        parts: list[Any] = [head, self._id_tag, _varint(len(name)), name]
        for array in arrays:
            raw = _to_raw(array)
            parts += (self._raw_tag, _varint(raw.nbytes), raw)
        return b"".join(parts)


def payload_bytes(arrays: list[Array]) -> int:
    """Bytes that the arrays take in a message."""
    total = 0
    for array in arrays:
        total += array.nbytes
        if array.dtype == object:
            total += sum(map(len, array.ravel().tolist()))
    return total


def decode_response(
    response: Any,
    model: ModelInfo,
    rows: int,
    shared: Callable[[str, tuple[int, ...]], Array] | None = None,
) -> tuple[dict[str, Array], int]:
    """The outputs by name, in the model's order (arrays of their own, writable), and the version that answered.

    Args:
        response: a ModelInferResponse message.
        model: as its metadata describes it; the answer is compared with it.
        rows: in the request; of no account where the model has no batch axis.
        shared: gives an output that the server wrote into shared memory, by name and shape.

    Raises:
        RequestError: the answer does not fit the metadata or the request, or contradicts itself.
    """
    try:
        return _decoded(response, model, rows, shared), _version(response, model)
    except (ValueError, OverflowError) as error:
        raise RequestError(f"model {model.name}: the server's answer does not fit: {error}") from error


def _decoded(
    response: Any, model: ModelInfo, rows: int, shared: Callable[[str, tuple[int, ...]], Array] | None
) -> dict[str, Array]:
    tensors, values = response.outputs, response.raw_output_contents
    if len(tensors) != len(values):
        raise ValueError(f"it has {len(tensors)} outputs and {len(values)} values")
    given = {tensor.name: (tensor, raw) for tensor, raw in zip(tensors, values, strict=True)}
    if len(given) != len(tensors):
        raise ValueError("it has one output twice")
    lead = (rows,) if model.signature.batched else ()
    outputs = {}
    for spec in model.outputs:
        if spec.name not in given:
            raise ValueError(f"it lacks output {spec.name}")
        array = _output(*given.pop(spec.name), spec, (*lead, *wire_dims(spec, batched=bool(lead))), shared)
        outputs[spec.name] = array.reshape(array.shape[: len(lead) + len(spec.dims)])
    if given:
        raise ValueError(
            f"it has an output {next(iter(given))[:_LONGEST_NAME]}, which the model does not have"
        )
    return outputs


def _version(response: Any, model: ModelInfo) -> int:
    text = response.model_version or "0"
    if response.model_name not in ("", model.name):
        raise ValueError(f"it is of model {response.model_name[:_LONGEST_NAME]}")
    if not (text.isascii() and text.isdecimal() and len(text) < _LONGEST_NAME):
        raise ValueError(f"its version is {text[:_LONGEST_NAME]!r}")
    if model.version is not None and int(text) != model.version:
        raise ValueError(f"it is of version {text}, version {model.version} was requested")
    return int(text)


def _output(
    tensor: Any,
    raw: bytes,
    spec: TensorSpec,
    expected: tuple[int, ...],
    shared: Callable[[str, tuple[int, ...]], Array] | None,
) -> Array:
    """One output's array in Triton's shape, once its dtype, shape and size are as expected."""
    shape = tuple(tensor.shape)
    if tensor.datatype != spec.dtype:
        raise ValueError(f"output {spec.name} is {tensor.datatype[:_LONGEST_NAME]}, expected {spec.dtype}")
    if len(shape) != len(expected) or any(
        have < 0 or want not in (-1, have) for have, want in zip(shape, expected, strict=True)
    ):
        raise ValueError(f"output {spec.name} has the shape {_shown(shape)}, expected {_shown(expected)}")
    if shared is not None and not raw:
        return shared(spec.name, shape)
    count = math.prod(shape)
    if spec.dtype == "BYTES":
        array = _from_length_prefixed(raw)
        if len(array) != count:
            raise ValueError(
                f"output {spec.name} has {len(array)} strings, its shape {_shown(shape)} needs {count}"
            )
    else:
        dtype = _NUMPY[spec.dtype]
        if len(raw) != count * dtype.itemsize:
            raise ValueError(
                f"output {spec.name} has {len(raw)} bytes, its shape {_shown(shape)} needs {count * dtype.itemsize}"
            )
        if spec.dtype == "BOOL":  # any byte but 0 is true
            array = np.frombuffer(raw, np.uint8).astype(bool)
        else:
            array = np.frombuffer(bytearray(raw), dtype)
    return array.reshape(shape)


def _shown(shape: tuple[int, ...]) -> str:
    shown = ["?" if length == -1 else str(length) for length in shape[:_MOST_AXES]]
    return f"[{', '.join([*shown, '…'] if len(shape) > _MOST_AXES else shown)}]"


def _to_raw(array: Array) -> memoryview:
    if array.dtype != object:
        # As bytes: not every dtype (float16, bool) is one that memory views know.
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return memoryview(b"".join(len(value).to_bytes(4, "little") + value for value in array.ravel().tolist()))


def _tag(field: int) -> bytes:
    """What stands before a field of bytes or text."""
    return _varint(field << 3 | 2)


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def _from_length_prefixed(raw: bytes) -> Array:
    values, position = [], 0
    while position < len(raw):
        end = position + 4 + int.from_bytes(raw[position : position + 4], "little")
        if end > len(raw):
            raise ValueError("its strings are cut off")
        values.append(raw[position + 4 : end])
        position = end
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
