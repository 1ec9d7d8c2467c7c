"""Atomic commit of a version: its folder by one rename, and the change of config.pbtxt that comes with it."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unitrain.atomic_files import fsync_dir, fsync_tree, write_text
from unitrain.errors import RepositoryError
from unitrain.repository.layout import CONFIG_NAME, MODEL_NAME, entries
from unitrain.repository.model_config import (
    ModelConfig,
    config_differences,
    read_config,
    signature_of,
    write_config_text,
)
from unitrain.repository.staging import Staging
from unitrain.signature import Signature


@dataclass(frozen=True)
class StagedVersion:
    """Version that is being written.

    Attributes:
        path: empty folder for the version's files, beside the repository.
        number: version number that it gets.
    """

    path: Path
    number: int


@dataclass(frozen=True)
class ConfigChange:
    """Effect of a publication on config.pbtxt.

    Attributes:
        action: "write" (the file is missing), "same", "keep" (a user edited it), or "update" (only the
            settings changed).
        differences: (value in the file, value by the settings) by field.
    """

    action: Literal["write", "same", "keep", "update"]
    differences: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    def __str__(self) -> str:
        return "; ".join(
            f"{name}: {_shown(in_file)} there, {_shown(wanted)} by the settings"
            for name, (in_file, wanted) in self.differences.items()
        )


@contextlib.contextmanager
def stage_version(
    model_dir: Path, staging: Staging, config: ModelConfig | None, labels: Mapping[str, str]
) -> Iterator[StagedVersion]:
    """Yield a folder for a version's files, and commit it after the block; the model's lock must be held.

    An exception of the block discards the folder and passes through.

    Args:
        model_dir: the model's folder; created with the first version.
        staging: the model's staging area.
        config: written with the first version; later it replaces only a file that no user edited. None
            keeps the existing file.
        labels: label files' text by name.

    Raises:
        RepositoryError: the version does not fit the existing files, or it has no model.onnx.
        OSError: the disk refused it.
    """
    change = _checked_change(model_dir, staging, config, labels)
    first = change.action == "write"
    text = write_config_text(config) if config is not None else ""
    number = staging.next_number(model_dir)
    with staging.workspace() as work_dir:
        staged_model = work_dir / "model"
        staged = StagedVersion(staged_model / str(number), number)
        staged.path.mkdir(parents=True)
        yield staged
        if not (staged.path / MODEL_NAME).is_file():
            raise RepositoryError(f"{model_dir.name}: version {number} was written without a {MODEL_NAME}")
        os.utime(staged.path)  # its age, by which prune decides, starts now
        if first:
            write_text(staged_model / CONFIG_NAME, text)
            for name, content in labels.items():
                write_text(staged_model / name, content)
        fsync_tree(staged_model)
        # Before the rename: a number that a reader may have seen is never used again.
        staging.count(number)
        if change.action in ("write", "same") and config is not None:
            write_text(staging.config_path, text)
        if first:
            staged_model.rename(model_dir)
            fsync_dir(model_dir.parent)
        else:
            staged.path.rename(model_dir / str(number))
            fsync_dir(model_dir)
    if not first:
        _update_model_dir(model_dir, staging, change, text, labels)


def config_change(config_path: Path, written_path: Path, wanted: ModelConfig) -> ConfigChange:
    """Decide what to do with config.pbtxt, by the existing file, our last copy of it, and the settings.

    Args:
        config_path: the model's config.pbtxt.
        written_path: our own copy of what was written last; if it is missing, the file counts as edited.
        wanted: the configuration by the settings.

    Raises:
        RepositoryError: a user edited the file and the settings changed as well, or it can't be read.
    """
    if not config_path.is_file():
        return ConfigChange("write")
    there = read_config(config_path)
    differences = config_differences(there, wanted)
    if not differences:
        return ConfigChange("same")
    if not written_path.is_file():
        return ConfigChange("keep", differences)
    written = read_config(written_path)
    if not config_differences(written, there):
        return ConfigChange("update", differences)
    change = ConfigChange("keep", differences)
    if config_differences(written, wanted):
        raise RepositoryError(
            f"{config_path} was edited by hand, and the settings that it came from have changed as well "
            f"({change}); put the edits under publish.model_config.overrides, or undo one of the two changes"
        )
    return change


def check_signature(config_path: Path, signature: Signature) -> None:
    """Compare a signature with the published one; the order of tensors does not count.

    Raises:
        RepositoryError: the two differ; the message has both and the ways out.
    """
    published = signature_of(read_config(config_path))
    if _comparable(published) != _comparable(signature):
        raise RepositoryError(
            f"{config_path} was published for {published}, but the model now is {signature}; "
            "publish under another name (publish.model), or move the folder of the old model away"
        )


def check_labels(model_dir: Path, labels: Mapping[str, str]) -> None:
    """Compare class names with the label files that exist.

    Raises:
        RepositoryError: the classes have other names, so clients would show wrong ones.
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
                f"{path} has {len(there)} class names that differ from the model's {len(wanted)} class_names "
                f"({shown or 'their number differs'}); publish under another name (publish.model), or remove the file"
            )


def _checked_change(
    model_dir: Path, staging: Staging, config: ModelConfig | None, labels: Mapping[str, str]
) -> ConfigChange:
    """Check that the model's folder takes a version, and decide what to do with config.pbtxt."""
    config_path = model_dir / CONFIG_NAME
    if not config_path.is_file():
        _check_free(model_dir)
        if config is None:
            raise RepositoryError(f"there is no model {model_dir.name} in {model_dir.parent}")
    elif config is None:
        return ConfigChange("same")
    else:
        check_signature(config_path, signature_of(config))
        check_labels(model_dir, labels)
    return config_change(config_path, staging.config_path, config)


def _update_model_dir(
    model_dir: Path, staging: Staging, change: ConfigChange, text: str, labels: Mapping[str, str]
) -> None:
    """Write missing label files, then config.pbtxt if the settings changed it."""
    for name, content in labels.items():
        if not (model_dir / name).is_file():
            write_text(staging.dir / name, content)
            (staging.dir / name).rename(model_dir / name)
    if change.action == "update":
        work_path = staging.dir / f"new-{CONFIG_NAME}"  # outside the model's folder, where names count
        write_text(work_path, text)
        work_path.rename(model_dir / CONFIG_NAME)
        fsync_dir(model_dir)
        write_text(staging.config_path, text)


def _check_free(model_dir: Path) -> None:
    if model_dir.is_symlink() or (model_dir.exists() and not model_dir.is_dir()):
        raise RepositoryError(f"{model_dir} is a link or a file, expected a folder or nothing; move it away")
    present = [entry.name for entry in entries(model_dir)]
    if present:
        raise RepositoryError(
            f"{model_dir} holds {', '.join(present[:5])} but no {CONFIG_NAME}, so it is not known what it "
            "serves; put the file back, or move the folder away"
        )


def _comparable(signature: Signature) -> tuple[object, ...]:
    return signature.batched, frozenset(signature.inputs), frozenset(signature.outputs)


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)
