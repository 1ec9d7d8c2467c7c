"""What becomes of the config.pbtxt that is there: a person may have edited it, or the settings have changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unitrain.errors import RepositoryError
from unitrain.repository.model_config import ModelConfig, config_differences, read_config


@dataclass(frozen=True)
class ConfigChange:
    """What a publication does with config.pbtxt.

    Attributes:
        action: "write" (there is none), "same", "keep" (a person edited it), or "update" (only the
            settings changed).
        differences: (there, as the settings have it) by field.
    """

    action: Literal["write", "same", "keep", "update"]
    differences: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    def __str__(self) -> str:
        return "; ".join(
            f"{name}: {_text(a)} there, {_text(b)} by the settings"
            for name, (a, b) in self.differences.items()
        )


def config_change(config_path: Path, written_path: Path, wanted: ModelConfig) -> ConfigChange:
    """What is to be done, by three files: what is there, what we wrote last, what the settings ask for.

    Args:
        config_path: the model's config.pbtxt.
        written_path: our own copy of what was written last; absent, what is there counts as a person's.

    Raises:
        RepositoryError: a person edited it and the settings changed too, or it can't be read.
    """
    if not config_path.is_file():
        return ConfigChange("write")
    there = read_config(config_path)
    differences = config_differences(there, wanted)
    if not differences:
        return ConfigChange("same")
    if not written_path.is_file():
        return ConfigChange("keep", differences)
    ours = read_config(written_path)
    if not config_differences(ours, there):
        return ConfigChange("update", differences)
    change = ConfigChange("keep", differences)
    if config_differences(ours, wanted):
        raise RepositoryError(
            f"{config_path} was edited by hand, and the settings that it came from have changed too ({change}); "
            "bring the two together: put the edits under publish.config, or undo one of them"
        )
    return change


def check_labels(model_dir: Path, labels: Mapping[str, str]) -> None:
    """Nothing, where no label file is there, or the same.

    Raises:
        RepositoryError: the classes have other names: those who ask the model would be told wrong ones.
    """
    for name, text in labels.items():
        path = model_dir / name
        if not path.is_file():
            continue
        there, wanted = path.read_text().splitlines(), text.splitlines()
        if there != wanted:
            differing = [(a, b) for a, b in zip(there, wanted, strict=False) if a != b][:3]
            shown = ", ".join(f"{a} there and {b} now" for a, b in differing)
            raise RepositoryError(
                f"{path} names {len(there)} classes otherwise than the model's {len(wanted)} class_names "
                f"({shown or 'their number differs'}); publish under another name (publish.model), or remove the file"
            )


def _text(value: Any) -> str:
    return "nothing" if value is None else str(value)
