"""The model repository: what Triton serves, one numbered folder a version, written whole or not at all."""

from unitrain.repository.commit import ConfigChange, check_signature
from unitrain.repository.layout import check_model_name
from unitrain.repository.model_config import (
    ModelConfig,
    changed_config,
    model_config,
    read_config,
    signature_of,
    write_config_text,
)
from unitrain.repository.repository import Repository

__all__ = [
    "ConfigChange",
    "ModelConfig",
    "Repository",
    "changed_config",
    "check_model_name",
    "check_signature",
    "model_config",
    "read_config",
    "signature_of",
    "write_config_text",
]
