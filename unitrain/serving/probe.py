"""A real inference that tells whether a served version answers.

Triton reports a model as ready after the process that runs it was killed; only a request shows it.
"""

import contextlib
import math
import struct
from pathlib import Path
from typing import Any

from unitrain.tensors import DTYPES

_MOST_BYTES = 256 << 20
"""A larger question, each second, would be a load of its own."""
_LARGEST_ITEM = 8
_TRITON_TYPE = {row.config: row for row in DTYPES.values()}


def probe_request(config: Any, version: int, golden_path: Path) -> Any | None:
    """A request of one row for a version, or None where a single request is no fair question.

    Args:
        config: Triton's ModelConfig message.
        version: which version it asks.
        golden_path: samples published with the version; zeros and empty strings where there are none.
    """
    from tritonclient.grpc import model_config_pb2, service_pb2

    if config.HasField("sequence_batching") or config.model_transaction_policy.decoupled:
        return None  # it would begin a sequence that nobody ends
    if _bytes_of_zeros(config) > _MOST_BYTES:
        return None
    request = service_pb2.ModelInferRequest(model_name=config.name, model_version=str(version))
    golden = _golden(golden_path)
    for tensor in config.input:
        dtype = _TRITON_TYPE.get(model_config_pb2.DataType.Name(tensor.data_type))
        if dtype is None:
            return None
        rows = [1] if config.max_batch_size > 0 else []
        shape = rows + [max(length, 1) for length in tensor.dims]
        array = golden.get(f"inputs/{tensor.name}")
        content = None
        # What lies there may be anybody's, or half copied.
        if array is not None and array.ndim > len(rows) and array.dtype.hasobject is False:
            with contextlib.suppress(ValueError, TypeError):
                sample = array[:1] if rows else array
                content = _content(sample, dtype.triton)
                shape = shape if tensor.HasField("reshape") else list(sample.shape)
        request.inputs.add(name=tensor.name, datatype=dtype.triton, shape=shape)
        request.raw_input_contents.append(_zeros(shape, dtype) if content is None else content)
    return request


def _golden(path: Path) -> dict[str, Any]:
    import numpy as np

    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return {}
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception:  # noqa: BLE001 - a damaged archive raises whatever its parts raise
        return {}


def _bytes_of_zeros(config: Any) -> int:
    return _LARGEST_ITEM * sum(
        int(math.prod(max(length, 1) for length in tensor.dims)) for tensor in config.input
    )


def _zeros(shape: list[int], dtype: Any) -> bytes:
    import numpy as np

    if dtype.triton == "BYTES":
        return bytes(4 * int(np.prod(shape)))  # each an empty string: its length, 0, in four bytes
    return bytes(int(np.prod(shape)) * np.dtype(dtype.numpy).itemsize)


def _content(array: Any, triton_type: str) -> bytes:
    if triton_type != "BYTES":
        return bytes(array.astype(DTYPES[triton_type].numpy, copy=False).tobytes())
    texts = (v if isinstance(v, bytes) else str(v).encode() for v in array.ravel())
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)
