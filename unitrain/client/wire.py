"""Requests and answers as Triton's protocol buffer messages."""

from collections.abc import Callable
from typing import Any

import numpy as np

from unitrain.client.arrays import Array
from unitrain.client.model import ModelInfo, wire_dims
from unitrain.errors import DataError, RequestError
from unitrain.tensors import DTYPES

MAX_MESSAGE_BYTES = 2**31 - 1
"""gRPC's and Triton's limit; a message's own overhead is left out of `MAX_PAYLOAD_BYTES`."""

_MOST_HEADS = 1000

_NUMPY = {name: np.dtype(row.numpy) for name, row in DTYPES.items()}

MAX_PAYLOAD_BYTES = MAX_MESSAGE_BYTES - 2**16


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


def graph_shapes(outputs: dict[str, Array], model: ModelInfo) -> dict[str, Array]:
    """Outputs as the graph gives them: a single value a row comes as [rows, 1] and is [rows]."""
    scalars = {spec.name for spec in model.outputs if model.signature.batched and not spec.dims}
    return {
        name: array.reshape(array.shape[:1]) if name in scalars and array.shape[1:] == (1,) else array
        for name, array in outputs.items()
    }


def payload_bytes(arrays: list[Array]) -> int:
    """Bytes that the arrays take in a message."""
    total = 0
    for array in arrays:
        total += array.nbytes
        if array.dtype == object:
            total += sum(map(len, array.ravel().tolist()))
    return total


def decode_response(
    response: Any, shared: Callable[[str, tuple[int, ...]], Array] | None = None
) -> tuple[dict[str, Array], int]:
    """The outputs by name (arrays of their own, writable) and the version of a ModelInferResponse message.

    Args:
        response: the message.
        shared: gives an output that the server wrote into shared memory, by name and shape.

    Raises:
        RequestError: the message contradicts itself.
    """
    outputs: dict[str, Array] = {}
    try:
        for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
            if shared is not None and not raw:
                outputs[tensor.name] = shared(tensor.name, tuple(tensor.shape))
                continue
            if tensor.datatype == "BYTES":
                array = _from_length_prefixed(raw)
            else:
                array = np.frombuffer(bytearray(raw), dtype=_NUMPY[tensor.datatype])
            outputs[tensor.name] = array.reshape(tuple(tensor.shape))
    except (KeyError, ValueError) as error:
        raise RequestError(
            f"model {response.model_name} gave an answer that can't be read: {error}"
        ) from error
    return outputs, int(response.model_version or 0)


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
        values.append(raw[position + 4 : end])
        position = end
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
