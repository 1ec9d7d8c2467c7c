"""What a server says of a model: all that a client needs to know to ask it."""

from dataclasses import dataclass
from typing import Any

from unitrain.errors import ClientError
from unitrain.tensors import DTYPES, Signature, TensorSpec


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


def _bytes(specs: tuple[TensorSpec, ...]) -> int:
    total = 0
    for spec in specs:
        size = 32 if spec.dtype == "BYTES" else spec.numpy.itemsize
        for length in spec.dims:
            size *= 64 if length < 0 else length
        total += size
    return total


def wire_dims(spec: TensorSpec, *, batched: bool) -> tuple[int, ...]:
    """The dims that a tensor has in Triton's messages: [rows] is [rows, 1] there."""
    return spec.dims or ((1,) if batched else ())


def _is_scalar(tensor: Any) -> bool:
    """Whether the graph's own tensor is a single value a row, by Triton's ModelInput or ModelOutput message."""
    return tensor.HasField("reshape") and not tensor.reshape.shape and tuple(tensor.dims) == (1,)


def model_info(metadata: Any, config: Any, version: int | None, url: str) -> ModelInfo:
    """The model that Triton's ModelMetadataResponse and ModelConfig messages describe.

    Raises:
        ClientError: a tensor's dtype is none that numpy has.
    """
    batched = config.max_batch_size > 0
    # Triton takes no empty shape: a single value a row has length 1 outside of the graph.
    scalars = {t.name for t in (*config.input, *config.output) if batched and _is_scalar(t)}

    for tensor in (*metadata.inputs, *metadata.outputs):
        if tensor.datatype not in DTYPES:
            raise ClientError(
                f"{url}: model {metadata.name}: tensor {tensor.name} is {tensor.datatype}, which numpy does not have; "
                f"expected one of {', '.join(DTYPES)}"
            )

    def specs(tensors: Any) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(t.name, t.datatype, () if t.name in scalars else tuple(t.shape)[1 if batched else 0 :])
            for t in tensors
        )

    return ModelInfo(
        name=metadata.name,
        versions=tuple(sorted(int(v) for v in metadata.versions)),
        version=version,
        signature=Signature(specs(metadata.inputs), specs(metadata.outputs), batched),
        max_batch_size=config.max_batch_size,
        url=url,
    )
