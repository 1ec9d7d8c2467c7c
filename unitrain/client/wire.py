"""Requests and answers as Triton's protocol buffer messages."""

from typing import Any

import numpy as np

from unitrain.client.arrays import Array
from unitrain.client.model import ModelInfo
from unitrain.errors import DataError, RequestError
from unitrain.tensors import DTYPES

MAX_MESSAGE_BYTES = 2**31 - 1
"""gRPC's and Triton's limit; a message's own overhead is left out of `_MAX_PAYLOAD_BYTES`."""

_MAX_PAYLOAD_BYTES = MAX_MESSAGE_BYTES - 2**16


def encode_request(model: ModelInfo, arrays: list[Array], request_id: int, where: str) -> Any:
    """A ModelInferRequest message of whole arrays, in the signature's order.

    Raises:
        DataError: it would be over gRPC's limit.
    """
    from tritonclient.grpc import service_pb2

    size = sum(array.nbytes for array in arrays)
    if size > _MAX_PAYLOAD_BYTES:
        raise DataError(
            f"{where}: a request of {size:,} bytes is over gRPC's limit of {_MAX_PAYLOAD_BYTES:,}; send fewer rows"
        )
    tensor = service_pb2.ModelInferRequest.InferInputTensor
    return service_pb2.ModelInferRequest(
        model_name=model.name,
        model_version="" if model.version is None else str(model.version),
        id=str(request_id),
        inputs=[
            tensor(name=spec.name, datatype=spec.dtype, shape=array.shape)
            for spec, array in zip(model.inputs, arrays, strict=True)
        ],
        raw_input_contents=[_to_raw(array) for array in arrays],
    )


def decode_response(response: Any) -> tuple[dict[str, Array], int]:
    """The outputs by name (arrays of their own, writable) and the version of a ModelInferResponse message.

    Raises:
        RequestError: the message contradicts itself.
    """
    outputs: dict[str, Array] = {}
    try:
        for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
            if tensor.datatype == "BYTES":
                array = _from_length_prefixed(raw)
            else:
                array = np.frombuffer(bytearray(raw), dtype=DTYPES[tensor.datatype].numpy)
            outputs[tensor.name] = array.reshape(tuple(tensor.shape))
    except (KeyError, ValueError) as error:
        raise RequestError(
            f"model {response.model_name} gave an answer that can't be read: {error}"
        ) from error
    return outputs, int(response.model_version or 0)


def _to_raw(array: Array) -> bytes:
    if array.dtype != object:
        return array.tobytes()
    return b"".join(len(value).to_bytes(4, "little") + value for value in array.ravel().tolist())


def _from_length_prefixed(raw: bytes) -> Array:
    values, position = [], 0
    while position < len(raw):
        end = position + 4 + int.from_bytes(raw[position : position + 4], "little")
        values.append(raw[position + 4 : end])
        position = end
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
