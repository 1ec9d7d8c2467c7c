"""Sample requests for a served version, built from its configuration and its golden samples.

Triton reports a model as ready after the process that runs it was killed. Only a request shows that it answers.
"""

import contextlib
import math
from pathlib import Path
from typing import Any

from unitrain.grpc_channel import pack_strings, unpack_strings
from unitrain.repository.integrity import read_golden
from unitrain.signature import DTYPES

_MAX_BYTES = 256 << 20
"""Size of the largest probe; a larger one every second would be a load of its own."""
_MAX_ITEM_BYTES = 8
_TRITON_TYPE = {row.config: row for row in DTYPES.values()}


def takes_single_requests(config: Any) -> bool:
    """Return whether one request can be sent by itself: the model has no sequences and no decoupled answers."""
    return not (config.HasField("sequence_batching") or config.model_transaction_policy.decoupled)


def probe_request(config: Any, version: int, version_dir: Path) -> Any | None:
    """Return a request of one row, or None if the model can't be probed.

    The row is the first golden sample. Without golden samples it has zeros and empty strings.

    Args:
        config: Triton's ModelConfig message.
        version: number of the version.
        version_dir: folder of the version.
    """
    if not takes_single_requests(config) or _bytes_of_zeros(config) > _MAX_BYTES:
        return None
    # The files may be another user's, or half copied.
    with contextlib.suppress(Exception):
        golden = read_golden(version_dir)
        if golden is not None:
            rows = config.max_batch_size > 0
            return _request(config, version, {n: a[:1] if rows else a for n, a in golden[0].items()})
    with contextlib.suppress(ValueError):
        return _request(config, version, {})
    return None


def golden_requests(config: Any, version: int, inputs: dict[str, Any]) -> list[Any]:
    """Return requests for all rows of golden inputs, none larger than `max_batch_size`.

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
    """Return the outputs of a ModelInferResponse by name.

    Raises:
        ValueError: the message contradicts itself.
    """
    import numpy as np

    outputs = {}
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if tensor.datatype == "BYTES":
            array = np.array(unpack_strings(raw), dtype=object)
        else:
            array = np.frombuffer(raw, DTYPES[tensor.datatype].numpy)
        outputs[tensor.name] = array.reshape(tuple(tensor.shape))
    return outputs


def _request(config: Any, version: int, arrays: dict[str, Any]) -> Any:
    """Return a request with these inputs; without any, one row of zeros and empty strings."""
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
            shape, content = list(array.shape), _pack(array, dtype.triton)
        else:
            shape = [1] * batch + [max(length, 1) for length in tensor.dims]
            content = _zeros(shape, dtype)
        request.inputs.add(name=tensor.name, datatype=dtype.triton, shape=shape)
        request.raw_input_contents.append(content)
    return request


def _bytes_of_zeros(config: Any) -> int:
    return _MAX_ITEM_BYTES * sum(
        int(math.prod(max(length, 1) for length in tensor.dims)) for tensor in config.input
    )


def _zeros(shape: list[int], dtype: Any) -> bytes:
    import numpy as np

    if dtype.triton == "BYTES":
        return bytes(4 * int(np.prod(shape)))  # each an empty string: its length, 0, in four bytes
    return bytes(int(np.prod(shape)) * np.dtype(dtype.numpy).itemsize)


def _pack(array: Any, triton_type: str) -> bytes:
    if triton_type != "BYTES":
        return bytes(array.astype(DTYPES[triton_type].numpy, copy=False).tobytes())
    return pack_strings(v if isinstance(v, bytes) else str(v).encode() for v in array.ravel())
