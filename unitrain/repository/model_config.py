"""Triton's model configuration, config.pbtxt, as Triton's own ModelConfig message, which checks the schema."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from unitrain.errors import RepositoryError
from unitrain.signature import DTYPES, Signature, TensorSpec

ModelConfig: TypeAlias = Any
"""`tritonclient.grpc.model_config_pb2.ModelConfig`, which has no type stubs.

Its module imports gRPC, which takes 0.25 s; only functions that read or write a message import it."""

_DTYPE_OF = {row.config: row.triton for row in DTYPES.values()}


def model_config(
    name: str,
    signature: Signature,
    *,
    max_batch_size: int,
    num_versions: int,
    max_queue_delay_microseconds: int,
    warm_up: bool = False,
) -> ModelConfig:
    """Return the complete configuration of a model, so that Triton completes nothing by itself.

    Triton accepts no empty `dims`. A tensor with a single value per row gets length 1 and is reshaped to the
    graph's shape, so clients see `[rows, 1]`.

    Args:
        name: name of the served model.
        signature: inputs and outputs of the graph; Triton batches requests only if it is batched.
        max_batch_size: maximum rows of a request.
        num_versions: number of newest versions that are served side by side.
        max_queue_delay_microseconds: maximum time that a request waits for others.
        warm_up: True makes Triton run a request of zeros before it serves a version; open lengths are 1 in it.
    """
    from google.protobuf import json_format
    from tritonclient.grpc import model_config_pb2

    fields: dict[str, Any] = {
        "name": name,
        "backend": "onnxruntime",
        "max_batch_size": max_batch_size if signature.batched else 0,
        "input": [_tensor_fields(spec) for spec in signature.inputs],
        "output": [_tensor_fields(spec) for spec in signature.outputs],
        # Without a kind, Triton uses a GPU if there is one. Its default count on a CPU is 2, which is no
        # faster.
        "instance_group": [{"count": 1}],
        "version_policy": {"latest": {"num_versions": num_versions}},
        # A second thread doubles the CPU time by spinning.
        "parameters": {"intra_op_thread_count": {"string_value": "1"}},
    }
    if warm_up:
        fields["model_warmup"] = [_warm_up_fields(signature)]
    if signature.batched:
        fields["dynamic_batching"] = {"max_queue_delay_microseconds": max_queue_delay_microseconds}
    return json_format.ParseDict(fields, model_config_pb2.ModelConfig())


def write_config_text(config: ModelConfig) -> str:
    """Return the text of config.pbtxt."""
    from google.protobuf import text_format

    return text_format.MessageToString(config)


def read_config(path: Path) -> ModelConfig:
    """Read a config.pbtxt.

    Raises:
        RepositoryError: it can't be read, or is no model configuration.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except (OSError, ValueError, text_format.ParseError) as error:
        reason = " ".join(str(error).split())
        raise RepositoryError(f"{path} can't be read as Triton's model configuration: {reason}") from error


def signature_of(config: ModelConfig) -> Signature:
    """Return the inputs and outputs of the graph that a configuration describes.

    Raises:
        RepositoryError: a tensor has a type that numpy lacks.
    """
    return Signature(
        inputs=tuple(_spec_of(tensor, config.name) for tensor in config.input),
        outputs=tuple(_spec_of(tensor, config.name) for tensor in config.output),
        batched=config.max_batch_size > 0,
    )


def config_differences(there: ModelConfig, wanted: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """Return the fields that differ, as (first, second); None for a missing field."""
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


def changed_config(config: ModelConfig, changes: Mapping[str, Any]) -> ModelConfig:
    """Return a copy with changed fields.

    `parameters` and `dynamic_batching` are merged; a parameter's plain value becomes its string_value. Every
    other field is replaced, and its alternatives are removed (for example, `sequence_batching`).

    Args:
        config: configuration to copy.
        changes: values by Triton's field names; None removes a field.

    Raises:
        ValueError: the message has no such field, or its value has the wrong type.
    """
    from google.protobuf import json_format
    from tritonclient.grpc import model_config_pb2

    check_fields(changes, model_config_pb2.ModelConfig.DESCRIPTOR)
    fields = json_format.MessageToDict(config, preserving_proto_field_name=True)
    for name, value in changes.items():
        for group in model_config_pb2.ModelConfig.DESCRIPTOR.oneofs:
            alternatives = {field.name for field in group.fields}
            if name in alternatives:
                for other in alternatives - {name}:
                    fields.pop(other, None)
        if value is None:
            fields.pop(name, None)
        elif name == "parameters":
            fields[name] = fields.get(name, {}) | {
                key: v if isinstance(v, Mapping) else {"string_value": _parameter(v)}
                for key, v in value.items()
            }
        elif name == "dynamic_batching":
            fields[name] = fields.get(name, {}) | dict(value)
        else:
            fields[name] = value
    try:
        return json_format.ParseDict(fields, model_config_pb2.ModelConfig())
    except json_format.ParseError as error:
        raise ValueError(" ".join(str(error).split())) from error


def check_fields(value: Any, descriptor: Any, where: str = "") -> None:
    """Check that every name in nested mappings is a field of the message.

    Raises:
        ValueError: a name is no field; the message names the nearest.
    """
    if isinstance(value, list | tuple):
        for item in value:
            check_fields(item, descriptor, where)
    if not isinstance(value, Mapping):
        return
    for name, inner in value.items():
        field = descriptor.fields_by_name.get(str(name))
        if field is None:
            near = difflib.get_close_matches(str(name), descriptor.fields_by_name, n=1)
            hint = (
                f"did you mean {where}{near[0]}?"
                if near
                else f"it has {', '.join(descriptor.fields_by_name)}"
            )
            raise ValueError(f"Triton's {descriptor.name} has no field {where}{name}; {hint}")
        inner_type = field.message_type
        if inner_type is None:
            continue
        if inner_type.GetOptions().map_entry:
            of_values = inner_type.fields_by_name["value"].message_type
            for key, item in inner.items() if isinstance(inner, Mapping) and of_values else ():
                check_fields(item, of_values, f"{where}{name}.{key}.")
        else:
            check_fields(inner, inner_type, f"{where}{name}.")


def served_numbers(config: ModelConfig, versions: list[int]) -> set[int]:
    """Return the versions that Triton serves by a configuration's version policy, of ascending ones."""
    policy = config.version_policy
    if policy.HasField("all"):
        return set(versions)
    if policy.HasField("specific"):
        return set(policy.specific.versions) & set(versions)
    return set(versions[-max(policy.latest.num_versions, 1) :])


def _parameter(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _warm_up_fields(signature: Signature) -> dict[str, Any]:
    """Return the fields of a request of zeros; a single value per row has length 1 outside the graph."""
    inputs = {
        spec.name: {
            "data_type": DTYPES[spec.dtype].config,
            "dims": [max(length, 1) for length in spec.dims] or [1],
            "zero_data": True,
        }
        for spec in signature.inputs
    }
    return {"name": "zeros", "batch_size": 1 if signature.batched else 0, "inputs": inputs}


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
