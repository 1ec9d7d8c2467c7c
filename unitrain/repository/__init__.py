"""Triton's model repository: versions appear and disappear atomically.

files + manifest → `Repository.new_version` → `<model>/config.pbtxt`, `<model>/<n>/{model.onnx, manifest.json, golden.npz}`
"""

from unitrain.repository.commit import ConfigChange, StagedVersion, check_signature
from unitrain.repository.layout import check_model_name
from unitrain.repository.model_config import (
    ModelConfig,
    changed_config,
    model_config,
    read_config,
    signature_of,
    write_config_text,
)
from unitrain.repository.repository import Repository, roll_back

__all__ = [
    "ConfigChange",
    "ModelConfig",
    "Repository",
    "StagedVersion",
    "changed_config",
    "check_model_name",
    "check_signature",
    "model_config",
    "read_config",
    "roll_back",
    "signature_of",
    "write_config_text",
]
