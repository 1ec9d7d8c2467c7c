"""Protocol buffer messages of a stream: requests from arrays, and arrays from answers.

`RequestBuilder` joins a request's rows and makes its message, by `Encoder` or in shared memory.
`decode_response` checks an answer against the model's metadata and returns its arrays.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from unitrain.client.input_validation import Array
from unitrain.client.metadata import MAX_PAYLOAD_BYTES, ModelInfo, wire_dims
from unitrain.client.streaming.batcher import join_rows
from unitrain.client.streaming.requests import Request, StreamOptions
from unitrain.errors import ClientError, DataError, RequestError
from unitrain.grpc_channel import pack_strings, unpack_strings
from unitrain.signature import DTYPES, TensorSpec

if TYPE_CHECKING:
    from unitrain.client.streaming.shared_memory import SharedMemory

_MAX_HEADERS = 1000
"""Maximum number of serialized headers, one a combination of shapes, that are kept."""

_MAX_NAME_LENGTH = 64
_MAX_AXES = 16
"""Characters of a name, and axes of a shape, that a message quotes of an answer."""

_NUMPY = {name: np.dtype(row.numpy) for name, row in DTYPES.items()}

SharedOutput = Callable[[str, tuple[int, ...]], Array]
"""Function that returns an output from shared memory, by name and shape."""


class RequestBuilder:
    """Make the messages of one stream's requests, and read their answers.

    Args:
        model: model that is queried.
        options: options of the stream.
        max_rows: maximum number of rows in a request.

    Raises:
        UsageError: shared memory was requested, and does not go with this server or model.
    """

    def __init__(self, model: ModelInfo, options: StreamOptions, max_rows: int) -> None:
        self._model = model
        self._allow_nan = options.allow_nan
        self._encoder = Encoder(model)
        self._last_number = 0
        self._memory = _shared_memory(model, options, max_rows) if options.shared_memory else None

    @property
    def uses_shared_memory(self) -> bool:
        """True if the server reads and writes memory of this process."""
        return self._memory is not None

    def build(self, request: Request) -> list[Request]:
        """Make a request's message, and return what has to be sent.

        That is the request; its halves if it was too large; or nothing if all its items are refused here.
        """
        where = f"sample {request.items[0].index}"
        memory, allocate = self._memory, None
        if memory is not None:
            slot = request.slot = memory.acquire(sum(item.rows for item in request.items))
            if slot is not None:
                allocate = functools.partial(memory.inputs, slot)
        try:
            arrays = join_rows(request.items, self._model, allow_nan=self._allow_nan, allocate=allocate)
            if arrays:
                self._last_number += 1
                request.number = self._last_number
                if memory is not None and request.slot is not None:
                    request.message = self._encoder.message(tuple(array.shape for array in arrays))
                    request.message.id = str(request.number)
                    memory.point_to_slot(request.message, request.slot, len(arrays[0]))
                elif len(request.items) > 1 and payload_bytes(arrays) > MAX_PAYLOAD_BYTES:
                    return self.split(request)
                else:
                    request.message = self._encoder.encode(arrays, request.number, where)
                return [request]
            request.error = ClientError("refused before sending")  # each item has a more precise error
        except DataError as error:
            request.error = error
        self.release(request)
        return []

    def split(self, request: Request) -> list[Request]:
        """Replace a request by its two halves, and return what has to be sent."""
        self.release(request)
        middle = len(request.items) // 2
        request.halves = [Request(request.items[:middle]), Request(request.items[middle:])]
        for half in request.halves:
            half.first_sent_s = request.first_sent_s
        return [part for half in request.halves for part in self.build(half)]

    def read_answer(self, request: Request, answer: Any) -> None:
        """Take a ModelInferResponse message as the request's answer."""
        shared = None
        if request.slot is not None and self._memory is not None and self._memory.holds_outputs:
            shared = functools.partial(self._memory.output, slot=request.slot)
        try:
            rows = sum(item.rows for item in request.items if item.error is None)
            request.outputs, request.version = decode_response(answer, self._model, rows, shared)
        except RequestError as error:
            request.error = RequestError(f"sample {request.items[0].index}: {error}", error.kind)
        request.message = None
        self.release(request)

    def release(self, request: Request) -> None:
        """Free the request's slot of shared memory: the server no longer uses it."""
        if request.slot is not None and self._memory is not None:
            self._memory.release(request.slot)
        request.slot = None

    def connect(self, unsent: Iterable[Request]) -> None:
        """Share the memory with a server after connecting to it; unanswered requests keep their slots.

        Raises:
            ClientError: the server refuses.
        """
        if self._memory is not None:
            waiting = [(r.slot, r.message) for r in unsent if r.slot is not None and not r.done()]
            self._memory.connect(waiting)

    @property
    def was_connected(self) -> bool:
        """True if a server has shared the memory, or if there is no shared memory."""
        return self._memory is None or self._memory.was_connected

    def close(self, *, idle: bool) -> None:
        """Free the shared memory.

        Args:
            idle: True if the server has answered all requests.
        """
        if self._memory is not None:
            self._memory.close(idle=idle)


def _shared_memory(model: ModelInfo, options: StreamOptions, max_rows: int) -> "SharedMemory":
    from unitrain.client.streaming.shared_memory import SharedMemory

    # Requests are built before there is room in the window for them: no more than these are unanswered.
    return SharedMemory(model, max_rows, slots=2 * options.window)


