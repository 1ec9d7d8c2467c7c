"""Metadata of a served model: inputs, outputs, versions and limits, from Triton's messages."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from unitrain.errors import ClientError
from unitrain.signature import DTYPES, Signature, TensorSpec

MAX_MESSAGE_BYTES = 2**31 - 1
"""Maximum size of a message, by gRPC and Triton."""
MAX_PAYLOAD_BYTES = MAX_MESSAGE_BYTES - 2**16
"""Maximum size of a message's arrays, without the message's overhead."""

_MAX_TENSORS = 4096
_MAX_AXES = 32
"""numpy 1's limit; that of numpy 2 is 64."""
_SCALAR_AXES = 2
"""Number of axes of a single value a row in Triton's messages: [rows, 1]."""
_MAX_NAME_LENGTH = 64
"""Maximum number of characters that a message quotes of a name."""


@dataclass(frozen=True)
class ModelInfo:
    """Metadata of a served model, from the server.

    Attributes:
        name: name of the model.
        versions: versions that the server has ready, in ascending order.
        version: version to query; None leaves the choice to the server, which takes the newest.
        signature: inputs and outputs; if it is batched, `dims` do not include the batch axis.
        max_batch_size: maximum number of rows in a request; 0 if the model has no batch axis.
        url: `host:port` of the server's gRPC endpoint.
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
        """Size of one row's inputs or outputs, the larger; open lengths count as 64, strings as 32 bytes."""
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
    """Return the dims of a tensor in Triton's messages, where [rows] is [rows, 1]."""
    return spec.dims or ((1,) if batched else ())


def _is_scalar(tensor: Any) -> bool:
    """Return True if a ModelInput or ModelOutput message describes a single value a row in the graph."""
    return tensor.HasField("reshape") and not tensor.reshape.shape and tuple(tensor.dims) == (1,)


def model_info(name: str, metadata: Any, config: Any, version: int | None, url: str) -> ModelInfo:
    """Return the model that Triton's ModelMetadataResponse and ModelConfig messages describe.

    Raises:
        ClientError: a client can't query such a model: dtypes that numpy lacks, impossible shapes or numbers of
            tensors, names that are missing or duplicate.
    """
    where = f"{url}: model {name}"
    if metadata.name != name:
        raise ClientError(f"{where}: the server describes another model, {metadata.name[:_MAX_NAME_LENGTH]}")
    if config.max_batch_size < 0:
        raise ClientError(f"{where}: max_batch_size is {config.max_batch_size}, expected 0 or more")
    if not all(v.isascii() and v.isdecimal() and len(v) < _MAX_NAME_LENGTH for v in metadata.versions):
        raise ClientError(f"{where}: one of its versions is no number")
    batched = config.max_batch_size > 0
    # Triton has no empty shape: a single value a row has length 1 outside of the graph.
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
    if not 1 <= len(tensors) <= _MAX_TENSORS:
        raise ClientError(f"{where}: it has {len(tensors)} {kind}s, expected 1 to {_MAX_TENSORS}")
    specs: dict[str, TensorSpec] = {}
    for tensor in tensors:
        shape, name = tuple(tensor.shape), tensor.name[:_MAX_NAME_LENGTH]
        if not tensor.name or not tensor.name.isprintable() or tensor.name in specs:
            raise ClientError(f"{where}: the name of {kind} {name!r} is empty, not printable, or comes twice")
        if tensor.datatype not in DTYPES:
            raise ClientError(
                f"{where}: {kind} {name} is {tensor.datatype[:_MAX_NAME_LENGTH]}, which numpy does not have; "
                f"expected one of {', '.join(DTYPES)}"
            )
        if len(shape) > _MAX_AXES or any(n < -1 for n in shape) or (batched and shape[:1] != (-1,)):
            raise ClientError(
                f"{where}: {kind} {name} has the shape {list(shape[:_MAX_AXES])}, which is no valid one"
            )
        dims = () if tensor.name in scalars and len(shape) == _SCALAR_AXES else shape[1 if batched else 0 :]
        specs[tensor.name] = TensorSpec(tensor.name, tensor.datatype, dims)
    return tuple(specs.values())
