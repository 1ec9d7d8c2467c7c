"""config.pbtxt, by way of Triton's own ModelConfig message: its schema is checked for free."""

from pathlib import Path
from typing import Any, TypeAlias

from unitrain.errors import RepositoryError
from unitrain.tensors import DTYPES, Signature, TensorSpec

ModelConfig: TypeAlias = Any
"""`tritonclient.grpc.model_config_pb2.ModelConfig`, which has no type stubs; its module brings gRPC in, a
quarter of a second, so only what reads or writes a message imports it."""

_DTYPE_OF = {row.config: row.triton for row in DTYPES.values()}


def model_config(
    name: str,
    signature: Signature,
    *,
    max_batch_size: int,
    num_versions: int,
    max_queue_delay_microseconds: int,
) -> ModelConfig:
    """Everything that Triton needs to serve a model, leaving nothing for it to guess.

    A tensor that is a single value a row (`dims` empty) is written as one of length 1, reshaped to
    the graph's own shape, since Triton takes no empty `dims`: clients see `[rows, 1]`.

    Args:
        name: the served model's name.
        signature: of the graph; where it is not batched, Triton does not batch either.
        max_batch_size: rows a request at most.
        num_versions: newest versions that are served side by side.
        max_queue_delay_microseconds: how long a request may wait for others.
    """
    from google.protobuf import json_format
    from tritonclient.grpc import model_config_pb2

    fields: dict[str, Any] = {
        "name": name,
        "backend": "onnxruntime",
        "max_batch_size": max_batch_size if signature.batched else 0,
        "input": [_tensor_fields(spec) for spec in signature.inputs],
        "output": [_tensor_fields(spec) for spec in signature.outputs],
        # Without a kind: on a CPU where there is none, on a GPU where there is one. The default count
        # on a CPU is 2, which gains nothing.
        "instance_group": [{"count": 1}],
        "version_policy": {"latest": {"num_versions": num_versions}},
        # A second thread doubles the CPU time by spinning.
        "parameters": {"intra_op_thread_count": {"string_value": "1"}},
    }
    if signature.batched:
        fields["dynamic_batching"] = {"max_queue_delay_microseconds": max_queue_delay_microseconds}
    return json_format.ParseDict(fields, model_config_pb2.ModelConfig())


def write_config_text(config: ModelConfig) -> str:
    """The text of config.pbtxt."""
    from google.protobuf import text_format

    return text_format.MessageToString(config)


def read_config(path: Path) -> ModelConfig:
    """The message that a config.pbtxt holds.

    Raises:
        RepositoryError: it can't be read, or is none.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except (OSError, ValueError, text_format.ParseError) as error:
        reason = " ".join(str(error).split())
        raise RepositoryError(f"{path} can't be read as Triton's model configuration: {reason}") from error


def signature_of(config: ModelConfig) -> Signature:
    """The inputs and outputs of the graph that a configuration describes.

    Raises:
        RepositoryError: a tensor's type is none that numpy has.
    """
    return Signature(
        inputs=tuple(_spec_of(tensor, config.name) for tensor in config.input),
        outputs=tuple(_spec_of(tensor, config.name) for tensor in config.output),
        batched=config.max_batch_size > 0,
    )


def config_differences(there: ModelConfig, wanted: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """Fields that differ, as (in the first, in the second); None where one does not have it."""
    from google.protobuf import json_format

    first, second = (
        json_format.MessageToDict(config, preserving_proto_field_name=True) for config in (there, wanted)
    )
    fields = sorted(first.keys() | second.keys())
    return {
        field: (first.get(field), second.get(field))
        for field in fields
        if first.get(field) != second.get(field)
    }


def _tensor_fields(spec: TensorSpec) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": spec.name, "data_type": DTYPES[spec.dtype].config}
    if spec.dims:
        return fields | {"dims": list(spec.dims)}
    return fields | {"dims": [1], "reshape": {"shape": []}}


def _spec_of(tensor: Any, model: str) -> TensorSpec:
    from tritonclient.grpc import model_config_pb2

    config_name = model_config_pb2.DataType.Name(tensor.data_type)
    if config_name not in _DTYPE_OF:
        raise RepositoryError(
            f"{model}: tensor {tensor.name} has {config_name}, expected one of {', '.join(_DTYPE_OF)}"
        )
    dims = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
    return TensorSpec(tensor.name, _DTYPE_OF[config_name], tuple(dims))