# --- encoding


class Encoder:
    """Serialize one model's requests; the part that they share is serialized once for each shape."""

    def __init__(self, model: ModelInfo) -> None:
        from tritonclient.grpc import service_pb2

        self._model = model
        self._headers: dict[tuple[tuple[int, ...], ...], bytes] = {}
        fields = service_pb2.ModelInferRequest.DESCRIPTOR.fields_by_name
        self._id_tag = _tag(fields["id"].number)
        self._raw_tag = _tag(fields["raw_input_contents"].number)

    def message(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        """Return a ModelInferRequest for inputs of these shapes, without values, id or outputs."""
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
        """Return a serialized ModelInferRequest.

        The values are copied once, into the message's bytes. The fields of a protocol buffer message may
        have any order, which is why the part that never changes comes first.

        Args:
            arrays: inputs in the signature's order, with a batch axis if the model has one.
            number: id of the request.
            where: start of error messages.

        Raises:
            DataError: it is larger than gRPC's limit.
        """
        size = payload_bytes(arrays)
        if size > MAX_PAYLOAD_BYTES:
            raise DataError(
                f"{where}: a request of {size:,} bytes exceeds gRPC's limit of {MAX_PAYLOAD_BYTES:,}; send fewer rows"
            )
        shapes = tuple([array.shape for array in arrays])
        header = self._headers.get(shapes)
        if header is None:
            if len(self._headers) >= _MAX_HEADERS:
                self._headers.clear()
            header = self._headers[shapes] = self.message(shapes).SerializeToString()
        request_id = str(number).encode()
        parts: list[Any] = [header, self._id_tag, _varint(len(request_id)), request_id]
        for array in arrays:
            raw = _to_raw(array)
            parts += (self._raw_tag, _varint(raw.nbytes), raw)
        return b"".join(parts)


def payload_bytes(arrays: list[Array]) -> int:
    """Return the number of bytes that the arrays take in a message."""
    total = 0
    for array in arrays:
        total += array.nbytes
        if array.dtype == object:
            total += sum(map(len, array.ravel().tolist()))
    return total


def _to_raw(array: Array) -> memoryview:
    if array.dtype != object:
        # As bytes: memory views lack some dtypes (float16, bool).
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return memoryview(pack_strings(array.ravel().tolist()))


def _tag(field: int) -> bytes:
    """Return the bytes before a field of bytes or text: its number and wire type."""
    return _varint(field << 3 | 2)


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


# --- decoding


def decode_response(
    response: Any, model: ModelInfo, rows: int, shared: SharedOutput | None = None
) -> tuple[dict[str, Array], int]:
    """Return an answer's outputs by name, writable and in the model's order, and the version that answered.

    Args:
        response: ModelInferResponse message.
        model: the model's metadata, with which the answer is compared.
        rows: number of rows in the request; ignored if the model has no batch axis.
        shared: reads an output that the server wrote into shared memory.

    Raises:
        RequestError: the answer does not fit the metadata or the request, or contradicts itself.
    """
    try:
        return _decode_outputs(response, model, rows, shared), _decode_version(response, model)
    except (ValueError, OverflowError) as error:
        raise RequestError(f"model {model.name}: the server's answer does not fit: {error}") from error


def _decode_outputs(
    response: Any, model: ModelInfo, rows: int, shared: SharedOutput | None
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
        expected = (*lead, *wire_dims(spec, batched=bool(lead)))
        array = _decode_tensor(*given.pop(spec.name), spec, expected, shared)
        outputs[spec.name] = array.reshape(array.shape[: len(lead) + len(spec.dims)])
    if given:
        raise ValueError(
            f"it has an output {next(iter(given))[:_MAX_NAME_LENGTH]}, which the model does not have"
        )
    return outputs


def _decode_version(response: Any, model: ModelInfo) -> int:
    text = response.model_version or "0"
    if response.model_name not in ("", model.name):
        raise ValueError(f"it is of model {response.model_name[:_MAX_NAME_LENGTH]}")
    if not (text.isascii() and text.isdecimal() and len(text) < _MAX_NAME_LENGTH):
        raise ValueError(f"its version is {text[:_MAX_NAME_LENGTH]!r}")
    if model.version is not None and int(text) != model.version:
        raise ValueError(f"it is of version {text}, version {model.version} was requested")
    return int(text)


def _decode_tensor(
    tensor: Any, raw: bytes, spec: TensorSpec, expected: tuple[int, ...], shared: SharedOutput | None
) -> Array:
    """Return one output's array in Triton's shape, after checking its dtype, shape and size."""
    shape = tuple(tensor.shape)
    if tensor.datatype != spec.dtype:
        raise ValueError(f"output {spec.name} is {tensor.datatype[:_MAX_NAME_LENGTH]}, expected {spec.dtype}")
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
    shown = ["?" if length == -1 else str(length) for length in shape[:_MAX_AXES]]
    return f"[{', '.join([*shown, '…'] if len(shape) > _MAX_AXES else shown)}]"


def _from_length_prefixed(raw: bytes) -> Array:
    """Return Triton's strings, each after its length in 4 bytes, as an array of bytes objects."""
    values = unpack_strings(raw)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
