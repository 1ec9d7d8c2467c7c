"""Requests and answers as Triton's protocol buffer messages."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from unitrain.client.connection import Connection
from unitrain.client.input_validation import Array
from unitrain.client.metadata import MAX_PAYLOAD_BYTES, ModelInfo, wire_dims
from unitrain.client.streaming.batcher import join
from unitrain.client.streaming.requests import Request, StreamOptions
from unitrain.errors import ClientError, DataError, RequestError
from unitrain.grpc_channel import pack_strings, unpack_strings
from unitrain.signature import DTYPES, TensorSpec

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
    return memoryview(pack_strings(array.ravel().tolist()))


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
    values = unpack_strings(raw)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


if TYPE_CHECKING:
    from unitrain.client.streaming.shared_memory import SharedMemory


class Packer:
    """Makes the messages of one stream's requests and reads their answers.

    Raises:
        UsageError: shared memory was asked for, and can't be.
    """

    def __init__(self, model: ModelInfo, options: StreamOptions, max_rows: int) -> None:
        self._model = model
        self._allow_nan = options.allow_nan
        self._encoder = Encoder(model)
        self._last_number = 0
        self._memory = _shared(model, options, max_rows) if options.shared_memory else None

    @property
    def shares_memory(self) -> bool:
        """Whether the server reads and writes memory of ours."""
        return self._memory is not None

    def pack(self, request: Request) -> list[Request]:
        """What is to be sent for it: itself, its halves where it was too large, or nothing where all is refused."""
        where = f"sample {request.items[0].index}"
        memory, place = self._memory, None
        if memory is not None:
            slot = request.slot = memory.take(sum(item.rows for item in request.items))
            if slot is not None:
                place = functools.partial(memory.inputs, slot)
        try:
            arrays = join(request.items, self._model, allow_nan=self._allow_nan, place=place)
            if arrays:
                self._last_number += 1
                request.number = self._last_number
                if memory is not None and request.slot is not None:
                    request.message = self._encoder.message(tuple(array.shape for array in arrays))
                    request.message.id = str(request.number)
                    memory.fill(request.message, request.slot, len(arrays[0]))
                elif len(request.items) > 1 and payload_bytes(arrays) > MAX_PAYLOAD_BYTES:
                    return self.split(request)
                else:
                    request.message = self._encoder.encode(arrays, request.number, where)
                return [request]
            request.error = ClientError("refused before sending")  # each item has its own
        except DataError as error:
            request.error = error
        self.free(request)
        return []

    def split(self, request: Request) -> list[Request]:
        """What is to be sent in its stead: its two halves."""
        self.free(request)
        middle = len(request.items) // 2
        request.halves = [Request(request.items[:middle]), Request(request.items[middle:])]
        for half in request.halves:
            half.first_sent_s = request.first_sent_s
        return [part for half in request.halves for part in self.pack(half)]

    def unpack(self, request: Request, answer: Any) -> None:
        """Take a ModelInferResponse as the request's answer."""
        shared = None
        if request.slot is not None and self._memory is not None and self._memory.holds_outputs:
            shared = functools.partial(self._memory.output, slot=request.slot)
        try:
            rows = sum(item.rows for item in request.items if item.error is None)
            request.outputs, request.version = decode_response(answer, self._model, rows, shared)
        except RequestError as error:
            request.error = RequestError(f"sample {request.items[0].index}: {error}", error.kind)
        request.message = None
        self.free(request)

    def free(self, request: Request) -> None:
        """Its shared memory may be used again: the server is done with it."""
        if request.slot is not None and self._memory is not None:
            self._memory.give(request.slot)
        request.slot = None

    def open(self, connection: Connection, unsent: Iterable[Request]) -> None:
        """Share the memory with a server; unanswered requests keep their places in it.

        Raises:
            ClientError: it refuses.
        """
        if self._memory is not None:
            waiting = [(r.slot, r.message) for r in unsent if r.slot is not None and not r.done()]
            self._memory.open(waiting)

    @property
    def was_open(self) -> bool:
        """Whether a server has ever shared the memory."""
        return self._memory is None or self._memory.was_open

    def close(self, *, idle: bool) -> None:
        """Give the memory back; `idle`: the server has answered all that it was sent."""
        if self._memory is not None:
            self._memory.close(idle=idle)


def _shared(model: ModelInfo, options: StreamOptions, max_rows: int) -> "SharedMemory":
    from unitrain.client.streaming.shared_memory import SharedMemory

    # Requests are packed before there is room in the window for them: no more than these are unanswered.
    return SharedMemory(model, max_rows, slots=2 * options.window)
