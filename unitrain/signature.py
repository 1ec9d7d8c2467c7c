"""Signature of a model: named input and output tensors, and the table of dtypes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Dtype(NamedTuple):
    """One element type under the names that each part of the chain gives it."""

    triton: str  # in requests and metadata: FP32
    config: str  # in config.pbtxt: TYPE_FP32
    numpy: str  # np.dtype(...) accepts it; torch's name is the same but for bool and object
    onnx: str  # onnx.TensorProto's member


DTYPES: Mapping[str, Dtype] = {
    d.triton: d
    for d in (
        Dtype("BOOL", "TYPE_BOOL", "bool", "BOOL"),
        Dtype("UINT8", "TYPE_UINT8", "uint8", "UINT8"),
        Dtype("UINT16", "TYPE_UINT16", "uint16", "UINT16"),
        Dtype("UINT32", "TYPE_UINT32", "uint32", "UINT32"),
        Dtype("UINT64", "TYPE_UINT64", "uint64", "UINT64"),
        Dtype("INT8", "TYPE_INT8", "int8", "INT8"),
        Dtype("INT16", "TYPE_INT16", "int16", "INT16"),
        Dtype("INT32", "TYPE_INT32", "int32", "INT32"),
        Dtype("INT64", "TYPE_INT64", "int64", "INT64"),
        Dtype("FP16", "TYPE_FP16", "float16", "FLOAT16"),
        Dtype("FP32", "TYPE_FP32", "float32", "FLOAT"),
        Dtype("FP64", "TYPE_FP64", "float64", "DOUBLE"),
        Dtype("BYTES", "TYPE_STRING", "object", "STRING"),
    )
}
"""By Triton's name. BF16 is omitted, since numpy has no such type."""


def dtype_of_array(dtype: Any) -> Dtype:
    """Return the table's row for a numpy dtype, or for anything that np.dtype accepts.

    Raises:
        KeyError: for a dtype that Triton does not have.
    """
    kind = np.dtype(dtype)
    if kind.kind in "OSU":
        return DTYPES["BYTES"]
    for row in DTYPES.values():
        if row.numpy == kind.name:
            return row
    raise KeyError(kind.name)


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor of a model.

    Attributes:
        name: name in requests.
        dtype: Triton's name, a key of `DTYPES`.
        dims: the shape **without** the batch axis where the signature is batched; -1 is any length.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join('?' if d < 0 else str(d) for d in self.dims)}]"

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype of an array that holds it (object for BYTES)."""
        return np.dtype(DTYPES[self.dtype].numpy)


@dataclass(frozen=True)
class Signature:
    """All inputs and outputs of a model.

    Attributes:
        batched: True if every tensor has a leading batch axis, which `dims` omit.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool

    def __str__(self) -> str:
        rows = "each with a leading batch axis" if self.batched else "no batch axis"
        return f"({', '.join(map(str, self.inputs))}) -> ({', '.join(map(str, self.outputs))}), {rows}"

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict that `from_json` reads."""
        return {
            "batched": self.batched,
            "inputs": [{"name": t.name, "dtype": t.dtype, "dims": list(t.dims)} for t in self.inputs],
            "outputs": [{"name": t.name, "dtype": t.dtype, "dims": list(t.dims)} for t in self.outputs],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Signature":
        """Create a signature from the dict of `to_json`."""

        def specs(rows: Any) -> tuple[TensorSpec, ...]:
            return tuple(TensorSpec(r["name"], r["dtype"], tuple(r["dims"])) for r in rows)

        return cls(specs(data["inputs"]), specs(data["outputs"]), bool(data["batched"]))
