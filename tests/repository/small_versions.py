"""A signature, its configuration, and the smallest version, for the tests beside this."""

from pathlib import Path

from unitrain.repository import ModelConfig, Repository, model_config
from unitrain.signature import Signature, TensorSpec

SIGNATURE = Signature(
    inputs=(TensorSpec("x", "FP32", (6, -1)), TensorSpec("mask", "BOOL", (6,))),
    outputs=(TensorSpec("code", "FP32", (24,)), TensorSpec("label", "INT64", ())),
    batched=True,
)


def config_of(signature: Signature = SIGNATURE, name: str = "codes") -> ModelConfig:
    return model_config(name, signature, max_batch_size=64, num_versions=2, max_queue_delay_microseconds=100)


def fill(version_dir: Path, number: int) -> None:
    (version_dir / "model.onnx").write_bytes(b"graph of %d" % number)


def publish(repository: Repository, config: ModelConfig | None) -> int:
    """Publish the smallest version of the model `codes`, and return its number."""
    with repository.new_version("codes", config) as staged:
        fill(staged.path, staged.number)
    return staged.number
