"""What a server says of a model: all that a client needs to know to ask it."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from unitrain.errors import ClientError
from unitrain.signature import DTYPES, Signature, TensorSpec

MAX_MESSAGE_BYTES = 2**31 - 1
"""gRPC's and Triton's limit; a message's own overhead is left out of `MAX_PAYLOAD_BYTES`."""
MAX_PAYLOAD_BYTES = MAX_MESSAGE_BYTES - 2**16

_MOST_TENSORS = 4096
_MOST_AXES = 32
"""Of numpy 1; numpy 2 has 64."""
_SCALAR_AXES = 2
"""Of a single value a row in Triton's messages: [rows, 1]."""
_LONGEST_NAME = 64
"""Characters that a message quotes of a name."""


@dataclass(frozen=True)
class ModelInfo:
    """A served model, as the server's own metadata describes it.

    Attributes:
        name: of the model.
        versions: that the server has ready, ascending.
        version: the one that is asked for; None leaves the choice to the server (the newest).
        signature: inputs and outputs; where it is batched, `dims` leave the batch axis out.
        max_batch_size: rows a request at most; 0 where the model takes whole arrays, one request each.
        url: of the server.
    """

    name: str
    versions: tuple[int, ...]
    version: int | None
    signature: Signature
    max_batch_size: int
    url: str

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs, in the server's order."""
        return self.signature.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs, in the server's order."""
        return self.signature.outputs

    @property
    def row_bytes(self) -> int:
        """Bytes that one row takes in the larger direction; unknown lengths count as 64, strings as 32 bytes."""
        return max(1, _bytes(self.inputs), _bytes(self.outputs))


def _bytes(specs: tuple[TensorSpec, ...], unknown_length: int = 64) -> int:
    total = 0
    for spec in specs:
        size = 32 if spec.dtype == "BYTES" else spec.numpy.itemsize
        for length in spec.dims:
            size *= unknown_length if length < 0 else length
        total += size
    return total


def wire_dims(spec: TensorSpec, *, batched: bool) -> tuple[int, ...]:
    """The dims that a tensor has in Triton's messages: [rows] is [rows, 1] there."""
    return spec.dims or ((1,) if batched else ())


def _is_scalar(tensor: Any) -> bool:
    """Whether the graph's own tensor is a single value a row, by Triton's ModelInput or ModelOutput message."""
    return tensor.HasField("reshape") and not tensor.reshape.shape and tuple(tensor.dims) == (1,)


def model_info(name: str, metadata: Any, config: Any, version: int | None, url: str) -> ModelInfo:
    """The model that Triton's ModelMetadataResponse and ModelConfig messages describe.

    Raises:
        ClientError: they describe no model that a client can query: dtypes that numpy lacks, shapes or numbers of
            tensors that no request can have, names that are missing or come twice.
    """
    where = f"{url}: model {name}"
    if metadata.name != name:
        raise ClientError(f"{where}: the server describes another model, {metadata.name[:_LONGEST_NAME]}")
    if config.max_batch_size < 0:
        raise ClientError(f"{where}: max_batch_size is {config.max_batch_size}, expected 0 or more")
    if not all(v.isascii() and v.isdecimal() and len(v) < _LONGEST_NAME for v in metadata.versions):
        raise ClientError(f"{where}: one of its versions is no number")
    batched = config.max_batch_size > 0
    # Triton takes no empty shape: a single value a row has length 1 outside of the graph.
    scalars = {t.name for t in (*config.input, *config.output) if batched and _is_scalar(t)}
    signature = Signature(
        _specs(metadata.inputs, "input", where, scalars, batched=batched),
        _specs(metadata.outputs, "output", where, scalars, batched=batched),
        batched,
    )
    info = ModelInfo(
        name, tuple(sorted(map(int, metadata.versions))), version, signature, config.max_batch_size, url
    )
    smallest = max(_bytes(info.inputs, 1), _bytes(info.outputs, 1))
    if smallest > MAX_PAYLOAD_BYTES:
        raise ClientError(
            f"{where}: a row has {smallest:.3g} bytes, over gRPC's limit of {MAX_PAYLOAD_BYTES:,}"
        )
    return info


def _specs(
    tensors: Any, kind: str, where: str, scalars: Collection[str], *, batched: bool
) -> tuple[TensorSpec, ...]:
    if not 1 <= len(tensors) <= _MOST_TENSORS:
        raise ClientError(f"{where}: it has {len(tensors)} {kind}s, expected 1 to {_MOST_TENSORS}")
    specs: dict[str, TensorSpec] = {}
    for tensor in tensors:
        shape, name = tuple(tensor.shape), tensor.name[:_LONGEST_NAME]
        if not tensor.name or not tensor.name.isprintable() or tensor.name in specs:
            raise ClientError(f"{where}: the name of {kind} {name!r} is empty, not printable, or comes twice")
        if tensor.datatype not in DTYPES:
            raise ClientError(
                f"{where}: {kind} {name} is {tensor.datatype[:_LONGEST_NAME]}, which numpy does not have; "
                f"expected one of {', '.join(DTYPES)}"
            )
        if len(shape) > _MOST_AXES or any(n < -1 for n in shape) or (batched and shape[:1] != (-1,)):
            raise ClientError(
                f"{where}: {kind} {name} has the shape {list(shape[:_MOST_AXES])}, which is no valid one"
            )
        dims = () if tensor.name in scalars and len(shape) == _SCALAR_AXES else shape[1 if batched else 0 :]
        specs[tensor.name] = TensorSpec(tensor.name, tensor.datatype, dims)
    return tuple(specs.values())
