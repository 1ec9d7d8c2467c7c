"""A real inference that tells whether a served version answers.

Triton reports a model as ready after the process that runs it was killed; only a request shows it.
"""

import contextlib
import math
import struct
from pathlib import Path
from typing import Any

from unitrain.repository.integrity import read_golden
from unitrain.signature import DTYPES

_MOST_BYTES = 256 << 20
"""A larger question, each second, would be a load of its own."""
_LARGEST_ITEM = 8
_TRITON_TYPE = {row.config: row for row in DTYPES.values()}


def is_askable(config: Any) -> bool:
    """Whether a single request is a fair question: it begins no sequence that nobody ends."""
    return not (config.HasField("sequence_batching") or config.model_transaction_policy.decoupled)


def probe_request(config: Any, version: int, version_dir: Path) -> Any | None:
    """A request of one row for a version, or None where a single request is no fair question.

    Args:
        config: Triton's ModelConfig message.
        version: which version it asks.
        version_dir: its folder; the first golden sample is sent, zeros and empty strings where there is none.
    """
    if not is_askable(config) or _bytes_of_zeros(config) > _MOST_BYTES:
        return None
    # What lies there may be anybody's, or half copied.
    with contextlib.suppress(Exception):
        golden = read_golden(version_dir)
        if golden is not None:
            rows = config.max_batch_size > 0
            return _request(config, version, {n: a[:1] if rows else a for n, a in golden[0].items()})
    with contextlib.suppress(ValueError):
        return _request(config, version, {})
    return None


def golden_requests(config: Any, version: int, inputs: dict[str, Any]) -> list[Any]:
    """Requests for all rows of golden inputs, none larger than the model takes.

    Raises:
        ValueError: they do not fit the configuration.
        KeyError: an input is missing.
    """
    if config.max_batch_size <= 0:
        return [_request(config, version, inputs)]
    rows = len(next(iter(inputs.values())))
    return [
        _request(config, version, {n: a[start : start + config.max_batch_size] for n, a in inputs.items()})
        for start in range(0, rows, config.max_batch_size)
    ]


def outputs_of(response: Any) -> dict[str, Any]:
    """The outputs of a ModelInferResponse by name.

    Raises:
        ValueError: the message contradicts itself.
    """
    import numpy as np

    outputs = {}
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if tensor.datatype == "BYTES":
            array = np.array(_texts(raw), dtype=object)
        else:
            array = np.frombuffer(raw, DTYPES[tensor.datatype].numpy)
        outputs[tensor.name] = array.reshape(tuple(tensor.shape))
    return outputs


def _request(config: Any, version: int, arrays: dict[str, Any]) -> Any:
    """A request with these inputs; without any, of zeros and empty strings in one row."""
    from tritonclient.grpc import model_config_pb2, service_pb2

    request = service_pb2.ModelInferRequest(model_name=config.name, model_version=str(version))
    for tensor in config.input:
        dtype = _TRITON_TYPE.get(model_config_pb2.DataType.Name(tensor.data_type))
        if dtype is None:
            raise ValueError(f"{tensor.name} has a type that numpy does not have")
        batch = config.max_batch_size > 0
        if arrays:
            array = arrays[tensor.name]
            if tensor.HasField("reshape"):
                array = array.reshape([*array.shape[:batch], *tensor.dims])
            shape, content = list(array.shape), _content(array, dtype.triton)
        else:
            shape = [1] * batch + [max(length, 1) for length in tensor.dims]
            content = _zeros(shape, dtype)
        request.inputs.add(name=tensor.name, datatype=dtype.triton, shape=shape)
        request.raw_input_contents.append(content)
    return request


def _bytes_of_zeros(config: Any) -> int:
    return _LARGEST_ITEM * sum(
        int(math.prod(max(length, 1) for length in tensor.dims)) for tensor in config.input
    )


def _zeros(shape: list[int], dtype: Any) -> bytes:
    import numpy as np

    if dtype.triton == "BYTES":
        return bytes(4 * int(np.prod(shape)))  # each an empty string: its length, 0, in four bytes
    return bytes(int(np.prod(shape)) * np.dtype(dtype.numpy).itemsize)


def _texts(raw: bytes) -> list[bytes]:
    texts, place = [], 0
    while place < len(raw):
        (length,) = struct.unpack_from("<I", raw, place)
        texts.append(raw[place + 4 : place + 4 + length])
        place += 4 + length
    return texts


def _content(array: Any, triton_type: str) -> bytes:
    if triton_type != "BYTES":
        return bytes(array.astype(DTYPES[triton_type].numpy, copy=False).tobytes())
    texts = (v if isinstance(v, bytes) else str(v).encode() for v in array.ravel())
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)
